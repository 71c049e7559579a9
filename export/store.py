"""Weight files: what the graphs of a bundle point into by external-data references.

Takes arrays under a key; gives their place in a file. A key is written once, however many graphs
use it, so that graphs share their weights. Knows no model and no graph.
"""

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
    def __init__(self, folder: Path) -> None:
        self._folder = folder
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

    def put(self, key: str, file: str, array: NDArray[np.generic]) -> Place:
        """Appends the array, row-major and little-endian; a known key is not written again."""
        if key in self._places:
            return self._places[key]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(f"weight {key} holds a value that is not finite in {array.dtype}")
        if file not in self._streams:
            self._streams[file] = (self._folder / file).open("wb")
        stream = self._streams[file]
        # Pages, so that an engine can map a tensor; what is smaller than one would only waste it.
        step = _PAGE_BYTES if array.nbytes >= _PAGE_BYTES else _LINE_BYTES
        offset = -(-stream.tell() // step) * step
        stream.write(bytes(offset - stream.tell()))
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        stream.write(little.data.cast("B") if little.size else b"")
        place = Place(file, offset, array.nbytes, array.dtype.name, array.shape)
        self._places[key] = place
        return place
