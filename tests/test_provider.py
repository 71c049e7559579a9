"""A model file on a device, or one sentence why it is not there."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import pytest

import on_devices as od
from edgejudge.errors import BundleError, EdgeJudgeError, ProviderError
from edgejudge.runtime import devices, provider
from edgejudge.runtime.placement import Device
from edgejudge.runtime.provider import BUILT_IN, open_inner, provider_options, session_options

QNN = Device("npu", "QNNExecutionProvider", "2.7.0", (), simulator=True)
X = {"x": np.array([-1, 0, 1, 2], np.float32)}


def sentence(error: pytest.ExceptionInfo[EdgeJudgeError]) -> str:
    text = str(error.value)
    assert "\n" not in text and "; " in text and "/onnxruntime_src/" not in text
    return text


def test_the_cpu(tmp_path: Path) -> None:
    path = od.relu(tmp_path / "g.onnx")
    for lean in (False, True):
        inner = open_inner(path, od.CPU, 2, lean=lean, strict=True)
        assert inner.get_providers() == ["CPUExecutionProvider"]
        assert inner.run(None, X)[0].tolist() == [0, 0, 1, 2]


def test_options() -> None:
    options = session_options(od.CPU, 3, lean=True, config={"a.b": "c"})
    assert options.intra_op_num_threads == 3 and options.inter_op_num_threads == 1
    assert not options.enable_cpu_mem_arena
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert options.get_session_config_entry("a.b") == "c"
    assert session_options(od.CPU, 1).enable_cpu_mem_arena
    simulated = replace(QNN, options=(("htp_performance_mode", "burst"),))
    assert provider_options(simulated) == {"htp_arch": "73", "htp_performance_mode": "burst"}
    assert provider_options(replace(simulated, simulator=False)) == dict(simulated.options)
    assert provider_options(replace(QNN, options=(("htp_arch", "79"),))) == {"htp_arch": "79"}


@pytest.mark.parametrize("content", [None, b"no graph"])
def test_a_file_at_fault(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError) as error:
        open_inner(path, od.CPU, 1)
    assert "cannot load it on CPUExecutionProvider (" in sentence(error)


def test_a_provider_that_nobody_has(tmp_path: Path) -> None:
    with pytest.raises(ProviderError) as error:
        open_inner(od.relu(tmp_path / "g.onnx"), Device("npu", "CoreMLExecutionProvider"), 1)
    assert "is without CoreMLExecutionProvider, it has " in sentence(error)


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    with pytest.raises(ProviderError) as error:
        open_inner(od.relu(tmp_path / "g.onnx"), Device("npu", "OpenVINOExecutionProvider"), 1)
    assert "pip install onnxruntime-ep-openvino" in sentence(error)


def test_a_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("onnxruntime_ep_openvino")
    (tmp_path / "broken.so").write_bytes(b"no library")
    module.get_library_path = lambda: str(tmp_path / "broken.so")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", module)
    monkeypatch.setattr(devices, "_registered", set())
    with pytest.raises(ProviderError) as error:
        open_inner(od.relu(tmp_path / "g.onnx"), Device("npu", "OpenVINOExecutionProvider"), 1)
    assert "the library of onnxruntime-ep-openvino does not load (" in sentence(error)


def test_a_plugin_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "register", lambda module, name: None)
    with pytest.raises(ProviderError) as error:
        session_options(Device("npu", "OpenVINOExecutionProvider"), 1)
    assert "finds no device here" in sentence(error)


def test_what_is_left_to_the_cpu_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Device("gpu", "CUDAExecutionProvider")
    monkeypatch.setattr(provider, "BUILT_IN", BUILT_IN | {gpu.provider})
    options = session_options(gpu, 1, strict=True)
    for name, value in (
        ("session.qdq_matmulnbits_accuracy_level", "0"),
        ("session.record_ep_graph_assignment_info", "1"),
        ("session.disable_cpu_ep_fallback", "1"),
    ):
        assert options.get_session_config_entry(name) == value


def test_a_provider_that_onnx_runtime_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA's, whose driver is missing: the session opens, on the CPU."""
    wrong = Device("gpu", "CUDAExecutionProvider")
    monkeypatch.setattr(provider, "BUILT_IN", BUILT_IN | {wrong.provider})
    opened = ort.InferenceSession

    def on_the_cpu(path: str, options: ort.SessionOptions, **_: object) -> ort.InferenceSession:
        return opened(path, options, providers=["CPUExecutionProvider"])

    preloaded: list[int] = []
    monkeypatch.setattr(ort, "preload_dlls", lambda: preloaded.append(1))
    monkeypatch.setattr(ort, "InferenceSession", on_the_cpu)
    with pytest.raises(ProviderError) as error:
        open_inner(od.relu(tmp_path / "g.onnx"), wrong, 1)
    assert "asked for CUDAExecutionProvider, ONNX Runtime chose CPU" in sentence(error)
    assert preloaded, "libraries that pip installed are in no search path"


