"""Kills of `edgejudge watch` with a quarantine: every file is once, and every row is right."""

import hashlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulk_runs import decided
from watch_runs import Runs, kept, picture_of, quick
from watch_runs import runs as runs_in

MEMORY = Path("/dev/shm")
KILLS = 20
WORDS = ("unsafe", "safe", "uncertain", "unsafe")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with runs_in(tmp_path_factory.mktemp("bundle")) as runs:
        yield runs


@pytest.fixture(params=["one file system", "two file systems"])
def held(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "one file system":
        yield tmp_path / "held"
        return
    if not MEMORY.is_dir() or MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder) / "held"


def fill(folder: Path, count: int) -> dict[str, tuple[str, str]]:
    """Verdict and sha256 of each path that it makes."""
    made = {}
    for number in range(count):
        word, data = WORDS[number % 4], picture_of(WORDS[number % 4], number)
        path = folder / f"{number % 3}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        made[os.path.relpath(path, folder.parent)] = word, hashlib.sha256(data).hexdigest()
    return made


def all_is_right(folder: Path, held: Path, made: dict[str, tuple[str, str]]) -> None:
    unsafe = {path: digest for path, (word, digest) in made.items() if word == "unsafe"}
    came = [(os.path.relpath(path, folder), digest) for path, digest in kept(held)]
    assert sorted(came) == sorted(unsafe.items())
    there = {
        os.path.relpath(path, folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "in").rglob("*.png")
    }
    assert there == {path: digest for path, (word, digest) in made.items() if word != "unsafe"}
    rows = decided(folder / "rows.jsonl")  # no path twice
    assert {path: (row["verdict"], row["sha256"]) for path, row in rows.items()} == made
    beside = [path.name for path in folder.glob("rows.jsonl*")]
    assert beside == ["rows.jsonl"]


def nothing_is_lost(folder: Path, held: Path, made: dict[str, tuple[str, str]]) -> None:
    """Right behind a kill: each file is whole, here or there."""
    places = [*(folder / "in").rglob("*.png"), *held.glob("*.png")]
    found = {hashlib.sha256(path.read_bytes()).hexdigest() for path in places}
    assert {digest for _, digest in made.values()} <= found


def test_kills_at_random_moments(runs: Runs, tmp_path: Path, held: Path) -> None:
    """While the folder is watched; when all is done it begins again with another one."""
    chance = random.Random()
    kills = rounds = between = 0
    whole_s = 0.0
    while kills < KILLS:
        rounds += 1
        folder, place = tmp_path / str(rounds), Path(f"{held}-{rounds}")
        made = fill(folder / "in", 24)
        asked = ("in", "--out", "rows.jsonl", *quick, "--on", f"unsafe=quarantine:{place}")
        if rounds == 1:
            begun_s = time.perf_counter()
            runs.run(folder, *asked, "--once", code=1, slow_s=0.001)
            whole_s = time.perf_counter() - begun_s
            all_is_right(folder, place, made)
            continue
        while kills < KILLS and len(list(place.glob("*.png"))) < 12:
            process = runs.begin(folder, *asked, slow_s=0.001)
            time.sleep(chance.uniform(0, 0.7 * whole_s))
            os.kill(process, signal.SIGKILL)
            assert runs.end() == -signal.SIGKILL
            kills += 1
            nothing_is_lost(folder, place, made)
            between += 0 < len(list(place.glob("*.png"))) < 12
        runs.begin(folder, *asked, "--once")
        assert runs.end() in (1, 3)  # 3 where every unsafe one was moved before
        all_is_right(folder, place, made)
    assert between > 2, "the kills came too early or too late"


def test_a_kill_at_every_step(runs: Runs, tmp_path: Path, held: Path) -> None:
    """Of judging and moving one file: before and behind every call that changes something."""
    number = last = 0
    while not last:
        number += 1
        folder, place = tmp_path / str(number), Path(f"{held}-{number}")
        made = fill(folder / "in", 2)
        asked = ("in", "--out", "rows.jsonl", "--once", "--settle", "0.01")
        asked += ("--on", f"unsafe=quarantine:{place}")
        runs.begin(folder, *asked, dies_at=number)
        last = runs.end() == 1
        if not last:
            nothing_is_lost(folder, place, made)
            runs.begin(folder, *asked)
            assert runs.end() in (0, 1)  # 0 where the unsafe one was moved before
        all_is_right(folder, place, made)
    assert number > 30
