"""Runs that are killed at random moments, and what they leave: nothing lost, nothing twice."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow.parquet
import pytest

from bulk_runs import Runs, decided, make_pictures, runs_of
from edgejudge.bulk import read_rows

FORMS = ("jsonl", "parquet", "sqlite")
KILLS = 24  # of each form
SAMPLES = Path(__file__).parent.parent / "models" / "nano" / "samples"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with runs_of(tmp_path_factory.mktemp("bundle")) as runs:
        yield runs


def rows_there(file: Path) -> int:
    """Without our own reader."""
    if file.suffix == ".jsonl":
        return len([json.loads(line) for line in file.read_bytes().splitlines()])
    if file.suffix == ".parquet":
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    with closing(sqlite3.connect(file)) as database:
        return int(database.execute("SELECT count(*) FROM verdicts").fetchone()[0])


def shown(stdout: Path) -> set[str]:
    """Paths of the rows that were printed whole, which is after they were kept."""
    *whole, _ = stdout.read_bytes().split(b"\n")
    return {json.loads(line)["path"] for line in whole}


def nothing_beside(file: Path) -> None:
    assert [path.name for path in file.parent.glob(f"{file.name}*")] == [file.name]


@pytest.mark.parametrize("form", FORMS)
def test_kills_while_rows_are_written(runs: Runs, tmp_path: Path, form: str) -> None:
    chance = random.Random()
    make_pictures(tmp_path / "pictures", 24)
    asked = ("pictures", "--json", "--out")
    begun_s = time.perf_counter()
    runs.run(tmp_path, *asked, f"calm.{form}", code=1, slow_s=0.001)
    whole_s = time.perf_counter() - begun_s
    wanted = decided(tmp_path / f"calm.{form}")
    assert len(wanted) == 24
    kills = files = inside = 0
    while kills < KILLS:
        files += 1
        file = tmp_path / f"rows-{files}.{form}"
        before: set[str] = set()
        while kills < KILLS:
            after_s = chance.uniform(0, 0.7 * whole_s)
            if not runs.killed(tmp_path, after_s, *asked, file.name, slow_s=0.001):
                break
            kills += 1
            told = shown(tmp_path / "stdout")
            if told or file.exists() or Path(f"{file}.journal").exists():
                found = decided(file)  # also of a file that was not mended yet
                assert before | told <= found.keys(), "a row was lost"
                assert all(row == wanted[path] for path, row in found.items())
                inside += 0 < len(found) < 24
                before = set(found)
        runs.run(tmp_path, *asked, file.name, code=1)
        assert decided(file) == wanted
        assert rows_there(file) == 24
        nothing_beside(file)
    assert inside > 2, "the kills came too early or too late"


@pytest.mark.parametrize("form", FORMS)
def test_kills_while_rows_are_replaced(runs: Runs, tmp_path: Path, form: str) -> None:
    """Files that changed and pictures that failed, judged again over and over."""
    chance = random.Random()
    make_pictures(tmp_path / "pictures", 12)
    first = tmp_path / f"first.{form}"
    runs.run(tmp_path, "pictures", "--out", first.name, code=1)
    make_pictures(tmp_path / "pictures", 12, seed=1)
    runs.run(tmp_path, "pictures", "--out", f"calm.{form}", code=1)
    wanted = decided(tmp_path / f"calm.{form}")
    assert wanted != decided(first)
    again = ("pictures", "--retry-failed", "--out")
    for number in range(3):
        file = tmp_path / f"rows-{number}.{form}"
        file.write_bytes(first.read_bytes())
        for _ in range(2):
            runs.killed(tmp_path, chance.uniform(0.02, 0.3), *again, file.name, slow_s=0.002)
            assert decided(file).keys() == wanted.keys()
        runs.run(tmp_path, *again, file.name, code=1)
        assert decided(file) == wanted
        assert rows_there(file) == 12
        nothing_beside(file)


@pytest.mark.parametrize("form", FORMS)
def test_kills_of_the_bundled_judge(tmp_path: Path, form: str) -> None:
    command = [sys.executable, "-m", "edgejudge", "screen", str(SAMPLES), "--threads", "1"]

    def begin(file: Path) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*command, "--out", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    file = tmp_path / f"rows.{form}"
    process = begin(file)
    deadline_s = time.monotonic() + 60
    journal = Path(f"{file}.journal")
    while time.monotonic() < deadline_s:  # until its first rows are there
        if (file.exists() or journal.exists()) and _rows(file) >= 2:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = _rows(file)
    assert 2 <= there <= 6
    assert begin(file).wait() == 1
    assert len(decided(file)) == rows_there(file) == len(os.listdir(SAMPLES))
    nothing_beside(file)


def _rows(file: Path) -> int:
    try:
        return len(list(read_rows(file)))
    except Exception:  # it is being made just now
        return 0
