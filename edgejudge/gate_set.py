"""The pictures and conditions that the gate of an export asks about.

Takes a checkpoint and the manifest of a bundle made from it; gives pictures that no choice of the
export has seen. Does not ask them.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from edgejudge.errors import ExportError
from edgejudge.manifest import Manifest
from edgejudge.models.concepts import known_names, knows
from edgejudge.models.image import canary_image

if TYPE_CHECKING:
    from edgejudge.export import CalibrationPicture, Checkpoint

__all__ = ["gate_set"]

_SYNTHETIC = "synthetic"
_SYNTHETIC_SIDES = ((1, 1), (1, 2), (2, 1), (3, 4), (4, 3), (1, 4), (2, 3), (3, 3))
_MOST_CONDITIONS = 32


def gate_set(
    checkpoint: "Checkpoint", manifest: Manifest
) -> tuple[str, "list[CalibrationPicture]", int]:
    """Its name, its pictures, and how many of the set were calibrated on: the rest of the
    calibration set, or drawn pictures with the conditions the bundle is made for.

    What the judge does not claim to know is not asked: an answer would mean nothing.
    """
    from edgejudge.export import CalibrationPicture, read_calibration, split_pictures

    folder = checkpoint.calibration_folder
    if folder is not None:
        seen, held_out = split_pictures(read_calibration(folder))
        names = known_names(manifest.concepts)
        known = [
            replace(p, conditions=tuple(text for text in p.conditions if knows(names, text)))
            for p in held_out
        ]
        asked = [picture for picture in known if picture.conditions]
        if not asked:
            raise ExportError(
                f"{folder}: asks about nothing that the judge card lists; add questions about its "
                "concepts to questions.json"
            )
        return folder.name, asked, len(seen)
    texts = [concept.name for concept in manifest.concepts]
    for policy in manifest.policies:
        texts += [c.text for rule in policy.rules for either in rule.conditions for c in either]
    conditions = tuple(dict.fromkeys(texts or ["a cat", "a person", "written text"]))
    side = checkpoint.image.example_size[0]
    drawn = [
        CalibrationPicture(
            f"{_SYNTHETIC}-{height}x{width}",
            canary_image(side * height, side * width),
            conditions[:_MOST_CONDITIONS],
        )
        for height, width in _SYNTHETIC_SIDES
    ]
    return _SYNTHETIC, drawn, 0
