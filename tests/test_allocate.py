"""Bits under a budget: the search, the count of bytes, and what an export makes of it."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from edgejudge.bundle import read_manifest
from edgejudge.cli import main
from edgejudge.errors import ExportError
from edgejudge.export import Exact, Stored, export, open_checkpoint, plan_of, prepared
from edgejudge.export.allocate import (
    Group,
    allocate,
    best_within,
    losses_of,
    spent,
    weight_bytes,
    weight_groups,
)
from edgejudge.export.calibration import read_calibration, split_pictures
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.divergence import answers, divergence
from test_second_order import make_judge

torch.set_num_threads(1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    costs=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
    room=st.integers(0, 40),
)
def test_no_other_choice_within_the_budget_saves_more(
    costs: list[int], seed: int, room: int
) -> None:
    rng = np.random.default_rng(seed)
    groups = [Group(str(i), (), cost * 1024) for i, cost in enumerate(costs)]
    losses = {group.name: float(rng.gamma(1.0)) for group in groups}
    room *= 1024
    chosen = best_within(groups, losses, room)
    assert sum(g.more_bytes for g in groups if g.name in chosen) <= room
    best = max(
        sum(losses[g.name] for g in some)
        for count in range(len(groups) + 1)
        for some in combinations(groups, count)
        if sum(g.more_bytes for g in some) <= room
    )
    assert sum(losses[name] for name in chosen) == pytest.approx(best)


def test_a_budget_too_fine_for_its_cells_is_not_exceeded() -> None:
    rng = np.random.default_rng(0)
    groups = [Group(str(i), (), int(rng.integers(10**6, 10**7)) * 2 + 1) for i in range(40)]
    losses = {group.name: float(rng.gamma(1.0)) for group in groups}
    room = 10**8
    chosen = best_within(groups, losses, room)
    spent_bytes = sum(g.more_bytes for g in groups if g.name in chosen)
    assert 0.9 * room < spent_bytes <= room


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_judge(tmp_path_factory.mktemp("allocate"))


def test_eight_bits_go_where_four_cost_most(checkpoint: Checkpoint) -> None:
    plan = plan_of(checkpoint, "small")
    groups = weight_groups(checkpoint, plan)
    losses = losses_of(checkpoint, plan, groups)
    assert set(losses) == {group.name for group in groups} and min(losses.values()) >= 0
    low, high = (
        weight_bytes(checkpoint, spent(checkpoint, plan, groups, losses, b), groups)
        for b in (least_bytes(checkpoint), 1 << 40)
    )
    budget = (low + high) // 2
    best = spent(checkpoint, plan, groups, losses, budget)
    assert 0.9 * budget < weight_bytes(checkpoint, best, groups) <= budget
    # The opposite choice, with as many bytes.
    worst = {name: max(losses.values()) - loss for name, loss in losses.items()}
    other = spent(checkpoint, plan, groups, worst, budget)
    folder = checkpoint.calibration_folder
    assert folder is not None
    pictures = split_pictures(read_calibration(folder)).gate
    truth = answers(checkpoint, Exact(checkpoint.weights), pictures)
    found, opposite = (
        divergence(truth, answers(checkpoint, Stored(checkpoint.weights, each), pictures))
        for each in (best, other)
    )
    assert found < 0.5 * opposite


def least_bytes(checkpoint: Checkpoint) -> int:
    with pytest.raises(ExportError, match="with four bits in every matrix") as told:
        allocate(checkpoint, plan_of(checkpoint, "small"), 1000)
    words = str(told.value).split()
    least = int(words[words.index("take") + 1])
    assert f"at least {-(-least // 1024)}KiB" in str(told.value)
    return least


def test_a_bundle_holds_what_its_budget_says(
    checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    least = least_bytes(checkpoint)
    budget = least * 5 // 4
    folder, out = str(checkpoint.folder), str(tmp_path / "out")
    command = ["export", folder, "--out", out, "--budget", str(budget), "--accept-flips", "1"]
    assert main(command) == 0
    printed = capsys.readouterr()
    for phase in ("measuring what four bits cost", "second-order rounding"):
        assert phase in printed.err and re.search(rf"[\d.]+ s  {phase}\n", printed.out)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.recipe == "allocated"
    records = manifest.quantization
    assert {q.bits for q in records if q.scheme == "symmetric blocks"} == {4, 8}
    plan = plan_of(checkpoint, "small")
    _, chosen = prepared(checkpoint, "small", budget=budget)
    counted = weight_bytes(checkpoint, chosen, weight_groups(checkpoint, plan))
    assert sum(q.bytes for q in records) == counted <= budget
    # Told before calibration pictures are looked at.
    monkeypatch.setattr("edgejudge.export.exporter.column_importance", None)
    small = ["export", folder, "--out", str(tmp_path / "no"), "--budget", "1KiB"]
    assert main(small) == 2 and f"take {least} with four bits" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*small, "--recipe", "w8"])


def test_without_pictures_what_was_recorded_decides(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.make_checkpoint(tmp_path / "checkpoint"))
    plan = plan_of(checkpoint, "small")
    groups = weight_groups(checkpoint, plan)
    losses = losses_of(checkpoint, plan, groups)
    assert losses["decoder.1.v_proj"] > losses["decoder.1.q_proj"] > losses["head"]
    _, chosen = prepared(checkpoint, "small", budget=least_bytes(checkpoint) + 30_000)
    assert {chosen.bits_of(name) for group in groups for name in group.weights} == {4, 8}
    assert export(checkpoint, tmp_path / "out", chosen).is_dir()
