"""The cache keeps what lies before the cursor, whatever is reserved, written and put back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgejudge.bundle import KvRecord
from edgejudge.errors import InputError
from edgejudge.runtime.kv_cache import KvCache

BUCKETS = (8, 32, 64)
MOST = 120  # what a key and a value of the same row are together


class CacheAgainstList(RuleBasedStateMachine):
    """A list of rows is the model; the cache must agree after any sequence of operations."""

    dtype = "float32"

    def __init__(self) -> None:
        super().__init__()
        record = KvRecord("BNSH", self.dtype, 1, 4, None, (), BUCKETS)
        self.cache = KvCache.of(record, 2)
        self.rows: list[int] = []
        self.next = 1

    def _write(self, row: int, value: int) -> None:
        for layer in range(2):
            self.cache.keys[layer][0, :, row] = value + layer
            self.cache.values[layer][0, :, row] = MOST - value - layer

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
            self.next = self.next % 60 + 1
        self.cache.advance(count)

    @rule(count=st.integers(1, 9))
    def branch_and_forget(self, count: int) -> None:
        """A fork: rows written past the cursor that nobody advances over."""
        if self.cache.cursor + count <= max(BUCKETS):
            self.cache.reserve(count)
            for i in range(count):
                self._write(self.cache.cursor + i, 90)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        cursor = data.draw(st.integers(0, len(self.rows)))
        self.cache.rewind(cursor)
        del self.rows[cursor:]

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def read_and_put_back(self, data: st.DataObject) -> None:
        """Rows of bytes come back as the bytes that they were."""
        begin = data.draw(st.integers(0, len(self.rows)))
        kept = self.cache.read(begin, len(self.rows))
        assert kept.dtype == self.cache.keys[0].dtype
        assert kept.nbytes == self.cache.row_bytes * (len(self.rows) - begin)
        self.cache.rewind(begin)
        self.cache.write(kept)

    @invariant()
    def agrees(self) -> None:
        assert self.cache.cursor == len(self.rows)
        assert self.cache.capacity in (0, *BUCKETS)
        for layer in range(2 if self.cache.keys else 0):
            kept = self.cache.keys[layer][0, 0, : self.cache.cursor, 0]
            assert kept.tolist() == [r + layer for r in self.rows]
            assert (self.cache.values[layer][0, 0, : self.cache.cursor, 1] == MOST - kept).all()


class CacheOfBytes(CacheAgainstList):
    dtype = "int8"


class CacheOfHalfBytes(CacheAgainstList):
    dtype = "int4"


TestCacheAgainstList = CacheAgainstList.TestCase
TestCacheOfBytes = CacheOfBytes.TestCase
TestCacheOfHalfBytes = CacheOfHalfBytes.TestCase


@pytest.mark.parametrize(
    ("dtype", "held", "row_bytes"),
    [("float32", np.float32, 384), ("int8", np.int8, 96), ("int4", np.uint8, 48)],
)
def test_a_record_says_what_a_token_takes(dtype: str, held: type, row_bytes: int) -> None:
    record = KvRecord("BNSH", dtype, 2, 8, None, (), BUCKETS)
    cache = KvCache.of(record, 3)
    cache.reserve(5)
    assert {a.dtype for a in (*cache.keys, *cache.values)} == {np.dtype(held)}
    assert cache.row_bytes == row_bytes and cache.nbytes == 8 * row_bytes


@given(st.integers(1, 64))
def test_capacity_is_the_smallest_bucket_that_fits(tokens: int) -> None:
    cache = KvCache(1, 1, 2, BUCKETS)
    cache.reserve(tokens)
    assert cache.capacity == min(b for b in BUCKETS if b >= tokens)
    assert cache.nbytes == 2 * cache.capacity * 2 * 4
    assert not any(np.isnan(a).any() for a in cache.keys)
