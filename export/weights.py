"""Weights of a checkpoint folder, one tensor at a time.

Takes *.safetensors, in one file or in shards; gives float32 arrays by name. Files are mapped, so
memory holds the rows in hand and no more. Knows no family beyond the names it is told to expect.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import ExportError
from edgejudge.models.hf_config import read_json

__all__ = ["CheckpointWeights", "Source", "matrix_shape", "row_blocks"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What older versions saved beside the weights; all of it is computed from the config.
_BUFFERS = (".rotary_emb.inv_freq", ".position_ids")
# Older versions name a tower's own model inside the tower.
_INNER = ".vision_model."
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_WORDS = (".qweight", ".qzeros", ".g_idx")  # of levels, which quantized_source reads


_BLOCK_VALUES = 1 << 19  # what fits a processor's second cache, a few times over


class Source(Protocol):
    """Tensors by name, in float32, wherever they come from."""

    @property
    def parameters(self) -> int: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def rows(self, name: str, index: slice | Sequence[int]) -> NDArray[np.float32]:
        """The tensor at these indices of its first axis."""

    def __call__(self, name: str) -> NDArray[np.float32]: ...


def matrix_shape(source: Source, name: str) -> tuple[int, int]:
    """[N, K] of a weight that a linear layer multiplies with; a convolution's is flattened."""
    first, *rest = source.shape(name)
    return first, int(np.prod(rest))


def row_blocks(rows: int, inner: int) -> Iterator[slice]:
    """Runs of rows that together make the matrix, each small enough to be worked on in a cache."""
    step = max(1, _BLOCK_VALUES // max(1, inner))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


class _Place(NamedTuple):
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


class CheckpointWeights:
    """`aliases` maps a name to the one whose tensor stands in for it where it is absent."""

    def __init__(self, folder: Path, aliases: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._places: dict[str, _Place] = {}
        for file in _files(folder):
            self._places.update(_read_header(file))
        for name, source in (aliases or {}).items():
            if name not in self._places and source in self._places:
                self._places[name] = self._places[source]

    def check(self, expected: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Refuses a checkpoint whose tensors are not these, each in this shape, by the names that
        any version of transformers gives them.
        """
        wanted = dict(expected)
        for name in set(self._places) - set(wanted):
            plain = name.replace(_INNER, ".", 1)
            if plain in wanted and plain not in self._places:
                self._places[plain] = self._places.pop(name)
        missing = sorted(set(wanted) - set(self._places))
        unknown = sorted(set(self._places) - set(wanted))
        for problem, names in (("lacks", missing), ("has the unexpected", unknown)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise ExportError(
                    f"{self.folder}: the checkpoint {problem} weight "
                    f"{', '.join(names[:3])}{more}; it is not of this family, or incomplete"
                )
        for name, shape in wanted.items():
            if self._places[name].shape != shape:
                raise ExportError(
                    f"{self.folder}: weight {name} has shape {self._places[name].shape}, "
                    f"config.json means {shape}"
                )

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __call__(self, name: str) -> NDArray[np.float32]:
        return self.rows(name, slice(None))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def words(self, name: str) -> NDArray[np.int32]:
        """A tensor of packed levels, or of indices."""
        return np.array(self._mapped(self._places[name], "<i4"), np.int32)

    @staticmethod
    def _mapped(place: _Place, dtype: str) -> NDArray[Any]:
        # Mapped anew each time: pages of a map that is gone do not count as this process's memory.
        raw = np.memmap(place.file, np.uint8, "r", place.offset, place.bytes)
        return raw.view(dtype).reshape(place.shape)

    def rows(self, name: str, index: slice | Sequence[int]) -> NDArray[np.float32]:
        place = self._places[name]
        values = self._mapped(place, _DTYPES[place.dtype])
        picked = values[index if isinstance(index, slice) else list(index)]
        if place.dtype == "BF16":  # the upper half of a float32
            return (picked.astype(np.uint32) << 16).view(np.float32)
        return np.array(picked, np.float32)

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(p.shape)) for p in set(self._places.values()))


def _files(folder: Path) -> list[Path]:
    if (folder / _INDEX).exists():
        shards = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict):
            raise ExportError(f"{folder / _INDEX}: 'weight_map' must be an object")
        names = sorted({str(s) for s in shards.values()})
        for name in names:
            if Path(name).name != name:
                raise ExportError(f"{folder / _INDEX}: shard {name!r} does not lie in the folder")
            if not (folder / name).is_file():
                raise ExportError(
                    f"{folder}: shard {name} is missing, {_INDEX} lists {len(names)}; "
                    "download the checkpoint again"
                )
        return [folder / name for name in names]
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    pickled = sorted(f.name for pattern in _PICKLED for f in folder.glob(pattern))
    if pickled:
        raise ExportError(
            f"{folder}: {pickled[0]} is a pickle, which may run any code when it is read; "
            "save the weights as safetensors"
        )
    if (folder / "adapter_config.json").exists():
        raise ExportError(
            f"{folder}: holds an adapter, not a whole checkpoint; merge it into its base model "
            "(merge_and_unload) and save that"
        )
    raise ExportError(f"{folder}: holds neither {_SINGLE} nor {_INDEX}; save it as safetensors")


def _read_header(file: Path) -> dict[str, _Place]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(stream.read(length))
        places = {}
        for name, entry in header.items():
            if name == "__metadata__" or name.endswith(_BUFFERS):
                continue
            begin, end = entry["data_offsets"]
            shape = tuple(int(n) for n in entry["shape"])
            known = {"I32": "<i4"} if name.endswith(_WORDS) else _DTYPES
            if entry["dtype"] not in known:
                what = "only words of 32 bits" if name.endswith(_WORDS) else "only floats"
                raise ValueError(f"{name} has dtype {entry['dtype']}, {what} are supported")
            item = np.dtype(known[entry["dtype"]]).itemsize
            if end - begin != int(np.prod(shape)) * item or 8 + length + end > size:
                raise ValueError(f"{name} does not fit its place; the file is cut short or damaged")
            places[name] = _Place(file, entry["dtype"], shape, 8 + length + begin, end - begin)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ExportError(f"{file}: not readable safetensors ({error})") from None
    return places
