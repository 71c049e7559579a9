"""Block quantization: the error bound, the layout, and agreement with ONNX Runtime's operator."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgejudge.export.onnx_graph import IR_VERSION, OPSETS
from edgejudge.export.quantize import Quantized, dequantize, quantize


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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    inner=st.integers(1, 100),
    seed=st.integers(0, 2**16),
    weighted=st.booleans(),
    cut=st.integers(0, 40),
)
def test_a_search_never_does_worse_and_knows_no_other_rows(
    rows: int, inner: int, seed: int, weighted: bool, cut: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(3, (rows, inner)).astype(np.float32)
    importance = rng.gamma(1.0, 1.0, inner).astype(np.float32) if weighted else None
    plain = quantize(weight, 4, 32)
    found = quantize(weight, 4, 32, search=True, importance=importance)
    cost = np.ones(inner) if importance is None else importance

    def error(q: Quantized) -> NDArray[np.float64]:
        """Of each block, so that none pays for another."""
        squares = np.zeros((rows, q.scales.shape[1] * 32))
        squares[:, :inner] = (dequantize(q) - weight).astype(np.float64) ** 2 * cost
        return squares.reshape(rows, -1, 32).sum(-1)

    assert (error(found) <= error(plain) * (1 + 1e-4) + 1e-9).all()
    parts = [
        quantize(part, 4, 32, search=True, importance=importance)
        for part in (weight[:cut], weight[cut:])
        if len(part)
    ]
    assert (np.concatenate([p.levels for p in parts]) == found.levels).all()
    assert (np.concatenate([p.scales for p in parts]) == found.scales).all()


def test_a_search_gains_on_what_outliers_spoil() -> None:
    weight = np.random.default_rng(0).standard_t(4, (64, 256)).astype(np.float32)
    errors = [
        float(np.square(dequantize(quantize(weight, 4, 32, search)) - weight).sum())
        for search in (False, True)
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_operator_computes_what_dequantize_says(bits: int, search: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(48, 80)).astype(np.float32)
    x = rng.normal(size=(7, 80)).astype(np.float32)
    q = quantize(weight, bits, 32, search)
    assert not search or (q.scales < 0).any()
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
