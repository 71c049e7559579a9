"""Preprocessing by tiles: an RGB picture becomes the square views a vision tower sees.

Takes uint8 pixels; gives `pixel_values` [V, 3, S, S]. Equals transformers' Pillow-based processor
of SmolVLM step by step, rounding included: every resize goes through 8-bit pixels. Knows no model
and no file format of pictures; numpy and Pillow only.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.bundle import from_json, to_json
from edgejudge.errors import BundleError
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.vision_input import (
    VisionInput,
    channels,
    check_levels,
    filter_name,
    levels,
    normalised,
)

__all__ = ["TileSpec", "grid_of", "prepare_tiles", "read_tile_spec"]

_MAX_SIDE = 4096  # the family's own ceiling for a resized picture
_MAX_GRID = 64


@dataclass(frozen=True, slots=True)
class TileSpec:
    """SmolVLM's way: tiles and a global view."""

    kind: str
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
        """Raises BundleError, by the name of the field, for what no picture can be cut into."""
        spec = from_json(cls, value, "preprocessing")
        check_levels("preprocessing", spec.resample, spec.rescale, spec.mean, spec.std)
        for name, side in (("view", spec.view), ("longest_edge", spec.longest_edge)):
            if not 0 < side <= _MAX_SIDE:
                raise BundleError(f"preprocessing.{name}: {side} is not from 1 to {_MAX_SIDE}")
        if spec.max_grid > _MAX_GRID:
            raise BundleError(
                f"preprocessing.view: {spec.view} pixels make more than {_MAX_GRID} x {_MAX_GRID} "
                "tiles"
            )
        return spec

    @property
    def max_grid(self) -> int:
        """The most rows, or columns, that any picture is cut into."""
        if not self.tiling:
            return 0
        # A side that comes out odd is made even, which may pass an odd longest edge by one.
        side = min(self.longest_edge + self.longest_edge % 2, _MAX_SIDE)
        return math.ceil(side / self.view)

    @property
    def example_size(self) -> tuple[int, int]:
        """Height and width of a small picture that meets every step: one row of tiles."""
        return self.view, self.view * max(self.max_grid, 1)


def read_tile_spec(config: HfConfig) -> TileSpec:
    """From the processor's config; absent keys have the defaults transformers gives them."""
    return TileSpec(
        kind="tiles",
        longest_edge=config.section("size").read(int, "longest_edge"),
        view=config.section("max_image_size").read(int, "longest_edge"),
        tiling=config.read(bool, "do_image_splitting", True),
        resample=filter_name(config, 1),
        rescale=config.read(float, "rescale_factor", 1 / 255),
        mean=channels(config, "image_mean", (0.5, 0.5, 0.5)),
        std=channels(config, "image_std", (0.5, 0.5, 0.5)),
    )


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


def grid_of(height: int, width: int, spec: TileSpec) -> tuple[int, int]:
    """Rows and columns of tiles for a picture of this size; (0, 0) is one view."""
    if not spec.tiling:
        return 0, 0
    height, width = _to_multiple(*_fit(height, width, spec.longest_edge), spec.view)
    if height <= spec.view and width <= spec.view:
        return 0, 0
    return height // spec.view, width // spec.view


def prepare_tiles(rgb: NDArray[np.uint8], spec: TileSpec) -> VisionInput:
    """rgb [H, W, 3] -> pixel_values [V, 3, S, S]: the tiles row by row, then the whole picture."""
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
    pixels = normalised(views, levels(spec.rescale, spec.mean, spec.std))
    return VisionInput({"pixel_values": pixels}, rows, cols)
