"""What is kept comes back as it was or not at all, within its budget, in memory and on disk."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.array_store import ArrayStore, key_of
from edgejudge.prefix_cache import KeptPrefix, PrefixCache

ONE = 2 * 3 * 4 * 4  # bytes of `made(...)`


def made(value: float) -> KeptPrefix:
    return KeptPrefix(np.full((1, 2, 1, 3, 4), value, np.float32), int(value))


def key(n: int) -> str:
    return key_of([str(n).encode()])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60), st.integers(0, 5))
def test_the_least_recently_used_goes_first(steps: list[tuple[bool, int]], room: int) -> None:
    cache = PrefixCache(room * ONE + 1)
    model: list[int] = []  # oldest first
    for writes, n in steps:
        if writes:
            cache.put(key(n), made(n))
            model = [m for m in model if m != n] + [n]
            model = model[-room:] if room else []
        else:
            found = cache.get(key(n))
            assert (found is not None) == (n in model)
            if found is not None:
                assert found.position == n and (found.rows == n).all()
                model = [m for m in model if m != n] + [n]
        assert cache.nbytes == len(model) * ONE
        assert all((key(m) in cache) == (m in model) for m in range(8))


def test_what_is_kept_cannot_be_written() -> None:
    cache = PrefixCache(1 << 20)
    cache.put(key(1), made(1))
    found = cache.get(key(1))
    assert found is not None
    with pytest.raises(ValueError, match="read-only"):
        found.rows[:] = 0


def test_a_key_is_of_parts_and_their_bounds() -> None:
    keys = {key_of(p) for p in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""])}
    assert len(keys) == 4


def test_the_disk_outlives_the_process(tmp_path: Path) -> None:
    PrefixCache(0, ArrayStore(tmp_path)).put(key(3), made(3))
    other = PrefixCache(1 << 20, ArrayStore(tmp_path))
    assert key(3) in other and key(4) not in other
    found = other.get(key(3))
    assert found is not None and found.position == 3 and (found.rows == 3).all()
    (tmp_path / f"{key(3)}.kv").unlink()
    assert other.get(key(3)) is found, "it is in memory now"


@pytest.mark.parametrize(
    "damage",
    ["a bit of a row", "the number", "another key's entry", "cut short", "grown", "no header"],
)
def test_a_damaged_entry_is_removed_and_not_used(tmp_path: Path, damage: str) -> None:
    PrefixCache(0, ArrayStore(tmp_path)).put(key(3), made(3))
    file = tmp_path / f"{key(3)}.kv"
    data = bytearray(file.read_bytes())
    head, _, body = bytes(data).partition(b"\n")
    if damage == "a bit of a row":
        data[-5] ^= 1
    elif damage == "the number":
        data = bytearray(json.dumps({**json.loads(head), "number": 4}).encode() + b"\n" + body)
    elif damage == "another key's entry":
        file = file.rename(tmp_path / f"{key(4)}.kv")
    elif damage == "cut short":
        del data[-4:]
    elif damage == "grown":
        data += b"\0\0\0\0"
    else:
        data = bytearray(b"[]\n" + body)
    file.write_bytes(data)
    cache = PrefixCache(1 << 20, ArrayStore(tmp_path))
    assert cache.get(file.name.removesuffix(".kv")) is None
    assert not file.exists()


def test_the_disk_has_a_budget_too(tmp_path: Path) -> None:
    cache = PrefixCache(0, ArrayStore(tmp_path, 1))
    cache.put(key(1), made(1))
    assert not list(tmp_path.iterdir()), "larger than the budget alone"
    PrefixCache(0, ArrayStore(tmp_path)).put(key(1), made(1))
    size = next(tmp_path.iterdir()).stat().st_size
    cache = PrefixCache(0, ArrayStore(tmp_path, 2 * size + size // 2))
    cache.put(key(2), made(2))
    long_ago = time.time() - 1000
    os.utime(tmp_path / f"{key(2)}.kv", (long_ago, long_ago))
    cache.put(key(3), made(3))
    assert {f.name for f in tmp_path.iterdir()} == {f"{key(1)}.kv", f"{key(3)}.kv"}


def test_a_disk_that_refuses_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    cache = PrefixCache(1 << 20, ArrayStore(blocked / "inside"))
    cache.put(key(1), made(1))
    assert cache.get(key(1)) is not None and cache.get(key(2)) is None
