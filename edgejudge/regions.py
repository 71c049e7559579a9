"""Where in a picture the object of a condition is, and the picture without it.

Takes boxes, from the user or from a proposer such as an open-vocabulary detector; gives those of an
object, the picture with them filled, or a box alone. Knows no judge and no detector.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgejudge.clue_settings import ClueSettings
from edgejudge.errors import InputError
from edgejudge.file_bytes import file_bytes
from edgejudge.models.concepts import normalised

__all__ = [
    "Boxes",
    "Region",
    "RegionProposer",
    "Regions",
    "cut_out",
    "filled",
    "find",
    "is_small",
    "read_regions",
    "regions_of",
]

_MOST_BYTES = 64 << 20  # of a file of them
_FARTHEST = 1e9  # pixels: whatever is beyond is no number of them

Boxes = tuple[tuple[int, int, int, int], ...]  # left, top, right, bottom; the last two excluded


@dataclass(frozen=True, slots=True)
class Region:
    """What lies at `box`, [x, y, width, height] in pixels of the upright picture.

    Raises InputError "regions" for numbers that make no box or no confidence.
    """

    label: str
    box: tuple[float, float, float, float]
    confidence: float = 1.0

    def __post_init__(self) -> None:
        if len(self.box) != 4 or not all(abs(value) <= _FARTHEST for value in self.box):
            raise InputError(
                "regions", f"the box of '{self.label}' is {list(self.box)}; expected four numbers"
            )
        if self.box[2] <= 0 or self.box[3] <= 0 or not 0 <= self.confidence <= 1:
            raise InputError(
                "regions",
                f"'{self.label}' has the box {list(self.box)} and the confidence "
                f"{self.confidence}; expected a width and a height above 0, and 0 to 1",
            )


# Of one picture, or of pictures by their paths.
Regions = Sequence[Region] | Mapping[str, Sequence[Region]]


class RegionProposer(Protocol):
    """Finds objects by their names."""

    def propose(self, rgb: NDArray[np.uint8], labels: Sequence[str]) -> Sequence[Region]:
        """rgb [H, W, 3], upright -> regions of any of the labels; a label without one is not
        there, or was not found.
        """
        ...


def regions_of(image: object, regions: Regions | None) -> Sequence[Region]:
    """Those of one picture; one in memory has no path to be found by in a mapping."""
    if not isinstance(regions, Mapping):
        return regions or ()
    return regions.get(os.fspath(image), ()) if isinstance(image, str | PathLike) else ()


def find(
    regions: Iterable[Region],
    names: Sequence[str],
    settings: ClueSettings,
    shape: tuple[int, ...],
) -> Boxes:
    """The boxes of the first of `names` that a region above the confidence is labelled with: its
    most confident one, or all that share that confidence, in pixels of a picture [H, W, 3].

    Raises InputError "regions" for a box outside the picture.
    """
    certain = [each for each in regions if each.confidence > settings.region_confidence]
    for name in names:
        wanted = normalised(name)
        labelled = [each for each in certain if normalised(each.label) == wanted]
        if labelled:
            most = max(each.confidence for each in labelled)
            return tuple(
                sorted({_pixels(each, shape) for each in labelled if each.confidence == most})
            )
    return ()


def is_small(boxes: Boxes, shape: tuple[int, ...], settings: ClueSettings) -> bool:
    """Whether they are one box that covers less than `small_region` of the picture."""
    if len(boxes) != 1:
        return False
    left, top, right, bottom = boxes[0]
    return (right - left) * (bottom - top) < settings.small_region * shape[0] * shape[1]


def filled(
    rgb: NDArray[np.uint8], boxes: Boxes, colour: tuple[int, int, int] | None = None
) -> NDArray[np.uint8]:
    """A copy with the boxes filled, by the mean colour of the rest unless another one is given.

    CLUE's paper does not say its colour. This is the least conspicuous one: black or white would
    be an object of its own in most pictures, and the mean of all keeps something of the object's.
    """
    out = rgb.copy()
    rest = np.ones(rgb.shape[:2], bool)
    for left, top, right, bottom in boxes:
        rest[top:bottom, left:right] = False
    if colour is None and rest.any():
        fill = np.round(rgb[rest].mean(axis=0))
    else:
        fill = np.array(colour) if colour is not None else np.round(rgb.mean(axis=(0, 1)))
    out[~rest] = fill.astype(np.uint8)
    return out


def cut_out(rgb: NDArray[np.uint8], boxes: Boxes) -> NDArray[np.uint8]:
    """The first box alone."""
    left, top, right, bottom = boxes[0]
    return np.ascontiguousarray(rgb[top:bottom, left:right])


def read_regions(path: str | PathLike[str]) -> dict[str, tuple[Region, ...]]:
    """A JSON file: picture path -> list of {"label", "box": [x, y, width, height], "confidence"},
    the last being 1 where it is left out. Raises InputError "regions" by the place of what is
    wrong.
    """
    try:
        value: Any = json.loads(file_bytes(path, _MOST_BYTES))
    except OSError as error:
        raise InputError("regions", f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError("regions", f"{path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError("regions", f"{path}: expected an object of picture paths to regions")
    return {
        picture: tuple(_region(each, f"{path}: {picture}[{i}]") for i, each in enumerate(some))
        for picture, some in value.items()
        if _is_list(some, f"{path}: {picture}")
    }


def _is_list(value: Any, where: str) -> bool:
    if not isinstance(value, list):
        raise InputError("regions", f"{where}: expected a list of regions")
    return True


def _region(value: Any, where: str) -> Region:
    if not isinstance(value, Mapping) or not {"label", "box"} <= set(value):
        raise InputError("regions", f"{where}: expected an object with label and box")
    if unknown := sorted(set(value) - {"label", "box", "confidence"}):
        raise InputError("regions", f"{where}: unknown key {unknown[0]!r}")
    box, confidence = value["box"], value.get("confidence", 1.0)
    numbers = [*(box if isinstance(box, list) else [None]), confidence]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise InputError("regions", f"{where}: box and confidence are numbers")
    if not isinstance(value["label"], str):
        raise InputError("regions", f"{where}: label is text")
    try:
        return Region(value["label"], tuple(box), confidence)
    except InputError as error:
        raise InputError("regions", f"{where}: {error}") from None


def _pixels(region: Region, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Whole pixels that the box touches."""
    x, y, width, height = region.box
    left, top = max(0, math.floor(x)), max(0, math.floor(y))
    right, bottom = min(shape[1], math.ceil(x + width)), min(shape[0], math.ceil(y + height))
    if left >= right or top >= bottom:
        raise InputError(
            "regions",
            f"the box {list(region.box)} of '{region.label}' lies outside a picture of "
            f"{shape[1]} x {shape[0]} pixels",
        )
    return left, top, right, bottom
