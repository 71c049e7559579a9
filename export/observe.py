"""What every matrix of a checkpoint is multiplied with, on pictures set apart for that.

Takes a checkpoint and somebody to show it to; runs the reference. Knows no recipe.
"""

from collections.abc import Callable

from torch import Tensor

from edgejudge.export.calibration import CalibrationPicture, read_calibration, split_pictures
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.compile import asked_of
from edgejudge.export.reference import Reference
from edgejudge.export.stored import Exact
from edgejudge.models.image import canary_image

__all__ = ["calibration_or_drawn", "calibration_pictures", "observe"]


def calibration_pictures(checkpoint: Checkpoint) -> list[CalibrationPicture]:
    """Those that quantization may look at; none without a set large enough to spare some."""
    folder = checkpoint.calibration_folder
    return [] if folder is None else split_pictures(read_calibration(folder)).calibration


def calibration_or_drawn(checkpoint: Checkpoint) -> list[CalibrationPicture]:
    """Those, or a drawn one that no gate has."""
    if pictures := calibration_pictures(checkpoint):
        return pictures
    height, width = checkpoint.image.example_size
    drawn = canary_image(height, width + 8)
    return [CalibrationPicture("drawn", drawn, ("a cat", "written text"))]


def observe(
    checkpoint: Checkpoint, watch: Callable[[str, Tensor], None], packed: bool = False
) -> None:
    """Shows each matrix's name with what it is about to be multiplied with, on the calibration
    pictures; where there are none, on a drawn one that no gate has. `packed` shows all
    questions of a picture at once.
    """
    pictures = calibration_or_drawn(checkpoint)
    weights = Exact(checkpoint.weights)
    image = checkpoint.tokens.image
    reference = Reference(checkpoint.spec, weights, image, observe=watch, packed=packed)
    reference.ask(asked_of(checkpoint, pictures), checkpoint.labels.token_ids)
