"""A device's own copy of keys and values, in the layout and the type that its graphs take.

Takes the cache that all devices share; gives one part's rows of it, converted once and no more
often. What a device computes goes back to the shared cache, so that any other can go on from there.
Does not know tokens, sessions or devices.
"""

import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import KvRecord, PartRecord
from edgejudge.runtime.kv_cache import KvCache

__all__ = ["Moved", "Replica"]

_MIDDLE = 32768  # the level that means zero


@dataclass(slots=True)
class Moved:
    """What converting between the cache and a copy has cost so far."""

    rows: int = 0
    bytes: int = 0  # of the copy's type
    ms: float = 0.0

    @classmethod
    def of(cls, parts: "Iterable[Moved]") -> "Moved":
        """All of them together."""
        found = list(parts)
        return cls(
            sum(m.rows for m in found), sum(m.bytes for m in found), sum(m.ms for m in found)
        )

    @contextmanager
    def more(self, rows: int, row_bytes: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.rows, self.bytes = self.rows + rows, self.bytes + rows * row_bytes
        self.ms += (time.perf_counter() - began) * 1e3


@dataclass(slots=True)
class Replica:
    """The first `valid` rows of the cache that was brought last, for the layers of one part; what
    lies behind them is hidden by masks, and finite.
    """

    kv: KvRecord
    part: PartRecord
    capacity: int = 0
    valid: int = 0
    moved: Moved = field(default_factory=Moved)
    _held: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    _of: "weakref.ref[KvCache] | None" = None

    def bring(self, cache: KvCache, rows: int, capacity: int) -> int:
        """Makes its first `rows` rows those of the cache; gives how many were converted."""
        self._follow(cache)
        if capacity != self.capacity:
            self._resize(capacity)
        self.valid = begin = min(self.valid, rows)
        layers = range(self.part.first_layer, self.part.last_layer + 1)
        with self.moved.more(rows - begin, self.row_bytes):
            for index, layer in enumerate(layers if begin < rows else ()):
                for which, shared in (("key", cache.keys), ("value", cache.values)):
                    self._place(which, index, begin, rows)[...] = self._own(
                        shared[layer][:, :, begin:rows], which, index
                    )
        self.valid = rows
        return rows - begin

    def _follow(self, cache: KvCache) -> None:
        """Nothing of another cache's rows is valid in this one."""
        if self._of is None or self._of() is not cache:
            self._of, self.valid = weakref.ref(cache), 0

    def feeds(self) -> dict[str, NDArray[Any]]:
        """What the part's graphs take, by name."""
        first = self.part.first_layer
        return {
            f"past_{which}_{first + index}": array
            for which, arrays in self._held.items()
            for index, array in enumerate(arrays)
        }

    def give(
        self, found: Mapping[str, NDArray[Any]], cache: KvCache, begin: int, rows: int
    ) -> bool:
        """Puts what a graph gave into the cache: `rows` rows from row `begin` on. Whether all of it
        are numbers.
        """
        finite = True
        with self.moved.more(rows, self.row_bytes):
            for layer in range(self.part.first_layer, self.part.last_layer + 1):
                for which, shared in (("key", cache.keys), ("value", cache.values)):
                    if (new := found.get(f"new_{which}_{layer}")) is None:
                        # Fused attention gives all rows that it saw.
                        new = found[f"present_{which}_{layer}"][:, :, self.capacity :]
                    turned = new.transpose(0, 1, 3, 2) if self._turned(which) else new
                    given = turned[:, :, :rows]
                    finite = finite and bool(np.isfinite(given).all())
                    shared[layer][:, :, begin : begin + rows] = given
        return finite

    @property
    def row_bytes(self) -> int:
        """Of one token's keys and values in all layers of the part."""
        kv, layers = self.kv, self.part.last_layer + 1 - self.part.first_layer
        return 2 * layers * kv.kv_heads * kv.head_dim * np.dtype(kv.dtype).itemsize

    def forget(self, rows: int) -> None:
        """What lies behind so many rows was replaced in the cache."""
        self.valid = min(self.valid, rows)

    def lost(self, rows: int) -> None:
        """A pass behind so many rows failed, whatever it has written."""
        self.forget(rows)

    def _turned(self, which: str) -> bool:
        return which == "key" and self.kv.layout == "BNHS"

    def _resize(self, capacity: int) -> None:
        kv, kept = self.kv, min(self.valid, capacity)
        layers = self.part.last_layer + 1 - self.part.first_layer
        old, self._held = self._held, {}
        for which in ("key", "value"):
            shape = (1, kv.kv_heads, capacity, kv.head_dim)
            if self._turned(which):
                shape = (1, kv.kv_heads, kv.head_dim, capacity)
            zero = _MIDDLE if kv.dtype == "uint16" else 0
            self._held[which] = [np.full(shape, zero, kv.dtype) for _ in range(layers)]
            for index in range(layers if kept else 0):
                before = old[which][index]
                rows = np.s_[..., :kept] if self._turned(which) else np.s_[:, :, :kept]
                self._held[which][index][rows] = before[rows]
        self.capacity, self.valid = capacity, kept

    def _place(self, which: str, index: int, begin: int, end: int) -> NDArray[Any]:
        array = self._held[which][index]
        return array[..., begin:end] if self._turned(which) else array[:, :, begin:end]

    def _own(self, rows: NDArray[Any], which: str, index: int) -> NDArray[Any]:
        """[1, kv_heads, S, head_dim] of the cache, in the device's layout and type."""
        turned = rows.transpose(0, 1, 3, 2) if self._turned(which) else rows
        if self.kv.dtype != "uint16":
            return turned
        step = np.float32(self.kv.steps[index][which == "value"])
        levels = np.rint(turned / step) + np.float32(_MIDDLE)
        return np.clip(levels, 0, 65535)
