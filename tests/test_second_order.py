"""Second-order rounding: the mathematics, its place in an export, and work that outlives a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import tiny
from edgejudge.errors import ExportError
from edgejudge.export import (
    Exact,
    Reference,
    Stored,
    asked_of,
    export,
    open_checkpoint,
    plan_of,
    read_calibration,
    recipe_named,
    split_pictures,
)
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.decide import decide
from edgejudge.export.divergence import answers, divergence
from edgejudge.export.levels import Levels, key_of
from edgejudge.export.quantize import Quantized, dequantize, lowest_level, quantize
from edgejudge.export.reround import Curvature, curvature_of, reround
from edgejudge.export.walk import places_of
from test_export import digests, write_calibration

torch.set_num_threads(1)


def correlated(rng: np.random.Generator, inner: int) -> NDArray[np.float64]:
    """X^T X of activations with a few directions and one large channel."""
    x = rng.normal(size=(300, 6)) @ rng.normal(size=(6, inner)) + 0.3 * rng.normal(
        size=(300, inner)
    )
    x[:, inner // 3] *= 8
    return x.T @ x


def rerounded(
    weight: NDArray[np.float32], q: Quantized, hessian: NDArray[np.float64], search: bool
) -> Quantized:
    lowest = lowest_level(q.bits, search)
    return reround(weight, q.scales, q.bits, q.block, lowest, curvature_of(hessian))


@pytest.mark.parametrize("bits", [8, 4])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=st.integers(1, 5), inner=st.integers(2, 100), seed=st.integers(0, 2**16))
def test_outputs_are_nearer_and_levels_stay_within_bounds(
    bits: int, rows: int, inner: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows * 8, inner)).astype(np.float32)
    weight[0] = 0
    hessian = correlated(rng, inner)
    importance = (hessian.diagonal() / 300).astype(np.float32)
    q = quantize(weight, bits, 32, search=bits == 4, importance=importance)
    found = rerounded(weight, q, hessian, search=bits == 4)
    assert (found.scales == q.scales).all() and found.levels.shape == q.levels.shape

    def error(each: Quantized) -> float:
        moved = dequantize(each).astype(np.float64) - weight
        return float(np.einsum("nk,kl,nl->", moved, hessian, moved))

    assert error(found) <= error(q) * 1.02
    if inner > 40:
        assert error(found) < 0.8 * error(q)
    assert not dequantize(found)[0].any()


def test_levels_are_those_of_the_published_algorithm() -> None:
    """OPTQ with the Cholesky factor of the inverse, written down as its paper has it, over columns
    in the opposite order.
    """
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(16, 96)).astype(np.float32)
    hessian = correlated(rng, 96)
    q = quantize(weight, 4, 32, search=True)
    found = rerounded(weight, q, hessian, search=True)

    damped = hessian + 0.01 * hessian.diagonal().mean() * np.eye(96)
    order = np.argsort(hessian.diagonal(), kind="stable")[::-1]
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    left = weight.T[order].astype(np.float64)
    wanted = np.empty((16, 96), np.float32)
    for place, column in enumerate(order):
        step = q.scales[:, column // 32].astype(np.float64)
        level = np.clip(np.rint(left[place] / step), -8, 7)
        wanted[:, column] = level * step
        error = (left[place] - level * step) / upper[place, place]
        left[place + 1 :] -= upper[place, place + 1 :, None] * error
    assert np.allclose(dequantize(found), wanted, atol=1e-6)


def test_rows_of_one_scale_gain_too() -> None:
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(24, 64)).astype(np.float32)
    hessian = correlated(rng, 64)
    q = quantize(weight, 4, 64, search=True, symmetric=True)
    found = reround(weight, q.scales, 4, 64, lowest_level(4, True, True), curvature_of(hessian))
    errors = [
        np.einsum("nk,kl,nl->", m, hessian, m)
        for m in (dequantize(each).astype(np.float64) - weight for each in (q, found))
    ]
    assert errors[1] < 0.8 * errors[0]


def test_a_hessian_that_is_too_flat_is_lifted_and_a_broken_one_named() -> None:
    flat = np.zeros((8, 8), np.float32)
    flat[:, :] = 1e30  # of rank one, beyond what float32 can factor with a hundredth more
    flat[0, 1] = flat[1, 0] = 1.05e30
    assert isinstance(curvature_of(flat), Curvature)
    assert isinstance(curvature_of(np.zeros((4, 4))), Curvature)
    with pytest.raises(ExportError, match="not finite"):
        curvature_of(np.full((4, 4), np.nan))


def make_judge(root: Path) -> Checkpoint:
    """With pictures that differ, unlike those of most tests: levels are fitted to them."""
    (root / "calibration").mkdir()
    rng, entries = np.random.default_rng(1), []
    texts = ("a knife", "beer", "a dog", "a cat", "a sword", "a puppy", "written text", "fire")
    for index in range(40):
        blocks = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        name = f"{index:03}.png"
        blocks.resize((50, 36), Image.Resampling.BICUBIC).save(root / "calibration" / name)
        entries.append({"image": name, "conditions": [{"text": t, "label": 0} for t in texts]})
    (root / "calibration" / "questions.json").write_text(json.dumps(entries))
    card = tiny.make_card(calibration_set="calibration")
    return open_checkpoint(tiny.make_checkpoint(root / "checkpoint", card=card, seed=1))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_judge(tmp_path_factory.mktemp("second-order"))


def test_packed_questions_are_answered_like_separate_ones(checkpoint: Checkpoint) -> None:
    assert checkpoint.calibration_folder is not None
    asked = asked_of(checkpoint, read_calibration(checkpoint.calibration_folder)[:2])
    answers = [
        Reference(
            checkpoint.spec,
            Exact(checkpoint.weights),
            checkpoint.tokens.image,
            torch.float64,
            packed=packed,
        ).ask(asked, checkpoint.labels.token_ids)
        for packed in (False, True)
    ]
    for plain, packed in zip(*answers, strict=True):
        assert plain.shape == packed.shape and np.abs(plain - packed).max() < 1e-9


def test_answers_are_nearer_to_the_checkpoints_own(checkpoint: Checkpoint) -> None:
    """On pictures that no level was fitted to, in both recipes that have it."""
    assert checkpoint.calibration_folder is not None
    pictures = split_pictures(read_calibration(checkpoint.calibration_folder)).gate
    truth = answers(checkpoint, Exact(checkpoint.weights), pictures)
    for recipe in ("small", "balanced"):
        assert recipe_named(recipe).second_order
        plan = plan_of(checkpoint, recipe)
        levels = Levels(None, "")
        decided = decide(checkpoint, plan, levels, torch.float64)
        nearest, found = (
            divergence(truth, answers(checkpoint, Stored(checkpoint.weights, each), pictures))
            for each in (plan, decided)
        )
        assert 0 < found < 0.6 * nearest
        assert all(str(place) in levels for place in places_of(checkpoint))
        # The head keeps the nearest levels, and other forms know nothing of these.
        assert levels.get(checkpoint.family.HEAD, 4, 32) is None
        name = "model.text_model.layers.1.mlp.up_proj.weight"
        assert levels.get(name, 4, 32) is not None and levels.get(name, 8, 32) is None
        rows = decided.for_target(decided.recipe.for_npu(4))
        plain = plan.for_target(plan.recipe.for_npu(4))
        for one, other in zip(
            *(each.quantized(checkpoint.weights, name) for each in (rows, plain)), strict=True
        ):
            assert (one.q.levels == other.q.levels).all()


_KILLED = """
import os, signal, sys
from edgejudge.export import export

