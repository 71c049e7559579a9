"""All bytes of a regular file, and never more than a limit.

Takes a path and a limit; gives bytes. A pipe nobody writes to would be waited for without end, and
a device may never end. Imports nothing of ours.
"""

import errno
import os
import stat

__all__ = ["file_bytes"]

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def file_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Raises OSError, whose `strerror` says what is wrong, also for what is no regular file, for
    more than `most` bytes, and for a path that no file can have.
    """
    try:
        handle = os.open(path, _FLAGS)
    except ValueError as error:  # a null byte, or a surrogate that no file system has
        raise OSError(errno.EINVAL, f"no file can be called that: {error}", path) from None
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", path)
        # By its size, since as much is set aside at once; it may have grown, and some have no size.
        data = stream.read(min(status.st_size or most, most) + 1)
        if len(data) > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", path)
    return data
