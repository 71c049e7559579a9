"""One linear layer, exported and run, as a function of its input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

import tiny
from edgejudge.export import Plan
from edgejudge.export.ledger import Ledger
from edgejudge.export.onnx_ops import OnnxOps
from edgejudge.export.store import WeightStore

NAME, BIAS = "layers.0.up_proj.weight", "layers.0.up_proj.bias"


def run_layer(
    folder: Path, matrix: np.ndarray, plan: Plan, bias: np.ndarray | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """x [1, S, K] -> [1, S, N], by ONNX Runtime; the plan knows the matrix as NAME."""
    held = {NAME: matrix} if bias is None else {NAME: matrix, BIAS: bias}
    with WeightStore(folder) as store:
        ops = OnnxOps("one", tiny.Held(held), plan, store, Ledger(lambda _: "decoder"))
        x = ops.input("x", "float32", 1, "s", matrix.shape[1])
        y = ops.linear(x, NAME, None if bias is None else BIAS)
        ops.output(y, "y", "float32", 1, "s", matrix.shape[0])
    (folder / "one.onnx").write_bytes(ops.model())
    session = ort.InferenceSession(str(folder / "one.onnx"), providers=["CPUExecutionProvider"])

    def run(x: np.ndarray) -> np.ndarray:
        (found,) = session.run(None, {"x": x.astype(np.float32)})
        return np.asarray(found)

    return run
