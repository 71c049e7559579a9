"""Pictures to be profiled with, drawn from integer arithmetic: the same everywhere, no two alike.

Takes a folder and a count; gives files. Knows no judge.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from edgejudge.models.image import canary_image

__all__ = ["drawn_picture", "drawn_pictures"]

_SIZES = ((1080, 1920), (1920, 1080), (1024, 1024), (720, 1280))  # of phones and screens
_STEP = 37  # columns by which each picture is rolled on


def drawn_picture(folder: Path) -> Path:
    """A PNG as large as a screen, for want of another."""
    path = folder / "screen.png"
    Image.fromarray(canary_image(1080, 1920)).save(path)
    return path


def drawn_pictures(folder: Path, count: int, alike: bool = False) -> list[Path]:
    """JPEG files of several shapes, or of the first one alone."""
    paths = []
    for i in range(count):
        pixels = np.roll(canary_image(*_SIZES[0 if alike else i % len(_SIZES)]), _STEP * i, axis=1)
        paths.append(folder / f"{i:05}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths
