"""Nodes that are not on the provider that was asked for are named, with a reason."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import on_devices as od
from edgejudge.errors import ProviderError
from edgejudge.runtime import assignment
from edgejudge.runtime.assignment import Elsewhere, check_strict, elsewhere, nodes_of
from edgejudge.runtime.provider import open_inner

CUDA = "CUDAExecutionProvider"
RECORD = {"session.record_ep_graph_assignment_info": "1"}


class Session:
    """What a session says of the nodes that it keeps on the CPU."""

    def __init__(self, *nodes: tuple[str, str, str]) -> None:
        self._nodes = [SimpleNamespace(op_type=o, name=n, domain=d) for o, n, d in nodes]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        group = SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: self._nodes)
        return [group]


def kernel(op: str, types: str, first: int = 1, last: int = 2**31 - 1) -> Any:
    return SimpleNamespace(
        provider=CUDA,
        op_name=op,
        domain="",
        version_range=(first, last),
        type_constraints={"T": [f"tensor({name})" for name in types.split()]},
    )


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A build that lists its kernels of CUDA."""
    kernels = [
        kernel("Add", "float float16"),
        kernel("Relu", "float", 6, 12),
        kernel("Gather", "float int64"),
        kernel("Shape", "float int64"),
        kernel("Mul", "float int64"),
    ]
    monkeypatch.setattr(assignment.native, "get_all_opkernel_def", lambda: kernels)
    assignment._kernels.cache_clear()
    yield
    assignment._kernels.cache_clear()


def several(folder: Path) -> Path:
    """Nodes that stay elsewhere for each of the reasons."""
    return od.write(
        folder / "several.onnx",
        [
            od.node("Det", "x", "det"),
            od.node("Relu", "x", "relu"),
            od.node("Shape", "x", "shape"),
            od.node("Gather", "shape zero", "rows"),
            od.node("Mul", "rows rows", "squared"),
            od.node("Add", "i i", "twice"),
            od.node("Add", "x x", "sum"),
        ],
        {"x": (od.FLOAT, ["n", 3, 3]), "i": (od.INT64, [2])},
        {
            "det": (od.FLOAT, None),
            "relu": (od.FLOAT, None),
            "squared": (od.INT64, []),
            "twice": (od.INT64, [2]),
            "sum": (od.FLOAT, None),
        },
        {"zero": 0},
    )


def test_on_the_cpu_nothing_is_elsewhere(tmp_path: Path) -> None:
    path = several(tmp_path)
    inner = open_inner(path, od.CPU, 1, config=RECORD)
    assert {node.op_type for _, node in nodes_of(inner)} >= {"Det", "Add", "Gather"}
    assert elsewhere(inner, "CPUExecutionProvider", path) == ()
    check_strict((), "CPUExecutionProvider", path.name)


def test_what_is_on_the_cpu_is_elsewhere_for_others(tmp_path: Path) -> None:
    path = several(tmp_path)
    inner = open_inner(path, od.CPU, 1, config=RECORD)
    found = {stray.node: stray for stray in elsewhere(inner, "WebGpuExecutionProvider", path)}
    assert found["Det_det"].provider == "CPUExecutionProvider" and found["Det_det"].op == "Det"
    assert found["Det_det"].reason == "it has no kernel for Det of float"
    assert found["Gather_rows"].reason == "ONNX Runtime computes shapes on the CPU on purpose"


@pytest.mark.usefixtures("cuda")
def test_each_reason(tmp_path: Path) -> None:
    path = several(tmp_path)
    strays = [
        ("Det", "Det_det", ""),
        ("Relu", "Relu_relu", ""),
        ("Gather", "Gather_rows", ""),
        ("Mul", "Mul_squared", ""),
        ("Add", "Add_twice", ""),
        ("Add", "Add_sum", ""),
        ("Add", "made by a fusion", ""),
        ("FusedMatMul", "", "com.microsoft"),
    ]
    reasons = [stray.reason for stray in elsewhere(Session(*strays), CUDA, path)]
    shapes = "ONNX Runtime computes shapes on the CPU on purpose"
    assert reasons == [
        "it has no kernel for Det",
        "it has a kernel for Relu, but not of opset 21",
        shapes,
        shapes,
        "it has a kernel for Add, but not for int64",
        "it has a kernel for Add, but ONNX Runtime chose the CPU",
        "it has a kernel for Add, but not for these types or this opset",
        "it has no kernel for FusedMatMul",
    ]


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_file_that_cannot_be_read_costs_the_reason_only(damage: str, tmp_path: Path) -> None:
    path = several(tmp_path)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-7] if damage == "cut" else b"\xff" * 30)
    (stray,) = elsewhere(Session(("Det", "Det_det", "")), "WebGpuExecutionProvider", path)
    assert stray.reason == "it has no kernel for this Det"


def test_strict_names_the_first_and_counts_the_others() -> None:
    strays = [Elsewhere("Det", f"d{n}", "CPUExecutionProvider", "why") for n in range(5)]
    with pytest.raises(ProviderError) as raised:
        check_strict(strays, CUDA, "gpu.vision.onnx")
    assert str(raised.value) == (
        "gpu.vision.onnx: 5 nodes would not run on CUDAExecutionProvider: Det d0 (why), "
        "Det d1 (why), Det d2 (why) and 2 more; drop --strict or place this stage on another device"
    )
    with pytest.raises(ProviderError, match=r": 1 node would not run on .*: Det \(why\); drop"):
        check_strict([Elsewhere("Det", "", "CPUExecutionProvider", "why")], CUDA, "a.onnx")


def test_webgpu(tmp_path: Path) -> None:
    gpu = od.device("WebGpuExecutionProvider")
    path = several(tmp_path)
    found = {
        stray.node: stray.reason
        for stray in elsewhere(open_inner(path, gpu, 1), gpu.provider, path)
    }
    assert found["Det_det"] == "it has no kernel for Det of float"
    assert found["Gather_rows"] == "ONNX Runtime computes shapes on the CPU on purpose"
    assert found["Add_twice"] == "it has no kernel for Add of int64"
    assert "Relu_relu" not in found and "Add_sum" not in found
    with pytest.raises(ProviderError, match=r"nodes would not run on WebGpu.*Det Det_det \(it has"):
        open_inner(path, gpu, 1, strict=True)
    whole = od.relu(tmp_path / "whole.onnx")
    assert elsewhere(open_inner(whole, gpu, 1, strict=True), gpu.provider, whole) == ()


def test_qnn(tmp_path: Path) -> None:
    npu = od.device("QNNExecutionProvider")
    path = od.quantized(tmp_path / "declined.onnx", declined=True)
    inner = open_inner(path, npu, 1)
    found = {stray.node: stray.reason for stray in elsewhere(inner, npu.provider, path)}
    assert found["QuantizeLinear_xq"] == "what comes in and goes out is quantized on the CPU"
    assert found["Det_det"] == "its compiler declined it"
    assert found["BitShift_shifted"] == "its compiler declined it for uint64"
    with pytest.raises(ProviderError) as raised:
        open_inner(path, npu, 1, strict=True)
    assert "Det Det_det (its compiler declined it)" in str(raised.value)
    assert "QuantizeLinear" not in str(raised.value), "a strict session quantizes on the device"
    whole = od.quantized(tmp_path / "whole.onnx")
    assert elsewhere(open_inner(whole, npu, 1, strict=True), npu.provider, whole) == ()
