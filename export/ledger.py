"""What an export did to each group of weights, for the manifest.

Takes every weight as it is stored; gives QuantRecords. A group is the part of the model a weight
belongs to. Knows no graph.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import QuantRecord
from edgejudge.export.quantize import Quantized, dequantize

__all__ = ["Ledger"]


@dataclass(slots=True)
class _Group:
    bits: int
    block: int
    tensors: int = 0
    bytes: int = 0
    squared_error: float = 0.0
    squared_weight: float = 0.0


class Ledger:
    """`group_of` names the group of a weight."""

    def __init__(self, group_of: Callable[[str], str]) -> None:
        self._group_of = group_of
        self._groups: dict[tuple[str, str], _Group] = {}
        self._seen: set[str] = set()
        self.matrix_shapes: dict[str, tuple[int, int]] = {}

    def plain(
        self, name: str, weights: Callable[[str], NDArray[np.float32]], count: bool = True
    ) -> NDArray[np.float32]:
        """The weight in float32, entered as such."""
        value = weights(name)
        if count and name not in self._seen:
            self._seen.add(name)
            group = self._group(name, "float32", 32, 0)
            group.tensors += 1
            group.bytes += value.nbytes
        return value

    def quantized(self, name: str, matrix: NDArray[np.float32], q: Quantized) -> None:
        rows, inner = matrix.shape
        self.matrix_shapes[name] = (rows, inner)
        group = self._group(name, "symmetric blocks", q.bits, q.block)
        group.tensors += 1
        group.bytes += q.levels.nbytes + q.scales.nbytes
        group.squared_error += float(np.square(dequantize(q) - matrix, dtype=np.float64).sum())
        group.squared_weight += float(np.square(matrix, dtype=np.float64).sum())

    def rounded(self, name: str, dtype: str, nbytes: int, error: float, weight: float) -> None:
        """A weight stored in a shorter float; sums of squares of its error and of itself."""
        bits = np.dtype(dtype).itemsize * 8
        group = self._group(name, dtype, bits, 0)
        group.tensors += 1
        group.bytes += nbytes
        group.squared_error += error
        group.squared_weight += weight

    def records(self) -> tuple[QuantRecord, ...]:
        return tuple(
            QuantRecord(
                group=name,
                scheme=scheme,
                bits=group.bits,
                block=group.block,
                tensors=group.tensors,
                bytes=group.bytes,
                relative_rms_error=round(
                    float(np.sqrt(group.squared_error / (group.squared_weight or 1.0))), 6
                ),
            )
            for (name, scheme), group in sorted(self._groups.items())
        )

    def _group(self, name: str, scheme: str, bits: int, block: int) -> _Group:
        return self._groups.setdefault((self._group_of(name), scheme), _Group(bits, block))
