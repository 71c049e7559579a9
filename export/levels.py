"""Levels that were decided for whole matrices, and stay decided when an export is killed.

Takes levels and scales of all matrices of a place; gives those of one matrix back. They lie in a
folder beside the bundle to be, under a key of all that they were made from: what a killed export
had finished is there for the next, and what something else left behind is removed. Knows no model.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import ExportError
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.quantize import Quantized
from edgejudge.export.workplace import alive

__all__ = ["Levels", "key_of"]

_KEY, _OWNER = "key", "owner"
_PARTS = ("levels", "scales")
_HASHED = ("*.json", "*.safetensors")


class Levels:
    """Without a folder they are kept in memory. Raises ExportError where another process that lives
    keeps its own in the folder.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._folder = folder
        self._made: dict[str, Callable[[], Quantized]] = {}
        self._done: set[str] = set()
        if folder is not None:
            _take(folder, key)
            for index in sorted(folder.glob("*.json")):
                self._open(folder, index.stem)

    def __contains__(self, place: str) -> bool:
        """Whether a place is finished."""
        return place in self._done

    def put(self, place: str, levels: Mapping[str, Quantized]) -> None:
        """All matrices of a place at once: it is finished, or has nothing."""
        if self._folder is None:
            self._made |= {name: partial(_same, q) for name, q in levels.items()}
            self._done.add(place)
            return
        try:
            _keep(self._folder, place, levels)
        except OSError as error:
            raise ExportError(
                f"{self._folder}: levels could not be written ({error.strerror or error}); make "
                "room there, or name another folder"
            ) from None
        self._open(self._folder, place)

    def get(self, name: str, bits: int, block: int) -> Quantized | None:
        """What was decided for a matrix in this form, if anything was."""
        if name not in self._made:
            return None
        found = self._made[name]()
        return found if (found.bits, found.block) == (bits, block) else None

    def _open(self, folder: Path, place: str) -> None:
        for number, (name, *form) in enumerate(_index(folder, place)):
            self._made[name] = partial(_load, folder / f"{place}.{number}", *form)
        self._done.add(place)


def _same(q: Quantized) -> Quantized:
    return q


def _index(folder: Path, place: str) -> list[tuple[str, int, int, int]]:
    """Name, bits, block and inner width of each matrix of a finished place."""
    found: list[tuple[str, int, int, int]] = json.loads((folder / f"{place}.json").read_bytes())
    return found


def _load(stem: Path, bits: int, block: int, inner: int) -> Quantized:
    levels, scales = (np.load(f"{stem}.{what}.npy", mmap_mode="r") for what in _PARTS)
    return Quantized(bits, block, inner, levels, scales)


def _keep(folder: Path, place: str, levels: Mapping[str, Quantized]) -> None:
    """The index last: what it lists is whole, after a power cut too."""
    entries = []
    for number, (name, q) in enumerate(levels.items()):
        arrays: list[NDArray[Any]] = [q.levels, q.scales]
        for what, array in zip(_PARTS, arrays, strict=True):
            with (folder / f"{place}.{number}.{what}.npy").open("wb") as stream:
                np.save(stream, np.asarray(array))
                _settle(stream)
        entries.append([name, q.bits, q.block, q.inner])
    unfinished = folder / f"{place}.unfinished"
    with unfinished.open("wb") as stream:
        stream.write(json.dumps(entries).encode())
        _settle(stream)
    unfinished.replace(folder / f"{place}.json")


def _settle(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def key_of(checkpoint: Checkpoint, choices: object) -> str:
    """A digest of the checkpoint's files, its calibration set and `choices`, anything with a
    repr that tells it from others.
    """
    digest = hashlib.sha256(repr(choices).encode())
    files = [file for pattern in _HASHED for file in sorted(checkpoint.folder.glob(pattern))]
    if checkpoint.calibration_folder is not None:
        files += sorted(f for f in checkpoint.calibration_folder.iterdir() if f.is_file())
    for file in files:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {found}\n".encode())
    return digest.hexdigest()


def _take(folder: Path, key: str) -> None:
    """Makes the folder this process's, empty unless what it holds has the key."""
    try:
        owner, held = ((folder / name).read_text() for name in (_OWNER, _KEY))
    except OSError:
        owner, held = "", ""
    if owner and int(owner) != os.getpid() and alive(int(owner)):
        raise ExportError(
            f"{folder}: process {owner} exports there; wait for it, or name another folder"
        )
    if held != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    (folder / _OWNER).write_text(str(os.getpid()))
    (folder / _KEY).write_text(key)
