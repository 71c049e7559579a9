"""Weights that mean nothing, in the shapes of a real model: for latency and size alone.

Takes names and shapes; gives float32 arrays, the same ones every time, whole or a few rows at a
time. Knows no family.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgejudge.export.weights import row_blocks

__all__ = ["RandomWeights"]

_SEED = 20_261


class RandomWeights:
    """A `Source`. Matrices are normal with the spread that keeps activations of size one; what
    multiplies channels is ones, biases zeros.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self._shapes.values())

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __call__(self, name: str) -> NDArray[np.float32]:
        return self.rows(name, slice(None))

    def rows(self, name: str, index: slice | Sequence[int]) -> NDArray[np.float32]:
        shape = self._shapes[name]
        wanted = np.arange(shape[0])[index if isinstance(index, slice) else list(index)]
        out = np.empty((len(wanted), *shape[1:]), np.float32)
        if len(shape) == 1:
            out[:] = 0.0 if name.endswith("bias") else 1.0
            return out
        inner = int(np.prod(shape[1:]))
        for number, block in enumerate(row_blocks(shape[0], inner)):
            here = (wanted >= block.start) & (wanted < block.stop)
            if here.any():
                rng = np.random.Generator(
                    np.random.SFC64([_SEED, zlib.crc32(name.encode()), number])
                )
                values = rng.standard_normal((block.stop - block.start, inner), np.float32)
                values *= np.float32(inner**-0.5)
                out[here] = values[wanted[here] - block.start].reshape(-1, *shape[1:])
        return out
