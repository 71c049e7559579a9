"""The pictures and conditions that the gate of an export asks about.

Takes a checkpoint and the manifest of a bundle made from it; gives pictures that no choice of the
export has seen, and others to choose by. Does not ask them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from edgejudge.errors import ExportError
from edgejudge.manifest import Manifest
from edgejudge.models.concepts import known_names, knows
from edgejudge.models.image import canary_image

if TYPE_CHECKING:
    from edgejudge.export import CalibrationPicture, Checkpoint

__all__ = ["GateSet", "gate_set"]

_SYNTHETIC = "synthetic"
_GATE_SIDES = ((1, 1), (1, 2), (2, 1), (3, 4), (4, 3), (1, 4), (2, 3), (3, 3))
_SELECTION_SIDES = ((2, 2), (3, 2), (1, 3), (4, 1))
_MOST_CONDITIONS = 32


class GateSet(NamedTuple):
    """`gate` decides; what is advised about a refused bundle is drawn from `selection`, so that
    following it fits nothing to the gate. `calibrated` counts the pictures that scales were fitted
    to.
    """

    name: str
    gate: "list[CalibrationPicture]"
    selection: "list[CalibrationPicture]"
    calibrated: int


def gate_set(checkpoint: "Checkpoint", manifest: Manifest) -> GateSet:
    """From the checkpoint's calibration set, or drawn pictures with the conditions the bundle is
    made for.

    What the judge does not claim to know is not asked: an answer would mean nothing.
    """
    from edgejudge.export import read_calibration, split_pictures

    folder = checkpoint.calibration_folder
    side = checkpoint.image.example_size[0]
    if folder is not None:
        split = split_pictures(read_calibration(folder))
        names = known_names(manifest.concepts)
        gate, selection = (
            [p for p in (_known(one, names, manifest.patterns) for one in some) if p.conditions]
            for some in (split.gate, split.selection)
        )
        if not gate:
            raise ExportError(
                f"{folder}: asks about nothing that the judge card lists; add questions about its "
                "concepts to questions.json"
            )
        # A set too small to spare pictures gets drawn ones.
        selection = selection or _drawn(_SELECTION_SIDES, side, gate[0].conditions)
        return GateSet(folder.name, gate, selection, len(split.calibration))
    texts = [concept.name for concept in manifest.concepts]
    for policy in manifest.policies:
        texts += [c.text for rule in policy.rules for either in rule.conditions for c in either]
    conditions = tuple(dict.fromkeys(texts or ["a cat", "a person", "written text"]))
    gate, selection = (_drawn(sides, side, conditions) for sides in (_GATE_SIDES, _SELECTION_SIDES))
    return GateSet(_SYNTHETIC, gate, selection, 0)


def _known(
    picture: "CalibrationPicture", names: frozenset[str] | None, patterns: tuple[str, ...]
) -> "CalibrationPicture":
    """Asked about what the judge claims to know alone, which is all where it lists nothing."""
    return replace(
        picture, conditions=tuple(t for t in picture.conditions if knows(names, t, patterns))
    )


def _drawn(
    sides: Sequence[tuple[int, int]], side: int, conditions: tuple[str, ...]
) -> "list[CalibrationPicture]":
    from edgejudge.export import CalibrationPicture

    return [
        CalibrationPicture(
            f"{_SYNTHETIC}-{height}x{width}",
            canary_image(side * height, side * width),
            conditions[:_MOST_CONDITIONS],
        )
        for height, width in sides
    ]
