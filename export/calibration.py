"""Calibration sets: pictures with questions, each for one purpose only.

Takes a folder beside a checkpoint; gives its pictures, split by what may look at them. Does not
know what is asked or measured.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.errors import ExportError

__all__ = ["CalibrationPicture", "Split", "read_calibration", "split_pictures"]

_MOST_CALIBRATION = 16
_MOST_SELECTION = 8


@dataclass(frozen=True, slots=True)
class CalibrationPicture:
    """`image` is the file's name; `conditions` are what to ask of it."""

    image: str
    rgb: NDArray[np.uint8]
    conditions: tuple[str, ...]


class Split(NamedTuple):
    """Disjoint: what quantization fits its scales to, what advice on a refused bundle is drawn
    from, and what the gate counts flips on.
    """

    calibration: list[CalibrationPicture]
    selection: list[CalibrationPicture]
    gate: list[CalibrationPicture]


def read_calibration(folder: Path) -> list[CalibrationPicture]:
    """A folder of PNG files with questions.json: a list of {image, conditions: [{text, label}]}."""
    file = folder / "questions.json"
    try:
        entries: Any = json.loads(file.read_bytes())
        pictures = []
        for entry in entries:
            name = str(entry["image"])
            if Path(name).name != name:
                raise ValueError(f"{name!r} does not lie in the folder")
            with Image.open(folder / name) as picture:
                if picture.mode != "RGB":
                    raise ValueError(f"{name} is {picture.mode}, calibration pictures are RGB")
                rgb = np.asarray(picture)
            texts = tuple(str(condition["text"]) for condition in entry["conditions"])
            pictures.append(CalibrationPicture(name, rgb, texts))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{file}: not a readable calibration set ({error})") from None
    if not pictures:
        raise ExportError(f"{file}: holds no pictures")
    return pictures


def split_pictures(pictures: list[CalibrationPicture]) -> Split:
    """The first quarter is calibrated on, the last eighth selects, at most 16 and 8; the gate has
    the rest, which is never nothing.
    """
    first = min(len(pictures) // 4, _MOST_CALIBRATION)
    last = len(pictures) - min(len(pictures) // 8, _MOST_SELECTION)
    return Split(pictures[:first], pictures[last:], pictures[first:last])
