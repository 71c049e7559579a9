"""Weights as a backend asks for them: by name and by use.

A recipe stores a linear weight in blocks and an embedding in halves, but a norm exactly. `Exact`
gives the checkpoint's own values for every use, `Stored` the values that the recipe's bundle means,
so that one reference can compute with either. Knows no family.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgejudge.export.quantize import dequantize, quantize
from edgejudge.export.recipe import Recipe

__all__ = ["Exact", "Stored", "Weights"]

Load = Callable[[str], NDArray[np.float32]]


class Weights(Protocol):
    def plain(self, name: str) -> NDArray[np.float32]:
        """For everything that every recipe keeps exact."""

    def linear(self, name: str) -> NDArray[np.float32]:
        """The matrix [N, K] of a whole linear layer."""

    def embedding(self, name: str) -> NDArray[np.float32]: ...


class Exact:
    def __init__(self, load: Load) -> None:
        self.plain = load
        self.embedding = load

    def linear(self, name: str) -> NDArray[np.float32]:
        weight = self.plain(name)
        return weight.reshape(len(weight), -1)


class Stored:
    def __init__(self, load: Load, recipe: Recipe) -> None:
        self.plain = load
        self._recipe = recipe

    def linear(self, name: str) -> NDArray[np.float32]:
        weight = self.plain(name)
        matrix = weight.reshape(len(weight), -1)
        if self._recipe.bits is None:
            return matrix
        return dequantize(quantize(matrix, self._recipe.bits, self._recipe.block))

    def embedding(self, name: str) -> NDArray[np.float32]:
        return self.plain(name).astype(self._recipe.embeddings).astype(np.float32)
