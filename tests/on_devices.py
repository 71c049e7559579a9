"""Small graphs for providers, and whether a provider is here to run them."""

import functools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgejudge.errors import ProviderError
from edgejudge.runtime.devices import survey
from edgejudge.runtime.placement import Device
from edgejudge.runtime.provider import open_inner

# `make providers` sets it: there nothing may be skipped that the machine can run.
MUST = bool(os.environ.get("EDGEJUDGE_PROVIDERS"))
CPU = Device("cpu", "CPUExecutionProvider")
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """Its name is that of the operator with the first output: Relu_y"""
    outs = outputs.split()
    return helper.make_node(
        op, inputs.split(), outs, name=f"{op}_{outs[0]}", domain=domain, **attributes
    )


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any] | None]],
    constants: dict[str, Any] | None = None,
    external: bool = False,
) -> Path:
    values = [helper.make_tensor_value_info(n, *t) for n, t in inputs.items()]
    results = [helper.make_tensor_value_info(n, *t) for n, t in outputs.items()]
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", values, results, held)
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=sets)
    extra: dict[str, Any] = {"location": f"{path.stem}.bin", "size_threshold": 100}
    onnx.save(model, path, save_as_external_data=external, **(extra if external else {}))
    return path


def relu(path: Path) -> Path:
    return write(path, [node("Relu", "x", "y")], {"x": (FLOAT, [4])}, {"y": (FLOAT, [4])})


def quantized(path: Path, declined: bool = False) -> Path:
    """A 16-bit matrix product, x [8, 64] to y [8, 64]; with a determinant and doubles after it,
    which no accelerator takes, if `declined`.
    """
    weight = np.random.default_rng(0).integers(-127, 128, (64, 64)).astype(np.int8)
    constants = {
        "xs": np.float32(8 / 65535),
        "xz": np.array(32768, np.uint16),
        "w": weight,
        "ws": np.float32(0.002),
        "wz": np.array(0, np.int8),
        "ys": np.float32(20 / 65535),
    }
    last = "product" if declined else "y"
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("DequantizeLinear", "xq xs xz", "xd"),
        node("DequantizeLinear", "w ws wz", "wd"),
        node("MatMul", "xd wd", "m"),
        node("QuantizeLinear", "m ys xz", "mq"),
        node("DequantizeLinear", "mq ys xz", last),
    ]
    outputs: dict[str, tuple[int, list[Any] | None]] = {"y": (FLOAT, [8, 64])}
    if declined:
        constants["shape"] = np.array([8, 8, 8], np.int64)
        constants["large"] = np.random.default_rng(1).integers(0, 9, (64, 64, 8)).astype(np.uint64)
        nodes += [
            node("Reshape", "product shape", "cubes"),
            node("Det", "cubes", "det"),
            node("Cast", "det", "whole", to=TensorProto.UINT64),
            node("BitShift", "large whole", "shifted", direction="LEFT"),
            node("Cast", "shifted", "y", to=FLOAT),
        ]
        outputs = {"y": (FLOAT, [64, 64, 8])}
    return write(path, nodes, {"x": (FLOAT, [8, 64])}, outputs, constants, external=declined)


@functools.cache
def device(provider: str) -> Device:
    """It, where it is and opens a graph; otherwise the test is skipped, but for MUST."""
    found, missing = survey()
    for one in found:
        if one.provider == provider:
            here = Device(one.kind, provider, one.version, (), one.simulator)
            graph = relu if provider != "QNNExecutionProvider" else quantized
            with tempfile.TemporaryDirectory() as folder:
                try:
                    open_inner(graph(Path(folder) / "g.onnx"), here, 1)
                except ProviderError as error:
                    if MUST:
                        raise
                    pytest.skip(str(error))
            return here
    (reason,) = (one.reason for one in missing if one.provider == provider)
    assert not MUST or provider != "QNNExecutionProvider", reason
    pytest.skip(reason)
