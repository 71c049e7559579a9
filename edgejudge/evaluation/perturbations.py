"""Changes to a picture that should not change what is said of it.

Takes pixels; gives PIL pictures. Knows no judge. Text in a picture does not survive a flip: leave
that one out where reading matters.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["PERTURBED", "perturbed"]

SCALE = 0.75
QUALITY = 75


def _resize(picture: Image.Image) -> Image.Image:
    """To three quarters of the width and height."""
    width, height = (max(1, round(side * SCALE)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _recompress(picture: Image.Image) -> Image.Image:
    """As a JPEG of quality 75."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def _flip(picture: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


PERTURBED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resize": _resize,
    "recompress": _recompress,
    "flip": _flip,
}


def perturbed(rgb: NDArray[np.uint8], name: str) -> Image.Image:
    """Pixels [H, W, 3] under the perturbation of this name."""
    return PERTURBED[name](Image.fromarray(rgb))
