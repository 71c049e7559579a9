"""How much memory the process has, may have, and gives back.

Takes a budget in bytes; says whether what is about to be loaded fits. Knows no session.
"""

import ctypes
import os
import sys
from collections.abc import Sequence

from edgejudge.bundle import Bundle, PartRecord
from edgejudge.errors import BundleError, InputError
from edgejudge.models.spec import ModelSpec

__all__ = ["Room", "fits", "free_unused", "most_pixels", "resident_bytes"]

_UNKNOWN = 128 << 20  # where the system does not tell
_LATER = 64 << 20  # code that is mapped with the first picture and the first graph, and the picture
_PIXEL_BYTES = 12  # decoded, turned, converted and handed on, one beside the other
_VIEWS, _PATCHES = 17, 4096  # of a large picture, in families that cut it and that do not


def resident_bytes() -> int:
    """What the process holds now, mapped pages included."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return _UNKNOWN


def free_unused() -> None:
    """Gives the system back what was freed; glibc keeps it otherwise."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except AttributeError:  # another libc, which does not keep as much
            return


def fits(bundle: Bundle, budget: int) -> bool:
    """Whether a whole judge does, tower and decoder at once, with room for its largest passes."""
    manifest = bundle.manifest
    spec = ModelSpec.from_json(manifest.spec)
    weights = sum(p.weight_bytes for p in (*manifest.vision_slices, *manifest.decoder_slices))
    patches = max(_PATCHES, _VIEWS * spec.vision.grid**2)
    rows = _activations(patches, spec.vision.hidden, spec.vision.intermediate)
    return resident_bytes() + _LATER + 2 * weights + rows <= budget


def _activations(rows: int, hidden: int, inner: int) -> int:
    """What a layer makes of `rows` tokens or patches, at most."""
    return rows * 4 * (6 * hidden + 4 * inner)


def most_pixels(budget: int) -> int:
    """Of a picture that can be decoded within the budget, before any weight is loaded."""
    return max(0, budget - resident_bytes()) // _PIXEL_BYTES


class Room:
    """A budget for the whole process, counted from what it holds when this is made and what the
    first picture will add.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._held = resident_bytes() + _LATER
        self._most = 0  # that slices need while they run

    def check(self, slices: Sequence[PartRecord], rows: int, hidden: int, inner: int) -> None:
        """Raises BundleError where the largest slice does not fit: its weights, and what a pass of
        `rows` makes of `hidden` and `inner` values each.
        """
        weights = max(part.weight_bytes for part in slices)
        self._most = max(self._most, 2 * weights + _activations(rows, hidden, inner))
        if self.needed > self.budget:
            raise BundleError(
                f"a memory budget of {_mib(self.budget)} MiB is less than the "
                f"{_mib(self.needed)} MiB that one slice of this judge needs; allow more, or "
                "export it in fewer bits"
            )

    @property
    def needed(self) -> int:
        """Bytes, without keys and values."""
        return self._held + self._most

    def check_cache(self, size: int) -> None:
        """Raises InputError "over_budget" where keys and values of a slice do not fit."""
        need = self.needed + size
        if need > self.budget:
            raise InputError(
                "over_budget",
                f"it needs {_mib(need)} MiB, the memory budget is {_mib(self.budget)} MiB; allow "
                "more, ask fewer questions or scale the picture down",
            )


def _mib(size: int) -> int:
    return -(-size // 2**20)
