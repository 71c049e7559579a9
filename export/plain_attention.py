"""Attention in elementary operators, for targets whose kernel for it is missing or wrong.

Mixed into a maker of ONNX graphs, which says what a new value and a moved one become; keys and
values of earlier tokens come in, those of new tokens go out, and an additive mask says who sees
whom, so that packed questions just work. Knows no precision and no target.
"""

from abc import ABC, abstractmethod
from typing import Any

from edgejudge.export.onnx_graph import OnnxGraph

__all__ = ["PlainAttention"]


class PlainAttention(OnnxGraph, ABC):
    """The `Ops[str]` that attend. `transposed_keys` keeps cached keys as [1, kv_heads, H, C]."""

    transposed_keys = False
    _tiled: str | None = None

    @abstractmethod
    def _move(self, op: str, x: str | list[str], more: tuple[str, ...] = (), **how: Any) -> str:
        """Values of x (of all of them, where it is a list) in other places."""

    @abstractmethod
    def _scaled(self, x: str, factor: float) -> str: ...

    @abstractmethod
    def _scores(self, q: str, k: str, key: str) -> str:
        """q times k; `key` names where the result's range is known."""

    @abstractmethod
    def _masked(self, scores: str, mask: str) -> str: ...

    @abstractmethod
    def _softmax(self, scores: str) -> str: ...

    @abstractmethod
    def _averaged(self, shares: str, v: str) -> str: ...

    @abstractmethod
    def _cached(self, x: str, name: str, layer: int) -> str:
        """New keys or values, which the graph gives out, behind those that were cached before."""

    @abstractmethod
    def _ready(self, x: str) -> str:
        """The right side of a product of two activations."""

    def _reshaped(self, x: str, *shape: int) -> str:
        return self._move("Reshape", x, (self._constant(shape),))

    def _by_head(self, x: str, heads: int, perm: tuple[int, ...] = (0, 2, 1, 3)) -> str:
        """[B, S, heads * H] -> [B, heads, S, H], or as `perm` says."""
        return self._move("Transpose", self._reshaped(x, 0, 0, heads, -1), perm=list(perm))

    def _merged(self, x: str) -> str:
        """[B, heads, S, H] -> [B, S, heads * H]"""
        return self._reshaped(self._move("Transpose", x, perm=[0, 2, 1, 3]), 0, 0, -1)

    def full_attention(
        self, q: str, k: str, v: str, heads: int, scale: float, mask: str | None = None
    ) -> str:
        q = self._by_head(self._scaled(q, scale), heads)
        k = self._ready(self._by_head(k, heads, (0, 2, 3, 1)))
        scores = self._scores(q, k, self._next("scores"))
        if mask is not None:
            scores = self._masked(scores, self._hiding(mask))
        values = self._ready(self._by_head(v, heads))
        return self._merged(self._averaged(self._softmax(scores), values))

    def cached_attention(
        self,
        q: str,
        k: str,
        v: str,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
    ) -> str:
        """Heads that share keys become rows of one product, so that keys are not repeated."""
        groups = heads // kv_heads
        q = self._by_head(self._scaled(q, scale), heads)
        q = self._reshaped(q, 1, kv_heads, -1, head_dim)
        perm = (0, 2, 3, 1) if self.transposed_keys else (0, 2, 1, 3)
        keys = self._cached(self._by_head(k, kv_heads, perm), "key", layer)
        values = self._cached(self._by_head(v, kv_heads), "value", layer)
        if not self.transposed_keys:
            keys = self._move("Transpose", keys, perm=[0, 1, 3, 2])
        scores = self._scores(q, self._ready(keys), f"scores {layer}")
        shares = self._softmax(self._masked(scores, self._mask(groups)))
        y = self._averaged(shares, self._ready(values))
        return self._merged(self._reshaped(y, 1, heads, -1, head_dim))

    def _mask(self, groups: int) -> str:
        """attention_bias [1, 1, S, T] once for each head that shares keys: [1, 1, groups * S, T]"""
        if groups == 1:
            return "attention_bias"
        if self._tiled is None:
            self._tiled = self._move("Concat", ["attention_bias"] * groups, axis=2)
        return self._tiled

    @abstractmethod
    def _hiding(self, mask: str) -> str:
        """[B, n] int32, 0 where a key stands for nothing -> what is added to scores
        [B, 1, 1, n]
        """

    @abstractmethod
    def _next(self, what: str) -> str:
        """The name of the next value."""
