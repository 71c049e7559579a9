"""Checkpoint -> bundle: the only home of torch and onnx.

Gives `export`, which writes an unsealed bundle, and the eager reference that fidelity compares it
with. Never imports the runtime.
"""

from edgejudge.export.blocks import Plan
from edgejudge.export.calibration import CalibrationPicture, read_calibration, split_pictures
from edgejudge.export.checkpoint import Checkpoint, open_checkpoint
from edgejudge.export.compile import asked_of, yes_probability
from edgejudge.export.exporter import (
    check_target,
    export,
    hidden_of,
    plan_of,
    prepared,
    publish,
    seal,
)
from edgejudge.export.parts import Cut
from edgejudge.export.preset import preset_checkpoint
from edgejudge.export.recipe import DEFAULT_RECIPE, RECIPE_NAMES, Recipe, recipe_named
from edgejudge.export.reference import Asked, Reference
from edgejudge.export.stored import Exact, Stored, Weights
from edgejudge.export.targets import variants_of
from edgejudge.export.weights import Source
from edgejudge.export.workplace import kept, workplace

__all__ = [
    "DEFAULT_RECIPE",
    "RECIPE_NAMES",
    "Asked",
    "CalibrationPicture",
    "Cut",
    "Checkpoint",
    "Exact",
    "Plan",
    "Recipe",
    "Reference",
    "Source",
    "Stored",
    "Weights",
    "asked_of",
    "check_target",
    "export",
    "hidden_of",
    "kept",
    "open_checkpoint",
    "plan_of",
    "prepared",
    "preset_checkpoint",
    "publish",
    "read_calibration",
    "recipe_named",
    "seal",
    "split_pictures",
    "variants_of",
    "workplace",
    "yes_probability",
]
