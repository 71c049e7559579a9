"""Names of files: found in folders, told apart, and written where only text can stand.

Takes paths as the system has them, which need not be text; gives files, keys of 16 bytes, and a
form for JSON that can be read back. Knows nothing of what the files hold.
"""

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b

__all__ = ["as_text", "find_files", "from_text", "key_of", "listing", "normalised", "own_files"]

_COMPANIONS = ("", ".lock", ".part", ".journal", "-wal", "-shm", "-journal")


def find_files(path: str) -> Iterator[str]:
    """The path itself, or all regular files below a folder in sorted order.

    Links to files count as files, links to folders are not followed, so a loop of links ends. A
    link that leads nowhere and a folder that cannot be read are given too, so that they become rows
    and are not lost. Of a folder no more than its names are held.
    """
    if not os.path.isdir(path):
        yield path
        return
    folders: list[tuple[str, list[str]]] = []  # names that are still to come, the next one last
    current: str | None = path
    while True:
        if current is not None:
            try:
                folders.append((current, sorted(os.listdir(current), reverse=True)))
            except OSError:
                yield current
            current = None
        while folders and not folders[-1][1]:
            folders.pop()
        if not folders:
            return
        folder, names = folders[-1]
        file = os.path.join(folder, names.pop())
        kind = _kind(file)
        if kind is None or stat.S_ISREG(kind):
            yield file
        elif stat.S_ISDIR(kind):
            current = file


def _kind(path: str) -> int | None:
    """The mode of what is there, where a link counts as the file it leads to, or as a link where
    that is a folder; None for what cannot be looked at.
    """
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode) and stat.S_ISREG(target := os.stat(path).st_mode):
            return target
    except OSError:
        return None
    return mode


def listing(paths: Iterable[str], without: Collection[str] = ()) -> Iterator[str]:
    """The files of all paths, each once however often and in whatever spelling it is named, but for
    the real paths `without`.
    """
    from edgejudge.bulk.index import Keys

    names = {os.path.basename(path) for path in without}
    here = os.getcwd()
    seen = Keys()
    for path in paths:
        for file in find_files(path):
            if os.path.basename(file) in names and os.path.realpath(file) in without:
                continue
            if seen.add(key_of(os.path.join(here, file))):
                yield file


def own_files(path: str) -> set[str]:
    """The real paths of a results file and of what may lie beside it while it is written."""
    file = os.path.realpath(path)
    return {file + each for each in _COMPANIONS}


def normalised(path: str) -> str:
    """Without `.` and doubled separators. `..` stays: behind a link to a folder it leads elsewhere
    than text can tell.
    """
    drive, rest = os.path.splitdrive(os.path.normcase(path))
    root = os.sep if rest.startswith(os.sep) else ""
    return drive + root + os.sep.join(part for part in rest.split(os.sep) if part not in ("", "."))


def key_of(path: str) -> bytes:
    """16 bytes that stand for a path in its normalised spelling."""
    return blake2b(os.fsencode(normalised(path)), digest_size=16).digest()


def as_text(path: str) -> tuple[str, str | None]:
    r"""The path as text that any JSON reader, database or table can hold, and None; or, where its
    bytes are no UTF-8, with `\xff` for each byte that is none, and all its bytes in hexadecimal.
    """
    data = os.fsencode(path)
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError:
        return data.decode("utf-8", "backslashreplace"), data.hex()


def from_text(text: str, hexadecimal: str | None) -> str:
    """The path that `as_text` wrote. Raises ValueError for what is no such pair."""
    return os.fsdecode(text.encode("utf-8") if hexadecimal is None else bytes.fromhex(hexadecimal))