def progress(what, share):
    if what == "second-order rounding" and share >= 0.5:
        os.kill(os.getpid(), signal.SIGKILL)

export(sys.argv[1], sys.argv[2], "small", progress=progress)
"""


def test_a_killed_export_goes_on_after_the_last_finished_layer(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    export(checkpoint, whole, "small")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _KILLED, str(checkpoint.folder), str(out)]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    work = tmp_path / ".out.levels"
    places = [str(place) for place in places_of(checkpoint)]
    finished = {file.stem for file in work.glob("*.json")}
    assert finished == set(places[:3]) and len(places) == 5

    asked: list[str] = []
    monkeypatch.setattr(
        Levels,
        "put",
        lambda self, place, found, put=Levels.put: asked.append(place) or put(self, place, found),
    )
    export(checkpoint, out, "small")
    assert asked == places[3:]
    assert digests(out) == digests(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_work_of_something_else_is_not_gone_on_with(checkpoint: Checkpoint, tmp_path: Path) -> None:
    q = quantize(np.ones((2, 32), np.float32), 4, 32)
    key = key_of(checkpoint, "small")
    assert key != key_of(checkpoint, "balanced")
    Levels(tmp_path / "work", key).put("vision-0", {"w": q})
    again = Levels(tmp_path / "work", key).get("w", 4, 32)
    assert again is not None and (again.levels == q.levels).all()
    assert "vision-0" not in Levels(tmp_path / "work", "another")
    assert "vision-0" not in Levels(tmp_path / "work", key)
    # Nor is what a process that lives is working on.
    (tmp_path / "work" / "owner").write_text(str(os.getppid()))
    with pytest.raises(ExportError, match="exports there; wait"):
        Levels(tmp_path / "work", key)


def test_another_checkpoint_or_calibration_set_is_another_key(tmp_path: Path) -> None:
    write_calibration(tmp_path / "calibration", 2)
    card = tiny.make_card(calibration_set="calibration")
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", card=card)
    keys = [key_of(open_checkpoint(folder), "small")]
    (tmp_path / "calibration" / "000.png").write_bytes(
        (tmp_path / "calibration" / "001.png").read_bytes()
    )
    keys.append(key_of(open_checkpoint(folder), "small"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    keys.append(key_of(open_checkpoint(folder), "small"))
    assert len(set(keys)) == 3
