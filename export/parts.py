"""Where a stack of layers is cut: runs whose weights take about the same room.

Takes what each layer costs, in bytes; gives ranges of layers. Knows no graph.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgejudge.errors import ExportError
from edgejudge.export.blocks import Plan
from edgejudge.export.recipe import layer_of

__all__ = ["Cut", "coreml_parts", "layer_bytes", "npu_parts", "slices"]

_SLICE_BYTES = 64 << 20
# Qualcomm's HTP addresses 32 bits; its makers cut models into parts of one to two gigabytes.
_NPU_BYTES, _NPU_MOST = 1 << 30, 2 << 30
_COREML_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """Into `parts` runs, or as few as keep each under `part_bytes`; neither is one run."""

    parts: int | None = None
    part_bytes: int | None = None

    def check(self) -> None:
        if self.parts is not None and self.part_bytes is not None:
            raise ExportError("give a number of parts or the bytes of one, not both")
        if self.parts is not None and self.parts < 1:
            raise ExportError(f"the number of parts is {self.parts}, expected at least 1")
        if self.part_bytes is not None and self.part_bytes < 1:
            raise ExportError(f"the bytes of a part are {self.part_bytes}, expected at least 1")

    def apply(self, costs: Sequence[int]) -> list[range]:
        """Ranges that together are all layers, the largest as small as it can be."""
        self.check()
        if self.part_bytes is not None:
            if max(costs) > self.part_bytes:
                raise ExportError(
                    f"layer {int(np.argmax(costs))} alone takes {max(costs)} bytes, a part may "
                    f"take {self.part_bytes}; allow more, or use a recipe with fewer bits"
                )
            # The fewest parts that hold it, then as even as so many can be.
            return _even(costs, len(_greedy(costs, self.part_bytes)))
        count = self.parts or 1
        if count > len(costs):
            raise ExportError(f"the decoder has {len(costs)} layers, {count} parts were asked for")
        return _even(costs, count)


def _even(costs: Sequence[int], count: int) -> list[range]:
    """`count` runs: bisects for the smallest limit that so many can keep."""
    low, high = max(costs), sum(costs)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_greedy(costs, middle)) <= count else (middle + 1, high)
    runs = _greedy(costs, low)
    while len(runs) < count:  # fewer were enough: halve the longest, which makes none larger
        longest = max(range(len(runs)), key=lambda i: len(runs[i]))
        run = runs[longest]
        middle = run.start + len(run) // 2
        runs[longest : longest + 1] = [range(run.start, middle), range(middle, run.stop)]
    return runs


def _greedy(costs: Sequence[int], limit: int) -> list[range]:
    runs, first, held = [], 0, 0
    for layer, cost in enumerate(costs):
        if held + cost > limit and layer > first:
            runs.append(range(first, layer))
            first, held = layer, 0
        held += cost
    return [*runs, range(first, len(costs))]


def npu_parts(cut: Cut, costs: Sequence[Sequence[int]]) -> list[range] | None:
    """Parts that an NPU's compiler takes, of the most that any variant's layers cost; None without
    any. Raises ExportError for a cut that leaves one too large.
    """
    if not costs:
        return None
    most = [max(layer) for layer in zip(*costs, strict=True)]
    if cut == Cut() and sum(most) > _NPU_BYTES:
        cut = Cut(part_bytes=_NPU_BYTES)
    runs = cut.apply(most)
    largest = max(sum(most[layer] for layer in run) for run in runs)
    if largest > _NPU_MOST:
        raise ExportError(
            f"the largest part takes {largest / 2**30:.1f} GiB, an NPU's compiler takes "
            f"{_NPU_MOST / 2**30:.0f}; ask for more parts, or leave --parts out"
        )
    return runs


def coreml_parts(cut: Cut, costs: Sequence[int]) -> list[range]:
    """Parts that phones take, and that an export holds in memory one at a time."""
    if cut == Cut() and sum(costs) > _COREML_BYTES:
        cut = Cut(part_bytes=_COREML_BYTES)
    return cut.apply(costs)


def slices(costs: Sequence[int]) -> list[range]:
    """Runs small enough that a device with little memory can hold one at a time."""
    return _greedy(costs, _SLICE_BYTES)


def layer_bytes(
    weights: Iterable[tuple[str, tuple[int, ...]]], plan: Plan, layers: int, group: str = "decoder"
) -> list[int]:
    """Bytes of each layer of the group as the plan stores it; `weights` are names with shapes."""
    costs = [0] * layers
    for name, shape in weights:
        layer = layer_of(name)
        if layer is None or plan.group_of(name) != group:
            continue
        bits = plan.stored_bits(name) if len(shape) > 1 else 32
        costs[layer] += round(int(np.prod(shape)) * bits / 8)
    return costs
