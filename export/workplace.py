"""The folder an export works in, beside the one it is to become.

Takes the target; gives a folder name that is free, and afterwards leaves nothing of it. What runs
left behind that were killed is removed too. Knows no bundle.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgejudge.errors import EdgeJudgeError

__all__ = ["alive", "kept", "workplace"]


@contextmanager
def workplace(target: Path, kind: str) -> Iterator[Path]:
    """A path beside `target` that does not exist yet; whatever lies there is removed at the end."""
    _remove_leftovers(target)
    place = target.with_name(f".{target.name}.{kind}-{os.getpid()}")
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def kept(target: Path) -> Iterator[Path]:
    """A path beside `target` for work that a later run may go on with: it outlives only a run that
    was killed or interrupted, or fell over.
    """
    place = target.with_name(f".{target.name}.levels")
    try:
        yield place
    except EdgeJudgeError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    shutil.rmtree(place, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    # A workplace may itself be the target of another: then its name has one more dot in front.
    name = re.compile(rf"\.{{1,2}}{re.escape(target.name)}\.[a-z]+-(\d+)(\.[a-z]+-\d+)?")
    if sys.platform == "win32" or not target.parent.is_dir():
        return  # who knows whether they are still worked on
    for entry in target.parent.iterdir():
        match = name.fullmatch(entry.name)
        if match and not alive(int(match[1])):
            shutil.rmtree(entry, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process lives; on Windows, where there is no harmless way to ask, none does."""
    if sys.platform == "win32":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, and is someone else's
        return True
    return True