def test_messages_without_places_in_sources() -> None:
    for said, gist in (
        ("[ONNXRuntimeError] : 1 : FAIL : Bad thing.\nmore", "Bad thing"),
        ("/a/b.cc:65 f() status == 1 was false. No adapter. ", "No adapter"),
        ("/a/b.cc:1 f() Error: [ONNXRuntimeError] : 11 : EP_FAIL : No.", "No"),
        ("plain", "plain"),
        ("", "ValueError"),
    ):
        assert provider._message(ValueError(said)) == gist


def test_a_driver_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, gone = tmp_path / "a.json", tmp_path / "b.json"
    there.touch()
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.setenv("VK_ICD_FILENAMES", f"{there}{os.pathsep}{gone}")
    assert provider._missing_driver() == ("VK_ICD_FILENAMES", str(gone))
    monkeypatch.setenv("VK_DRIVER_FILES", str(there))
    assert provider._missing_driver() is None
    assert "Vulkan driver" in provider._help("WebGpuExecutionProvider")


def test_webgpu(tmp_path: Path) -> None:
    gpu = od.device("WebGpuExecutionProvider")
    inner = open_inner(od.relu(tmp_path / "g.onnx"), gpu, 1, lean=True)
    assert inner.get_providers()[0] == gpu.provider
    assert inner.run(None, X)[0].tolist() == [0, 0, 1, 2]


OPENS = """
import sys
from pathlib import Path
from edgejudge.errors import ProviderError
from edgejudge.runtime.placement import Device
from edgejudge.runtime.provider import open_inner
try:
    open_inner(Path(sys.argv[1]), Device("gpu", "WebGpuExecutionProvider"), 1)
except ProviderError as error:
    print(error)
"""


@pytest.mark.parametrize("driver", ["wrong", "none"])
def test_webgpu_without_a_driver(driver: str, tmp_path: Path) -> None:
    od.device("WebGpuExecutionProvider")
    environment = dict(os.environ)
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        environment.pop(name, None)
    empty = tmp_path / "driver.json"
    empty.write_text("{}")
    wrong = tmp_path / "missing.json"
    environment["VK_DRIVER_FILES"] = str(wrong if driver == "wrong" else empty)
    path = od.relu(tmp_path / "g.onnx")
    done = subprocess.run(
        [sys.executable, "-c", OPENS, path], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("g.onnx: WebGpuExecutionProvider cannot load it (Failed to get a WebGPU")
    if driver == "wrong":
        assert line.endswith(
            f"VK_DRIVER_FILES names the driver {wrong}, which does not exist: correct it"
        )
    else:
        assert "check that the graphics card has a Vulkan driver" in line


def test_qnn(tmp_path: Path) -> None:
    npu = od.device("QNNExecutionProvider")
    inner = open_inner(od.quantized(tmp_path / "g.onnx"), npu, 1)
    x = np.random.default_rng(0).uniform(-3, 3, (8, 64)).astype(np.float32)
    exact = {"session.qdq_matmulnbits_accuracy_level": "0"}
    cpu = open_inner(tmp_path / "g.onnx", od.CPU, 1, config=exact)
    reference = cpu.run(None, {"x": x})[0]
    np.testing.assert_allclose(inner.run(None, {"x": x})[0], reference, atol=20 / 65535 * 1.01)


def test_qnn_that_takes_nothing(tmp_path: Path) -> None:
    """What it does with a library that is missing, and with a graph that is not for it."""
    npu = od.device("QNNExecutionProvider")
    missing = replace(npu, options=(("backend_path", str(tmp_path / "libQnnHtp.so")),))
    with pytest.raises(ProviderError) as error:
        open_inner(od.quantized(tmp_path / "g.onnx"), missing, 1)
    assert "g.onnx: QNNExecutionProvider took none of its nodes; " in sentence(error)
