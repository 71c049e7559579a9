"""A device's copy of the cache is the cache, after anything that can happen to either."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgejudge.bundle import KvRecord, PartRecord
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.replica import Moved, Replica

LAYERS, HEADS, DIM = 4, 2, 3
PART = PartRecord(1, 1, 2, 0)  # the middle two of four layers
STEPS = ((2.0**-12, 3e-4), (0.011, 2.0**-9))  # of keys and values, for each layer of the part
KINDS = {
    "float32": KvRecord("BNSH", "float32", HEADS, DIM, None, (), ()),
    "float16": KvRecord("BNSH", "float16", HEADS, DIM, None, (), ()),
    "uint16": KvRecord("BNHS", "uint16", HEADS, DIM, "layer", STEPS, (8,)),
}
ANY = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def step_of(kv: KvRecord, index: int, which: str) -> np.float32:
    return np.float32(kv.steps[index][which == "value"])


def own(kv: KvRecord, rows: NDArray[np.float32], index: int, which: str) -> NDArray[Any]:
    """What a device holds of rows [1, heads, S, dim] of the cache, said in another way."""
    if kv.dtype == "uint16":
        levels = np.round(rows.astype(np.float64) / float(step_of(kv, index, which))) + 32768
        rows = np.clip(levels, 0, 65535)
    held = rows.astype(kv.dtype)
    return np.swapaxes(held, 2, 3) if which == "key" and kv.layout == "BNHS" else held


def meant(kv: KvRecord, held: NDArray[Any], index: int, which: str) -> NDArray[np.float32]:
    """What a device computes with: numbers [1, heads, S, dim]."""
    rows = np.swapaxes(held, 2, 3) if which == "key" and kv.layout == "BNHS" else held
    if kv.dtype != "uint16":
        return rows.astype(np.float32)
    return (rows.astype(np.float32) - np.float32(32768)) * step_of(kv, index, which)


def held_of(replica: Replica) -> Iterator[tuple[str, int, NDArray[Any]]]:
    feeds = replica.feeds()
    for index in range(2):
        for which in ("key", "value"):
            yield which, index, feeds.pop(f"past_{which}_{PART.first_layer + index}")
    assert not feeds, "a part's graphs take its own layers alone"


class Counting(Replica):
    """Rows that were converted, of all layers, keys and values."""

    converted = 0

    def _own(self, rows: NDArray[Any], which: str, index: int) -> NDArray[Any]:
        self.converted += rows.shape[2]
        return Replica._own(self, rows, which, index)


@dataclass
class World:
    """A cache, a copy of it, and how many rows the copy must have converted."""

    kv: KvRecord
    seed: int = 0
    fused: bool = False
    cache: KvCache = field(default_factory=lambda: KvCache(LAYERS, HEADS, DIM, (4, 8, 16, 64)))
    due: int = 0
    known: int = 0  # rows that the copy has and the cache has not replaced

    def __post_init__(self) -> None:
        self.replica = Counting(self.kv, PART)
        self.cache.watchers.append(self.replica.forget)
        self.rng = np.random.default_rng(self.seed)

    def new(self, count: int) -> NDArray[np.float32]:
        """[layers, 2, heads, count, dim]"""
        return self.rng.normal(size=(LAYERS, 2, HEADS, count, DIM)).astype(np.float32)

    def append(self, count: int) -> None:
        """By the processor, or from a snapshot."""
        self.cache.write(self.new(count))

    def pass_on_device(self, count: int, capacity: int) -> None:
        """As runtime.padded does it: the copy is brought up to date, and what is new goes to the
        cache in the device's numbers.
        """
        self.cache.reserve(count)
        begin = self.cache.cursor
        self.bring(begin, max(capacity, begin))
        found, expected = self.outputs(self.new(count))
        assert self.replica.give(found, self.cache, begin, count)
        for layer, (keys, values) in expected.items():
            assert np.array_equal(self.cache.keys[layer][:, :, begin : begin + count], keys)
            assert np.array_equal(self.cache.values[layer][:, :, begin : begin + count], values)
        for layer, (keys, values) in enumerate(self.new(count)):
            if layer not in expected:  # of another part, which another device computes
                self.cache.keys[layer][:, :, begin : begin + count] = keys
                self.cache.values[layer][:, :, begin : begin + count] = values
        self.cache.advance(count)

    def outputs(self, new: NDArray[np.float32]) -> tuple[dict[str, Any], dict[int, Any]]:
        """What a graph gives of these rows, padded behind or with all that it saw before, and what
        the cache is to have: numbers of the device.
        """
        found, expected = {}, {}
        capacity = self.replica.capacity
        for index, layer in enumerate(range(PART.first_layer, PART.last_layer + 1)):
            pair = []
            for which, rows in zip(("key", "value"), new[layer], strict=True):
                given = meant(self.kv, own(self.kv, rows[None], index, which), index, which)
                pair.append(given)
                if self.fused:
                    before = np.full((1, HEADS, capacity, DIM), 99, self.kv.dtype)
                    all_rows = np.concatenate([before, given.astype(self.kv.dtype)], axis=2)
                    found[f"present_{which}_{layer}"] = all_rows
                    continue
                padded = np.concatenate([given, np.full((1, HEADS, 2, DIM), 99)], axis=2)
                turned = which == "key" and self.kv.layout == "BNHS"
                graph = np.swapaxes(padded, 2, 3) if turned else padded
                found[f"new_{which}_{layer}"] = graph.astype(np.float32)
            expected[layer] = pair
        return found, expected

    def bring(self, rows: int, capacity: int) -> None:
        self.due += rows - min(rows, self.known)
        assert self.replica.bring(self.cache, rows, capacity) == rows - min(rows, self.known)
        self.known = rows
        self.check()

    def rewind(self, cursor: int) -> None:
        self.cache.rewind(cursor)
        self.known = min(self.known, cursor)

    def check(self) -> None:
        replica, valid = self.replica, self.replica.valid
        assert valid == self.known and replica.converted == self.due * 2 * 2
        for which, index, held in held_of(replica):
            layer = PART.first_layer + index
            shared = (self.cache.keys if which == "key" else self.cache.values) or [None] * LAYERS
            rows = np.s_[..., :valid] if which == "key" and self.kv.layout == "BNHS" else None
            some = held[rows] if rows is not None else held[:, :, :valid]
            assert held.dtype == self.kv.dtype
            assert meant(self.kv, held, index, which).shape == (1, HEADS, replica.capacity, DIM)
            assert np.isfinite(meant(self.kv, held, index, which)).all()
            if valid:
                expected = own(self.kv, shared[layer][:, :, :valid], index, which)
                assert np.array_equal(some, expected), (which, layer)


moves = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 6), st.just(0)),
    st.tuples(st.just("device"), st.integers(1, 6), st.integers(1, 40)),
    st.tuples(st.just("bring"), st.floats(0, 1), st.integers(1, 40)),
    st.tuples(st.just("rewind"), st.floats(0, 1), st.just(0)),
)


@pytest.mark.parametrize("kind", KINDS)
@ANY
@given(st.lists(moves, max_size=14), st.integers(0, 3), st.booleans())
def test_any_history_keeps_the_copy_right(
    kind: str, history: list[tuple[str, Any, int]], seed: int, fused: bool
) -> None:
    world = World(KINDS[kind], seed, fused and kind != "uint16")
    for what, amount, capacity in history:
        cursor = world.cache.cursor
        if what in ("append", "device") and cursor + amount > 64:
            continue
        if what == "append":
            world.append(amount)
        elif what == "device":
            world.pass_on_device(amount, capacity)
        elif what == "bring":
            rows = round(amount * cursor)
            world.bring(rows, max(rows, capacity))
        else:
            world.rewind(round(amount * cursor))
    cursor = world.cache.cursor
    world.bring(cursor, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_here_is_not_converted_again(kind: str) -> None:
    world = World(KINDS[kind])
    world.append(10)
    world.bring(10, 16)
    done = world.replica.converted
    for rows, capacity in ((10, 16), (10, 40), (10, 12), (10, 10)):
        world.bring(rows, capacity)
    assert world.replica.converted == done, "a larger or smaller buffer is a copy"
    world.rewind(4)
    world.append(3)
    world.bring(7, 16)
    assert world.replica.converted == done + 3 * 2 * 2
    # Fewer rows are those before: what lies behind them may be replaced meanwhile.
    world.bring(2, 16)
    world.bring(7, 16)
    assert world.replica.converted == done + (3 + 5) * 2 * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capacities", [(16,), (4, 16), (16, 6, 16)])
def test_rows_that_were_never_there_mean_zero(kind: str, capacities: tuple[int, ...]) -> None:
    """Masked rows are still multiplied by a zero weight, and NaN x 0 is NaN."""
    kv = KINDS[kind]
    world = World(kv)
    world.append(4)
    for capacity in capacities:
        world.bring(4, capacity)
        for which, index, held in held_of(world.replica):
            numbers = meant(kv, held, index, which)
            assert numbers.shape[2] == capacity and not numbers[:, :, 4:].any()
            assert numbers[:, :, :4].any()


@pytest.mark.parametrize("kind", KINDS)
@ANY
@given(
    st.lists(st.integers(-32768, 32767), min_size=4 * HEADS * DIM, max_size=4 * HEADS * DIM),
    st.floats(-0.499, 0.499),
)
def test_there_and_back(kind: str, levels: list[int], off: float) -> None:
    """Exact on the device's grid, and within half a step beside it."""
    kv = KINDS[kind]
    cache = KvCache(LAYERS, HEADS, DIM, (4,))
    cache.reserve(4)
    grid = np.array(levels, np.float32).reshape(1, HEADS, 4, DIM)
    replica = Replica(kv, PART)
    for beside in (0.0, off):
        for index in range(2):
            layer = PART.first_layer + index
            for which, shared in (("key", cache.keys), ("value", cache.values)):
                if kv.dtype == "uint16":
                    shared[layer][...] = (grid + np.float32(beside)) * step_of(kv, index, which)
                else:
                    exact = (grid / 16).astype(np.float16).astype(np.float32)
                    shared[layer][...] = exact * np.float32(1 + beside * 2.0**-11)
        replica.forget(0)
        replica.bring(cache, 4, 4)
        for which, index, held in held_of(replica):
            layer = PART.first_layer + index
            before = (cache.keys if which == "key" else cache.values)[layer]
            after = meant(kv, held, index, which)
            if kv.dtype == "float32" or beside == 0.0:
                assert np.array_equal(after, before)
            elif kv.dtype == "float16":
                assert (np.abs(after - before) <= np.abs(before) * 2.0**-11 + 2.0**-25).all()
            else:
                assert np.abs(after - before).max() <= step_of(kv, index, which) * 0.51


