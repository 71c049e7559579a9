"""Which frames of a file are looked at, within limits, and whether the others look like them.

Takes sizes and decoded frames; gives places and counts. Knows no formats and no judge.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Survey", "Unlike", "chosen", "survey"]

_SIDE = 128  # of the small copies that are compared
_LEVELS = 32  # a cell that differs by more in some channel is seen to; compression stays below
_CELLS = 9  # so many of them, 3 x 3 where they lie together, are something that is seen


@dataclass(frozen=True, slots=True)
class Survey:
    """`count` frames are there, or `more`; the first `reach` of them are within the limits."""

    count: int
    more: bool
    reach: int


def survey(sizes: Iterable[tuple[int, int]], max_frames: int, max_pixels: int) -> Survey:
    """From the sizes of frames, of which no more are taken than needed. The first one is always
    within reach.
    """
    count = reach = pixels = 0
    for width, height in sizes:
        if count >= max_frames:
            return Survey(count, True, reach)
        pixels += width * height
        if reach == count and (pixels <= max_pixels or not count):
            reach += 1
        count += 1
    return Survey(count, False, reach)


def chosen(count: int, most: int) -> tuple[int, ...]:
    """Of `count` frames at most `most`: all if they are no more, else the first, the middle and the
    last, and the others spread evenly between these.
    """
    if count <= most:
        return tuple(range(count))
    last, middle = count - 1, count // 2
    if most < 3:
        return (0, last)[:most]
    before = (most - 3 + 1) // 2
    after = most - 3 - before
    left = [middle * i // (before + 1) for i in range(before + 1)]
    right = [middle + (last - middle) * i // (after + 1) for i in range(after + 1)]
    return tuple(dict.fromkeys([*left, *right, last]))


class Unlike:
    """Frames that were passed by without being judged, as far as they differ visibly from all that
    were.
    """

    def __init__(self) -> None:
        self._judged: list[NDArray[np.uint8]] = []
        self._open: list[tuple[int, NDArray[np.uint8]]] = []

    def judged(self, rgbs: Sequence[NDArray[np.uint8]]) -> None:
        """One frame, over each of its backgrounds."""
        self._judged.append(_small(rgbs))

    def passed(self, number: int, rgbs: Sequence[NDArray[np.uint8]]) -> None:
        small = _small(rgbs)
        if not self._is_known(small):
            self._open.append((number, small))

    @property
    def numbers(self) -> list[int]:
        return [number for number, small in self._open if not self._is_known(small)]

    def _is_known(self, small: NDArray[np.uint8]) -> bool:
        # The latest first: it is the likeliest.
        return any(_are_like(small, other) for other in reversed(self._judged))


def _are_like(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    if one.shape != other.shape:
        return False
    apart = np.maximum(one, other) - np.minimum(one, other)
    return int((apart > _LEVELS).any(axis=2).sum()) < _CELLS


def _small(rgbs: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """At most [128, 128, 3], and 6 channels of a transparent one: over white and over black."""
    height, width, _ = rgbs[0].shape
    size = min(width, _SIDE), min(height, _SIDE)
    each = [Image.fromarray(rgb).resize(size, Image.Resampling.BOX) for rgb in rgbs]
    return np.concatenate([np.asarray(one, np.uint8) for one in each], axis=2)
