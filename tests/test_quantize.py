"""Block quantization: the error bound, the layout, and agreement with ONNX Runtime's operator."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgejudge.export.onnx_ops import IR_VERSION, OPSETS
from edgejudge.export.quantize import dequantize, quantize


@pytest.mark.parametrize("bits", [8, 4])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 5),
    inner=st.integers(1, 100),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 2**16),
)
def test_round_trip_error_is_half_a_step(
    bits: int, rows: int, inner: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(rows, inner)) * scale).astype(np.float32)
    q = quantize(weight, bits, 32)
    back = dequantize(q)
    assert back.shape == weight.shape and back.dtype == np.float32
    assert q.levels.shape == (rows, -(-inner // 32), 32 * bits // 8)
    steps = np.repeat(q.scales, 32, axis=1)[:, :inner]
    assert (np.abs(back - weight) <= steps * 0.5001 + 1e-37).all()
    # Quantizing what was quantized changes nothing: a rebuild from a bundle is stable.
    again = quantize(back, bits, 32)
    assert (again.levels == q.levels).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_operator_computes_what_dequantize_says(bits: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(48, 80)).astype(np.float32)
    x = rng.normal(size=(7, 80)).astype(np.float32)
    q = quantize(weight, bits, 32)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        N=48,
        K=80,
        bits=bits,
        block_size=32,
        accuracy_level=1,
    )
    found = _run(node, x, q.levels, q.scales)
    assert np.abs(found - x @ dequantize(q).T).max() < 1e-4
    # A number never depends on what else is in the pass.
    alone = np.concatenate([_run(node, row[None], q.levels, q.scales) for row in x])
    assert np.abs(found - alone).max() < 1e-4


def _run(
    node: object, x: NDArray[np.float32], levels: NDArray[np.uint8], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", 80])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", 48])],
        [numpy_helper.from_array(levels, "w"), numpy_helper.from_array(scales, "s")],
    )
    model = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(d, v) for d, v in OPSETS.items()],
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    out: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return out
