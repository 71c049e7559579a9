"""Preprocessing: an RGB picture becomes the square views a vision tower sees.

Takes uint8 pixels and an `ImageSpec`; gives `Views`. Equals transformers' Pillow-based processor
step by step, rounding included: every resize goes through 8-bit pixels. Knows no model and no file
format of pictures; numpy and Pillow only.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.bundle import from_json, to_json
from edgejudge.errors import ExportError
from edgejudge.models.hf_config import HfConfig, read_json

__all__ = ["ImageSpec", "Views", "canary_image", "grid_of", "preprocess", "read_image_spec"]

_MAX_SIDE = 4096  # the family's own ceiling for a resized picture
_FILTERS = {0: "NEAREST", 1: "LANCZOS", 2: "BILINEAR", 3: "BICUBIC", 4: "BOX", 5: "HAMMING"}


@dataclass(frozen=True, slots=True)
class ImageSpec:
    longest_edge: int  # the whole picture is resized to this, before it is cut into tiles
    view: int  # side of one square view
    tiling: bool  # tiles and a global view, or one view alone
    resample: str  # a Pillow filter's name
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = to_json(self)
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return from_json(cls, value, "preprocessing")

    @property
    def max_grid(self) -> int:
        """The most rows, or columns, that any picture is cut into."""
        if not self.tiling:
            return 0
        # A side that comes out odd is made even, which may pass an odd longest edge by one.
        side = min(self.longest_edge + self.longest_edge % 2, _MAX_SIDE)
        return math.ceil(side / self.view)


@dataclass(frozen=True, slots=True)
class Views:
    """`rows` and `cols` are 0 where the picture is one view."""

    pixel_values: NDArray[np.float32]  # [V, 3, S, S]
    rows: int
    cols: int


def read_image_spec(folder: Path) -> ImageSpec:
    """From preprocessor_config.json, or the image processor nested in processor_config.json."""
    file = folder / "preprocessor_config.json"
    if file.exists():
        config = HfConfig(read_json(file), str(file))
    else:
        file = folder / "processor_config.json"
        if not file.exists():
            raise ExportError(
                f"{folder}: neither preprocessor_config.json nor processor_config.json is there; "
                "a checkpoint needs one of them"
            )
        config = HfConfig(read_json(file), str(file)).section("image_processor")
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        config.expect(key, True, None)
    resample = config.read(int, "resample", 1)
    if resample not in _FILTERS:
        raise ExportError(f"{config.where}: 'resample' is {resample}, expected one of 0 to 5")
    return ImageSpec(
        longest_edge=config.section("size").read(int, "longest_edge"),
        view=config.section("max_image_size").read(int, "longest_edge"),
        tiling=config.read(bool, "do_image_splitting", True),
        resample=_FILTERS[resample],
        rescale=config.read(float, "rescale_factor", 1 / 255),
        mean=_channels(config, "image_mean"),
        std=_channels(config, "image_std"),
    )


def _channels(config: HfConfig, key: str) -> tuple[float, ...]:
    value = config.value.get(key, [0.5, 0.5, 0.5])
    if isinstance(value, list) and len(value) == 3:
        return tuple(float(v) for v in value)
    raise ExportError(f"{config.where}: {key!r} must be three numbers, got {value!r}")


def _fit(height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """The family's rule for the first resize: longest edge exact, the other one even."""
    aspect = width / height
    if width >= height:
        width = longest_edge
        height = int(width / aspect)
        height += height % 2
    else:
        height = longest_edge
        width = int(height * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    aspect = width / height
    if width >= height and width > _MAX_SIDE:
        width = _MAX_SIDE
        height = int(width / aspect)
    elif height > width and height > _MAX_SIDE:
        height = _MAX_SIDE
        width = int(height * aspect)
    return max(height, 1), max(width, 1)


def _to_multiple(height: int, width: int, view: int) -> tuple[int, int]:
    aspect = width / height
    if width >= height:
        width = math.ceil(width / view) * view
        height = math.ceil(int(width / aspect) / view) * view
    else:
        height = math.ceil(height / view) * view
        width = math.ceil(int(height * aspect) / view) * view
    return height, width


def grid_of(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """Rows and columns of tiles for a picture of this size; (0, 0) is one view."""
    if not spec.tiling:
        return 0, 0
    height, width = _to_multiple(*_fit(height, width, spec.longest_edge), spec.view)
    if height <= spec.view and width <= spec.view:
        return 0, 0
    return height // spec.view, width // spec.view


def preprocess(rgb: NDArray[np.uint8], spec: ImageSpec) -> Views:
    """rgb [H, W, 3] -> views [V, 3, S, S]: the tiles row by row, then the whole picture."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"expected uint8 [H, W, 3] pixels, got {rgb.dtype} {rgb.shape}")
    resample = Image.Resampling[spec.resample]
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    rows, cols = grid_of(picture.height, picture.width, spec)
    height, width = _fit(picture.height, picture.width, spec.longest_edge)
    picture = picture.resize((width, height), resample)
    views = []
    if spec.tiling:
        height, width = _to_multiple(height, width, spec.view)
        picture = picture.resize((width, height), resample)
        for row in range(rows):
            for col in range(cols):
                x, y = col * spec.view, row * spec.view
                views.append(picture.crop((x, y, x + spec.view, y + spec.view)))
    views.append(picture.resize((spec.view, spec.view), resample))
    levels = _levels(spec)  # [256, 3]
    pixels = np.empty((len(views), 3, spec.view, spec.view), np.float32)
    for index, view in enumerate(views):
        raw = np.asarray(view)  # [S, S, 3]
        for channel in range(3):
            np.take(levels[:, channel], raw[:, :, channel], out=pixels[index, channel])
    return Views(pixels, rows, cols)


@cache
def _levels(spec: ImageSpec) -> NDArray[np.float32]:
    """The normalised value of every 8-bit level, per channel: a table is fast."""
    level = np.arange(256, dtype=np.float64) * spec.rescale
    wide: NDArray[np.float32] = level.astype(np.float32)[:, None]
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    values: NDArray[np.float32] = (wide - mean) / std
    return values


def canary_image(height: int, width: int) -> NDArray[np.uint8]:
    """A picture from integer arithmetic alone, so that every device draws the same one."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    red = (x * 255) // max(width - 1, 1)
    green = (y * 255) // max(height - 1, 1)
    blue = ((x // 7 + y // 5) % 2) * 160 + (x * y) % 96
    disc = (2 * x - width) ** 2 + (3 * y - height) ** 2 < (min(height, width) // 2) ** 2
    rgb = np.stack([np.where(disc, 230, red), np.where(disc, 40, green), blue], axis=-1)
    return rgb.astype(np.uint8)
