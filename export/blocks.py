"""A weight through its quantization, a few rows at a time and on every core.

Takes a source and a recipe, and levels where some are decided already; gives the quantized rows in
order, with how far they moved. Memory holds the rows in hand and what came of the rows before.
Knows no graph and no file.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import ExportError
from edgejudge.export.quantize import Quantized, dequantize, quantize
from edgejudge.export.quantized_source import packed_rows
from edgejudge.export.recipe import Kinds, Recipe
from edgejudge.export.weights import Source, matrix_shape, row_blocks

__all__ = ["Columns", "KvSteps", "Plan", "QuantizedRows"]

_AHEAD = 16
_WHOLE_TOKEN = 0
_KV_TOLERANCE = {8: 5e-2, 4: 2e-1}  # by bits: a last bit may become a level of a key
Importance = Callable[[str], NDArray[np.float32] | None]  # weight name -> [K], where it is known
# Weight name, bits and block -> its levels, where they were decided beforehand
Decided = Callable[[str, int, int], Quantized | None]
Columns = Mapping[str, tuple[int, ...]]  # weight name -> columns that stay exact


@dataclass(frozen=True, slots=True, eq=False)
class KvSteps:
    """What a level of a layer's cached keys and values means, for each channel [kv_heads, H]; there
    are two to the power of `bits` levels, from -2 ** (bits - 1) on. A step may be below 0.
    """

    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    bits: int


@cache
def _workers() -> ThreadPoolExecutor:
    """The same threads for every weight: each thread's allocator keeps what it once took."""
    return ThreadPoolExecutor(os.cpu_count())


class QuantizedRows(NamedTuple):
    q: Quantized
    error: float  # sum of squares of what the rows moved by
    square: float  # and of the rows themselves
    exact: NDArray[np.float32]  # [N, C], the columns that stay so, which are zero in `q`


