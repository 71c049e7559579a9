"""How runs of the command end: Ctrl-C once and twice, a full disk, another writer, a terminal."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulk_rows import IDENTITY
from bulk_runs import Runs, decided, make_pictures, runs_of
from edgejudge.bulk import open_store
from edgejudge.bulk.ledger import Summary
from edgejudge.bulk.progress import Progress, duration

FORMS = ("jsonl", "parquet", "sqlite")
# Bytes in which a few rows of 10 KB fit; each is written about three times to SQLite's log.
_ROOM = {"jsonl": 70_000, "parquet": 70_000, "sqlite": 200_000}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with runs_of(tmp_path_factory.mktemp("bundle")) as runs:
        yield runs


def rows_now(file: Path) -> int:
    try:
        return len(decided(file))
    except Exception:  # it is being made just now
        return 0


def until_rows(file: Path, count: int) -> None:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and rows_now(file) < count:
        time.sleep(0.01)
    assert rows_now(file) >= count


@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_finishes_the_picture_in_hand(runs: Runs, tmp_path: Path, form: str) -> None:
    make_pictures(tmp_path / "pictures", 40)
    file = tmp_path / f"rows.{form}"
    process = runs.begin(tmp_path, "pictures", "--out", file.name, picture_s=0.05)
    until_rows(file, 2)
    os.kill(process, signal.SIGINT)
    assert runs.end() == 130
    text = (tmp_path / "stderr").read_text()
    found = len(decided(file))
    assert 2 <= found < 40 and f"stopped by Ctrl-C, {found} of 40 judged" in text
    assert "Ctrl-C again stops at once" in text and "Traceback" not in text
    assert [path.name for path in tmp_path.glob("rows*")] == [file.name]
    text = runs.run(tmp_path, "pictures", "--out", file.name, code=1)
    assert "40 of 40 judged" in text and f"{found} kept from {file.name}" in text


def test_ctrl_c_twice_stops_at_once(runs: Runs, tmp_path: Path) -> None:
    make_pictures(tmp_path / "pictures", 12)
    file = tmp_path / "rows.parquet"
    process = runs.begin(tmp_path, "pictures", "--out", file.name, picture_s=3)
    until_rows(file, 1)
    os.kill(process, signal.SIGINT)
    deadline_s = time.monotonic() + 30
    while b"again stops" not in (tmp_path / "stderr").read_bytes():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    os.kill(process, signal.SIGINT)
    assert runs.end() == 130
    assert not file.exists() and Path(f"{file}.journal").exists()
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    runs.run(tmp_path, "pictures", "--out", file.name, code=1)
    assert len(decided(file)) == 12


@pytest.mark.parametrize("form", FORMS)
def test_a_limit_on_the_size_of_files(runs: Runs, tmp_path: Path, form: str) -> None:
    make_pictures(tmp_path / "pictures", 12)
    runs.run(tmp_path, "pictures", "--out", f"calm.{form}", code=1)
    wanted = decided(tmp_path / f"calm.{form}")
    file = tmp_path / f"rows.{form}"
    said = runs.run(
        tmp_path, "pictures", "--json", "--out", file.name, code=1, file_bytes=_ROOM[form]
    )
    last = said.splitlines()[-1]
    assert last.startswith("error: ") and f"rows.{form}" in last and "cannot be written" in last
    assert "the rows so far stand" in last and "stopped, " in said
    found = decided(file)
    assert 0 < len(found) < 12 and found.items() <= wanted.items()
    assert f"stopped, {len(found)} of 12 judged" in said
    said = runs.run(
        tmp_path, "pictures", "--json", "--out", f"none.{form}", code=2, file_bytes=2_000
    )
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    runs.run(tmp_path, "pictures", "--out", file.name, code=1)
    assert decided(file) == wanted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        refused = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        refused = str(error)
    if refused:
        pytest.skip(f"no small disk can be mounted here: {refused}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk(runs: Runs, tmp_path: Path, small_disk: Path, form: str) -> None:
    make_pictures(tmp_path / "pictures", 24)
    runs.run(tmp_path, "pictures", "--out", f"calm.{form}", code=1)
    wanted = decided(tmp_path / f"calm.{form}")
    file = small_disk / f"rows.{form}"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(free - _ROOM[form] - 40_000))
    said = runs.run(tmp_path, "pictures", "--json", "--out", file, code=1)
    last = said.splitlines()[-1]
    assert last.startswith("error: ") and "cannot be written" in last
    found = decided(file)
    assert 0 < len(found) < 24 and found.items() <= wanted.items()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    runs.run(tmp_path, "pictures", "--json", "--out", file, code=1)
    assert decided(file) == wanted


def test_a_file_that_another_process_writes_to(runs: Runs, tmp_path: Path) -> None:
    make_pictures(tmp_path / "pictures", 2)
    with open_store(tmp_path / "rows.sqlite", IDENTITY):
        said = runs.run(tmp_path, "pictures", "--out", "rows.sqlite", code=2)
    assert "rows.sqlite; wait until it ends, or give another --out\n" in said
    assert said.startswith("error: another process writes to ")


def test_rows_that_were_mended_are_told(runs: Runs, tmp_path: Path) -> None:
    make_pictures(tmp_path / "pictures", 4)
    runs.run(tmp_path, "pictures", "--out", "rows.jsonl", code=1)
    file = tmp_path / "rows.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    said = runs.run(tmp_path, "pictures", "--out", "rows.jsonl", code=1)
    assert "rows.jsonl ended within a row, which was cut off" in said
    assert "4 of 4 judged" in said and "3 kept from rows.jsonl" in said


def test_no_table_of_very_many_pictures() -> None:
    from edgejudge.commands import screened

    made = [screened.Printer(False, None, "rows.jsonl", total) for total in (1000, 1001)]
    assert [printer._tables for printer in made] == [True, False]
    assert screened.Printer(False, None, None, 1001)._tables


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...


def test_progress_tells_how_much_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgejudge.bulk import progress

    now_s = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now_s[0])
    terminal = Terminal()
    shown = Progress(100, terminal)  # type: ignore[arg-type]
    summary = Summary(kept=40)
    shown(summary)
    assert terminal.text == "\r40/100\x1b[K"
    now_s[0], summary.judged = 110.0, 20
    shown(summary)
    assert terminal.text.endswith("\r60/100  2.0 pictures/s  0:20 left\x1b[K")
    now_s[0], summary.judged, before = 110.01, 21, terminal.text
    shown(summary)
    assert terminal.text == before, "not for every picture"
    summary.judged = 60
    shown(summary)
    assert "100/100" in terminal.text
    assert [duration(each) for each in (7, 61, 45_296)] == ["0:07", "1:01", "12:34:56"]
