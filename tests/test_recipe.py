"""Recipes: which weight gets how many bits, and what an export makes of it."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from edgejudge.bundle import read_manifest
from edgejudge.export import RECIPE_NAMES, export, open_checkpoint, plan_of, recipe_named
from edgejudge.export.importance import column_importance
from edgejudge.export.recipe import Recipe, kinds_of
from test_export import write_calibration

torch.set_num_threads(1)


def bits(recipe: str, kind: str) -> int | None:
    return recipe_named(recipe).bits_of(kind)


@pytest.mark.parametrize(
    ("kind", "expected"),  # exact, balanced, small, w8, fast, fast8
    [
        ("vision", (None, 8, 8, 8, 7, 8)),
        ("connector", (None, 8, 8, 8, 7, 8)),
        ("head", (None, 8, 4, 8, 8, 8)),
        ("decoder.first.q_proj", (None, 8, 4, 8, 7, 8)),
        ("decoder.middle.q_proj", (None, 4, 4, 8, 7, 8)),
        ("decoder.middle.v_proj", (None, 8, 4, 8, 7, 8)),
        ("decoder.middle.down_proj", (None, 8, 4, 8, 7, 8)),
        ("decoder.last.up_proj", (None, 8, 4, 8, 7, 8)),
    ],
)
def test_bits_by_kind(kind: str, expected: tuple[int | None, ...]) -> None:
    assert tuple(bits(name, kind) for name in RECIPE_NAMES) == expected
    assert RECIPE_NAMES == ("exact", "balanced", "small", "w8", "fast", "fast8")
    assert [name for name in RECIPE_NAMES if recipe_named(name).on_integers(kind)] == (
        [] if kind == "head" else ["fast", "fast8"]
    )
    assert [name for name in RECIPE_NAMES if recipe_named(name).rotate] == ["fast"]


def test_the_most_specific_pattern_wins() -> None:
    recipe = Recipe(
        "r", "float16", 1e-3, 4, {"decoder": 8, "decoder.middle": 4, "decoder.middle.v_proj": 8}
    )
    kinds = ("decoder.first.q_proj", "decoder.middle.q_proj", "decoder.middle.v_proj", "vision")
    assert [recipe.bits_of(kind) for kind in kinds] == [8, 4, 8, 4]


def test_layers_are_first_middle_or_last() -> None:
    kind = kinds_of(lambda name: "vision" if name.startswith("v") else "decoder", 3)
    assert kind("m.layers.0.self_attn.q_proj.weight") == "decoder.first.q_proj"
    assert kind("m.layers.1.mlp.up_proj.weight") == "decoder.middle.up_proj"
    assert kind("m.layers.2.mlp.up_proj.weight") == "decoder.last.up_proj"
    assert kind("v.layers.0.q_proj.weight") == "vision"
    # A model of one layer has it at both ends.
    assert kinds_of(lambda _: "decoder", 1)("m.layers.0.x.weight").startswith("decoder.")


def test_both_precisions_of_balanced_are_in_the_bundle(tmp_path: Path) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", tiling=False)
    manifest = read_manifest(export(folder, tmp_path / "out", "balanced"))
    decoder = {q.bits: q for q in manifest.quantization if q.group == "decoder" and q.block}
    # Three layers of seven matrices: two whole ones, v_proj and down_proj of the middle in 8.
    assert {b: q.tensors for b, q in decoder.items()} == {4: 5, 8: 16}
    assert decoder[8].relative_rms_error < 0.01 < decoder[4].relative_rms_error < 0.12
    files = {f.name for f in manifest.files}
    assert {"weights.q4.bin", "weights.q8.bin", "weights.f32.bin"} <= files


def test_columns_that_meet_large_activations_are_kept_best(tmp_path: Path) -> None:
    write_calibration(tmp_path / "calibration", 4)
    card = tiny.make_card(calibration_set="calibration")
    checkpoint = open_checkpoint(tiny.make_checkpoint(tmp_path / "checkpoint", card=card))
    importance = column_importance(checkpoint)
    name = "model.text_model.layers.1.mlp.down_proj.weight"
    assert set(importance) >= {name, "model.connector.modality_projection.proj.weight"}
    cost = importance[name].astype(np.float64)
    assert cost.shape == (checkpoint.weights.shape(name)[1],) and cost.max() > 4 * cost.min()
    # The rounding hides the last digits of another machine's arithmetic.
    assert np.allclose(np.log2(cost) * 4, np.rint(np.log2(cost) * 4))
    again = column_importance(checkpoint)
    assert all((again[n] == v).all() for n, v in importance.items())

    from edgejudge.export.blocks import Plan
    from edgejudge.export.quantize import dequantize

    exact = checkpoint.weights(name)
    errors = []
    kinds = kinds_of(checkpoint.family.group_of, checkpoint.spec.text.layers)
    for plan in (plan_of(checkpoint, "small"), Plan(recipe_named("small"), kinds)):
        (block,) = plan.quantized(checkpoint.weights, name)
        errors.append(float((np.square(dequantize(block.q) - exact) * cost).sum()))
    assert errors[0] < errors[1], "the plan with activations does better on what they weigh"


def test_without_pictures_to_spare_nothing_is_weighed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.make_checkpoint(tmp_path / "checkpoint"))
    assert column_importance(checkpoint) == {}


def test_what_is_written_about_recipes_and_limits_is_true() -> None:
    from edgejudge.commands import export as cli_export
    from edgejudge.gate import LIMITS

    root = Path(__file__).parent.parent
    guide = (root / "EXPORTING.md").read_text("utf-8")
    parser = cli_export.add_parser(argparse.ArgumentParser().add_subparsers())
    (choices,) = (a.choices for a in parser._actions if a.dest == "recipe")
    assert set(choices or ()) == set(RECIPE_NAMES)
    for name in RECIPE_NAMES:
        assert f"| `{name}`" in guide
    assert f"at most {LIMITS.flips:.1%}".replace("%", " %") in guide
    assert f"at most {LIMITS.near_flips:.0%}".replace("%", " %") in guide
    assert f"{LIMITS.decisions:,} decisions, {LIMITS.near_decisions} of them" in guide
    assert f"| {LIMITS.probability_error} |" in guide and f"within {LIMITS.near} of" in guide
