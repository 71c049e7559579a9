"""Whether a file is still the one that was judged.

Takes a path and what its row is about; gives a `Sight` of the file to compare with later. Knows
nothing of what happens to it.
"""

import hashlib
import os
import stat
from dataclasses import dataclass

from edgejudge.bulk.rows import content_key
from edgejudge.errors import InputError
from edgejudge.images import Limits, read_bytes

__all__ = ["Sight", "is_same", "look_again", "sha256_of"]


@dataclass(frozen=True, slots=True)
class Sight:
    """`status` is that of a link where the path is one, `sha256` of what it leads to; None of what
    cannot be read.
    """

    status: os.stat_result
    sha256: str | None
    data: bytes


def look_again(path: str, content: bytes | None, limits: Limits) -> Sight | None:
    """None where there is nothing any more, or something else than what was judged."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        data = read_bytes(path, limits)
        digest = hashlib.sha256(data).hexdigest()
    except (InputError, MemoryError):
        data, digest = b"", None
    return Sight(status, digest, data) if content_key(digest, None) == content else None


def is_same(path: str, status: os.stat_result) -> bool:
    """Whether it is the file that was seen, not written to since. No number of an inode: file
    systems in layers give a file another one when it is moved.
    """
    try:
        now = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (stat.S_IFMT(now.st_mode), now.st_size, now.st_mtime_ns) == (
        stat.S_IFMT(status.st_mode),
        status.st_size,
        status.st_mtime_ns,
    )


def sha256_of(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
