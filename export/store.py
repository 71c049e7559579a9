"""Weight files: what the graphs of a bundle point into by external-data references.

Takes arrays under a key, whole or a few rows at a time; gives their place in a file. A key is
written once, however many graphs use it, so that graphs share their weights. Knows no model and no
graph.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import ExportError

__all__ = ["Place", "WeightStore"]

_PAGE_BYTES = 4096
_LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Place:
    file: str
    offset: int
    bytes: int
    dtype: str
    shape: tuple[int, ...]


class WeightStore:
    """`progress` is told how many values have been written."""

    def __init__(self, folder: Path, progress: Callable[[int], None] = lambda _: None) -> None:
        self._folder = folder
        self._progress = progress
        self._values = 0
        self._streams: dict[str, BinaryIO] = {}
        self._places: dict[str, Place] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in self._streams.values():
            stream.close()

    def get(self, key: str) -> Place | None:
        return self._places.get(key)

    def read(self, key: str) -> NDArray[np.float32]:
        """Floats that were put before, back from their file."""
        place = self._places[key]
        self._streams[place.file].flush()
        count = int(np.prod(place.shape))
        values = np.fromfile(self._folder / place.file, "<f4", count, offset=place.offset)
        return values.reshape(place.shape).astype(np.float32)

    def put(self, key: str, file: str, array: NDArray[np.generic]) -> Place:
        """Appends the array, row-major and little-endian; a known key is not written again."""
        if key in self._places:
            return self._places[key]
        return self.put_blocks(key, file, array.dtype, array.shape, [array])

    def put_blocks(
        self,
        key: str,
        file: str,
        dtype: np.dtype[np.generic],
        shape: tuple[int, ...],
        blocks: Iterable[NDArray[np.generic]],
    ) -> Place:
        """The same for an array that arrives as runs of its rows and is never whole in memory."""
        if file not in self._streams:
            self._streams[file] = (self._folder / file).open("wb")
        stream = self._streams[file]
        size = int(np.prod(shape)) * dtype.itemsize
        # Pages, so that an engine can map a tensor; what is smaller than one would only waste it.
        step = _PAGE_BYTES if size >= _PAGE_BYTES else _LINE_BYTES
        offset = -(-stream.tell() // step) * step
        stream.write(bytes(offset - stream.tell()))
        for block in blocks:
            if dtype.kind == "f" and not np.isfinite(block).all():
                raise ExportError(f"weight {key} holds a value that is not finite in {dtype}")
            little = np.ascontiguousarray(block, dtype.newbyteorder("<"))
            stream.write(little.reshape(-1).view(np.uint8).data)
            self._values += little.size
            self._progress(self._values)
        if stream.tell() != offset + size:
            raise AssertionError(f"{key}: {stream.tell() - offset} bytes came, not {size}")
        place = Place(file, offset, size, dtype.name, shape)
        self._places[key] = place
        return place
