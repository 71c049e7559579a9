"""Bundles in the Hugging Face cache, whose files are links: the same bundle with real files.

Takes a folder; gives one that an engine can open. The cache keeps a repository's files as blobs and
a revision as links to them, and ONNX Runtime refuses weights behind links. Knows no manifest: what
the files hold is checked where they are opened.
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from edgejudge.errors import BundleError

__all__ = ["with_real_files"]


def with_real_files(folder: Path, cache: Path) -> Path:
    """`folder` itself; or, where it is a revision in a Hub cache, a folder under `cache` with its
    files as hard links, or as copies where the file system has none.

    Links that lead anywhere but to the repository's own blobs stay links, to be refused later.
    """
    blobs = folder.parent.parent / "blobs"
    if folder.parent.name != "snapshots" or not blobs.is_dir():
        return folder
    try:
        links = {e.name: e.resolve() for e in folder.iterdir() if e.is_symlink()}
        links = {name: blob for name, blob in links.items() if blob.parent == blobs.resolve()}
        if not links:
            return folder
        # Another revision, or the same one downloaded again, has other blobs: another place.
        stats = {name: blob.stat() for name, blob in links.items()}
    except (OSError, RuntimeError) as error:  # a blob that is gone, or links in a circle
        raise BundleError(
            f"{folder}: its links cannot be followed ({error}); download the bundle again"
        ) from None
    marks = sorted(f"{name} {s.st_ino} {s.st_mtime_ns}" for name, s in stats.items())
    key = hashlib.sha256("\n".join([str(folder), *marks]).encode()).hexdigest()[:32]
    place = cache / "hub" / key
    if place.is_dir():
        return place
    partial = place.with_name(f"{key}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        for entry in folder.iterdir():
            if entry.is_file():
                _put(links.get(entry.name, entry), partial / entry.name)
        with contextlib.suppress(OSError):  # another process was faster, with the same files
            partial.rename(place)
    except OSError as error:
        raise BundleError(
            f"{folder}: its files are links, and {place.parent} cannot hold real ones "
            f"({error.strerror}); copy the bundle with `cp -rL` and open the copy"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _put(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
