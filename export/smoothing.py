"""Moves what is hard to round from activations into weights, so that the function stays the same.

Takes a checkpoint; gives it with other weights. A channel that is large for every token spoils the
scale of each, so it is divided by a factor where it is made and multiplied by it where it is used
(SmoothQuant, Xiao et al. 2023, with both sides' peaks to the power of one half). Factors are powers
of two: nothing is rounded. Where channels are made and used is read from the family's own forward
pass. Knows no family and no recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.observe import observe
from edgejudge.export.weights import Source, matrix_shape, row_blocks
from edgejudge.models.family import Family
from edgejudge.models.spec import ModelSpec

__all__ = ["Joint", "Scaled", "joints", "linear_weights", "smoothed"]

_POWER = 0.5
_MOST_OCTAVES = 10


@dataclass(frozen=True, slots=True)
class Joint:
    """Channels that one weight makes and some matrices use: rows `first` to `last` of `maker` (and
    of its bias) are the columns of each of `users`, heads repeated `repeat` times.
    """

    maker: str
    bias: str | None
    first: int
    last: int
    users: tuple[str, ...]
    head_dim: int = 0
    repeat: int = 1

    def to_columns(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """A number for each row of the maker -> one for each column of the users."""
        if self.repeat == 1:
            return rows
        heads = rows.reshape(-1, 1, self.head_dim)
        return np.repeat(heads, self.repeat, axis=1).reshape(-1)

    def to_rows(self, columns: NDArray[np.float32]) -> NDArray[np.float32]:
        """The largest number of the columns that a row becomes."""
        if self.repeat == 1:
            return columns
        out: NDArray[np.float32] = (
            columns.reshape(-1, self.repeat, self.head_dim).max(1).reshape(-1)
        )
        return out


class Scaled:
    """A `Source` whose matrices have rows and columns multiplied."""

    def __init__(
        self,
        source: Source,
        rows: dict[str, NDArray[np.float32]],
        columns: dict[str, NDArray[np.float32]],
    ) -> None:
        self._source, self._rows, self._columns = source, rows, columns

    @property
    def parameters(self) -> int:
        return self._source.parameters

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def __call__(self, name: str) -> NDArray[np.float32]:
        return self.rows(name, slice(None))

    def rows(self, name: str, index: slice | Sequence[int]) -> NDArray[np.float32]:
        found = self._source.rows(name, index)
        by_row, by_column = self._rows.get(name), self._columns.get(name)
        if by_row is not None:
            some = by_row[index if isinstance(index, slice) else list(index)]
            found = found * some.reshape(-1, *[1] * (found.ndim - 1))
        return found if by_column is None else found * by_column


def smoothed(checkpoint: Checkpoint) -> Checkpoint:
    """The same function. Peaks are those of the calibration pictures, or of a drawn one where the
    checkpoint has none to spare.
    """
    source, found = checkpoint.weights, _Peaks()
    observe(checkpoint, found)
    rows: dict[str, NDArray[np.float32]] = {}
    columns: dict[str, NDArray[np.float32]] = {}
    changed = Scaled(source, rows, columns)
    # From the end on: a matrix may make channels and use others, and what its rows become decides
    # how large its columns are.
    for joint in reversed(joints(checkpoint.family, checkpoint.spec, source)):
        weights = np.max([_column_peaks(changed, user) for user in joint.users], axis=0)
        factors = _factors(joint.to_rows(found.peaks[joint.users[0]]), joint.to_rows(weights))
        for user in joint.users:
            columns[user] = joint.to_columns(factors)
        for made in (joint.maker, joint.bias):
            if made is not None:
                whole = rows.setdefault(made, np.ones(source.shape(made)[0], np.float32))
                whole[joint.first : joint.last] /= factors
    return replace(checkpoint, weights=changed)


def _factors(activations: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Powers of two, around one; a channel that is never used keeps its size."""
    tiny = np.float32(1e-12)
    exponents = _POWER * (
        np.log2(np.maximum(activations, tiny)) - np.log2(np.maximum(weights, tiny))
    )
    used = (activations > tiny) & (weights > tiny)
    if not used.any():
        return np.ones_like(activations)
    exponents -= np.median(exponents[used])
    whole = np.clip(np.rint(exponents), -_MOST_OCTAVES, _MOST_OCTAVES)
    factors: NDArray[np.float32] = np.where(used, np.exp2(whole), 1).astype(np.float32)
    return factors


def _column_peaks(source: Source, name: str) -> NDArray[np.float32]:
    rows, inner = matrix_shape(source, name)
    peaks = np.zeros(inner, np.float32)
    for some in row_blocks(rows, inner):
        np.maximum(peaks, np.abs(source.rows(name, some).reshape(-1, inner)).max(0), out=peaks)
    return peaks


# --- what activations reach ----------------------------------------------------------------------


class _Peaks:
    """Largest magnitude in each column of everything that a weight was multiplied with."""

    def __init__(self) -> None:
        self.peaks: dict[str, NDArray[np.float32]] = {}

    def __call__(self, name: str, x: Tensor) -> None:
        found = x.reshape(-1, x.shape[-1]).abs().amax(0).float().numpy()
        self.peaks[name] = np.maximum(self.peaks.get(name, 0), found)


