"""Whether somebody is still writing a file, as far as the system says.

Takes a path; gives yes or no. Only Linux says it, of files on its own disks that belong to whoever
asks (or to anyone, for root): it grants a lease to read only where nobody has the file open for
writing. The lease is given back at once.
"""

import os
import signal

__all__ = ["being_written"]

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)


def being_written(path: str) -> bool:
    """False where the system does not say; then only the file's rest tells."""
    if fcntl is None or not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        handle = os.open(path, _FLAGS)
    except (OSError, ValueError):
        return False  # the judge says what is wrong with it
    try:
        # Who opens it in this moment makes the system send us a signal: one that does nothing,
        # since the usual one ends the process.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:  # not ours, or a file system without leases
        return False
    finally:
        os.close(handle)
    return False
