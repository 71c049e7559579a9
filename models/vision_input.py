"""What every family's preprocessing shares: the result, the colours, the processor's file.

Takes parsed processor configs and 8-bit levels; gives records and float32 tables. Knows no layout
of tiles or patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import BundleError, ExportError
from edgejudge.models.hf_config import HfConfig, read_json
from edgejudge.printable import brief

__all__ = [
    "VisionInput",
    "channels",
    "check_levels",
    "filter_name",
    "levels",
    "normalised",
    "read_processor",
]

_FILTERS = {0: "NEAREST", 1: "LANCZOS", 2: "BILINEAR", 3: "BICUBIC", 4: "BOX", 5: "HAMMING"}


@dataclass(frozen=True, slots=True)
class VisionInput:
    """One picture, ready for the vision graph.

    `feeds` are the graph's inputs by name, and where image tokens are mixed of what the graph
    gives, how (models/packing.py). `rows` and `cols` count tiles (0 where the picture is one view),
    or visual tokens where a family lays them out as the picture's own grid, or as lines.
    """

    feeds: dict[str, NDArray[Any]]
    rows: int
    cols: int


def read_processor(folder: Path) -> HfConfig:
    """preprocessor_config.json, or the image processor nested in processor_config.json."""
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
    return config


def filter_name(config: HfConfig, default: int) -> str:
    """The name Pillow gives the configured resampling filter."""
    resample = config.read(int, "resample", default)
    if resample not in _FILTERS:
        raise ExportError(f"{config.where}: 'resample' is {resample}, expected one of 0 to 5")
    return _FILTERS[resample]


def channels(config: HfConfig, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """Three numbers, one per colour."""
    value = config.value.get(key, list(default))
    if isinstance(value, list) and len(value) == 3:
        return tuple(float(v) for v in value)
    raise ExportError(f"{config.where}: {key!r} must be three numbers, got {value!r}")


def check_levels(
    where: str, resample: str, rescale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """What a bundle says of them. Raises BundleError by the name of the field."""
    if resample not in _FILTERS.values():
        raise BundleError(f"{where}.resample: '{brief(resample)}' is none of Pillow's filters")
    for name, three in (("mean", mean), ("std", std)):
        if len(three) != 3 or (name == "std" and min(three) <= 0):
            raise BundleError(f"{where}.{name}: {list(three)} are not three numbers for colours")
    if not rescale > 0:
        raise BundleError(f"{where}.rescale: {rescale} is not above 0")


@cache
def levels(rescale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """The normalised value of every 8-bit level, per channel [256, 3]: a table is fast."""
    level = np.arange(256, dtype=np.float64) * rescale
    wide: NDArray[np.float32] = level.astype(np.float32)[:, None]
    shift, scale = np.array(mean, np.float32), np.array(std, np.float32)
    values: NDArray[np.float32] = (wide - shift) / scale
    return values


def normalised(views: Sequence[Any], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """8-bit pictures of one size, each [H, W, 3] -> [V, 3, H, W] by the table of `levels`."""
    raw = [np.asarray(view) for view in views]
    pixels = np.empty((len(raw), 3, *raw[0].shape[:2]), np.float32)
    for index, view in enumerate(raw):
        for channel in range(3):
            np.take(table[:, channel], view[:, :, channel], out=pixels[index, channel])
    return pixels
