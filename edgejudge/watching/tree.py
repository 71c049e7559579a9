"""Files below a folder that came or changed, once they are at rest.

Takes a folder; gives paths, by looking again and again at the size and times of every file. It
looks and is not told (by inotify and its like, or watchdog over them), since looking works on
network shares and across containers, where the kernel tells nothing; it misses nothing that came
while a queue was full or before it was asked, and what is there at the start is no special case.
The price is some microseconds for each file and look; after a long look comes a longer pause.

A file is due when two looks, `settle_s` apart, found it the same, and nobody has it open for
writing: no clock of another machine is trusted. A file that gets another name is one that has not
rested yet under it. Knows nothing of pictures.
"""

import os
import time
from collections.abc import Collection, Iterator, Sequence

from edgejudge.bulk.index import temporary_database
from edgejudge.bulk.names import find_files, key_of
from edgejudge.watching.writers import being_written

__all__ = ["Tree", "inside"]

_REST = 4.0  # times as long as a look took is the least pause behind it


class Tree:
    def __init__(
        self,
        folder: str,
        settle_s: float,
        without: Collection[str] = (),
        left_out: Sequence[str] = (),
    ) -> None:
        """`without` are real paths of files, `left_out` folders, wherever they are."""
        self.folder = folder
        self.looks = 0
        self.given = 0
        self.is_there = True
        self._settle_s = settle_s
        self._own = without
        self._own_names = {os.path.basename(path) for path in without}
        self._left_out = tuple(
            os.path.join(folder, way) for each in left_out if (way := inside(folder, each))
        )
        self._seen = _Seen()
        self._look_s = 0.0

    def due(self) -> Iterator[str]:
        """One look. What is given will not be given again unless it changes. Where the folder is
        gone or cannot be read nothing is given, and `is_there` says so.
        """
        self.looks += 1
        spent_s, began_s = 0.0, time.monotonic()
        for path in find_files(self.folder):
            if path == self.folder:
                self.is_there = False
                return
            if self._is_rested(path):
                self.given += 1
                spent_s += time.monotonic() - began_s
                yield path
                began_s = time.monotonic()
        self.is_there = True
        self._seen.forget_others(self.looks)
        self._look_s = spent_s + time.monotonic() - began_s

    def pause_s(self, every_s: float) -> float:
        """How long to wait before the next look."""
        return max(every_s, _REST * self._look_s)

    @property
    def waiting(self) -> int:
        """Files that were seen and not given."""
        return self._seen.waiting()

    def _is_rested(self, path: str) -> bool:
        if self._is_left_out(path):
            return False
        signature = _signature(path)
        if signature is None:
            return False
        key, now_s = key_of(path), time.monotonic()
        since_s = self._seen.since(key, signature, now_s, self.looks)
        if since_s is None or now_s - since_s < self._settle_s:
            return False
        if being_written(path):
            self._seen.wait(key, now_s)
            return False
        self._seen.give(key)
        return True

    def _is_left_out(self, path: str) -> bool:
        if any(path == each or path.startswith(each + os.sep) for each in self._left_out):
            return True
        return os.path.basename(path) in self._own_names and os.path.realpath(path) in self._own


class _Seen:
    """What the last looks found, in a private temporary database."""

    def __init__(self) -> None:
        self._database = temporary_database()
        self._database.execute(
            "CREATE TABLE files (key BLOB PRIMARY KEY, signature TEXT, since REAL, given INTEGER, "
            "look INTEGER) WITHOUT ROWID"
        )

    def since(self, key: bytes, signature: str, now_s: float, look: int) -> float | None:
        """Since when it has been so; None if it is new so, or was given since."""
        found = self._database.execute(
            "SELECT signature, since, given FROM files WHERE key = ?", (key,)
        ).fetchone()
        if found is None or found[0] != signature:
            self._database.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, 0, ?)", (key, signature, now_s, look)
            )
            return None
        self._database.execute("UPDATE files SET look = ? WHERE key = ?", (look, key))
        return None if found[2] else float(found[1])

    def wait(self, key: bytes, now_s: float) -> None:
        self._database.execute("UPDATE files SET since = ? WHERE key = ?", (now_s, key))

    def give(self, key: bytes) -> None:
        self._database.execute("UPDATE files SET given = 1 WHERE key = ?", (key,))

    def forget_others(self, look: int) -> None:
        self._database.execute("DELETE FROM files WHERE look != ?", (look,))

    def waiting(self) -> int:
        (count,) = self._database.execute("SELECT count(*) FROM files WHERE given = 0").fetchone()
        return int(count)


def _signature(path: str) -> str | None:
    """What differs once a file was written to, of the file that a link leads to. No number of an
    inode, which some network shares invent anew. None where nothing is.
    """
    try:
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    except OSError as error:
        # A link that leads nowhere or what may not be looked at is given too, and becomes a row.
        return f"error {error.errno}" if os.path.lexists(path) or not _gone(error) else None


def _gone(error: OSError) -> bool:
    return isinstance(error, FileNotFoundError | NotADirectoryError)


def inside(folder: str, other: str) -> str | None:
    """What leads from a folder to what lies in it, whatever links lead to either; `.` for itself,
    None for what does not.
    """
    try:
        way = os.path.relpath(os.path.realpath(other), os.path.realpath(folder))
    except ValueError:  # another drive
        return None
    return None if way == os.pardir or way.startswith(os.pardir + os.sep) else way
