"""Changes to a picture that should not change what is said of it.

Takes pixels; gives changed copies. Knows no judge. Text in a picture does not survive a flip.
"""

import io
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["CHANGES", "MOST_COPIES", "changed", "copies"]

_SCALE = 0.75
_QUALITY = 75
_EDGE = 20  # one part of so many is cut off


def _resize(picture: Image.Image) -> Image.Image:
    """To three quarters of the width and height."""
    width, height = (max(1, round(side * _SCALE)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _recompress(picture: Image.Image) -> Image.Image:
    """As a JPEG of quality 75."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def _crop(picture: Image.Image) -> Image.Image:
    """5 % less at each edge."""
    width, height = picture.size
    x, y = width // _EDGE, height // _EDGE
    return picture.crop((x, y, width - x, height - y))


def _flip(picture: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resize": _resize,
    "recompress": _recompress,
    "crop": _crop,
    "flip": _flip,
}
# Each change alone, then two at a time, so that every change is in two of the latter.
_ORDER = (
    *((name,) for name in CHANGES),
    ("resize", "recompress"),
    ("crop", "flip"),
    ("crop", "recompress"),
    ("flip", "resize"),
)
MOST_COPIES = len(_ORDER)


def changed(rgb: NDArray[np.uint8], *names: str) -> Image.Image:
    """Pixels [H, W, 3] under the changes of these names, one after another."""
    picture = Image.fromarray(rgb)
    for name in names:
        picture = CHANGES[name](picture)
    return picture


def copies(rgb: NDArray[np.uint8], count: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The first `count` of them by name, always the same."""
    for names in islice(_ORDER, count):
        yield " and ".join(names), np.asarray(changed(rgb, *names), np.uint8)
