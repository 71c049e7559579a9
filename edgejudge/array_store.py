"""A folder of arrays under keys: what was computed once, for the next process.

Takes a key that names everything an array depends on; gives what was stored under just that key, or
nothing. An entry carries a checksum, and one that does not hold is removed, never trusted. Those
that were not used for longest go when the budget is spent. Does not know what the arrays mean.
"""

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayStore", "key_of"]

_SUFFIX = ".kv"
_VERSION = 3
_TYPES = {"float32": "<f4", "int8": "|i1", "uint8": "|u1"}


def key_of(parts: Iterable[bytes | memoryview]) -> str:
    """sha256 over the parts and their lengths, so that no two lists of parts mean the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class ArrayStore:
    """Arrays of float32 or bytes with one number each. Several threads and processes may share the
    folder.
    """

    def __init__(self, folder: Path, budget: int = 1 << 30) -> None:
        """At most `budget` bytes; the folder is made by the first entry."""
        self.folder = folder
        self.budget = budget
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        return self._file(key).exists()

    def get(self, key: str) -> tuple[NDArray[Any], int] | None:
        """What an entry holds, read-only, if it holds just that; a damaged one is removed."""
        file = self._file(key)
        try:
            data = file.read_bytes()
        except OSError:
            return None
        try:
            head, _, body = data.partition(b"\n")
            header = json.loads(head)
            shape = tuple(int(n) for n in header["shape"])
            values = np.frombuffer(body, _TYPES[header["dtype"]]).reshape(shape)
            whole = (
                header["version"] == _VERSION
                and header["key"] == key
                and header["sha256"] == _checksum(header, body)
            )
            number = int(header["number"])
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            file.unlink(missing_ok=True)
            return None
        os.utime(file)  # the order in which entries go
        return values, number

    def put(self, key: str, values: NDArray[Any], number: int = 0) -> None:
        """Keeps it where it fits the budget; a disk that refuses it is no error."""
        if values.nbytes > self.budget:
            return
        dtype = values.dtype.name
        body = np.ascontiguousarray(values, _TYPES[dtype]).tobytes()
        header: dict[str, object] = {
            "version": _VERSION,
            "key": key,
            "dtype": dtype,
            "shape": list(values.shape),
            "number": number,
        }
        header["sha256"] = _checksum(header, body)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as stream:
                stream.write(json.dumps(header).encode() + b"\n" + body)
            Path(stream.name).replace(self._file(key))
            with self._lock:
                self._shrink()
        except OSError:  # full or read-only: what is not kept is computed again
            return

    def _file(self, key: str) -> Path:
        return self.folder / (key + _SUFFIX)

    def _shrink(self) -> None:
        """Removes the entries that were not used for longest, until the rest fits."""
        entries = []
        for file in self.folder.glob("*" + _SUFFIX):
            try:
                state = file.stat()
            except FileNotFoundError:  # another process was faster
                continue
            entries.append((state.st_mtime_ns, state.st_size, file))
        total = sum(size for _, size, _ in entries)
        for _, size, file in sorted(entries):
            if total <= self.budget:
                return
            file.unlink(missing_ok=True)
            total -= size


def _checksum(header: dict[str, object], body: bytes) -> str:
    """Over the header too: a wrong number would be as bad as a wrong value."""
    named = {k: v for k, v in header.items() if k != "sha256"}
    return key_of([json.dumps(named, sort_keys=True).encode(), body])
