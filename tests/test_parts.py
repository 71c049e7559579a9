"""Where the decoder is cut: every layer once, in order, the largest part as small as it can be."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from edgejudge.bundle import Bundle, read_manifest
from edgejudge.cli import main
from edgejudge.errors import ExportError
from edgejudge.export import Cut, export, open_checkpoint, plan_of
from edgejudge.export.parts import layer_bytes, npu_parts
from edgejudge.runtime import Engine

torch.set_num_threads(1)


def largest(costs: list[int], runs: list[range]) -> int:
    return max(sum(costs[i] for i in run) for run in runs)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=9), count=st.integers(1, 9))
def test_no_other_cut_into_so_many_parts_is_more_even(costs: list[int], count: int) -> None:
    count = min(count, len(costs))
    runs = Cut(parts=count).apply(costs)
    assert [layer for run in runs for layer in run] == list(range(len(costs)))
    assert len(runs) == count and all(len(run) for run in runs)
    best = min(
        largest(costs, [range(a, b) for a, b in itertools.pairwise((0, *ends, len(costs)))])
        for ends in itertools.combinations(range(1, len(costs)), count - 1)
    )
    assert largest(costs, runs) == best


@settings(max_examples=150, deadline=None, derandomize=True)
@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=9), limit=st.integers(1, 200))
def test_no_fewer_parts_would_keep_the_limit(costs: list[int], limit: int) -> None:
    if max(costs) > limit:
        with pytest.raises(ExportError, match=f"alone takes {max(costs)} bytes"):
            Cut(part_bytes=limit).apply(costs)
        return
    runs = Cut(part_bytes=limit).apply(costs)
    assert [layer for run in runs for layer in run] == list(range(len(costs)))
    assert largest(costs, runs) <= limit
    if len(runs) > 1:
        assert largest(costs, Cut(parts=len(runs) - 1).apply(costs)) > limit


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut(0), "at least 1"),
        (Cut(None, 0), "at least 1"),
        (Cut(2, 100), "not both"),
        (Cut(4), "has 3 layers, 4 parts were asked for"),
    ],
)
def test_bad_cuts_are_named(cut: Cut, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        cut.apply([5, 5, 5])


@pytest.mark.parametrize("recipe", ["exact", "balanced"])
def test_layers_are_weighed_as_they_are_stored(tmp_path: Path, recipe: str) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", tiling=False, text_layers=4)
    checkpoint = open_checkpoint(folder)
    plan = plan_of(checkpoint, recipe)
    costs = layer_bytes(checkpoint.family.weight_names(checkpoint.spec), plan, 4)
    manifest = read_manifest(export(checkpoint, tmp_path / "out", recipe, Cut(4)))
    assert [part.weight_bytes for part in manifest.parts] == costs
    if recipe == "balanced":
        assert costs[0] == costs[3] > costs[1] == costs[2]
        # One part holds a layer less where layers are heavier: here both ends weigh more.
        assert Cut(2).apply(costs) == [range(2), range(2, 4)]


@pytest.mark.parametrize("recipe", ["exact", "balanced", "w8"])
def test_parts_compute_what_the_whole_does(tmp_path: Path, recipe: str) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", tiling=False)
    engines = []
    for name, cut in (("whole", Cut()), ("two", Cut(2)), ("three", Cut(3))):
        bundle = Bundle.open(export(folder, tmp_path / name, recipe, cut), unsealed=True)
        engines.append(Engine.open(bundle, threads=1))
    whole, *others = engines
    ids, branches = [1, 70, 71, 72, 73], [[80, 81], [90, 91, 92]]
    expected = whole.score(whole.prefill(ids), branches)
    for engine in others:
        assert np.array_equal(engine.score(engine.prefill(ids), branches), expected)


def test_sizes_are_read_as_people_write_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", tiling=False)
    command = ["export", str(folder), "--out", str(tmp_path / "out"), "--recipe", "exact"]
    assert main([*command, "--part-bytes", "200KB"]) == 0
    parts = read_manifest(tmp_path / "out").parts
    assert len(parts) > 1 and all(part.weight_bytes <= 200_000 for part in parts)
    for bad in ("1 banana", "-3", ""):
        with pytest.raises(SystemExit, match="2"):
            main([*command, f"--part-bytes={bad}"])
        assert "is no size" in capsys.readouterr().err
    assert main([*command, "--force", "--part-bytes", "1KiB"]) == 2
    assert "alone takes" in capsys.readouterr().err


# --- what an NPU's compiler takes ----------------------------------------------------------------

GIB = 1 << 30


def test_parts_for_an_npu() -> None:
    """Cut where nothing is said, as asked where it is, and never larger than what it takes."""
    assert npu_parts(Cut(), []) is None
    assert npu_parts(Cut(), [[100] * 4]) == [range(4)], "a small decoder stays whole"
    large = [GIB // 4] * 10
    runs = npu_parts(Cut(), [[1] * 10, large])
    assert runs is not None and all(len(run) <= 4 for run in runs)
    assert [layer for run in runs for layer in run] == list(range(10))
    assert npu_parts(Cut(2), [large]) == [range(5), range(5, 10)]
    with pytest.raises(ExportError, match="the largest part takes 2.5 GiB, an NPU's compiler"):
        npu_parts(Cut(1), [large])


def test_graphs_of_one_token_and_of_many_share_their_weights(tmp_path: Path) -> None:
    folder = export(
        tiny.make_checkpoint(tmp_path / "tiny", tiling=False),
        tmp_path / "bundle",
        "w8",
        targets=("cpu", "npu"),
    )
    found = []
    for shape in ("128x512", "1x512", "128x2048"):
        file = folder / f"npu.a16w8.decoder.0.{shape}.onnx"
        tensors = onnx.load(file, load_external_data=False).graph.initializer
        places = {t.name: {e.key: e.value for e in t.external_data} for t in tensors}
        found.append({name: place for name, place in places.items() if place})
    assert found[0] == found[1] == found[2] and len(found[0]) > 3 * 7


def test_targets_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before anything is read."""
    given = ["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]
    assert main([*given, "--targets", "cpu,tpu"]) == 2
    assert "no target is called 'tpu'; known: cpu, gpu, npu, npu:a16w4" in capsys.readouterr().err
    for kv in ("int8", "int4"):
        assert main([*given, "--targets", "gpu", "--kv", kv]) == 2
        wanted = f"keys and values in {kv} are for the cpu target alone; leave out --kv {kv}"
        assert wanted in capsys.readouterr().err
