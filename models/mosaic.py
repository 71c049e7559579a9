"""Preprocessing by mosaics: an RGB picture becomes equal square tiles, and a view of the whole.

Takes uint8 pixels; gives `pixel_values` [V, 3, S, S]. Equals transformers' Pillow-based processor
of GOT-OCR 2, which InternVL uses, step by step. Of all grids of some number of tiles a picture is
stretched over the one nearest to its own shape. Knows no model and no file format of pictures;
numpy and Pillow only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.bundle import from_json, to_json
from edgejudge.errors import BundleError, ExportError
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.vision_input import (
    VisionInput,
    channels,
    check_levels,
    filter_name,
    levels,
    normalised,
)

__all__ = ["MosaicSpec", "mosaic_of", "prepare_mosaic", "read_mosaic_spec"]

_MAX_SIDE = 4096
_MAX_TILES = 64
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class MosaicSpec:
    """InternVL's way: from `min_tiles` to `max_tiles` tiles, and the whole where it is cut."""

    kind: str
    view: int  # side of one square view
    min_tiles: int
    max_tiles: int
    resample: str  # a Pillow filter's name
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = to_json(self)
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Raises BundleError, by the name of the field, for what no picture can be cut into."""
        spec = from_json(cls, value, "preprocessing")
        check_levels("preprocessing", spec.resample, spec.rescale, spec.mean, spec.std)
        if not 0 < spec.view <= _MAX_SIDE:
            raise BundleError(f"preprocessing.view: {spec.view} is not from 1 to {_MAX_SIDE}")
        for name, problem in _problems(spec):
            raise BundleError(f"preprocessing.{name}: {problem}")
        return spec

    @property
    def max_grid(self) -> int:
        """The most rows, or columns, that any picture is cut into."""
        return self.max_tiles

    @property
    def example_size(self) -> tuple[int, int]:
        """Height and width of a small picture that meets every step: one row of tiles."""
        return self.view, 2 * self.view


def _problems(spec: MosaicSpec) -> Iterator[tuple[str, str]]:
    if not 0 < spec.max_tiles <= _MAX_TILES:
        yield "max_tiles", f"{spec.max_tiles} is not from 1 to {_MAX_TILES}"
    if not 0 < spec.min_tiles <= spec.max_tiles:
        yield "min_tiles", f"{spec.min_tiles} is not from 1 to {spec.max_tiles}"


def read_mosaic_spec(config: HfConfig) -> MosaicSpec:
    """From the image processor's config; absent keys have the defaults transformers gives them.

    Its `crop_to_patches` is not read: whatever stands there, the family's processor asks for tiles.
    """
    size = config.section("size")
    view = size.read(int, "height")
    size.expect("width", view)
    spec = MosaicSpec(
        kind="mosaic",
        view=view,
        min_tiles=config.read(int, "min_patches", 1),
        max_tiles=config.read(int, "max_patches", 12),
        resample=filter_name(config, 3),
        rescale=config.read(float, "rescale_factor", 1 / 255),
        mean=channels(config, "image_mean", _CLIP_MEAN),
        std=channels(config, "image_std", _CLIP_STD),
    )
    for name, problem in _problems(spec):
        raise ExportError(f"{config.where}: '{name.replace('tiles', 'patches')}' {problem}")
    return spec


def mosaic_of(height: int, width: int, spec: MosaicSpec) -> tuple[int, int]:
    """Rows and columns of tiles for a picture of this size; (0, 0) is one view.

    Of grids that are as near to its shape, the one with more tiles is taken as long as a picture
    has more than half as many pixels as they.
    """
    aspect, area = width / height, width * height
    nearest, found = float("inf"), (1, 1)
    for cols, rows in _grids(spec):
        off = abs(aspect - cols / rows)
        if off < nearest or (off == nearest and area > 0.5 * spec.view**2 * cols * rows):
            nearest, found = off, (rows, cols)
    return (0, 0) if found == (1, 1) else found


def _grids(spec: MosaicSpec) -> list[tuple[int, int]]:
    """Columns and rows, those of fewest tiles first, of as many the narrowest."""
    sides = range(1, spec.max_tiles + 1)
    grids = [(cols, rows) for cols in sides for rows in sides]
    some = [g for g in grids if spec.min_tiles <= g[0] * g[1] <= spec.max_tiles]
    return sorted(some, key=lambda grid: grid[0] * grid[1])


def prepare_mosaic(rgb: NDArray[np.uint8], spec: MosaicSpec) -> VisionInput:
    """rgb [H, W, 3] -> pixel_values [V, 3, S, S]: the tiles row by row, then the whole picture."""
    resample, side = Image.Resampling[spec.resample], spec.view
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    rows, cols = mosaic_of(picture.height, picture.width, spec)
    views = []
    if rows:
        stretched = picture.resize((cols * side, rows * side), resample)
        corners = [(col * side, row * side) for row in range(rows) for col in range(cols)]
        views = [stretched.crop((x, y, x + side, y + side)) for x, y in corners]
    views.append(picture.resize((side, side), resample))
    pixels = normalised(views, levels(spec.rescale, spec.mean, spec.std))
    return VisionInput({"pixel_values": pixels}, rows, cols)
