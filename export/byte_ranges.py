"""Ranges for graphs whose matrices meet bytes: which channels tower too high for them, and how far
the others reach.

Takes a checkpoint; runs the reference on calibration pictures twice, once to find the channels and
once with them set apart. Those channels keep 16 bits beside the matrix (the shadow outliers of
llm.npu, Xu et al. 2024, arXiv 2407.05858, which there run on the CPU). Knows no graph.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgejudge.export.blocks import Columns
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.observe import observe
from edgejudge.export.ranges import RangeOps, Ranges, ranges_by
from edgejudge.export.stored import Exact, Weights

__all__ = ["Bytes", "byte_ranges", "rest_of", "towering"]

# A channel towers whose largest value is so many times that of the middle one; at most a sixteenth
# of a matrix's inputs pass beside it.
_TOWERS = 3.0
_LEAST_LIMIT, _SHARE_LIMIT = 8, 1 / 16
_ROOM = np.float32(1.5)  # as ranges have it


def rest_of(weight: str) -> str:
    """The name of what a matrix meets, without the channels that are set apart."""
    return f"{weight} rest"


@dataclass(frozen=True, slots=True)
class Bytes:
    """`columns` are the channels of each matrix's input that keep 16 bits; `outputs` how far what
    it makes of the others reaches in each of its own channels [N], since bytes with one scale for
    all would leave most of them few levels.
    """

    columns: Columns
    outputs: Mapping[str, NDArray[np.float32]]


def byte_ranges(checkpoint: Checkpoint) -> tuple[Ranges, Bytes]:
    """Of every value, and what matrices of bytes need beside."""
    peaks: dict[str, NDArray[np.float32]] = {}

    def watch(name: str, x: Tensor) -> None:
        if not name.startswith(("keys ", "values ")):
            found = x.reshape(-1, x.shape[-1]).abs().amax(0).float().numpy()
            peaks[name] = np.maximum(peaks.get(name, np.float32(0)), found)

    observe(checkpoint, watch)
    columns = {name: found for name, seen in peaks.items() if (found := towering(seen))}
    ops = _ByteRangeOps(Exact(checkpoint.weights), columns)
    ranges = ranges_by(ops, checkpoint)
    return ranges, Bytes(columns, {name: _ROOM * peaks for name, peaks in ops.outputs.items()})


def towering(peaks: NDArray[np.float32]) -> tuple[int, ...]:
    """Channels by their largest values [K], the highest first, that tower over the middle one."""
    limit = min(max(_LEAST_LIMIT, math.ceil(len(peaks) * _SHARE_LIMIT)), len(peaks) // 2)
    order = np.argsort(-peaks, kind="stable")[:limit]
    return tuple(sorted(int(c) for c in order if peaks[c] > _TOWERS * np.median(peaks)))


class _ByteRangeOps(RangeOps):
    def __init__(self, weights: Weights, columns: Columns) -> None:
        super().__init__(weights)
        self._columns = columns
        self.outputs: dict[str, NDArray[np.float32]] = {}

    def linear(
        self, x: Tensor, weight: str, bias: str | None = None, rows: tuple[int, ...] | None = None
    ) -> Tensor:
        y = super().linear(x, weight, bias, rows)
        if rows is None:
            rest = x.clone()
            rest[..., list(self._columns.get(weight, ()))] = 0
            self._seen(rest_of(weight), rest)
            made = functional.linear(rest, self._whole(weight))
            peaks = made.reshape(-1, made.shape[-1]).abs().amax(0).float().numpy()
            self.outputs[weight] = np.maximum(self.outputs.get(weight, np.float32(0)), peaks)
        return y
