"""A folder into which files are moved: each is there or where it was, and never both or neither.

Takes paths and what was judged of them; gives where they are now. On one file system a file is
renamed; across two it is copied, synced, renamed into its place, and then removed where it was.
Nothing is overwritten: the new name begins with the bytes' sha256, and is reserved before it is
used. `quarantine.jsonl` in the folder says of each file where it came from, and which move a kill
came into: that one is finished, or undone, when the folder is opened again. Knows no judge.
"""

import errno
import os
import shutil
import stat
from contextlib import suppress

from edgejudge.bulk.files import sync_folder
from edgejudge.bulk.lock import Lock
from edgejudge.bulk.names import as_text
from edgejudge.errors import InputError
from edgejudge.printable import printable
from edgejudge.watching.journal import Move, MoveJournal
from edgejudge.watching.unchanged import Sight, is_same, sha256_of
from edgejudge.watching.writers import being_written

__all__ = ["Quarantine", "kept_name"]

_JOURNAL = "quarantine.jsonl"
_PART = "quarantine.part"
_LAST_CHARS = 50  # of a name that are kept: at most 200 bytes
_EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


class Quarantine:
    """`repairs` are sentences about what was mended when it was opened."""

    def __init__(self, folder: str) -> None:
        """Made if it is not there, for its owner alone. Raises InputError "in_use" where another
        watcher has it, and "unwritable".
        """
        self.folder = os.path.realpath(folder)
        self.repairs: list[str] = []
        journal = os.path.join(self.folder, _JOURNAL)
        try:
            with suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
            self._lock = Lock(journal)
            try:
                with suppress(FileNotFoundError):
                    os.unlink(self._in_folder(_PART))
                self._journal = MoveJournal(journal)
                self._finish()
            except BaseException:
                self._lock.release()
                raise
        except InputError as error:
            if error.code != "in_use":
                raise
            raise InputError(
                "in_use",
                f"another watcher moves files into {folder}; give each a folder of its own",
            ) from None
        except OSError as error:
            why = error.strerror or str(error)
            raise InputError("unwritable", f"{folder} is no place for files: {why}") from None

    def take(self, path: str, sight: Sight, outcome: str) -> str | None:
        """Moves the file that was seen; gives its new path. None where it is not there any more, or
        is another one by now. Raises OSError where it cannot be moved: it stays where it was.
        """
        self._finish()  # the disk was full when the last move was to be noted
        source = os.path.abspath(path)
        copied = os.stat(self.folder).st_dev != sight.status.st_dev
        target, empty = self._reserve(source, sight, outcome, copied)
        try:  # of a KeyboardInterrupt the next run finds out how far it came
            try:
                done = (self._copy if copied else self._rename)(source, target, sight)
            except OSError as error:
                if error.errno != errno.EXDEV or copied:
                    raise
                # Two mounts of one file system.
                self._begin(source, os.path.basename(target), sight, outcome, True)
                done = self._copy(source, target, sight)
        except OSError as error:
            self._undo(target, empty)
            if isinstance(error, FileNotFoundError) and not os.path.lexists(source):
                return None
            raise
        if not done:
            self._undo(target, empty)
            return None
        with suppress(OSError):  # as far as there is one to sync
            sync_folder(target)
            sync_folder(source)
        self._journal.end("moved")
        return target

    def close(self) -> None:
        self._journal.close()
        self._lock.release()

    def _in_folder(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _begin(self, source: str, name: str, sight: Sight, outcome: str, copied: bool) -> None:
        text, hexadecimal = as_text(source)
        size, mtime_ns = sight.status.st_size, sight.status.st_mtime_ns
        self._journal.begin(
            Move(text, hexadecimal, name, sight.sha256, outcome, copied, size, mtime_ns)
        )

    def _reserve(self, source: str, sight: Sight, outcome: str, copied: bool) -> tuple[str, int]:
        """An empty file under a name that nothing had, after the journal knows of it; its path and
        the number of its inode.
        """
        number = 1
        while True:
            name = kept_name(source, sight.sha256, number)
            target = self._in_folder(name)
            if not os.path.lexists(target):
                self._begin(source, name, sight, outcome, copied)
                try:
                    return target, _empty(target)
                except FileExistsError:
                    pass
                except OSError:
                    self._journal.end("stayed")
                    raise
            number += 1

    def _rename(self, source: str, target: str, sight: Sight) -> bool:
        if not is_same(source, sight.status):
            return False
        os.replace(source, target)
        if is_same(target, sight.status):
            return True
        # Another file took its name at the last moment: it goes back, unless there is one more.
        try:
            _empty(source)
        except FileExistsError:
            return True
        os.replace(target, source)
        return False

    def _copy(self, source: str, target: str, sight: Sight) -> bool:
        part = self._in_folder(_PART)
        if stat.S_ISLNK(sight.status.st_mode):
            os.symlink(os.readlink(source), part)
        else:
            with open(source, "rb") as read, open(part, "wb") as written:
                shutil.copyfileobj(read, written, 1 << 20)
                os.chmod(part, 0o600)
                written.flush()
                os.fsync(written.fileno())
            os.utime(part, ns=(sight.status.st_atime_ns, sight.status.st_mtime_ns))
            if sight.sha256 is not None and sha256_of(part) != sight.sha256:
                return False
        os.replace(part, target)
        try:
            sync_folder(target)
            if is_same(source, sight.status) and not being_written(source):
                os.unlink(source)
                return True
        except OSError:
            os.unlink(target)
            raise
        os.unlink(target)
        return False

    def _undo(self, target: str, empty: int) -> None:
        """Of a move that was not made: the file is where it was. `empty` is what was reserved."""
        with suppress(FileNotFoundError):
            os.unlink(self._in_folder(_PART))
        with suppress(FileNotFoundError):
            if os.lstat(target).st_ino == empty:
                os.unlink(target)
        self._journal.end("stayed")

    def _finish(self) -> None:
        """What a kill came into: done if the file is in the folder, or else as if never begun."""
        if (move := self._journal.unfinished) is None:
            return
        source, target = move.source, self._in_folder(move.name)
        if not _arrived(target, move):
            if os.path.lexists(target) and not os.lstat(target).st_size:
                os.unlink(target)
            self._journal.end("stayed")
            return
        if move.copied and _is_left(source, move):
            os.unlink(source)
            sync_folder(source)
        self._journal.end("moved")
        self.repairs.append(
            f"{printable(source)} was being moved to {target} when the last run ended; it is there"
        )


def kept_name(path: str, sha256: str | None, number: int = 1) -> str:
    """What a file is called where it is kept: the beginning of its sha256, and the end of its name
    without what a terminal or another system could not take.
    """
    digest = "unread" if sha256 is None else sha256[:12]
    signs = (
        char if char.isprintable() and char not in '\\/:*?"<>|' else "_"
        for char in os.path.basename(path)
    )
    end = "".join(signs)[-_LAST_CHARS:]
    return f"{digest}-{end}" if number == 1 else f"{digest}-{number}-{end}"


def _empty(path: str) -> int:
    """Makes an empty file where nothing was; gives the number of its inode."""
    handle = os.open(path, _EXCLUSIVE, 0o600)
    try:
        return os.fstat(handle).st_ino
    finally:
        os.close(handle)


def _arrived(target: str, move: Move) -> bool:
    """Whether it is the file, and not what was reserved for it. A copy has its name when it is
    complete.
    """
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(status.st_mode) or move.sha256 is None or not move.size:
        return status.st_size == move.size and (move.copied or status.st_mtime_ns == move.mtime_ns)
    return status.st_size == move.size and sha256_of(target) == move.sha256


def _is_left(source: str, move: Move) -> bool:
    """Whether the file that was copied is still where it was, and no other one of its name."""
    try:
        status = os.lstat(source)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if (status.st_size, status.st_mtime_ns) != (move.size, move.mtime_ns):
        return False
    return stat.S_ISLNK(status.st_mode) or move.sha256 in (None, sha256_of(source))
