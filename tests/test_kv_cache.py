"""The cache keeps what lies before the cursor, whatever is reserved, written and put back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgejudge.errors import InputError
from edgejudge.runtime.kv_cache import KvCache

BUCKETS = (8, 32, 64)


class CacheAgainstList(RuleBasedStateMachine):
    """A list of rows is the model; the cache must agree after any sequence of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KvCache(layers=2, kv_heads=1, head_dim=2, buckets=BUCKETS)
        self.rows: list[float] = []
        self.next = 1.0

    def _write(self, row: int, value: float) -> None:
        for layer in range(2):
            self.cache.keys[layer][0, :, row] = value + layer
            self.cache.values[layer][0, :, row] = -value - layer

    @rule(count=st.integers(1, 9))
    def append(self, count: int) -> None:
        if self.cache.cursor + count > max(BUCKETS):
            with pytest.raises(InputError, match="holds 64"):
                self.cache.reserve(count)
            return
        self.cache.reserve(count)
        for i in range(count):
            self._write(self.cache.cursor + i, self.next)
            self.rows.append(self.next)
            self.next += 1
        self.cache.advance(count)

    @rule(count=st.integers(1, 9))
    def branch_and_forget(self, count: int) -> None:
        """A fork: rows written past the cursor that nobody advances over."""
        if self.cache.cursor + count <= max(BUCKETS):
            self.cache.reserve(count)
            for i in range(count):
                self._write(self.cache.cursor + i, 1e6)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        cursor = data.draw(st.integers(0, len(self.rows)))
        self.cache.rewind(cursor)
        del self.rows[cursor:]

    @invariant()
    def agrees(self) -> None:
        assert self.cache.cursor == len(self.rows)
        assert self.cache.capacity in (0, *BUCKETS)
        for layer in range(2 if self.cache.keys else 0):
            kept = self.cache.keys[layer][0, 0, : self.cache.cursor, 0]
            assert kept.tolist() == [r + layer for r in self.rows]
            assert (self.cache.values[layer][0, 0, : self.cache.cursor, 1] == -kept).all()


TestCacheAgainstList = CacheAgainstList.TestCase


@given(st.integers(1, 64))
def test_capacity_is_the_smallest_bucket_that_fits(tokens: int) -> None:
    cache = KvCache(1, 1, 2, BUCKETS)
    cache.reserve(tokens)
    assert cache.capacity == min(b for b in BUCKETS if b >= tokens)
    assert cache.nbytes == 2 * cache.capacity * 2 * 4
    assert not any(np.isnan(a).any() for a in cache.keys)
