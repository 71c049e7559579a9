"""Rows as JSON lines that are only ever added to, and read again after any kill.

Takes a file and an `Index`; keeps the index true to the file. Of several lines of one path the last
one counts. A line that a kill cut short is cut off when the file is opened; a line with zero bytes
is what a power cut leaves of a block that was not on the disk yet, and is left out. Both pictures
are simply judged again. Anything else that is no row is refused, since it is not ours to remove.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgejudge.bulk.files import Lines, replacing, sync_folder
from edgejudge.bulk.identity import Identity
from edgejudge.bulk.index import Index
from edgejudge.bulk.rows import BEGINNING, content_of, key_of_row, outcome_of, to_line
from edgejudge.bulk.store import other_run
from edgejudge.errors import InputError

__all__ = ["Journal", "Scanned", "index_lines", "scan"]

_MOST_BYTES = 64 << 20  # of a line; rows of the largest policies have a few hundred KiB
Row = Mapping[str, Any]


@dataclass(slots=True)
class Scanned:
    """`end` is where the last whole row ends, which may want its `newline` still; `cut` says that
    more came behind it, and `damaged` counts lines to leave out.
    """

    end: int = 0
    newline: bool = True
    cut: bool = False
    damaged: int = 0


def scan(file: str, take: Callable[[Row, int, int], None]) -> Scanned:
    """`take` of each row, its place and its line. Raises InputError for lines that are none, and
    what `take` raises; KeyError, TypeError and ValueError of it say that it is none.
    """
    found = Scanned()
    with open(file, "rb") as stream:
        place, number = 0, 0
        while line := stream.readline(_MOST_BYTES):
            number += 1
            whole = line.endswith(b"\n")
            row = _parsed(line)
            if row is None and not whole and _is_cut(line):
                found.cut = True
                return found
            if row is None and b"\0" in line:
                found.damaged += 1
            elif line.strip():
                try:
                    take(row or {}, place, number)
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise _no_row(file, number) from None
            place += len(line)
            found.end, found.newline = place, whole
    return found


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _is_cut(line: bytes) -> bool:
    """Whether it may be the beginning of a row: never cut off what may be somebody's only copy."""
    return (line.startswith(BEGINNING) or BEGINNING.startswith(line) or b"\0" in line) and len(
        line
    ) < _MOST_BYTES


def _no_row(file: str, number: int) -> InputError:
    return InputError(
        "out",
        f"{file}, line {number}: it is no row of `edgejudge screen --out` that says its settings; "
        "give another --out, or remove the line",
    )


def index_lines(file: str, index: Index, identity: Identity | None) -> tuple[Scanned, int]:
    """Puts all rows of a file into the index; gives how many of them are out of date. Raises
    InputError for a row of another identity.
    """
    replaced = 0

    def take(row: Row, place: int, number: int) -> None:
        nonlocal replaced
        theirs = Identity.of_row(row)
        if theirs != identity and identity is not None:
            where = f", line {number},"
            if (problem := other_run(file, theirs, identity, where)) is not None:
                raise problem
        replaced += index.put(key_of_row(row), content_of(row), outcome_of(row), place)

    return scan(file, take), replaced


class Journal:
    """`repairs` says what was mended, `stale` counts lines that a rewrite would leave out."""

    def __init__(self, file: str, identity: Identity, index: Index) -> None:
        """Raises InputError for a file that is none or of another identity, and leaves it as it is;
        OSError where the system refuses.
        """
        self._file, self._index = file, index
        self.repairs: list[str] = []
        self.stale = 0
        if is_new := not os.path.exists(file):
            found = Scanned()
        else:
            found, replaced = index_lines(file, index, identity)
            self.stale = replaced + found.damaged
        if found.cut:
            os.truncate(file, found.end)
            self.repairs.append(f"{file} ended within a row, which was cut off")
        if found.damaged:
            self.repairs.append(f"{file} had {found.damaged} damaged lines, which are left out")
        self._lines = Lines(file)
        if not found.newline:
            self._lines.add(b"\n")
        if is_new:
            sync_folder(file)

    def put(self, row: Row) -> None:
        """Raises OSError, and then nothing has changed."""
        place = self._lines.add(to_line(row))
        self.stale += self._index.put(key_of_row(row), content_of(row), outcome_of(row), place)

    def row(self, place: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._lines.at(place))
        return found

    def lines(self) -> Iterator[bytes]:
        """Those that count, in order."""
        for place in self._index.places():
            yield self._lines.at(place)

    def rewrite(self) -> None:
        """The file without its stale lines, which takes the place of the other in one step; the
        index is of no use after it.
        """
        with replacing(self._file) as part, open(part, "wb") as stream:
            stream.writelines(self.lines())
            stream.flush()
            self.close()  # Windows replaces no file that is open

    def sync(self) -> None:
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()
