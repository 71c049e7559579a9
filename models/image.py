"""Preprocessing: an RGB picture becomes the inputs of a vision graph, whatever the family.

Takes uint8 pixels and the spec a bundle carries; gives a `VisionInput`. Knows no model and no file
format of pictures; numpy and Pillow only.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import BundleError
from edgejudge.models.anyres import AnyResSpec, prepare_anyres
from edgejudge.models.mosaic import MosaicSpec, prepare_mosaic
from edgejudge.models.patches import PatchSpec, prepare_patches
from edgejudge.models.tiles import TileSpec, prepare_tiles
from edgejudge.models.vision_input import VisionInput

__all__ = ["ImageSpec", "canary_image", "image_spec", "preprocess"]

ImageSpec = TileSpec | MosaicSpec | PatchSpec | AnyResSpec


def image_spec(value: dict[str, Any]) -> ImageSpec:
    """The spec in a manifest's `preprocessing`. Raises BundleError for a kind that is unknown."""
    kind = value.get("kind")
    if kind == "tiles":
        return TileSpec.from_json(value)
    if kind == "mosaic":
        return MosaicSpec.from_json(value)
    if kind == "patches":
        return PatchSpec.from_json(value)
    if kind == "anyres":
        return AnyResSpec.from_json(value)
    raise BundleError(
        f"preprocessing: 'kind' is {kind!r}, expected 'tiles', 'mosaic', 'patches' or 'anyres'"
    )


def preprocess(rgb: NDArray[np.uint8], spec: ImageSpec) -> VisionInput:
    """rgb [H, W, 3] -> the inputs of the vision graph."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"expected uint8 [H, W, 3] pixels, got {rgb.dtype} {rgb.shape}")
    if isinstance(spec, TileSpec):
        return prepare_tiles(rgb, spec)
    if isinstance(spec, MosaicSpec):
        return prepare_mosaic(rgb, spec)
    if isinstance(spec, AnyResSpec):
        return prepare_anyres(rgb, spec)
    return prepare_patches(rgb, spec)


def canary_image(height: int, width: int) -> NDArray[np.uint8]:
    """A picture from integer arithmetic alone, so that every device draws the same one."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    red = (x * 255) // max(width - 1, 1)
    green = (y * 255) // max(height - 1, 1)
    blue = ((x // 7 + y // 5) % 2) * 160 + (x * y) % 96
    disc = (2 * x - width) ** 2 + (3 * y - height) ** 2 < (min(height, width) // 2) ** 2
    rgb = np.stack([np.where(disc, 230, red), np.where(disc, 40, green), blue], axis=-1)
    return rgb.astype(np.uint8)
