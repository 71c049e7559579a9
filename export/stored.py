"""Weights as a backend asks for them: by name and by use.

A recipe stores a linear weight in blocks and an embedding in halves, but a norm exactly. `Exact`
gives the checkpoint's own values for every use, `Stored` the values that the recipe's bundle means,
so that one reference can compute with either. Knows no family.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgejudge.export.blocks import KvSteps, Plan
from edgejudge.export.quantize import dequantize
from edgejudge.export.weights import Source, matrix_shape, row_blocks

__all__ = ["Exact", "Stored", "Weights"]


class Weights(Protocol):
    def plain(self, name: str) -> NDArray[np.float32]:
        """For everything that every recipe keeps exact."""

    def shape(self, name: str) -> tuple[int, int]:
        """[N, K] of a whole linear layer."""

    def blocks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """That matrix as runs of its rows, in order."""

    def rounding(self, name: str) -> int | None:
        """How many values of a token share a scale where what meets this matrix is rounded to eight
        bits first; 0 is all of them, None is no rounding.
        """

    def exact_columns(self, name: str) -> tuple[int, ...]:
        """Channels that are not rounded there, and do not count for the others' scale."""

    def kv_steps(self, layer: int) -> KvSteps | None:
        """What a level of the layer's cached keys and values means; None is a cache of floats."""

    def exact_rows(self, name: str, index: slice | Sequence[int]) -> NDArray[np.float32]:
        """Some rows of a matrix, as the checkpoint has them."""

    def embedding(self, name: str, ids: slice | Sequence[int]) -> NDArray[np.float32]: ...


class Exact:
    def __init__(self, source: Source) -> None:
        self._source = source
        self.plain = source
        self.exact_rows = source.rows

    def embedding(self, name: str, ids: slice | Sequence[int]) -> NDArray[np.float32]:
        return self._source.rows(name, ids)

    def shape(self, name: str) -> tuple[int, int]:
        return matrix_shape(self._source, name)

    def rounding(self, name: str) -> int | None:
        return None

    def exact_columns(self, name: str) -> tuple[int, ...]:
        return ()

    def kv_steps(self, layer: int) -> KvSteps | None:
        return None

    def blocks(self, name: str) -> Iterator[NDArray[np.float32]]:
        shape = self.shape(name)
        for rows in row_blocks(*shape):
            yield self._source.rows(name, rows).reshape(-1, shape[1])


class Stored(Exact):
    def __init__(self, source: Source, plan: Plan) -> None:
        super().__init__(source)
        self._plan = plan

    def blocks(self, name: str) -> Iterator[NDArray[np.float32]]:
        if self._plan.bits_of(name) is None:
            yield from super().blocks(name)
            return
        columns = list(self.exact_columns(name))
        for block in self._plan.quantized(self._source, name):
            values = dequantize(block.q)
            values[:, columns] = block.exact
            yield values

    def rounding(self, name: str) -> int | None:
        return self._plan.rounding(name)

    def exact_columns(self, name: str) -> tuple[int, ...]:
        return self._plan.exact_columns(name)

    def kv_steps(self, layer: int) -> KvSteps | None:
        return self._plan.kv_steps.get(layer)

    def embedding(self, name: str, ids: slice | Sequence[int]) -> NDArray[np.float32]:
        rows = self._source.rows(name, ids)
        return rows.astype(self._plan.recipe.embeddings).astype(np.float32)
