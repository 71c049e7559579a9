"""Preprocessing at any resolution: a view of the whole picture, and crops of it that make lines.

Takes uint8 pixels; gives `pixel_values` [V, 3, S, S], and of each image token which rows of the
vision graph's output it is mixed of (models/packing.py). Equals transformers' Pillow-based
processor of LLaVA-OneVision step by step, rounding included, and how its model packs features (Li
et al. 2024, arXiv 2408.03326, section 3.2). Knows no model and no file format of pictures; numpy
and Pillow only.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.bundle import from_json, to_json
from edgejudge.errors import BundleError, ExportError
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.packing import PACKED_ROWS, PACKED_SHARES
from edgejudge.models.vision_input import VisionInput, channels, check_levels, filter_name, levels

__all__ = ["AnyResSpec", "lines_of", "prepare_anyres", "read_anyres_spec"]

_MAX_SIDE = 4096  # of a canvas in pixels
_MAX_SIZES = 4096
_MAX_MOST = 64
_MAX_GRID = 64  # views along one side of a canvas
_SLACK = 1.1  # lines are shrunk where their side is longer than allowed by more than this
_SIZE = {"height": 384, "width": 384}
_DEFAULT_SIZES = [[384 * down, 384 * across] for down in range(1, 7) for across in range(1, 7)]
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class AnyResSpec:
    """LLaVA-OneVision's way: the whole picture, then crops whose tokens are laid out in lines."""

    kind: str
    view: int  # side of one square view
    grid: int  # visual tokens along it
    most: int  # all lines together have about as many tokens as so many views, at most
    sizes: tuple[tuple[int, ...], ...]  # height and width of each canvas that may be cut into crops
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
        for name, value_, most in (
            ("view", spec.view, _MAX_SIDE),
            ("grid", spec.grid, spec.view),
            ("most", spec.most, _MAX_MOST),
        ):
            if not 0 < value_ <= most:
                raise BundleError(f"preprocessing.{name}: {value_} is not from 1 to {most}")
        if problem := _sizes_problem(spec.sizes, spec.view):
            raise BundleError(f"preprocessing.sizes: {problem}")
        return spec

    @property
    def example_size(self) -> tuple[int, int]:
        """Height and width of a small picture: crops that it does not fill, where that can be."""
        return self.view, self.view + self.view // 2


def _sizes_problem(sizes: Any, view: int) -> str:
    """What is wrong with them; nothing where a picture can be fitted into one."""
    if not 0 < len(sizes) <= _MAX_SIZES:
        return f"there are {len(sizes)} of them, expected 1 to {_MAX_SIZES}"
    for size in sizes:
        sides = list(size) if isinstance(size, (list, tuple)) else []
        most = min(_MAX_SIDE, _MAX_GRID * view)
        whole = all(type(n) is int and 0 < n <= most and n % view == 0 for n in sides)
        if len(sides) != 2 or not whole:
            return f"{size!r:.60} is not a height and a width, each of whole views of {view} pixels"
    return ""


def read_anyres_spec(config: HfConfig, model: HfConfig, view: int, grid: int) -> AnyResSpec:
    """From the processor's config, and what the checkpoint's own, `model`, says of the same; absent
    keys have the defaults transformers gives them.
    """
    size = config.section("size") if "size" in config.value else HfConfig(_SIZE, config.where)
    made = [size.read(int, key) for key in ("height", "width")]
    if made != [view, view]:
        raise ExportError(
            f"{config.where}: preprocessing makes views of {made[1]} x {made[0]} pixels, "
            f"config.json means {view} x {view}"
        )
    config.expect("do_center_crop", False, None)
    config.expect("crop_size", None)
    sizes = [c.value.get("image_grid_pinpoints") or _DEFAULT_SIZES for c in (config, model)]
    if sizes[0] != sizes[1]:
        raise ExportError(
            f"{config.where}: 'image_grid_pinpoints' differs from that of {model.where}; pictures "
            "would be cut otherwise than the model lays them out"
        )
    if not isinstance(sizes[0], list) or (problem := _sizes_problem(sizes[0], view)):
        problem = problem if isinstance(sizes[0], list) else "expected a list"
        raise ExportError(f"{config.where}: 'image_grid_pinpoints': {problem}")
    return AnyResSpec(
        kind="anyres",
        view=view,
        grid=grid,
        most=_read_most(model),
        sizes=tuple(tuple(size) for size in sizes[0]),
        resample=filter_name(config, 3),
        rescale=config.read(float, "rescale_factor", 1 / 255),
        mean=channels(config, "image_mean", _CLIP_MEAN),
        std=channels(config, "image_std", _CLIP_STD),
    )


def _read_most(config: HfConfig) -> int:
    """N of `vision_aspect_ratio` "anyres_max_N" in config.json."""
    text = config.read(str, "vision_aspect_ratio", "anyres_max_9")
    number = text.removeprefix("anyres_max_")
    if number == text or not (number.isascii() and number.isdecimal()):
        raise ExportError(
            f"{config.where}: 'vision_aspect_ratio' is {text!r}, only 'anyres_max_N' is supported "
            "for this family"
        )
    if not 0 < int(number) <= _MAX_MOST:
        raise ExportError(
            f"{config.where}: 'vision_aspect_ratio' is {text!r}, N must be from 1 to {_MAX_MOST}"
        )
    return int(number)


# --- which canvas, and which of its tokens -------------------------------------------------------


def _canvas(height: int, width: int, spec: AnyResSpec) -> tuple[int, int]:
    """The size that keeps most of the picture's pixels, and of those the one with least beside."""
    best, kept, wasted = (0, 0), 0, math.inf
    for high, wide in spec.sizes:
        scale = min(wide / width, high / height)
        used = min(int(width * scale) * int(height * scale), height * width)
        waste = high * wide - used
        if used > kept or (used == kept and waste < wasted):
            best, kept, wasted = (high, wide), used, waste
    return best