class Plan:
    """How each weight is stored: the recipe's precision, which columns matter most, and which stay
    exact beside integers. `kv_steps` of a layer say that its cache is of integers.
    """

    def __init__(
        self,
        recipe: Recipe,
        kinds: Kinds,
        importance: Importance = lambda _: None,
        exact: Columns | None = None,
        kv_steps: Mapping[int, KvSteps] | None = None,
    ) -> None:
        self.recipe = recipe
        self._kinds = kinds
        self.importance = importance
        self._exact = exact or {}
        self.kv_steps = kv_steps or {}
        self.chosen_bits: Mapping[str, int] = {}  # weight name -> bits, in place of the recipe's
        self._levels: Decided = lambda *_: None
        self._chosen: tuple[str, int] | None = None

    def bits_of(self, name: str) -> int | None:
        """Bits of a linear weight; None is float32."""
        bits = self.chosen_bits.get(name) or self.recipe.bits_of(self._kinds(name))
        if self._chosen is not None and self._chosen != (self.group_of(name), bits):
            return None
        return bits

    def integer(self, name: str) -> bool:
        """Whether a linear weight meets activations that are rounded, each token for itself."""
        return self.bits_of(name) is not None and self.recipe.on_integers(self._kinds(name))

    def rounding(self, name: str) -> int | None:
        """How many activations in a row share a scale when they are rounded for this matrix: all of
        a token, with integers, or as many as a block of weights; None is no rounding.
        """
        if self.bits_of(name) is None:
            return None
        if self.integer(name):
            return _WHOLE_TOKEN
        return self.recipe.block if self.recipe.rounds(self._kinds(name)) else None

    def exact_columns(self, name: str) -> tuple[int, ...]:
        """Of a matrix that meets rounded activations; there they are not rounded."""
        return self._exact.get(name, ()) if self.integer(name) else ()

    def for_writing(self) -> "Plan | None":
        """The plan of what only text needs; None where it is this one."""
        recipe = self.recipe.for_writing()
        return None if recipe is None else self._like(recipe=recipe, _exact={}, _chosen=None)

    def for_target(self, recipe: Recipe) -> "Plan":
        """The plan of graphs for another target."""
        # What was allocated is for blocks; rows of one scale have a rule of their own.
        bits = self.chosen_bits if recipe.block else {}
        return self._like(recipe=recipe, _exact={}, kv_steps={}, _chosen=None, chosen_bits=bits)

    def with_exact(self, exact: Columns) -> "Plan":
        """The same with these columns, in place of those it has."""
        return self._like(_exact=exact, _chosen=None)

    def with_kv(self, steps: Mapping[int, KvSteps]) -> "Plan":
        """The same with a cache of integers; without steps, of floats."""
        allowed = (_KV_TOLERANCE[each.bits] for each in steps.values())
        recipe = replace(self.recipe, tolerance=max((self.recipe.tolerance, *allowed)))
        return self._like(recipe=recipe, kv_steps=steps, _chosen=None)

    def with_levels(self, decided: Decided) -> "Plan":
        """The same with levels that were decided for whole matrices."""
        return self._like(_levels=decided)

    def allocated(self, name: str, bits: Mapping[str, int]) -> "Plan":
        """The same under another name, with so many bits for each of these weights."""
        return self._like(recipe=replace(self.recipe, name=name), chosen_bits=bits)

    def _like(self, **changes: object) -> "Plan":
        plan = copy(self)
        for name, value in changes.items():
            setattr(plan, name, value)
        return plan

    @property
    def kv_dtype(self) -> str:
        """Of the cache, as a manifest calls it."""
        bits = {steps.bits for steps in self.kv_steps.values()}
        return f"int{bits.pop()}" if bits else "float32"

    def stored_bits(self, name: str) -> float:
        """Of one weight, its share of the scales included."""
        bits = self.bits_of(name)
        if bits is None:
            return 32
        if self.integer(name):
            return 8
        # A scale of a whole row counts for nothing.
        return bits + 32 / self.recipe.block if self.recipe.block else bits

    def _run(self, inner: int) -> int:
        """Weights that share a scale; four bits come in pairs."""
        return self.recipe.block or inner + inner % 2

    def group_of(self, name: str) -> str:
        """The part of the model a weight belongs to."""
        return self._kinds(name).partition(".")[0]

    def only(self, group: str, bits: int) -> "Plan":
        """The same for one group in so many bits, everything else as the checkpoint has it."""
        return self._like(kv_steps={}, _chosen=(group, bits))

    def only_kv(self) -> "Plan":
        """The same with its cache, and every weight as the checkpoint has it."""
        return self._like(_exact={}, _chosen=("", 0))

    def packed(self, source: Source, name: str) -> bool:
        """Whether the source has the matrix as the plan would store it, level by level."""
        bits, run = self.bits_of(name), self._run(matrix_shape(source, name)[1])
        return bits is not None and packed_rows(source, name, slice(0, 1), bits, run) is not None

    def quantized(self, source: Source, name: str) -> Iterator[QuantizedRows]:
        """The rows of a linear weight, in order; ExportError for a value that is not finite."""
        bits = self.bits_of(name)
        if bits is None:
            raise ValueError(f"{name} is not quantized by recipe {self.recipe.name}")
        shape = matrix_shape(source, name)
        importance = self.importance(name)
        columns = list(self.exact_columns(name))
        decided = self._decided(name, bits)

        def one(rows: slice) -> QuantizedRows:
            block = source.rows(name, rows)
            block = block.reshape(len(block), -1)
            if not np.isfinite(block).all():
                raise ExportError(f"weight {name} holds a value that is not finite")
            if decided is not None:
                q = replace(decided, levels=decided.levels[rows], scales=decided.scales[rows])
                return QuantizedRows(
                    q, _square(dequantize(q) - block), _square(block), block[:, :0]
                )
            search = self.recipe.searches(bits)
            run = shape[1] if self.integer(name) else self._run(shape[1])
            exact, square = block[:, columns], _square(block)
            if columns:
                block = block.copy()
                block[:, columns] = 0
            symmetric = not self.recipe.block
            q = packed_rows(source, name, rows, bits, run) or quantize(
                block, bits, run, search, importance, symmetric=symmetric
            )
            return QuantizedRows(q, _square(dequantize(q) - block), square, exact)

        blocks = list(row_blocks(*shape))
        if len(blocks) == 1:  # most weights of a small model: no thread is worth it
            yield one(blocks[0])
            return
        # A few at a time: what is done and not yet taken would fill the memory.
        for first in range(0, len(blocks), _AHEAD):
            yield from _workers().map(one, blocks[first : first + _AHEAD])

    def _decided(self, name: str, bits: int) -> Quantized | None:
        if self.integer(name) or not self.recipe.block:
            return None
        return self._levels(name, bits, self.recipe.block)


def _square(values: NDArray[np.float32]) -> float:
    """Summed in float64: the figure is part of a manifest that every machine must write alike."""
    return float(np.square(values, dtype=np.float64).sum())
