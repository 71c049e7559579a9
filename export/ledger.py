"""What an export did to each group of weights, for the manifest.

Takes what is known of every weight once it is stored; gives QuantRecords. A group is the part of
the model a weight belongs to. Knows no graph.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgejudge.bundle import QuantRecord

__all__ = ["Ledger"]


@dataclass(slots=True)
class _Group:
    bits: int
    block: int
    tensors: int = 0
    bytes: int = 0
    squared_error: float = 0.0
    squared_weight: float = 0.0

    def add(self, nbytes: int, error: float = 0.0, weight: float = 0.0) -> None:
        self.tensors += 1
        self.bytes += nbytes
        self.squared_error += error
        self.squared_weight += weight


class Ledger:
    """`group_of` names the group of a weight."""

    def __init__(self, group_of: Callable[[str], str]) -> None:
        self._group_of = group_of
        self._groups: dict[tuple[str, str, int], _Group] = {}
        self._seen: set[str] = set()

    def plain(self, name: str, nbytes: int) -> None:
        """A weight kept in float32; known ones are not counted again."""
        if name not in self._seen:
            self._seen.add(name)
            self._group(name, "float32", 32, 0).add(nbytes)

    def quantized(
        self,
        name: str,
        bits: int,
        block: int,
        nbytes: int,
        error: float,
        weight: float,
        symmetric: bool = True,
    ) -> None:
        """A weight in blocks, or in whole rows where `block` is 0; sums of squares of its error and
        of itself. Blocks that are not `symmetric` have a zero each.
        """
        scheme = "symmetric blocks" if block else "symmetric rows"
        self._group(name, scheme if symmetric else "blocks with zeros", bits, block).add(
            nbytes, error, weight
        )

    def rounded(self, name: str, dtype: str, nbytes: int, error: float, weight: float) -> None:
        """A weight stored in a shorter float; sums of squares of its error and of itself."""
        bits = np.dtype(dtype).itemsize * 8
        self._group(name, dtype, bits, 0).add(nbytes, error, weight)

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
            for (name, scheme, _), group in sorted(self._groups.items())
        )

    def _group(self, name: str, scheme: str, bits: int, block: int) -> _Group:
        key = (self._group_of(name), scheme, bits)
        return self._groups.setdefault(key, _Group(bits, block))
