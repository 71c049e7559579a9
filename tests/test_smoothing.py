"""Smoothing: the same function, and outlier channels that were put in are taken out again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from edgejudge.export import (
    CalibrationPicture,
    Checkpoint,
    Exact,
    Reference,
    Stored,
    asked_of,
    open_checkpoint,
    plan_of,
)
from edgejudge.export.smoothing import Scaled, joints, smoothed
from edgejudge.models.image import canary_image
from families import FAMILIES
from outliers import scaled_channels

torch.set_num_threads(1)
TEXTS = ("a knife", "beer", "a dog", "written text")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("smoothing")
    return {
        name: open_checkpoint(maker.make_checkpoint(root / name))
        for name, maker in FAMILIES.items()
    }


def logits(opened: Checkpoint, weights: Any) -> np.ndarray:
    """Label logits of a picture's questions, in float64."""
    asked = asked_of(opened, [CalibrationPicture("drawn", canary_image(50, 70), TEXTS)])
    reference = Reference(opened.spec, weights, opened.tokens.image, torch.float64)
    return reference.ask(asked, opened.labels.token_ids)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_place_of_the_forward_pass_is_found(
    checkpoints: dict[str, Checkpoint], family: str
) -> None:
    opened = checkpoints[family]
    found = {
        (j.maker, j.first, j.repeat): j.users
        for j in joints(opened.family, opened.spec, opened.weights)
    }
    spec = opened.spec
    at = [
        n for n, _ in opened.family.weight_names(spec) if n.endswith("layers.0.mlp.up_proj.weight")
    ]
    stem = at[-1].removesuffix("mlp.up_proj.weight")
    repeat = spec.text.heads // spec.text.kv_heads
    norm, after = f"{stem}input_layernorm.weight", f"{stem}post_attention_layernorm.weight"
    attention = [f"{stem}self_attn.{n}_proj.weight" for n in "qkvo"]
    assert found[norm, 0, 1] == tuple(attention[:3])
    assert found[attention[2], 0, repeat] == (attention[3],)
    assert found[after, 0, 1] == (f"{stem}mlp.gate_proj.weight", f"{stem}mlp.up_proj.weight")
    assert found[f"{stem}mlp.up_proj.weight", 0, 1] == (f"{stem}mlp.down_proj.weight",)
    tower = 4 if family == "qwen2_5_vl" else 3  # a fused qkv has v's rows last
    # A projector, or the mergers of tapped layers, may begin with a norm.
    beside = {"internvl": 1, "qwen3_vl": spec.lanes}.get(family, 0)
    assert len(found) == 4 * spec.text.layers + tower * spec.vision.layers + beside
    if family == "qwen2_5_vl":
        assert found["visual.blocks.1.attn.qkv.weight", 2 * spec.vision.hidden, 1] == (
            "visual.blocks.1.attn.proj.weight",
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_stays_the_same(checkpoints: dict[str, Checkpoint], family: str) -> None:
    opened = checkpoints[family]
    before = logits(opened, Exact(opened.weights))
    for changed in (smoothed(opened), scaled_channels(opened, 128.0)):
        assert np.abs(logits(opened, Exact(changed.weights)) - before).max() < 1e-5
        assert any(
            (changed.weights(n) != opened.weights(n)).any()
            for n, _ in opened.family.weight_names(opened.spec)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_outlier_channels_are_undone(checkpoints: dict[str, Checkpoint], family: str) -> None:
    """With the outliers `fast` is as good as without them; without smoothing it is not."""
    opened = checkpoints[family]
    hard = scaled_channels(opened, 128.0)
    truth = logits(opened, Exact(opened.weights))

    def error(changed: Checkpoint) -> float:
        found = logits(opened, Stored(changed.weights, plan_of(changed, "fast")))
        return float(np.sqrt(np.square(found - truth).mean()))

    assert error(smoothed(hard)) < 1.5 * error(smoothed(opened))
    assert error(hard) > 4 * error(smoothed(hard))


def test_a_channel_that_nothing_uses_does_no_harm(checkpoints: dict[str, Checkpoint]) -> None:
    opened = checkpoints["smolvlm"]
    (joint, *_) = (
        j for j in joints(opened.family, opened.spec, opened.weights) if "up_proj" in j.maker
    )
    dead = np.ones(joint.last, np.float32)
    dead[3] = 0
    changed = replace(opened, weights=Scaled(opened.weights, {joint.maker: dead}, {}))
    truth = logits(opened, Exact(changed.weights))
    found = logits(opened, Exact(smoothed(changed).weights))
    assert np.isfinite(found).all() and np.abs(found - truth).max() < 1e-5


def test_only_rows_that_are_asked_for_are_read(tmp_path: Path) -> None:
    source = tiny.Held({"w": np.arange(12, dtype=np.float32).reshape(4, 3)})
    scaled = Scaled(
        source, {"w": np.array([1, 2, 4, 8], np.float32)}, {"w": np.array([1, 0.5, 1], np.float32)}
    )
    whole = scaled("w")
    assert (whole == source("w") * [[1], [2], [4], [8]] * [1, 0.5, 1]).all()
    assert (scaled.rows("w", slice(1, 3)) == whole[1:3]).all()
    assert (scaled.rows("w", [3, 0]) == whole[[3, 0]]).all()
