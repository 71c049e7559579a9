"""Preprocessing by a central crop: how CLIP and SigLIP encoders see a picture.

Takes uint8 pixels; gives `pixel_values` [1, 3, S, S]. Equals transformers' Pillow-based processors,
rounding included: the resize goes through 8-bit pixels. Knows no model and no file format of
pictures; numpy and Pillow only.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.bundle import from_json, to_json
from edgejudge.errors import BundleError
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.vision_input import channels, check_levels, filter_name, levels

__all__ = ["CropSpec", "prepare_crop", "read_crop_spec"]

_BICUBIC = 3
_MOST_SIDE = 4096


@dataclass(frozen=True, slots=True)
class CropSpec:
    side: int
    whole: bool  # squeezed into the square (SigLIP), or resized and cropped (CLIP)
    resample: str  # a Pillow filter's name
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = to_json(self)
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Raises BundleError, by the name of the field, for what is no crop."""
        where = "relevance.preprocessing"
        spec = from_json(cls, value, where)
        check_levels(where, spec.resample, spec.rescale, spec.mean, spec.std)
        if not 0 < spec.side <= _MOST_SIDE:
            raise BundleError(f"{where}.side: {spec.side} is not from 1 to {_MOST_SIDE}")
        return spec


def read_crop_spec(config: HfConfig) -> CropSpec:
    """From preprocessor_config.json; both ways of a processor to state its size."""
    size = config.section("size")
    cropped = bool(config.value.get("do_center_crop", False))
    if cropped:
        shortest = size.read(int, "shortest_edge")
        crop = config.section("crop_size")
        side = crop.read(int, "height")
        crop.expect("width", side)
        if shortest != side:
            size.expect("shortest_edge", side)
    else:
        side = size.read(int, "height")
        size.expect("width", side)
    return CropSpec(
        side=side,
        whole=not cropped,
        resample=filter_name(config, _BICUBIC),
        rescale=config.read(float, "rescale_factor", 1 / 255),
        mean=channels(config, "image_mean", (0.5, 0.5, 0.5)),
        std=channels(config, "image_std", (0.5, 0.5, 0.5)),
    )


def prepare_crop(rgb: NDArray[np.uint8], spec: CropSpec) -> NDArray[np.float32]:
    """rgb [H, W, 3] -> pixel_values [1, 3, S, S]."""
    height, width = rgb.shape[:2]
    side = spec.side
    if spec.whole:
        size = (side, side)
    elif width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    image = Image.fromarray(rgb).resize(size, Image.Resampling[spec.resample])
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    table = levels(spec.rescale, spec.mean, spec.std)  # [256, 3]
    values = np.stack([table[pixels[..., c], c] for c in range(3)])
    return values[None]
