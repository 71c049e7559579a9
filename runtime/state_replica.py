"""A copy of keys and values that a program keeps itself, as its state.

Takes the cache that all devices share; gives what the state lacks, which is nothing as long as the
program computed every row itself. A state is written whole: what is written is rare, and large.
Does not know programs.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.replica import Replica

__all__ = ["STATES", "StateReplica"]

STATES = ("keys", "values")  # each [layers, kv_heads, rows, head_dim], of a part's layers


@dataclass(slots=True)
class StateReplica(Replica):
    """The first `valid` rows of the state are those of the cache that was brought last."""

    _spoiled: bool = False
    _states: dict[str, NDArray[Any]] = field(default_factory=dict)  # to be written

    def bring(self, cache: KvCache, rows: int, capacity: int) -> int:
        if self._of is None or self._of() is not cache:
            self._of, self.valid = weakref.ref(cache), 0
        self.capacity, self.valid = capacity, min(self.valid, rows)
        missing, self._states = rows - self.valid, {}
        if missing or self._spoiled:
            with self.moved.more(rows, self.row_bytes):
                for name, shared in zip(STATES, (cache.keys, cache.values), strict=True):
                    self._states[name] = self._whole(shared, rows)
        self.valid, self._spoiled = rows, False
        return missing

    def feeds(self) -> dict[str, NDArray[Any]]:
        """States to be written before the program runs, by name."""
        found, self._states = self._states, {}
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

    def _whole(self, shared: list[NDArray[Any]], rows: int) -> NDArray[Any]:
        kv, layers = self.kv, range(self.part.first_layer, self.part.last_layer + 1)
        found = np.zeros((len(layers), kv.kv_heads, self.capacity, kv.head_dim), kv.dtype)
        for index, layer in enumerate(layers):
            found[index, :, :rows] = shared[layer][0, :, :rows]
        return found
