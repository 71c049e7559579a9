"""Where a decoder's residual stream is written and read, found by following the family's own pass.

Takes a family and its spec; gives the weights whose rows, columns or numbers are channels of the
stream. A use that would see the stream in another basis is an ExportError. Knows no family and no
rotation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import ExportError
from edgejudge.export.weights import Source, matrix_shape
from edgejudge.models.family import Family
from edgejudge.models.spec import ModelSpec

__all__ = ["Stream", "residual_stream"]


@dataclass(frozen=True, slots=True)
class Stream:
    """Weights of a decoder, and of what gives it visual tokens, by what they do with the stream."""

    readers: Mapping[str, str | None]  # matrix -> the norm before it
    writers: frozenset[str]  # matrices whose rows are channels
    vectors: frozenset[str]  # biases, tables and learned tokens: their last axis is the channels

    @property
    def norms(self) -> frozenset[str]:
        return frozenset(norm for norm in self.readers.values() if norm is not None)


def residual_stream(family: Family, spec: ModelSpec, source: Source) -> Stream:
    """Follows visual tokens, embeddings and the head."""
    follower = _Following(spec, source)
    ops: Any = follower
    inputs = {name: _Value(opaque=True) for name in family.vision_inputs(spec)}
    follower.enters(family.vision(ops, spec, inputs))
    follower.enters(_Value(vectors=frozenset((family.EMBEDDINGS,))))
    turn = (_Value(opaque=True), _Value(opaque=True))
    hidden = family.decoder(ops, spec, _Value(stream=True), turn, range(spec.text.layers))
    family.head(ops, spec, hidden)
    return follower.found()


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the forward pass: a sum of what matrices made and of vectors, unless something
    else went into it, or the stream itself.
    """

    matrices: frozenset[str] = frozenset()
    vectors: frozenset[str] = frozenset()
    opaque: bool = False
    stream: bool = False
    norm: str | None = None  # the stream behind this norm

    def joined(self, other: _Value) -> _Value:
        return _Value(
            self.matrices | other.matrices,
            self.vectors | other.vectors,
            self.opaque or other.opaque,
        )


@dataclass(slots=True)
class _Following:
    """Implements `Ops[_Value]`. An op that has no meaning here makes something new of all it is
    given.
    """

    spec: ModelSpec
    source: Source
    readers: dict[str, str | None] = field(default_factory=dict)
    writers: set[str] = field(default_factory=set)
    vectors: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)  # makers of what something new was made of

    def found(self) -> Stream:
        for name in sorted((self.writers | self.vectors) & self.elsewhere):
            raise self._refused(f"what {name} writes into it is used elsewhere too")
        return Stream(self.readers, frozenset(self.writers), frozenset(self.vectors))

    def enters(self, value: _Value) -> None:
        """Something is added to the stream, or begins it."""
        if value.stream:
            return
        if value.opaque or value.norm is not None:
            raise self._refused("something is written into it that no matrix makes")
        for name in value.matrices | value.vectors:
            axis = 0 if name in value.matrices else -1
            if self.source.shape(name)[axis] != self.spec.text.hidden:
                raise self._refused(f"{name} writes into it in another shape")
        self.writers |= value.matrices
        self.vectors |= value.vectors

    def _refused(self, why: str) -> ExportError:
        return ExportError(
            f"the residual stream of {self.spec.family} cannot be turned: {why}; take a recipe "
            "without rotation"
        )

    def _other(self, *given: Any, **named: Any) -> _Value:
        for value in _values_in((given, named)):
            if value.stream or value.norm is not None:
                raise self._refused("something that is no matrix uses it")
            self.elsewhere |= value.matrices | value.vectors
        return _Value(opaque=True)

    def __getattr__(self, op: str) -> Any:
        if op.startswith("_"):
            raise AttributeError(op)
        return self._other

    # --- ops that keep what their values are ---

    def linear(
        self, x: _Value, weight: str, bias: str | None = None, rows: tuple[int, ...] | None = None
    ) -> _Value:
        columns = matrix_shape(self.source, weight)[1]
        if x.stream or x.norm is not None:
            if columns != self.spec.text.hidden or self.readers.get(weight, x.norm) != x.norm:
                raise self._refused(f"{weight} reads it in two ways or in another shape")
            self.readers[weight] = x.norm
        else:
            self._other(x)
        return _Value(frozenset((weight,)), frozenset(() if bias is None else (bias,)))

    def rms_norm(self, x: _Value, weight: str, eps: float) -> _Value:
        """The length of a token is the same in every basis."""
        return _Value(norm=weight) if x.stream else self._other(x)

    def add(self, x: _Value, y: _Value) -> _Value:
        if not (x.stream or y.stream):
            return x.joined(y) if _plain(x) and _plain(y) else self._other(x, y)
        self.enters(x)
        self.enters(y)
        return _Value(stream=True)

    def split(self, x: _Value, parts: int, of: str = "") -> tuple[_Value, ...]:
        """Of the stream: its lanes."""
        return (x if x.stream else self._other(x),) * parts

    def join(self, values: Sequence[_Value], to: str) -> _Value:
        """Lanes, where all are the stream, or become it."""
        if all(value.stream for value in values):
            return values[0]
        if not all(map(_plain, values)):
            return self._other(values)
        first, *others = values
        for value in others:
            first = first.joined(value)
        return first

    def prepend(self, x: _Value, weight: str) -> _Value:
        return self.add(x, _Value(vectors=frozenset((weight,)))) if _plain(x) else self._other(x)

    def table(self, weight: str, rows: NDArray[np.int64]) -> _Value:
        return _Value(vectors=frozenset((weight,)))

    def blend(self, weight: str, inputs: Any) -> _Value:
        return _Value(vectors=frozenset((weight,)))

    def skip(self, x: _Value, count: int) -> _Value:
        return x

    def take(self, x: _Value, index: Any) -> _Value:
        return x

    def reshape(self, x: _Value, *shape: int) -> _Value:
        """Another last axis shows where the value enters or is read."""
        return x


def _plain(value: _Value) -> bool:
    return not value.stream and value.norm is None


def _values_in(given: Any) -> Iterable[_Value]:
    if isinstance(given, _Value):
        yield given
    elif isinstance(given, Mapping):
        yield from _values_in(tuple(given.values()))
    elif isinstance(given, (tuple, list)):
        for each in given:
            yield from _values_in(each)
