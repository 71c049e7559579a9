"""One writer at a time: a lock on a results file that dies with the process that holds it.

Takes the file; holds `FILE.lock` until it is released. The lock is the system's, not the file's
existence: one that a kill left behind locks nothing. The results file cannot carry the lock itself,
since it is replaced by a rename.
"""

import os
from contextlib import suppress

from edgejudge.errors import InputError

__all__ = ["Lock"]

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Lock:
    def __init__(self, file: str) -> None:
        """Raises InputError "in_use" where another process, or another part of this one, has it."""
        self._path = f"{file}.lock"
        while True:
            try:
                self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise InputError(
                    "unwritable", f"{file} cannot be written: {error.strerror}"
                ) from None
            try:
                taken = _taken(self._handle)
            except OSError as error:
                os.close(self._handle)
                raise InputError(
                    "unwritable",
                    f"{file} cannot be locked: {error.strerror}; give an --out on a local disk",
                ) from None
            if not taken:
                os.close(self._handle)
                raise InputError(
                    "in_use",
                    f"another process writes to {file}; wait until it ends, or give another --out",
                )
            if self._is_there():
                return
            os.close(self._handle)  # its last owner removed it between our two steps

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._handle))
        except OSError:
            return False

    def release(self) -> None:
        """The file goes too, while it is still locked, so that no one else loses theirs."""
        if self._handle < 0:
            return
        if fcntl is not None:
            with suppress(OSError):
                os.unlink(self._path)
        os.close(self._handle)
        self._handle = -1


def _taken(handle: int) -> bool:
    """Whether the lock is ours now. Raises OSError where the file system has none."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    return True
