"""The vocabulary in which every family writes its forward pass.

A backend gives the ops a meaning: eager ones compute, graph ones emit nodes. Weights are named,
never held, so a backend decides their precision. The mask and the cache of a pass belong to the
backend; a family only says where they act. Knows no family.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACTIVATIONS", "Ops"]

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
        """These rows of a weight [..., D], as a constant [len(rows), D]."""

    def pixel_shuffle(self, x: V, grid: int, scale: int) -> V:
        """[V, grid * grid, D] -> [V, (grid / scale) ^ 2, D * scale * scale]."""

    def blend(self, weight: str, inputs: dict[str, V]) -> V:
        """Of each token, a mean of some rows of a weight [R, D] -> [1, N, D]. Inputs say which,
        `table_rows` [N, 4], and with what shares, `table_shares` [N, 4]; or, in static graphs, what
        share each of all rows has, `table_spread` [N, R].
        """

    def scale(self, x: V, weight: str) -> V:
        """Each channel times its number of the weight [D]."""

    def prepend(self, x: V, weight: str) -> V:
        """The weight's D numbers as a token before those of each row: [V, n, D] -> [V, 1 + n, D]"""

    def skip(self, x: V, count: int) -> V:
        """[V, n, D] without the first `count` tokens."""

    def full_attention(
        self, q: V, k: V, v: V, heads: int, scale: float, mask: V | None = None
    ) -> V:
        """Every token sees every token of its own row: [V, n, heads * head_dim].

        mask [V, n] int32 is 0 where a key stands for nothing.
        """

    def split(self, x: V, parts: int, of: str = "") -> tuple[V, ...]:
        """Equal parts of the last axis. `of` names x where no op has made it."""

    def join(self, values: Sequence[V], to: str) -> V:
        """One behind the other along the last axis; `to` names the result, as `split` does."""

    def reshape(self, x: V, *shape: int) -> V:
        """0 keeps a dimension, -1 takes what is left."""

    def take(self, x: V, index: V) -> V:
        """x [1, n, D] -> [1, len(index), D]"""

    def rope(self, x: V, rotation: tuple[V, V], heads: int, head_dim: int) -> V:
        """Rotates x [1, S, heads * head_dim] by cos and sin [S, head_dim / 2], halves
        convention.
        """

    def cached_attention(
        self,
        q: V,
        k: V,
        v: V,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
    ) -> V:
        """Appends k and v to the layer's cache, then attends under the mask of the pass."""
