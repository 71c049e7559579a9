"""The vocabulary in which every family writes its forward pass.

A backend gives the ops a meaning: eager ones compute, graph ones emit nodes. Weights are named,
never held, so a backend decides their precision. The positions, the mask and the cache of a pass
belong to the backend; a family only says where they act. Knows no family.
"""

from functools import cache
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACTIVATIONS", "Ops", "rope_tables"]

ACTIVATIONS = ("gelu", "gelu_tanh", "silu")
V = TypeVar("V")


class Ops(Protocol[V]):
    """V is whatever the backend computes with: a torch tensor, the name of a graph value, ..."""

    def linear(
        self, x: V, weight: str, bias: str | None = None, rows: tuple[int, ...] | None = None
    ) -> V:
        """x [..., K] times the transposed weight [N, K]; `rows` keeps these output rows alone."""

    def layer_norm(self, x: V, weight: str, bias: str, eps: float) -> V: ...

    def rms_norm(self, x: V, weight: str, eps: float) -> V: ...

    def activation(self, x: V, kind: str) -> V: ...

    def add(self, x: V, y: V) -> V: ...

    def mul(self, x: V, y: V) -> V: ...

    def patchify(self, pixels: V, image_size: int, patch: int) -> V:
        """[V, 3, S, S] -> [V, g * g, 3 * patch * patch], g = S // patch; the rest of S is cut."""

    def table(self, weight: str, rows: NDArray[np.int64]) -> V:
        """These rows of a weight, as a constant [len(rows), D]."""

    def pixel_shuffle(self, x: V, grid: int, scale: int) -> V:
        """[V, grid * grid, D] -> [V, (grid / scale) ^ 2, D * scale * scale]."""

    def full_attention(self, q: V, k: V, v: V, heads: int, scale: float) -> V:
        """Every token sees every token of its own view: [V, n, heads * head_dim]."""

    def rope(self, x: V, heads: int, head_dim: int, theta: float) -> V:
        """Rotates x [1, S, heads * head_dim] by the positions of the pass, halves convention."""

    def cached_attention(
        self, q: V, k: V, v: V, layer: int, heads: int, kv_heads: int, scale: float
    ) -> V:
        """Appends k and v to the layer's cache, then attends under the mask of the pass."""


@cache
def rope_tables(
    theta: float, head_dim: int, length: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin [length, head_dim / 2], in the float32 arithmetic of training."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverse = (np.float32(1.0) / np.float32(theta) ** exponents).astype(np.float32)
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse[None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
