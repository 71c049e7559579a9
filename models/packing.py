"""How image tokens are made of what a vision graph gives, where it does not give them as they are.

Beside the graph's inputs a picture then has two arrays that no graph takes: for each image token
some rows of the graph's output, all views one behind the other, and the share of each. Whoever runs
a graph mixes them outside it, so that one packing serves every target. Knows no layout.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["PACKED_ROWS", "PACKED_SHARES", "Packing"]

PACKED_ROWS, PACKED_SHARES = "packed_rows", "packed_shares"


@dataclass(frozen=True, slots=True)
class Packing:
    rows: NDArray[np.int64]  # [T, K]
    shares: NDArray[np.float32]  # [T, K]; a row whose share is 0 is one that is needed anyway

    @classmethod
    def of(cls, feeds: Mapping[str, NDArray[Any]]) -> Self | None:
        """What a picture's feeds say; None where the graph gives image tokens as they are."""
        if PACKED_ROWS not in feeds:
            return None
        return cls(feeds[PACKED_ROWS], feeds[PACKED_SHARES])
