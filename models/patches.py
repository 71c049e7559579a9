"""Preprocessing by patches: an RGB picture of any size becomes patches in attention windows.

Takes uint8 pixels; gives patches with what the tower needs to know of their places. The pixels
equal transformers' Pillow-based processor of Qwen2-VL. Windows are padded to one size, so that a
graph attends within all of them at once. Knows no model and no file format of pictures.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.bundle import from_json, to_json
from edgejudge.errors import BundleError, InputError
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.rope import axial_rotation
from edgejudge.models.spec import ModelSpec
from edgejudge.models.vision_input import VisionInput, channels, check_levels, filter_name, levels

__all__ = ["PatchSpec", "fit", "prepare_patches", "read_patch_spec"]

_MAX_ASPECT = 200  # the family refuses longer pictures
_MOST_PIXELS = 1 << 26
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class PatchSpec:
    """Qwen2.5-VL's way: the picture's own grid of patches."""

    kind: str
    min_pixels: int  # a smaller picture is enlarged, a larger one than max_pixels shrunk
    max_pixels: int
    patch: int  # side of a patch in pixels
    merge: int  # merge^2 patches become one visual token
    frames: int  # a still picture is repeated as so many frames
    window: int  # side of an attention window in pixels; 0 where all patches see each other
    table_side: (
        int  # of the tower's table of positions, which is stretched over the grid; 0 is none
    )
    rope_theta: float
    head_dim: int
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
        if not 0 < spec.min_pixels <= spec.max_pixels <= _MOST_PIXELS:
            raise BundleError(
                f"preprocessing.max_pixels: {spec.min_pixels} to {spec.max_pixels} pixels are not "
                f"within 1 to {_MOST_PIXELS}"
            )
        for name in ("patch", "merge", "frames", "window", "table_side", "head_dim"):
            least = 0 if name in ("window", "table_side") else 1
            if not least <= getattr(spec, name) <= _MOST_PIXELS:
                raise BundleError(f"preprocessing.{name}: {getattr(spec, name)} is no size")
        if spec.window % spec.unit or spec.head_dim % 4 or not spec.rope_theta > 0:
            raise BundleError(
                f"preprocessing.window: windows of {spec.window} pixels of {spec.unit} each, with "
                f"{spec.head_dim} numbers turned by {spec.rope_theta}, are none"
            )
        return spec

    @property
    def unit(self) -> int:
        """Side in pixels of what one visual token covers."""
        return self.patch * self.merge

    @property
    def example_size(self) -> tuple[int, int]:
        """Height and width of a small picture that does not fill its windows."""
        return 3 * self.unit, 5 * self.unit


def read_patch_spec(config: HfConfig, spec: ModelSpec) -> PatchSpec:
    """From the processor's config, old keys or new, and what the tower's own config says."""
    size = config.section("size") if "size" in config.value else HfConfig({}, config.where)
    vision = spec.vision
    for key, wanted in (
        ("patch_size", vision.patch_size),
        ("merge_size", spec.scale_factor),
        ("temporal_patch_size", vision.frames),
    ):
        config.expect(key, wanted, None)
    shortest = config.read(int, "min_pixels", size.read(int, "shortest_edge", 56 * 56))
    longest = config.read(int, "max_pixels", size.read(int, "longest_edge", 28 * 28 * 1280))
    return PatchSpec(
        kind="patches",
        min_pixels=shortest,
        max_pixels=longest,
        patch=vision.patch_size,
        merge=spec.scale_factor,
        frames=vision.frames,
        window=vision.window,
        table_side=vision.table_side,
        rope_theta=vision.rope_theta,
        head_dim=vision.head_dim,
        resample=filter_name(config, 3),
        rescale=config.read(float, "rescale_factor", 1 / 255),
        mean=channels(config, "image_mean", _CLIP_MEAN),
        std=channels(config, "image_std", _CLIP_STD),
    )


def fit(height: int, width: int, spec: PatchSpec) -> tuple[int, int]:
    """The family's size for a picture: sides of whole visual tokens, area within the limits.

    Raises InputError "too_long" for a strip that the family refuses.
    """
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise InputError(
            "too_long",
            f"it is {width} x {height} pixels, this model takes sides of at most "
            f"{_MAX_ASPECT} to 1; cut it into pieces",
        )
    unit = spec.unit
    high, wide = round(height / unit) * unit, round(width / unit) * unit
    if high * wide > spec.max_pixels:
        beta = math.sqrt(height * width / spec.max_pixels)
        high = max(unit, math.floor(height / beta / unit) * unit)
        wide = max(unit, math.floor(width / beta / unit) * unit)
    elif high * wide < spec.min_pixels:
        beta = math.sqrt(spec.min_pixels / (height * width))
        high = math.ceil(height * beta / unit) * unit
        wide = math.ceil(width * beta / unit) * unit
    return high, wide


def prepare_patches(rgb: NDArray[np.uint8], spec: PatchSpec) -> VisionInput:
    """rgb [H, W, 3] -> N slots of patches, P of them filled, in W windows where there are some:

    patches f32 [N, K]; rope_cos, rope_sin f32 [N, head_dim / 2]; tokens int64 [P / merge^2], where
    each visual token lies among the merged slots.

    With windows: window_mask int32 [W, N / W], 1 where a slot is filled; slots int64 [P], the slot
    of every patch in reading order of the visual tokens; places int64 [N], the way back.

    With a table of positions: the rows of it around each slot's place, table_rows int64 [N, 4], and
    how near they are, table_shares f32 [N, 4].
    """
    high, wide = fit(rgb.shape[0], rgb.shape[1], spec)
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    picture = picture.resize((wide, high), Image.Resampling[spec.resample])
    raw = np.asarray(picture)
    table = levels(spec.rescale, spec.mean, spec.std)  # [256, 3]
    pixels = np.stack([np.take(table[:, c], raw[:, :, c]) for c in range(3)])  # [3, H, W]
    rows, cols = high // spec.unit, wide // spec.unit
    slots, window_size = _window_slots(rows, cols, spec)
    total = -(-(int(slots.max()) + 1) // window_size) * window_size
    grid = _patch_positions(rows, cols, spec.merge)
    patches = np.zeros((total, 3 * spec.frames * spec.patch**2), np.float32)
    patches[slots] = _patches(pixels, spec)
    positions = np.zeros((2, total), np.int64)
    positions[:, slots] = grid
    cos, sin = axial_rotation(positions, spec.rope_theta, spec.head_dim)
    feeds: dict[str, NDArray[Any]] = {
        "patches": patches,
        "rope_cos": cos,
        "rope_sin": sin,
        "tokens": slots[:: spec.merge**2] // spec.merge**2,
    }
    if spec.window:
        mask = np.zeros(total, np.int32)
        mask[slots] = 1
        places = np.zeros(total, np.int64)
        places[slots] = np.arange(len(slots))
        feeds |= {"window_mask": mask.reshape(-1, window_size), "slots": slots, "places": places}
    if spec.table_side:
        found, shares = np.zeros((total, 4), np.int64), np.zeros((total, 4), np.float32)
        found[slots], shares[slots] = _table_rows(grid, (rows, cols), spec)
        feeds |= {"table_rows": found, "table_shares": shares}
    return VisionInput(feeds, rows, cols)


def _patches(pixels: NDArray[np.float32], spec: PatchSpec) -> NDArray[np.float32]:
    """[3, H, W] -> [P, K]: the patches of a visual token lie together, frames repeat."""
    _, height, width = pixels.shape
    side, merge = spec.patch, spec.merge
    grid = pixels.reshape(3, height // spec.unit, merge, side, width // spec.unit, merge, side)
    grid = grid.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    grid = np.broadcast_to(grid, (*grid.shape[:5], spec.frames, side, side))
    return grid.reshape(-1, 3 * spec.frames * side * side)


def _patch_positions(rows: int, cols: int, merge: int) -> NDArray[np.int64]:
    """Row and column of every patch [2, P], in the order of `_patches`."""
    y, x = np.mgrid[: rows * merge, : cols * merge]
    grid = np.stack([y, x]).reshape(2, rows, merge, cols, merge)
    return np.asarray(grid.transpose(0, 1, 3, 2, 4).reshape(2, -1), np.int64)


def _table_rows(
    grid: NDArray[np.int64], tokens: tuple[int, int], spec: PatchSpec
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of every patch [2, P], the four rows of the table around its place and their shares [P, 4],
    when the table's corners are those of the grid; in float32, as the family does.
    """
    side, rows, shares = spec.table_side, [], []
    for index, count in zip(grid.astype(np.float32), tokens, strict=True):
        most = np.float32(max(count * spec.merge - 1, 1))
        place = index * np.float32(side - 1) / most
        low = np.floor(place)
        far = place - low
        taps = low[:, None].astype(np.int64) + np.arange(2)
        rows.append(np.minimum(taps, side - 1))
        shares.append(np.stack([1 - far, np.float32(1) - np.abs(far - 1)], axis=1))
    found = rows[0][:, :, None] * side + rows[1][:, None, :]
    weights = shares[0][:, :, None] * shares[1][:, None, :]
    return found.reshape(-1, 4), weights.reshape(-1, 4).astype(np.float32)


def _window_slots(rows: int, cols: int, spec: PatchSpec) -> tuple[NDArray[np.int64], int]:
    """The slot of every patch when windows are laid one after another, all of one size; and that
    size in patches. Without windows, one after another in the order of visual tokens.
    """
    if not spec.window:
        return np.arange(rows * cols * spec.merge**2), 1
    side = spec.window // spec.unit  # of a window, in visual tokens
    across = -(-cols // side)
    y, x = np.divmod(np.arange(rows * cols), cols)
    window = y // side * across + x // side
    token = (window * side + y % side) * side + x % side
    group = spec.merge**2
    slots = token[:, None] * group + np.arange(group)
    return slots.reshape(-1).astype(np.int64), side * side * group
