"""Checkpoint -> bundle: the only home of torch and onnx.

Gives `export`, which writes an unsealed bundle, and the eager reference that fidelity compares it
with. Never imports the runtime.
"""

from edgejudge.export.checkpoint import Checkpoint, open_checkpoint
from edgejudge.export.compile import CalibrationPicture, read_calibration, yes_probability
from edgejudge.export.exporter import check_target, export, publish, seal
from edgejudge.export.recipe import RECIPES, Recipe, recipe_named
from edgejudge.export.reference import Reference
from edgejudge.export.stored import Exact, Stored
from edgejudge.export.workplace import workplace

__all__ = [
    "RECIPES",
    "CalibrationPicture",
    "Checkpoint",
    "Exact",
    "Recipe",
    "Reference",
    "Stored",
    "check_target",
    "export",
    "open_checkpoint",
    "publish",
    "read_calibration",
    "recipe_named",
    "seal",
    "workplace",
    "yes_probability",
]