# --- where channels are made and used ------------------------------------------------------------


@dataclass(slots=True)
class _Value:
    """A value of the forward pass: which rows of which weight made its channels, if any did."""

    maker: str | None = None
    bias: str | None = None
    first: int = 0
    last: int = 0
    head_dim: int = 0
    repeat: int = 1
    users: list[str] = field(default_factory=list)
    elsewhere: bool = False  # it is used by something that is no matrix


def joints(family: Family, spec: ModelSpec, source: Source) -> list[Joint]:
    """Every place of the forward pass where channels can be scaled for nothing."""
    ops: Any = _Following(source)
    family.vision(ops, spec, {name: _Value() for name in family.vision_inputs(spec)})
    turn = (_Value(), _Value())
    family.decoder(ops, spec, _Value(), turn, range(spec.text.layers))
    return [
        Joint(v.maker, v.bias, v.first, v.last, tuple(v.users), v.head_dim, v.repeat)
        for v in ops.values
        if v.maker is not None and v.users and not v.elsewhere
    ]


def linear_weights(family: Family, spec: ModelSpec, source: Source) -> list[str]:
    """Every matrix that something is multiplied with, in the order of the forward pass."""
    ops: Any = _Following(source)
    family.vision(ops, spec, {name: _Value() for name in family.vision_inputs(spec)})
    family.decoder(ops, spec, _Value(), (_Value(), _Value()), range(spec.text.layers))
    family.head(ops, spec, _Value(), None)
    return list(dict.fromkeys(ops.matrices))


class _Following:
    """Implements `Ops[_Value]`: follows channels from where they are made to their users."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.values: list[_Value] = []
        self.matrices: list[str] = []

    def _made(self, maker: str, bias: str | None) -> _Value:
        value = _Value(maker, bias, 0, self._source.shape(maker)[0])
        self.values.append(value)
        return value

    @staticmethod
    def _spent(*values: _Value | None) -> _Value:
        for value in values:
            if value is not None:
                value.elsewhere = True
        return _Value()

    def linear(
        self, x: _Value, weight: str, bias: str | None = None, rows: tuple[int, ...] | None = None
    ) -> _Value:
        self.matrices.append(weight)
        columns = matrix_shape(self._source, weight)[1]
        if x.maker is not None and (x.last - x.first) * x.repeat == columns:
            x.users.append(weight)
        else:
            x.elsewhere = True
        return self._made(weight, bias)

    def layer_norm(self, x: _Value, weight: str, bias: str, eps: float) -> _Value:
        self._spent(x)
        return self._made(weight, bias)

    def rms_norm(self, x: _Value, weight: str, eps: float) -> _Value:
        self._spent(x)
        return self._made(weight, None)

    def mul(self, x: _Value, y: _Value) -> _Value:
        """Linear in each of its sides: the one that a matrix made can carry the factor."""
        self._spent(x)
        return y if y.maker is not None else self._spent(y)

    def full_attention(
        self, q: _Value, k: _Value, v: _Value, heads: int, scale: float, mask: Any = None
    ) -> _Value:
        self._spent(q, k)
        return v

    def cached_attention(
        self,
        q: _Value,
        k: _Value,
        v: _Value,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
    ) -> _Value:
        self._spent(q, k)
        if v.maker is not None:
            v.head_dim, v.repeat = head_dim, heads // kv_heads
        return v

    def scale(self, x: _Value, weight: str) -> _Value:
        return self._spent(x)

    def prepend(self, x: _Value, weight: str) -> _Value:
        return self._spent(x)

    def blend(self, weight: str, inputs: Any) -> _Value:
        return _Value()

    def skip(self, x: _Value, count: int) -> _Value:
        return x

    def join(self, values: Sequence[_Value], to: str) -> _Value:
        return self._spent(*values)

    def split(self, x: _Value, parts: int, of: str = "") -> tuple[_Value, ...]:
        if x.maker is None:
            return tuple(_Value() for _ in range(parts))
        x.elsewhere, size = True, (x.last - x.first) // parts
        made = [
            _Value(x.maker, x.bias, x.first + i * size, x.first + (i + 1) * size)
            for i in range(parts)
        ]
        self.values += made
        return tuple(made)

    def take(self, x: _Value, index: Any) -> _Value:
        return x

    def reshape(self, x: _Value, *shape: int) -> _Value:
        """Channels stay what they are where the last dimension stays; `linear` looks."""
        return x

    def add(self, x: _Value, y: _Value) -> _Value:
        return self._spent(x, y)

    def activation(self, x: _Value, kind: str) -> _Value:
        return self._spent(x)

    def rope(self, x: _Value, rotation: Any, heads: int, head_dim: int) -> _Value:
        return self._spent(x)

    def pixel_shuffle(self, x: _Value, grid: int, scale: int) -> _Value:
        return self._spent(x)

    def patchify(self, pixels: _Value, image_size: int, patch: int) -> _Value:
        return _Value()

    def table(self, weight: str, rows: NDArray[np.int64]) -> _Value:
        return _Value()
