"""Operations of towers with a class token and a layer scale mean the same in every backend."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

import tiny
from edgejudge.export import Exact, Plan, recipe_named
from edgejudge.export.eager import EagerOps
from edgejudge.export.gpu_ops import FusedGpuOps, PlainGpuOps
from edgejudge.export.ledger import Ledger
from edgejudge.export.npu_ops import NpuOps
from edgejudge.export.onnx_ops import OnnxOps
from edgejudge.export.ranges import RangeOps
from edgejudge.export.store import WeightStore

torch.set_num_threads(1)
GRID, WIDTH = 4, 6
TOKENS = GRID**2
_DRAWN = np.random.default_rng(0).standard_normal
HELD = tiny.Held(
    {
        "scales": _DRAWN(WIDTH).astype("f4"),
        "first": _DRAWN((1, 1, WIDTH)).astype("f4"),
        "flat_first": _DRAWN(WIDTH).astype("f4"),
        "places": _DRAWN((1, TOKENS + 3, WIDTH)).astype("f4"),
        "flat_places": _DRAWN((TOKENS + 3, WIDTH)).astype("f4"),
    }
)
ROWS = np.arange(TOKENS)[::-1] + 2


def through_a_tower(ops: Any, x: Any) -> Any:
    """As InternVL's has them, one after another."""
    x = ops.add(ops.prepend(x, "first"), ops.table("places", np.arange(TOKENS + 1)))
    return ops.pixel_shuffle(ops.skip(ops.add(x, ops.scale(x, "scales")), 1), GRID, 2)


CASES: dict[str, Callable[[Any, Any], Any]] = {
    "scale": lambda ops, x: ops.scale(x, "scales"),
    "prepend": lambda ops, x: ops.prepend(x, "first"),
    "prepend one of a single dimension": lambda ops, x: ops.prepend(x, "flat_first"),
    "skip": lambda ops, x: ops.skip(x, 1),
    "skip several": lambda ops, x: ops.skip(x, 5),
    "table": lambda ops, x: ops.add(x, ops.table("flat_places", ROWS)),
    "table with a dimension before": lambda ops, x: ops.add(x, ops.table("places", ROWS)),
    "prepend and skip": lambda ops, x: ops.skip(ops.prepend(x, "first"), 1),
    "all of them": through_a_tower,
}
MAKERS: dict[str, tuple[Callable[..., Any], str, float]] = {
    "cpu": (OnnxOps, "float32", 1e-6),
    "gpu, fused": (lambda *g: FusedGpuOps(*g, dtype="float32"), "float32", 1e-6),
    "gpu, plain": (lambda *g: PlainGpuOps(*g, dtype="float32"), "float32", 1e-6),
    "gpu, fused, 16 bits": (lambda *g: FusedGpuOps(*g, dtype="float16"), "float16", 1e-2),
    "gpu, plain, 16 bits": (lambda *g: PlainGpuOps(*g, dtype="float16"), "float16", 1e-2),
}


def drawn(views: int) -> np.ndarray:
    x = np.random.default_rng(views).standard_normal((views, TOKENS, WIDTH))
    return x.clip(-3, 3).astype("f4")


def meant(case: str, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = CASES[case](EagerOps(Exact(HELD)), torch.from_numpy(x)).numpy()
    return found


def ran(ops: Any, folder: Path, y: str, dtype: str, x: np.ndarray) -> np.ndarray:
    ops.output(y, "y", dtype, "a", "b", "c")
    (folder / "g.onnx").write_bytes(ops.model())
    session = ort.InferenceSession(str(folder / "g.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    return np.asarray(found, np.float32)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_graphs_mean_what_the_reference_does(tmp_path: Path, case: str, maker: str) -> None:
    make, dtype, limit = MAKERS[maker]
    x = drawn(3)
    with WeightStore(tmp_path) as store:
        plan = Plan(recipe_named("exact"), lambda _: "vision")
        ops = make("g", HELD, plan, store, Ledger(lambda _: "vision"))
        y = CASES[case](ops, ops.input("x", dtype, "V", TOKENS, WIDTH))
    found, wanted = ran(ops, tmp_path, y, dtype, x.astype(dtype)), meant(case, x)
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < limit


@pytest.mark.parametrize("case", CASES)
def test_graphs_of_whole_numbers_mean_it_too(tmp_path: Path, case: str) -> None:
    """Of one view, on levels whose ranges were found on the same values."""
    x = drawn(1)
    seen = RangeOps(Exact(HELD))
    wanted = CASES[case](seen, torch.from_numpy(x)).numpy()
    assert (wanted == meant(case, x)).all()
    with WeightStore(tmp_path) as store:
        plan = Plan(recipe_named("w8").for_npu(8), lambda _: "vision")
        ops = NpuOps("g", HELD, plan, store, Ledger(lambda _: "vision"), seen.ranges)
        y = CASES[case](ops, ops._input(ops.input("x", "float32", 1, TOKENS, WIDTH), (-3.0, 3.0)))
        assert y in ops._spans, "what comes after it finds levels"
    found = ran(ops, tmp_path, y, "float32", x)
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < 1e-3


def test_a_table_takes_the_rows_it_was_asked_for() -> None:
    ops = EagerOps(Exact(HELD))
    assert (ops.table("places", ROWS).numpy() == HELD("places")[0, ROWS]).all()
    assert (ops.table("flat_places", ROWS).numpy() == HELD("flat_places")[ROWS]).all()


def test_four_patches_become_a_token_row_by_row() -> None:
    x = np.arange(TOKENS, dtype=np.float32).reshape(1, TOKENS, 1)
    found = EagerOps(Exact(HELD)).pixel_shuffle(torch.from_numpy(x), GRID, 2).numpy()
    assert found[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
