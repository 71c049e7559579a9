"""Runs of `edgejudge watch` in processes that can be stopped, killed, and made to die at a step.

Runs are forks as in bulk_runs.py. Red pictures are unsafe, grey ones uncertain, green ones safe.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bulk_runs import Runs, decided, picture, runs_of, serve

__all__ = ["COLOURS", "STEPS", "Runs", "Watch", "colour", "picture_of", "quick", "runs", "wait_for"]

COLOURS = {"unsafe": (250, 10, 10), "uncertain": (128, 128, 128), "safe": (10, 250, 40)}
# What a move takes: every one of these is a moment at which a process may die.
STEPS = ("open", "write", "fsync", "replace", "unlink", "truncate", "mkdir", "symlink", "utime")
_PATIENCE_S = 60.0
quick = ("--settle", "0.05", "--every", "0.02")


@contextmanager
def runs(folder: Path) -> Iterator[Runs]:
    with runs_of(folder, __file__) as found:
        yield found


def colour(word: str, shade: int) -> tuple[int, int, int]:
    red, green, blue = COLOURS[word]
    return red, green, blue + shade % 10


def picture_of(word: str, number: int = 0) -> bytes:
    """One that is judged so; another number gives other bytes, at least up to 400."""
    return picture(colour(word, number), 8 + number // 10)


class Watch:
    """A run that goes on while the test does things to its folder `in`."""

    def __init__(self, runs: Runs, folder: Path, *more: object, **how: float) -> None:
        self.folder, self.seen = folder, folder / "in"
        self.seen.mkdir(exist_ok=True)
        self._runs = runs
        self._pid = runs.begin(folder, "in", "--out", "rows.jsonl", *quick, *more, **how)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._runs.end()
        elif self._pid:
            self.stop()

    def put(self, name: str, data: bytes) -> Path:
        """Whole in one step, as a careful program does it."""
        path = self.seen / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.folder / "being-written"
        beside.write_bytes(data)
        os.replace(beside, path)
        return path

    def rows(self) -> dict[str, str]:
        """Verdict, or the error's code, of each path below the folder."""
        file = self.folder / "rows.jsonl"
        found = decided(file) if file.exists() else {}
        return {
            os.path.relpath(path, "in"): row["verdict"] or row["error"]["code"]
            for path, row in found.items()
        }

    def until(self, wanted: Mapping[str, str]) -> None:
        wait_for(lambda: self.rows() == wanted, self.rows)

    def stop(self, number: signal.Signals = signal.SIGINT, code: int = 130) -> str:
        """What it said to stderr."""
        os.kill(self._pid, number)
        self._pid = 0
        found = self._runs.end()
        text = (self.folder / "stderr").read_text()
        assert found == code, text
        assert "Traceback" not in text
        return text


def wait_for(is_so: Callable[[], bool], shown: Callable[[], object] = lambda: "") -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while not is_so():
        assert time.monotonic() < until_s, str(shown())[-400:]
        time.sleep(0.03)


def kept(folder: Path) -> list[tuple[str, str]]:
    """The files of a quarantine: where each came from by its journal, and its sha256."""
    lines = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    moves, begun = {}, None
    for line in lines:
        if line["event"] == "moving":
            begun = line
        elif line["event"] == "moved":
            assert begun is not None and begun["name"] == line["name"]
            moves[line["name"]] = begun["path"]
    names = sorted(set(os.listdir(folder)) - {"quarantine.jsonl"})
    assert names == sorted(moves), "what lies there is what the journal says"
    return [
        (moves[name], hashlib.sha256((folder / name).read_bytes()).hexdigest()) for name in names
    ]


# Below: the process that is forked from.


def _watch(arguments: list[str], how: Mapping[str, float]) -> int:
    from edgejudge.cli import main

    if "dies_at" in how:
        _die_at(int(how["dies_at"]))
    return main(["watch", *arguments])


def _die_at(number: int) -> None:
    """Before one of the system calls that change something, or right behind it."""
    steps = iter(range(1, sys.maxsize))

    def counted(call: Any) -> Any:
        def dies(*given: Any, **named: Any) -> Any:
            if next(steps) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            found = call(*given, **named)
            if next(steps) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return dies

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


if __name__ == "__main__":
    import edgejudge.watching.watch  # noqa: F401

    serve(sys.argv[1], _watch)
