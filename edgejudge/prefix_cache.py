"""Prefixes that need not be computed again: keys and values of pictures that were judged before.

Takes a key that names everything a prefix depends on; gives what was stored under just that key, or
nothing. Least recently used entries go when the budget is spent. On disk an entry carries a
checksum, and one that does not hold is removed, never trusted. Does not know pictures or engines.
"""

import hashlib
import json
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["KeptPrefix", "PrefixCache", "prefix_key"]

_SUFFIX = ".kv"
_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class KeptPrefix:
    """`rows` f32 [layers, 2, kv_heads, S, head_dim], read-only; `position` is the rope position
    after them.
    """

    rows: NDArray[np.float32]
    position: int


def prefix_key(parts: Iterable[bytes | memoryview]) -> str:
    """sha256 over the parts and their lengths, so that no two lists of parts mean the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class PrefixCache:
    """Safe to use from several threads."""

    def __init__(self, budget: int, folder: Path | None = None, disk_budget: int = 1 << 30) -> None:
        """At most `budget` bytes in memory; with a folder, at most `disk_budget` bytes there."""
        self.budget = budget
        self._folder = folder
        self._disk_budget = disk_budget
        self._kept: OrderedDict[str, KeptPrefix] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def most(self) -> int:
        """Bytes of the largest entry that is kept."""
        return self.budget if self._folder is None else max(self.budget, self._disk_budget)

    @property
    def nbytes(self) -> int:
        """What the entries in memory take."""
        return self._bytes

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return key in self._kept or (self._folder is not None and self._file(key).exists())

    def get(self, key: str) -> KeptPrefix | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        if self._folder is None:
            return None
        found = self._load(self._file(key))
        if found is not None:
            self._keep(key, found)
        return found

    def put(self, key: str, prefix: KeptPrefix) -> None:
        """Keeps it where it fits the budget; a disk that refuses it is no error."""
        prefix.rows.flags.writeable = False
        self._keep(key, prefix)
        if self._folder is not None and prefix.rows.nbytes <= self._disk_budget:
            try:
                self._store(self._folder, key, prefix)
            except OSError:  # full or read-only: what is not kept is computed again
                return

    def _keep(self, key: str, prefix: KeptPrefix) -> None:
        size = prefix.rows.nbytes
        if size > self.budget:
            return
        with self._lock:
            if key in self._kept:
                self._bytes -= self._kept.pop(key).rows.nbytes
            while self._kept and self._bytes + size > self.budget:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.rows.nbytes
            self._kept[key] = prefix
            self._bytes += size

    def _file(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / (key + _SUFFIX)

    def _load(self, file: Path) -> KeptPrefix | None:
        """What a file holds, if it holds just that; a damaged one is removed."""
        try:
            data = file.read_bytes()
        except OSError:
            return None
        try:
            head, _, body = data.partition(b"\n")
            header = json.loads(head)
            shape = tuple(int(n) for n in header["shape"])
            rows = np.frombuffer(body, "<f4").reshape(shape)
            whole = (
                header["version"] == _VERSION
                and header["key"] == file.name.removesuffix(_SUFFIX)
                and header["sha256"] == _checksum(header, body)
                and len(shape) == 5
            )
            position = int(header["position"])
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            file.unlink(missing_ok=True)
            return None
        os.utime(file)  # the order in which entries go
        return KeptPrefix(rows, position)

    def _store(self, folder: Path, key: str, prefix: KeptPrefix) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        body = np.ascontiguousarray(prefix.rows, "<f4").tobytes()
        header = {
            "version": _VERSION,
            "key": key,
            "shape": list(prefix.rows.shape),
            "position": prefix.position,
        }
        header["sha256"] = _checksum(header, body)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as stream:
            stream.write(json.dumps(header).encode() + b"\n" + body)
        Path(stream.name).replace(self._file(key))
        with self._lock:
            self._shrink(folder)

    def _shrink(self, folder: Path) -> None:
        """Removes the entries that were not used for longest, until the rest fits."""
        entries = []
        for file in folder.glob("*" + _SUFFIX):
            try:
                state = file.stat()
            except FileNotFoundError:  # another process was faster
                continue
            entries.append((state.st_mtime_ns, state.st_size, file))
        total = sum(size for _, size, _ in entries)
        for _, size, file in sorted(entries):
            if total <= self._disk_budget:
                return
            file.unlink(missing_ok=True)
            total -= size


def _checksum(header: dict[str, object], body: bytes) -> str:
    """Over the header too: a wrong position would be as bad as a wrong row."""
    named = {k: v for k, v in header.items() if k != "sha256"}
    return prefix_key([json.dumps(named, sort_keys=True).encode(), body])
