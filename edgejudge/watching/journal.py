"""What a quarantine did, a line of JSON for each step, written before the next step is taken.

Takes a folder's journal file; gives its unfinished step, if there is one, and adds lines. A line is
on the disk when `note` returns. Knows nothing of moving files.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgejudge.bulk.files import Lines
from edgejudge.bulk.names import from_text

__all__ = ["Move", "MoveJournal"]


@dataclass(frozen=True, slots=True)
class Move:
    """One file on its way. `path` is absolute, as text, with all its bytes in `path_hex` where they
    are no UTF-8; `name` is that in the quarantine. `copied` says that it lies on another file
    system, `size` and `mtime_ns` are those it had. `sha256` is None of what could not be read.
    """

    path: str
    path_hex: str | None
    name: str
    sha256: str | None
    outcome: str
    copied: bool
    size: int
    mtime_ns: int

    @property
    def source(self) -> str:
        return from_text(self.path, self.path_hex)


class MoveJournal:
    """`unfinished` is the move that a kill came into."""

    def __init__(self, file: str) -> None:
        self.unfinished: Move | None = None
        if os.path.exists(file):
            self._read(file)
        self._lines = Lines(file)

    def _read(self, file: str) -> None:
        whole = 0
        with open(file, "rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):  # cut by a kill; what it was to tell of never began
                    break
                whole += len(line)
                self._take(line)
        if whole != os.path.getsize(file):
            os.truncate(file, whole)

    def _take(self, line: bytes) -> None:
        try:
            found: dict[str, Any] = json.loads(line)
            if found["event"] != "moving":
                self.unfinished = None
                return
            move = Move(**{each.name: found[each.name] for each in fields(Move)})
            if move.source and move.name == os.path.basename(move.name):
                self.unfinished = move
        except (ValueError, KeyError, TypeError, AttributeError):  # of a power cut, or not ours
            return

    def begin(self, move: Move) -> None:
        self._note("moving", asdict(move))
        self.unfinished = move

    def end(self, event: str) -> None:
        """`moved` or `stayed`, of the unfinished one."""
        assert self.unfinished is not None
        self._note(event, {"name": self.unfinished.name})
        self.unfinished = None

    def _note(self, event: str, what: Mapping[str, Any]) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._lines.add(json.dumps({"event": event, "at": at, **what}).encode() + b"\n")
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()
