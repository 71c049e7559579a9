"""Keys and values of every layer in preallocated buffers, with one cursor.

Takes the shape of a cache and how many tokens must fit; gives the buffers and moves the cursor. A
fork is a cursor that is put back: rows after it are garbage that the next pass overwrites. Does not
know tokens, positions or sessions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import KvRecord
from edgejudge.errors import InputError

__all__ = ["KvCache"]


@dataclass(slots=True, eq=False, weakref_slot=True)
class KvCache:
    """BNSH buffers [1, kv_heads, capacity, width] of `layers` layers; capacity is one of `buckets`,
    and `width` what holds a head's channels: as many, or half as many bytes where they have four
    bits. What a level means is the graphs'.

    `cursor` counts the valid tokens. It is not a rope position: packed branches lie one after
    another in the cache and share their positions.
    """

    layers: int
    kv_heads: int
    width: int
    buckets: tuple[int, ...]
    dtype: str = "float32"
    cursor: int = 0
    capacity: int = 0
    keys: list[NDArray[Any]] = field(default_factory=list)
    values: list[NDArray[Any]] = field(default_factory=list)
    # Told of each rewind, after which the rows behind it may become others.
    watchers: list[Callable[[int], None]] = field(default_factory=list)

    @classmethod
    def of(cls, kv: KvRecord, layers: int) -> Self:
        """As a graph's record wants it, with nothing reserved yet."""
        dtype, width = kv.row
        return cls(layers, kv.kv_heads, width, kv.length_buckets, dtype)

    def reserve(self, tokens: int) -> None:
        """Room for `tokens` more after the cursor; a larger bucket keeps what is valid.

        Raises InputError "too_long" where the largest bucket cannot hold them.
        """
        need = self.cursor + tokens
        if need <= self.capacity:
            return
        self.capacity = self.bucket(need)
        if not self.keys:
            nothing = np.zeros((1, self.kv_heads, 0, self.width), self.dtype)
            self.keys = [nothing] * self.layers
            self.values = [nothing] * self.layers
        self.keys = [self._grown(old) for old in self.keys]
        self.values = [self._grown(old) for old in self.values]

    def bucket(self, tokens: int) -> int:
        """The smallest capacity that holds so many."""
        fitting = [b for b in self.buckets if b >= tokens]
        if not fitting:
            raise InputError(
                "too_long",
                f"the prompt needs {tokens} tokens, this bundle's cache holds {max(self.buckets)}; "
                "use fewer or shorter conditions, or export with longer buckets",
            )
        return min(fitting)

    def advance(self, tokens: int) -> None:
        """The next `tokens` rows have been written."""
        assert self.cursor + tokens <= self.capacity, "advanced past the reserved rows"
        self.cursor += tokens

    def rewind(self, cursor: int) -> None:
        """Back to an earlier cursor; what lay after it is forgotten."""
        assert 0 <= cursor <= self.cursor, "a cache rewinds, it never skips forward"
        self.cursor = cursor
        for watcher in self.watchers:
            watcher(cursor)

    def read(self, begin: int, end: int) -> NDArray[Any]:
        """A copy of valid rows: [layers, 2, kv_heads, end - begin, width]."""
        assert 0 <= begin <= end <= self.cursor, "only valid rows can be read"
        pairs = zip(self.keys, self.values, strict=True)
        return np.stack(
            [np.concatenate([k[:, :, begin:end], v[:, :, begin:end]]) for k, v in pairs]
        )

    def write(self, rows: NDArray[Any]) -> None:
        """Puts rows that `read` gave behind the cursor and moves it."""
        tokens = rows.shape[3]
        self.reserve(tokens)
        place = np.s_[:, :, self.cursor : self.cursor + tokens]
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            keys[place], values[place] = rows[layer, :1], rows[layer, 1:]
        self.advance(tokens)

    @property
    def row_bytes(self) -> int:
        """What one token takes over all layers."""
        return 2 * self.layers * self.kv_heads * self.width * np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (*self.keys, *self.values))

    def _grown(self, old: NDArray[Any]) -> NDArray[Any]:
        # zeros, not empty: masked rows are still multiplied by a zero weight, and NaN x 0 is NaN.
        new = np.zeros((1, self.kv_heads, self.capacity, self.width), self.dtype)
        new[:, :, : self.cursor] = old[:, :, : self.cursor]
        return new
