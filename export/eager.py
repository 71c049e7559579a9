"""The op vocabulary computed at once with torch, in float32 or float64: the reference.

Takes weights by name; every op returns its result. One `EagerOps` holds one cache, to which causal
attention appends, and as many weights as its budget allows. Knows no family.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgejudge.export.quantize import LEAST_PEAK
from edgejudge.export.stored import Weights

__all__ = ["EagerOps"]

_BUDGET = 400_000_000  # bytes of weights kept for the next use: a decoder layer of a 3B model


class EagerOps:
    """Implements `Ops[Tensor]`.

    `observe` is shown every linear weight's name and what it is about to be multiplied with, and
    `keys N` and `values N` [1, kv_heads, S, H] of each layer's cache.
    """

    def __init__(
        self,
        weights: Weights,
        dtype: torch.dtype = torch.float32,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        self._source = weights
        self._dtype = dtype
        self._observe = observe
        self._weights: OrderedDict[str, Tensor] = OrderedDict()
        self._held = 0  # bytes in them
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        # Lengths of what stands in a pass side by side, each seeing the cache and itself alone.
        self.apart: tuple[int, ...] = ()

    # --- the state of a pass ---

    def cut(self, length: int) -> None:
        """Forgets every cached token from `length` on."""
        self._cache = {
            layer: (k[:, :, :length], v[:, :, :length]) for layer, (k, v) in self._cache.items()
        }

    def release(self) -> None:
        """Forgets every weight."""
        self._weights.clear()
        self._held = 0

    def tensor(self, array: NDArray[Any]) -> Tensor:
        """Floats in the backend's precision, integers as they are."""
        found = torch.from_numpy(np.ascontiguousarray(array))
        return found.to(self._dtype) if found.is_floating_point() else found

    def plain(self, name: str) -> Tensor:
        return self._kept(name, lambda: self._source.plain(name))

    def embed(self, name: str, ids: Tensor) -> Tensor:
        return self.tensor(self._source.embedding(name, ids.tolist()))

    def _kept(self, key: str, load: Callable[[], NDArray[np.float32]]) -> Tensor:
        if key in self._weights:
            return self._weights[key]
        value = self.tensor(load())
        while self._weights and self._held + value.nbytes > _BUDGET:
            self._held -= self._weights.popitem(last=False)[1].nbytes
        if value.nbytes <= _BUDGET:
            self._weights[key] = value
            self._held += value.nbytes
        return value

    # --- the vocabulary ---

    def linear(
        self, x: Tensor, weight: str, bias: str | None = None, rows: tuple[int, ...] | None = None
    ) -> Tensor:
        if self._observe is not None:
            self._observe(weight, x)
        offset = None if bias is None else self.plain(bias)
        if rows is not None:
            some = self._kept(
                f"{weight} rows {rows}", lambda: self._source.exact_rows(weight, rows)
            )
            return functional.linear(x, some, offset)
        run = self._source.rounding(weight)
        if run is not None:
            x = _rounded(x, run or x.shape[-1], list(self._source.exact_columns(weight)))
        shape = self._source.shape(weight)
        if shape[0] * shape[1] * self._dtype.itemsize > _BUDGET:
            # An LM head of 150,000 rows: never whole in memory.
            blocks = (functional.linear(x, self.tensor(b)) for b in self._source.blocks(weight))
            wide = torch.cat(list(blocks), -1)
            return wide if offset is None else wide + offset
        return functional.linear(x, self._whole(weight), offset)

    def _whole(self, weight: str) -> Tensor:
        """[N, K]"""
        shape = self._source.shape(weight)
        return self._kept(f"{weight} as matrix", lambda: self._matrix(weight, shape))

    def _matrix(self, weight: str, shape: tuple[int, int]) -> NDArray[np.float32]:
        matrix, row = np.empty(shape, np.float32), 0
        for block in self._source.blocks(weight):
            matrix[row : row + len(block)] = block
            row += len(block)
        return matrix

    def layer_norm(self, x: Tensor, weight: str, bias: str, eps: float) -> Tensor:
        scale = self.plain(weight)
        return functional.layer_norm(x, scale.shape, scale, self.plain(bias), eps)

    def rms_norm(self, x: Tensor, weight: str, eps: float) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * self.plain(weight)

    def activation(self, x: Tensor, kind: str) -> Tensor:
        if kind == "silu":
            return functional.silu(x)
        return functional.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def patchify(self, pixels: Tensor, image_size: int, patch: int) -> Tensor:
        # unfold drops what does not fill a patch: [V, 3, g, g, p, p]
        x = pixels.unfold(2, patch, patch).unfold(3, patch, patch)
        return x.permute(0, 2, 3, 1, 4, 5).reshape(len(x), -1, 3 * patch * patch)

    def table(self, weight: str, rows: NDArray[np.int64]) -> Tensor:
        return self.plain(weight).flatten(0, -2)[torch.from_numpy(rows)]

    def pixel_shuffle(self, x: Tensor, grid: int, scale: int) -> Tensor:
        side = grid // scale
        x = x.reshape(len(x), side, scale, side, -1)
        return x.transpose(2, 3).reshape(len(x), side * side, -1)

    def blend(self, weight: str, inputs: dict[str, Tensor]) -> Tensor:
        found = self.plain(weight)[inputs["table_rows"]]  # [N, 4, D]
        return (found * inputs["table_shares"][..., None]).sum(1)[None]

    def scale(self, x: Tensor, weight: str) -> Tensor:
        return x * self.plain(weight)

    def prepend(self, x: Tensor, weight: str) -> Tensor:
        first = self.plain(weight).reshape(1, 1, -1).expand(len(x), -1, -1)
        return torch.cat([first, x], 1)

    def skip(self, x: Tensor, count: int) -> Tensor:
        return x[:, count:]

    def split(self, x: Tensor, parts: int, of: str = "") -> tuple[Tensor, ...]:
        return x.chunk(parts, -1)

    def join(self, values: Sequence[Tensor], to: str) -> Tensor:
        return torch.cat(list(values), -1)

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        return x[:, index]

    def full_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        scale: float,
        mask: Tensor | None = None,
    ) -> Tensor:
        q, k, v = (_by_head(x, heads) for x in (q, k, v))
        seen = None if mask is None else (mask != 0)[:, None, None]
        out = functional.scaled_dot_product_attention(q, k, v, seen, scale=scale)
        return out.transpose(1, 2).flatten(2)

    def rope(self, x: Tensor, rotation: tuple[Tensor, Tensor], heads: int, head_dim: int) -> Tensor:
        cos, sin = (t[:, None] for t in rotation)  # [S, 1, H / 2]
        low, high = x.reshape(*x.shape[:2], heads, head_dim).chunk(2, -1)  # [1, S, heads, H / 2]
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).flatten(2)

    def cached_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
    ) -> Tensor:
        q = _by_head(q, heads)
        k, v = _by_head(k, kv_heads), _by_head(v, kv_heads)
        if self._observe is not None:
            self._observe(f"keys {layer}", k)
            self._observe(f"values {layer}", v)
        if (steps := self._source.kv_steps(layer)) is not None:
            k = _to_levels(k, self.tensor(steps.keys), steps.bits)
            v = _to_levels(v, self.tensor(steps.values), steps.bits)
        if layer in self._cache:
            past_k, past_v = self._cache[layer]
            k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        self._cache[layer] = (k, v)
        new, total = q.shape[2], k.shape[2]
        seen = torch.ones(new, total, dtype=torch.bool).tril(total - new)
        if self.apart:
            each = torch.repeat_interleave(torch.arange(len(self.apart)), torch.tensor(self.apart))
            seen[:, total - new :] &= each[:, None] == each
        groups = heads // kv_heads
        k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
        out = functional.scaled_dot_product_attention(q, k, v, seen, scale=scale)
        return out.transpose(1, 2).flatten(2)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[B, S, heads * H] -> [B, heads, S, H]"""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _to_levels(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """[1, heads, S, H] in signed integers times a step for each channel [heads, H]."""
    wide, half = step[None, :, None], 1 << (bits - 1)
    return (x / wide).round().clamp(-half, half - 1) * wide


def _rounded(x: Tensor, run: int, exact: list[int]) -> Tensor:
    """Each run of a token's values to the nearest of 255 levels that its largest value spans; some
    channels stay as they are and do not count.
    """
    width = x.shape[-1]
    padded = functional.pad(x, (0, -width % run))
    size = padded.abs()
    size[..., exact] = 0
    peaks = size.reshape(*size.shape[:-1], -1, run).amax(-1).clamp_min(LEAST_PEAK)
    step = (peaks / 127).repeat_interleave(run, -1)
    rounded: Tensor = (torch.round(padded / step) * step)[..., :width]
    rounded[..., exact] = x[..., exact]
    return rounded
