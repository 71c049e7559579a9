"""A short walk of the fuzzer's targets, the same each time: seeds, old finds, and changed seeds."""

import random
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

import targets  # noqa: E402

import fuzz  # noqa: E402

TRIES = 60  # of each target
SECONDS = 5.0  # of one input: what takes longer does not end, as far as anyone can tell


def changed(data: bytes, rng: random.Random) -> bytes:
    """A few bytes of it otherwise, gone, doubled, or cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(out) + 1)
        how = rng.randrange(5)
        if how == 0 and out:
            out[at % len(out)] = rng.randrange(256)
        elif how == 1:
            del out[at : at + rng.randint(1, 64)]
        elif how == 2:
            out[at:at] = out[at : at + rng.randint(1, 64)]
        elif how == 3:
            out[at:at] = rng.choice((b"\0", b"\xff" * 9, b'"', b"[[", b"{", b"1e999", b"- ", b"\n"))
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def test_the_fuzzer_has_these_targets() -> None:
    assert set(fuzz._NAMES) == set(targets.TARGETS)


@pytest.mark.parametrize("name", list(targets.TARGETS))
def test_seeds_and_what_is_made_of_them_are_read_or_refused(name: str) -> None:
    rng = random.Random(20)
    known = targets.seeds(name)
    assert known, "a fuzzer without a seed begins with nothing"
    tries = [*known, b"", *(changed(rng.choice(known), rng) for _ in range(TRIES))]
    for data in tries:
        began = time.perf_counter()
        targets.run(name, data)
        assert time.perf_counter() - began < SECONDS, data[:80]


def test_sound_seeds_are_accepted() -> None:
    """Or every other test here would pass by refusing everything."""
    for name in targets.TARGETS:
        targets.TARGETS[name](targets.seeds(name)[0])