def _fit(height: int, width: int, canvas: tuple[int, int]) -> tuple[int, int]:
    """The picture's own shape, as large as the canvas holds it."""
    by_height, by_width = canvas[0] / height, canvas[1] / width
    if by_width < by_height:
        return min(math.ceil(height * by_width), canvas[0]), canvas[1]
    return canvas[0], min(math.ceil(width * by_height), canvas[1])


def _filled(height: int, width: int, rows: int, cols: int) -> tuple[range, range]:
    """Rows and columns of a canvas's tokens that the picture fills; a strip may fill none."""
    if width / height > cols / rows:
        margin = (rows - int(round(height * (cols / width), 7))) // 2
        return range(margin, rows - margin), range(cols)
    margin = (cols - int(round(width * (rows / height), 7))) // 2
    return range(rows), range(margin, cols - margin)


def _shrunk(rows: int, cols: int, spec: AnyResSpec) -> tuple[int, int]:
    """As many as there may be."""
    ratio = math.sqrt(rows * cols / (spec.most * spec.grid**2))
    if ratio <= _SLACK:
        return rows, cols
    return int(rows // ratio), int(cols // ratio)


def lines_of(height: int, width: int, spec: AnyResSpec) -> tuple[int, int]:
    """Lines of a picture of this size, and tokens of each before the one that ends it."""
    high, wide = (side // spec.view * spec.grid for side in _canvas(height, width, spec))
    rows, cols = _filled(height, width, high, wide)
    return _shrunk(len(rows), len(cols), spec)


# --- packing -------------------------------------------------------------------------------------


def _packed(
    height: int, width: int, spec: AnyResSpec
) -> tuple[NDArray[np.int64], NDArray[np.float32], int, int]:
    """Rows of the vision graph's output [T, 4] and their shares for each image token, lines, and
    tokens of each. A view gives the token that ends a line, then its own, row by row.
    """
    grid = spec.grid
    each = 1 + grid**2
    high, wide = (side // spec.view for side in _canvas(height, width, spec))
    ys, xs = _filled(height, width, high * grid, wide * grid)
    rows, cols = _shrunk(len(ys), len(xs), spec)
    along_y, along_x = _along(len(ys), rows), _along(len(xs), cols)
    places = np.zeros((rows, cols + 1, 4), np.int64)
    shares = np.zeros((rows, cols + 1, 4), np.float32)
    for tap in range(4):
        (y, y_share), (x, x_share) = along_y[tap // 2], along_x[tap % 2]
        y, x = (y + ys.start)[:, None], (x + xs.start)[None, :]
        view = 1 + y // grid * wide + x // grid
        places[:, :cols, tap] = view * each + 1 + y % grid * grid + x % grid
        shares[:, :cols, tap] = y_share[:, None] * x_share[None, :]
    if cols:  # a line ends with the token of the view that its last one is of
        places[:, cols] = places[:, cols - 1, :1] // each * each
    shares[:, cols, 0] = 1
    whole = np.repeat(np.arange(1, each, dtype=np.int64)[:, None], 4, axis=1)
    alone = np.tile(np.array([1, 0, 0, 0], np.float32), (grid**2, 1))
    return (
        np.concatenate([whole, places.reshape(-1, 4)]),
        np.concatenate([alone, shares.reshape(-1, 4)]),
        rows,
        cols,
    )


def _along(count: int, wanted: int) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Bilinear interpolation along one axis, in float32 as torch does it: of each wanted place the
    two that it lies between, and their shares.
    """
    if not wanted:
        return [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * 2
    scale, half = np.float32(count) / np.float32(wanted), np.float32(0.5)
    at = np.maximum(scale * (np.arange(wanted, dtype=np.float32) + half) - half, np.float32(0))
    low = np.minimum(at.astype(np.int64), count - 1)
    share = at - low.astype(np.float32)
    # What has no share is the first place once more, so that no other view is waited for.
    high = np.where(share > 0, np.minimum(low + 1, count - 1), low)
    return [(low, np.float32(1) - share), (high, share)]


def prepare_anyres(rgb: NDArray[np.uint8], spec: AnyResSpec) -> VisionInput:
    """rgb [H, W, 3] -> pixel_values [V, 3, S, S], the whole picture and then crops row by row, with
    what each image token is mixed of.
    """
    resample, view = Image.Resampling[spec.resample], spec.view
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    size = (picture.height, picture.width)
    canvas = _canvas(*size, spec)
    high, wide = _fit(*size, canvas)
    padded = Image.new("RGB", (canvas[1], canvas[0]))
    padded.paste(
        picture.resize((wide, high), resample), ((canvas[1] - wide) // 2, (canvas[0] - high) // 2)
    )
    views = [picture.resize((view, view), resample)]
    for y in range(0, canvas[0], view):
        for x in range(0, canvas[1], view):
            views.append(padded.crop((x, y, x + view, y + view)))
    table = levels(spec.rescale, spec.mean, spec.std)  # [256, 3]
    pixels = np.empty((len(views), 3, view, view), np.float32)
    for index, one in enumerate(views):
        raw = np.asarray(one)  # [S, S, 3]
        for channel in range(3):
            np.take(table[:, channel], raw[:, :, channel], out=pixels[index, channel])
    places, shares, rows, cols = _packed(*size, spec)
    packed: dict[str, NDArray[Any]] = {PACKED_ROWS: places, PACKED_SHARES: shares}
    return VisionInput({"pixel_values": pixels, **packed}, rows, cols)
