"""How far every value of a forward pass reaches, for graphs that compute in whole numbers.

Takes a checkpoint; runs the reference on calibration pictures and gives the least and the greatest
value under each name. A value is named after the weight that made it, or by how many operations
came after the last weight, so that a graph of any run of layers finds the same names. What a mask
hides does not count: a range that held -1e9 would have no levels left for scores. Knows no graph.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.compile import asked_of
from edgejudge.export.eager import EagerOps
from edgejudge.export.observe import calibration_or_drawn
from edgejudge.export.reference import Asked, Reference
from edgejudge.export.stored import Exact, Weights

__all__ = ["Names", "RangeOps", "Ranges", "ranges_by", "ranges_of", "reaching"]

Ranges = dict[str, tuple[float, float]]
# For what calibration pictures did not show; beyond it a value is clipped. Of 1.1, 1.5, 2 and 3 the
# one with the least error on other pictures than those.
_ROOM = 1.5
_STEPS = 16  # of an octave
_EACH = 4  # of how many questions of a picture one is asked, another one of each picture


class Names:
    """The names of values, in the order in which a pass makes them."""

    def __init__(self) -> None:
        self._last, self._since = "", 0

    def made_by(self, weight: str) -> str:
        self._last, self._since = weight, 0
        return weight

    def next(self, what: str) -> str:
        self._since += 1
        return f"{self._last} +{self._since} {what}"


def reaching(weight: str) -> str:
    """The name of what a norm's weight meets."""
    return f"{weight} <"


class RangeOps(EagerOps):
    """The reference, with every value's range seen."""

    def __init__(self, weights: Weights, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(weights, dtype)
        self.ranges: Ranges = {}
        self._names = Names()

    def _seen(self, name: str, x: Tensor) -> Tensor:
        low, high = float(x.min()), float(x.max())
        before = self.ranges.get(name, (0.0, 0.0))
        self.ranges[name] = (min(before[0], low), max(before[1], high))
        return x

    def linear(
        self, x: Tensor, weight: str, bias: str | None = None, rows: tuple[int, ...] | None = None
    ) -> Tensor:
        y = super().linear(x, weight, bias, rows)
        return self._seen(self._names.made_by(weight), y)

    def layer_norm(self, x: Tensor, weight: str, bias: str, eps: float) -> Tensor:
        self._seen(reaching(weight), x)
        y = super().layer_norm(x, weight, bias, eps)
        return self._seen(self._names.made_by(weight), y)

    def rms_norm(self, x: Tensor, weight: str, eps: float) -> Tensor:
        self._seen(reaching(weight), x)
        return self._seen(self._names.made_by(weight), super().rms_norm(x, weight, eps))

    def activation(self, x: Tensor, kind: str) -> Tensor:
        return self._seen(self._names.next(kind), super().activation(x, kind))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return self._seen(self._names.next("add"), super().add(x, y))

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        return self._seen(self._names.next("mul"), super().mul(x, y))

    def blend(self, weight: str, inputs: dict[str, Tensor]) -> Tensor:
        return self._seen(self._names.made_by(weight), super().blend(weight, inputs))

    def scale(self, x: Tensor, weight: str) -> Tensor:
        return self._seen(self._names.made_by(weight), super().scale(x, weight))

    def prepend(self, x: Tensor, weight: str) -> Tensor:
        return self._seen(self._names.made_by(weight), super().prepend(x, weight))

    def split(self, x: Tensor, parts: int, of: str = "") -> tuple[Tensor, ...]:
        if of:
            self._seen(of, x)
        return super().split(x, parts, of)

    def join(self, values: Sequence[Tensor], to: str) -> Tensor:
        return self._seen(to, super().join(values, to))

    def rope(self, x: Tensor, rotation: tuple[Tensor, Tensor], heads: int, head_dim: int) -> Tensor:
        return self._seen(self._names.next("rope"), super().rope(x, rotation, heads, head_dim))

    def full_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        scale: float,
        mask: Tensor | None = None,
    ) -> Tensor:
        self._scores(self._names.next("scores"), q, k, heads, scale)
        return super().full_attention(q, k, v, heads, scale, mask)

    def cached_attention(self, q: Tensor, k: Tensor, v: Tensor, layer: int, *shape: Any) -> Tensor:
        y = super().cached_attention(q, k, v, layer, *shape)
        heads, kv_heads, _, scale = shape
        keys = self._cache[layer][0].repeat_interleave(heads // kv_heads, 1)  # [1, heads, T, H]
        new, total = q.shape[1], keys.shape[2]
        rows = q.reshape(*q.shape[:2], heads, -1).transpose(1, 2) * scale
        seen = torch.ones(new, total, dtype=torch.bool).tril(total - new)
        self._seen(f"scores {layer}", (rows @ keys.transpose(2, 3)).masked_fill(~seen, 0.0))
        return y

    def _scores(self, name: str, q: Tensor, k: Tensor, heads: int, scale: float) -> None:
        rows, keys = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k))
        self._seen(name, rows * scale @ keys.transpose(2, 3))


def ranges_of(checkpoint: Checkpoint) -> Ranges:
    """Of every value."""
    return ranges_by(RangeOps(Exact(checkpoint.weights)), checkpoint)


def ranges_by(ops: RangeOps, checkpoint: Checkpoint) -> Ranges:
    """What a backend sees over the calibration pictures and prompts without one, or a drawn picture
    where there are none; each a little wider than it was.
    """
    reference = Reference(checkpoint.spec, ops, checkpoint.tokens.image)
    pictures = [
        replace(picture, conditions=picture.conditions[index % _EACH :: _EACH])
        if len(picture.conditions) > _EACH
        else picture
        for index, picture in enumerate(calibration_or_drawn(checkpoint))
    ]
    blind = Asked([checkpoint.prompts.blind_ids(text) for text in pictures[0].conditions[:4]])
    reference.ask([*asked_of(checkpoint, pictures), blind], checkpoint.labels.token_ids)
    return {name: _wider(*found) for name, found in ops.ranges.items()}


def _wider(low: float, high: float) -> tuple[float, float]:
    """To the next sixteenth of an octave beyond half as much again, so that another machine's last
    bits give the same range.
    """

    def up(value: float) -> float:
        if value <= 0:
            return 0.0
        return float(2.0 ** (math.ceil(math.log2(value * _ROOM) * _STEPS) / _STEPS))

    return -up(-low), up(high)
