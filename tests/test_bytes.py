"""Matrices of bytes for NPUs (W8A8): channels that tower keep 16 bits beside them."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from edgejudge.bundle import Bundle
from edgejudge.export import Cut, Exact, Plan, Reference, asked_of, export, recipe_named
from edgejudge.export.byte_ranges import Bytes, byte_ranges, rest_of, towering
from edgejudge.export.calibration import CalibrationPicture
from edgejudge.export.checkpoint import open_checkpoint
from edgejudge.export.ledger import Ledger
from edgejudge.export.npu_ops import NpuOps
from edgejudge.export.ranges import Ranges
from edgejudge.export.store import WeightStore
from edgejudge.models.image import canary_image
from edgejudge.runtime import Engine
from edgejudge.target_gate import emulated
from outliers import scaled_channels

NAME = "layers.0.up_proj.weight"
TEXTS = ("a knife", "beer", "a dog")
# Signed bytes are made unsigned, or processors without VNNI would add products in 16 bits.
EXACT = {"session.x64quantprecision": "1", "session.qdq_matmulnbits_accuracy_level": "0"}


def span(values: np.ndarray) -> tuple[float, float]:
    return float(min(values.min(), 0)), float(max(values.max(), 0))


def run_layer(
    folder: Path, matrix: np.ndarray, x: np.ndarray, columns: tuple[int, ...]
) -> np.ndarray:
    """x [1, S, K] -> [1, S, N], by ONNX Runtime's CPU provider."""
    folder.mkdir()
    rest = x.copy()
    rest[..., list(columns)] = 0
    ranges: Ranges = {
        NAME: span(x @ matrix.T),
        rest_of(NAME): span(rest),
    }
    given = Bytes({NAME: columns}, {NAME: np.abs(rest @ matrix.T).max((0, 1))})
    plan = Plan(recipe_named("w8").for_npu(8), lambda _: "decoder.first.up_proj")
    with WeightStore(folder) as store:
        source, ledger = tiny.Held({NAME: matrix}), Ledger(lambda _: "decoder")
        ops = NpuOps("one", source, plan, store, ledger, ranges, given)
        name = ops.input("x", "float32", *x.shape)
        y = ops.linear(ops._input(name, span(x)), NAME)
        ops.output(y, "y", "float32", 1, x.shape[1], len(matrix))
    (folder / "one.onnx").write_bytes(ops.model())
    options = ort.SessionOptions()
    for key, value in EXACT.items():
        options.add_session_config_entry(key, value)
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(str(folder / "one.onnx"), options, providers=providers)
    (found,) = session.run(None, {"x": x})
    return np.asarray(found)


def test_channels_that_tower_take_nothing_from_the_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((40, 96)).astype(np.float32)
    x = rng.standard_normal((1, 30, 96)).astype(np.float32)
    x[..., [5, 90]] *= 200
    matrix[:, [5, 90]] /= 200  # what they make is no larger than what the others make
    exact = x.astype(np.float64) @ matrix.T.astype(np.float64)
    columns = towering(np.abs(x).max((0, 1)))
    assert columns == (5, 90)
    beside = np.abs(run_layer(tmp_path / "beside", matrix, x, columns) - exact)
    within = np.abs(run_layer(tmp_path / "within", matrix, x, ()) - exact)
    # Half a level of what comes in, over 96 channels, and half a level of what goes out.
    assert np.sqrt(np.square(beside).mean()) < 0.2 and beside.max() < 0.8
    assert np.sqrt(np.square(within).mean()) > 5 * np.sqrt(np.square(beside).mean())


@given(
    st.lists(st.floats(0, 1e4, width=32), min_size=2, max_size=80),
    st.integers(0, 3),
)
def test_few_channels_tower(peaks: list[float], extra: int) -> None:
    """Never more than an eighth or eight, always the largest, and in order."""
    seen = np.array(peaks, np.float32)
    chosen = towering(seen)
    assert list(chosen) == sorted(set(chosen)) and len(chosen) <= max(8, -(-len(seen) // 16))
    assert len(chosen) <= len(seen) // 2
    others = [p for i, p in enumerate(peaks) if i not in chosen]
    assert all(seen[c] >= max(others) or len(chosen) >= 8 for c in chosen) or not chosen
    assert all(seen[c] > 3 * np.median(seen) for c in chosen)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_checkpoint(tmp_path_factory.mktemp("bytes") / "tiny", tiling=False)


def test_ranges_hold_what_is_left(checkpoint: Path) -> None:
    """Channels that were made a thousand times larger are set apart, and count for no range."""
    opened = open_checkpoint(checkpoint)
    plain, none = byte_ranges(opened)
    large, found = byte_ranges(scaled_channels(opened, 1000.0))
    columns, few = found.columns, none.columns
    changed = [name for name in columns if len(columns[name]) > len(few.get(name, ()))]
    assert len(changed) > 8
    for name in changed:
        reach = max(map(abs, large[rest_of(name)]))
        assert reach <= 4 * max(map(abs, plain[rest_of(name)])), name


@pytest.mark.parametrize("factor", [1.0, 50.0])
def test_a_judge_of_bytes(checkpoint: Path, tmp_path: Path, factor: float) -> None:
    """Within what the canary of such graphs is allowed, with channels that tower as without."""
    opened = open_checkpoint(checkpoint)
    if factor > 1:
        opened = scaled_channels(opened, factor)
    bundle = Bundle.open(
        export(opened, tmp_path / "bundle", "exact", Cut(2), (), targets=("cpu", "npu:a8w8")),
        unsealed=True,
    )
    (record,) = bundle.manifest.targets
    engine = Engine.open(bundle, threads=1)
    engine.fleet = emulated(bundle, record, 1)
    (asked,) = asked_of(opened, [CalibrationPicture("drawn", canary_image(24, 24), TEXTS)])
    reference = Reference(opened.spec, Exact(opened.weights), opened.tokens.image)
    (wanted,) = reference.ask([asked], opened.labels.token_ids)
    assert asked.feeds is not None
    visual = engine.encode_image(asked.feeds)
    prefix = engine.prefill(asked.ids, visual, asked.positions)
    found = engine.score(prefix, asked.branches)
    assert np.sqrt(np.square(found - wanted).mean()) < record.tolerance
    assert {v for k, v in engine.placement.items() if k != "verdict_head"} == {
        "npu:CPUExecutionProvider"
    }