def test_what_is_beyond_the_grid_is_its_end() -> None:
    kv = KINDS["uint16"]
    cache = KvCache(LAYERS, HEADS, DIM, (4,))
    cache.reserve(4)
    for layer in range(LAYERS):
        cache.keys[layer][:, :, ::2], cache.keys[layer][:, :, 1::2] = 1e6, -1e6
    replica = Replica(kv, PART)
    replica.bring(cache, 4, 8)
    for which, _, held in held_of(replica):
        if which == "key":
            assert (held[..., 0:4:2] == 65535).all() and (held[..., 1:4:2] == 0).all()
            assert (held[..., 4:] == 32768).all()


@pytest.mark.parametrize("which", ["key", "value"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_told(kind: str, which: str, value: float) -> None:
    """Also where hidden states are numbers: whoever takes over would read them in the cache."""
    world = World(KINDS[kind])
    world.cache.reserve(4)
    world.bring(0, 8)
    found, _ = world.outputs(world.new(4))
    assert world.replica.give(found, world.cache, 0, 4)
    found[f"new_{which}_2"][..., 0] = value
    assert not world.replica.give(found, world.cache, 0, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_moving_is_counted(kind: str) -> None:
    world = World(KINDS[kind])
    world.pass_on_device(5, 8)
    world.append(2)
    world.bring(7, 8)
    moved, one = world.replica.moved, 2 * 2 * HEADS * DIM * np.dtype(kind).itemsize
    assert (moved.rows, moved.bytes) == (5 + 7, (5 + 7) * one) and moved.ms > 0
    assert Moved.of([moved, moved, Moved()]).rows == 24


def test_a_copy_that_forgot_begins_again() -> None:
    world = World(KINDS["float16"])
    world.append(6)
    world.bring(6, 8)
    world.replica.forget(0)
    world.known = 0
    world.bring(6, 8)
    assert world.replica.converted == 12 * 2 * 2


@given(st.lists(st.integers(0, 20), max_size=12))
def test_every_watcher_is_told_of_every_rewind(cursors: list[int]) -> None:
    cache = KvCache(1, 1, 1, (64,))
    told: list[list[int]] = [[], []]
    for each in told:
        cache.watchers.append(each.append)
    expected = []
    for cursor in cursors:
        cache.reserve(cursor)
        cache.advance(min(cursor, 64 - cache.cursor))
        cache.rewind(min(cursor, cache.cursor))
        expected.append(cache.cursor)
    assert told == [expected, expected]
