"""Files that a kill cannot leave in two minds: replaced whole, or grown at their end.

Takes paths; gives a temporary file that takes a file's place when it is complete, and `Lines`,
which are only ever added to. Knows nothing of what is written. A system call that fails becomes one
sentence.

What survives: a kill, everything that was written, since the system has it; a power cut, everything
but what was written since the last sync, at most SYNC_S seconds of writing.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from edgejudge.errors import InputError

__all__ = ["SYNC_S", "Lines", "must_exist", "replacing", "sync_folder", "telling"]

SYNC_S = 5.0
_BINARY = getattr(os, "O_BINARY", 0)


def must_exist(file: str) -> None:
    """Of a results file that is to be read. Raises InputError."""
    if not os.path.exists(file):
        raise InputError("out", f"{file} cannot be read: there is no such file")


@contextmanager
def telling(file: str) -> Iterator[None]:
    """What the system or SQLite refuses about a results file, told as one sentence."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(
            "unwritable",
            f"{file} cannot be written: {why}; the rows so far stand, and the same command goes on "
            "from them",
        ) from None
    except sqlite3.DatabaseError as error:
        raise InputError(
            "out", f"{file} is damaged: {error}; give another --out, or remove it"
        ) from None


@contextmanager
def replacing(file: str) -> Iterator[str]:
    """A path to write to that becomes `file` when the context ends well, and goes when it does not.
    What was there before is there until the whole of the new one is on the disk.
    """
    part = f"{file}.part"
    try:
        yield part
        _sync(part)
        os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    sync_folder(file)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDWR | _BINARY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(file: str) -> None:
    """So that a name that was made, replaced or removed stays so. Windows has no such call."""
    if os.name == "nt":
        return
    handle = os.open(os.path.dirname(file) or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse it, and cannot do better
        pass
    finally:
        os.close(handle)


class Lines:
    """A file that grows by whole lines. Each is in the system's hands when `add` returns."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY
        self._handle = os.open(path, flags, 0o666)
        self._reader = open(path, "rb")  # noqa: SIM115 (closed by close)
        self.end = os.fstat(self._handle).st_size
        self._synced_s = time.monotonic()

    def add(self, line: bytes) -> int:
        """Gives its place. Raises OSError, and then nothing of the line is left in the file."""
        place, rest = self.end, memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError:
            with suppress(OSError):  # what stays is cut off when the file is opened again
                os.truncate(self._handle, place)
            raise
        self.end += len(line)
        if time.monotonic() - self._synced_s >= SYNC_S:
            self.sync()
        return place

    def at(self, place: int) -> bytes:
        self._reader.seek(place)
        return self._reader.readline()

    def sync(self) -> None:
        os.fsync(self._handle)
        self._synced_s = time.monotonic()

    def close(self) -> None:
        self._reader.close()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
