"""Weights of a checkpoint that was quantized before, by AWQ or GPTQ, in levels of four bits.

Takes a checkpoint's config and its tensors; gives a `Source` of the floats that the levels mean,
and the levels themselves to whoever stores blocks that fit into their groups: those are not rounded
again. Packings are those of AutoAWQ (`gemm`) and AutoGPTQ. Knows no family and no recipe.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import ExportError
from edgejudge.export.quantize import Quantized
from edgejudge.export.weights import CheckpointWeights, Source
from edgejudge.models.hf_config import HfConfig

__all__ = ["PackedWeights", "Packing", "packed_rows", "read_packing"]

_BITS, _IN_WORD, _SYMMETRIC = 4, 8, 8  # levels of a 32-bit word, and the zero of plain blocks
_LEAST_GROUP = 16
# Where AWQ has the level of column 0, 1, 2 ... of a word, in nibbles from the lowest.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class Packing:
    """How a config says that its matrices are packed."""

    awq: bool  # words run along rows of outputs, in an order of their own; else along inputs
    group: int  # inputs that share a scale and a zero
    zeros_less_one: bool  # as AutoGPTQ's first format stores them


def read_packing(config: HfConfig) -> Packing | None:
    """Of a checkpoint's config.json; None is weights of floats. Raises ExportError for what cannot
    be carried over.
    """
    if config.value.get("quantization_config") is None:
        return None
    section = config.section("quantization_config")

    def read(*keys: str) -> Any:
        return next((section.value[k] for k in keys if section.value.get(k) is not None), None)

    def expect(value: object, *allowed: object, keys: str) -> None:
        if not any(value == a and type(value) is type(a) for a in allowed):
            wanted = " or ".join(map(repr, allowed))
            raise ExportError(
                f"{section.where}: {keys!r} is {value!r}, can be read where it is {wanted}; bring "
                "the checkpoint before it was quantized"
            )

    method = read("quant_method")
    expect(method, "awq", "gptq", keys="quant_method")
    expect(read("bits", "w_bit"), _BITS, keys="bits")
    group = read("group_size", "q_group_size")
    if type(group) is not int or group < _LEAST_GROUP or group & group - 1:
        raise ExportError(
            f"{section.where}: 'group_size' is {group!r}, expected a power of two of at least "
            f"{_LEAST_GROUP}; bring the checkpoint before it was quantized"
        )
    if method == "awq":
        expect(read("version"), "gemm", None, keys="version")
        expect(read("zero_point"), True, keys="zero_point")
        return Packing(True, group, False)
    expect(read("sym"), True, False, keys="sym")
    form = read("checkpoint_format")
    expect(form, "gptq", "gptq_v2", None, keys="checkpoint_format")
    return Packing(False, group, form != "gptq_v2")


@dataclass(frozen=True, slots=True)
class _Levels:
    """One matrix: value = (level - zero) * scale."""

    levels: NDArray[np.uint8]  # [N, K]
    zeros: NDArray[np.uint8]  # [N, G]
    scales: NDArray[np.float32]  # [N, G]


class PackedWeights:
    """A `Source`. Of the matrices that are packed the last one is held in levels, a byte each."""

    def __init__(self, held: CheckpointWeights, packing: Packing) -> None:
        self._held, self._packing = held, packing
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._last: tuple[str, _Levels] | None = None
        self._lock = Lock()  # rows are asked for on several threads

    def check(self, expected: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Refuses a checkpoint whose tensors, packed or not, do not make these."""
        self._shapes = dict(expected)
        self._held.check(tensor for name in self._shapes for tensor in self._tensors(name))
        for name in self._shapes:
            if f"{_stem(name)}.g_idx" in self._held and self._packed(name):
                self._check_order(name)

    def _packed(self, name: str) -> bool:
        return name.endswith(".weight") and f"{_stem(name)}.qweight" in self._held

    def _tensors(self, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """What stands for a weight in the files."""
        shape, stem, group = self._shapes[name], _stem(name), self._packing.group
        if not self._packed(name):
            yield name, shape
            return
        rows, inner = shape
        if rows % _IN_WORD or inner % group:
            raise ExportError(
                f"weight {name} is {rows} x {inner}, which groups of {group} and words of "
                f"{_IN_WORD} levels do not fill; bring the checkpoint before it was quantized"
            )
        words = (inner, rows // _IN_WORD) if self._packing.awq else (inner // _IN_WORD, rows)
        yield f"{stem}.qweight", words
        yield f"{stem}.qzeros", (inner // group, rows // _IN_WORD)
        yield f"{stem}.scales", (inner // group, rows)
        if f"{stem}.g_idx" in self._held:
            yield f"{stem}.g_idx", (inner,)

    def _check_order(self, name: str) -> None:
        found = self._held.words(f"{_stem(name)}.g_idx")
        if (found != np.arange(len(found)) // self._packing.group).any():
            raise ExportError(
                f"weight {name} has its inputs in an order of their own (act-order); bring the "
                "checkpoint before it was quantized, or one quantized with desc_act=False"
            )

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self._shapes.values())

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __call__(self, name: str) -> NDArray[np.float32]:
        return self.rows(name, slice(None))

    def rows(self, name: str, index: slice | Sequence[int]) -> NDArray[np.float32]:
        if not self._packed(name):
            return self._held.rows(name, index)
        some, whole = index if isinstance(index, slice) else list(index), self._levels(name)
        found: NDArray[np.float32] = whole.levels[some].astype(np.float32)
        found -= np.repeat(whole.zeros[some], self._packing.group, axis=1)
        found *= np.repeat(whole.scales[some], self._packing.group, axis=1)
        return found

    def blocks(self, name: str, rows: slice, block: int) -> Quantized | None:
        """Rows as they are, where groups are whole blocks."""
        group = self._packing.group
        if not self._packed(name) or block < _LEAST_GROUP or group % block:
            return None
        whole = self._levels(name)
        count, inner = whole.levels[rows].shape
        levels = whole.levels[rows].reshape(count, inner // block, block)
        packed: NDArray[np.uint8] = levels[..., 0::2] | (levels[..., 1::2] << np.uint8(_BITS))
        plain = bool((whole.zeros == _SYMMETRIC).all())
        zeros = None if plain else np.repeat(whole.zeros[rows], group // block, axis=1)
        scales = np.repeat(whole.scales[rows], group // block, axis=1)
        return Quantized(_BITS, block, inner, packed, scales, zeros)

    def _levels(self, name: str) -> _Levels:
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = None  # before the next one is made
                self._last = name, self._unpacked(name)
            return self._last[1]

    def _unpacked(self, name: str) -> _Levels:
        stem, awq = _stem(name), self._packing.awq
        words, zeros = (self._held.words(f"{stem}.{n}") for n in ("qweight", "qzeros"))
        levels = _nibbles(words, _AWQ_PLACES).T if awq else _nibbles(words.T)
        offsets = _nibbles(zeros, _AWQ_PLACES if awq else tuple(range(_IN_WORD))).T
        if self._packing.zeros_less_one:
            if (offsets == 15).any():
                raise ExportError(
                    f"weight {name} has a stored zero of 15, which readers of this format take "
                    "for 0 or for 16; bring it as checkpoint_format gptq_v2"
                )
            offsets = offsets + np.uint8(1)
        scales = self._held(f"{stem}.scales").T
        if not np.isfinite(scales).all():
            raise ExportError(f"weight {name} holds a value that is not finite")
        return _Levels(
            np.ascontiguousarray(levels),
            np.ascontiguousarray(offsets),
            np.ascontiguousarray(scales),
        )


def packed_rows(source: Source, name: str, rows: slice, bits: int, block: int) -> Quantized | None:
    """Rows of a weight whose levels were decided before, where they can stay as they are."""
    if not isinstance(source, PackedWeights) or bits != _BITS:
        return None
    return source.blocks(name, rows, block)


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def _nibbles(
    words: NDArray[np.int32], places: tuple[int, ...] = tuple(range(_IN_WORD))
) -> NDArray[np.uint8]:
    """[A, B] -> [A, 8 * B], the level of each place of a word in turn."""
    shifts = np.array(places, np.uint32) * np.uint32(_BITS)
    found = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(15)
    return found.astype(np.uint8).reshape(len(words), -1)
