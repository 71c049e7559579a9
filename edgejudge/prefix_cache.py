"""Prefixes that need not be computed again: keys and values of pictures that were judged before.

Takes a key that names everything a prefix depends on; gives what was kept under just that key, or
nothing. Least recently used entries go when the budget is spent; a store on disk outlives them.
Does not know pictures or engines.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgejudge.array_store import ArrayStore

__all__ = ["KeptPrefix", "PrefixCache"]


@dataclass(frozen=True, slots=True, eq=False)
class KeptPrefix:
    """`rows` [layers, 2, kv_heads, S, width] as the bundle's cache has them, read-only; `position`
    is the rope position after them.
    """

    rows: NDArray[Any]
    position: int


class PrefixCache:
    """Safe to use from several threads."""

    def __init__(self, budget: int, store: ArrayStore | None = None) -> None:
        """At most `budget` bytes in memory; the store keeps its own."""
        self.budget = budget
        self.store = store
        self._kept: OrderedDict[str, KeptPrefix] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def most(self) -> int:
        """Bytes of the largest entry that is kept."""
        return self.budget if self.store is None else max(self.budget, self.store.budget)

    @property
    def nbytes(self) -> int:
        """What the entries in memory take."""
        return self._bytes

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return key in self._kept or (self.store is not None and key in self.store)

    def get(self, key: str) -> KeptPrefix | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        stored = None if self.store is None else self.store.get(key)
        if stored is None or stored[0].ndim != 5:
            return None
        found = KeptPrefix(*stored)
        self._keep(key, found)
        return found

    def put(self, key: str, prefix: KeptPrefix) -> None:
        """Keeps it where it fits the budget, in memory and in the store."""
        prefix.rows.flags.writeable = False
        self._keep(key, prefix)
        if self.store is not None:
            self.store.put(key, prefix.rows, prefix.position)

    def _keep(self, key: str, prefix: KeptPrefix) -> None:
        size = prefix.rows.nbytes
        if size > self.budget:
            return
        with self._lock:
            if key in self._kept:
                self._bytes -= self._kept.pop(key).rows.nbytes
            while self._kept and self._bytes + size > self.budget:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.rows.nbytes
            self._kept[key] = prefix
            self._bytes += size
