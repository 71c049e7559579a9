"""A copy of keys and values that a program keeps itself, as its state.

Takes the cache that all devices share; gives what the state lacks, which is nothing as long as the
program computed every row itself. A state that lacks a row, or may hold what is no number, is begun
anew: that is rare. Does not know programs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.manifest import STATES
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.replica import Replica

__all__ = ["StateReplica"]


@dataclass(slots=True)
class StateReplica(Replica):
    """The first `valid` rows of the state are those of the cache that was brought last."""

    _spoiled: bool = True  # nobody knows what was done with it before
    _rows: dict[str, NDArray[Any]] = field(default_factory=dict)  # of a state that is begun anew

    def bring(self, cache: KvCache, rows: int, capacity: int) -> int:
        self._follow(cache)
        self.capacity, self.valid = capacity, min(self.valid, rows)
        missing, self._rows = rows - self.valid, {}
        if missing or self._spoiled:
            with self.moved.more(rows, self.row_bytes):
                for name, shared in zip(STATES, (cache.keys, cache.values), strict=True):
                    self._rows[name] = self._first(shared, rows)
        self.valid, self._spoiled = rows, False
        return missing

    def feeds(self) -> dict[str, NDArray[Any]]:
        """The first rows of states that begin anew before the program runs, by name."""
        found, self._rows = self._rows, {}
        return found

    def give(
        self, found: Mapping[str, NDArray[Any]], cache: KvCache, begin: int, rows: int
    ) -> bool:
        finite = Replica.give(self, found, cache, begin, rows)  # no super() with slots
        self.valid = begin + rows  # which the program has written itself
        return finite

    def lost(self, rows: int) -> None:
        # What was written behind those rows may be no number, which no mask hides.
        self.valid, self._spoiled = 0, True

    def _first(self, shared: list[NDArray[Any]], rows: int) -> NDArray[Any]:
        """[layers, kv_heads, rows, head_dim]"""
        layers = shared[self.part.first_layer : self.part.last_layer + 1]
        return np.concatenate([layer[:, :, :rows] for layer in layers]).astype(self.kv.dtype)
