"""The op vocabulary for the `npu` target: static shapes, elementary operators, whole numbers.

Takes a checkpoint's weights, a plan that stores them in rows of one scale, and how far each value
reaches; every value becomes one of 65,536 levels between QuantizeLinear and DequantizeLinear, which
a provider for NPUs computes with as they stand (A16W8, A16W4). Keys and values, the right sides of
products of two activations, are signed around zero: only then does Qualcomm's HTP multiply 16 bits
by 16. Knows no family and no provider.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import ExportError
from edgejudge.export.blocks import Plan
from edgejudge.export.byte_ranges import Bytes, rest_of
from edgejudge.export.ledger import Ledger
from edgejudge.export.npu_weights import LEAST, NpuWeights
from edgejudge.export.plain_attention import PlainAttention
from edgejudge.export.ranges import Names, Ranges, reaching
from edgejudge.export.store import WeightStore
from edgejudge.export.weights import Source

__all__ = ["NpuOps"]

_LEVELS, _TOP = 65535, 32767
_APART = 24.0  # exp() of what a masked score lies below every other is no level of a share
_CONSTANTS, _SIGNED = "weights.n16.bin", "weights.s16.bin"
_END = 2**31 - 1  # beyond any dimension
_PIXELS = 8.0  # the largest that a normalised pixel can be


def _hidden_score(ranges: Ranges) -> float:
    """What is added to a score that must not count: enough for every layer's."""
    peaks = [max(-low, high) for name, (low, high) in ranges.items() if "scores" in name]
    return -(2 * max(peaks, default=0.0) + _APART)


class NpuOps(PlainAttention, NpuWeights):
    """Implements `Ops[str]`, but for what no family's tower asks of this target."""

    transposed_keys = True

    def __init__(
        self,
        name: str,
        weights: Source,
        plan: Plan,
        store: WeightStore,
        ledger: Ledger,
        ranges: Ranges,
        by_bytes: Bytes | None = None,
    ) -> None:
        """With `by_bytes` matrices meet bytes (W8A8), but for some channels of their input."""
        super().__init__(name, weights, plan, store, ledger)
        self._by_bytes = by_bytes
        self._ranges, self._names = ranges, Names()
        self._spans: dict[str, tuple[float, float]] = {}  # of values that have levels already
        self._grids: dict[str, tuple[str, str]] = {}  # their scale and zero point
        self._coded: dict[str, str] = {}  # the levels themselves
        self._given: dict[str, str] = {}  # inputs of floats, on levels
        self._waves: dict[str, str] = {}
        self._hidden = _hidden_score(ranges)
        self.cache_steps: list[float] = []  # of keys and values of each layer, in turns

    # --- levels ---

    def _fixed(self, x: str, low: float, high: float) -> str:
        """x on levels from `low` to `high`, both of which may move a little so that zero is one."""
        scale, zero = _grid(low, high)
        return self._on(x, scale, np.uint16(zero), (low, high))

    def _signed(self, x: str, step: np.float32) -> str:
        reach = float(step) * _TOP
        return self._on(x, step, np.int16(0), (-reach, reach))

    def _on(self, x: str, scale: np.float32, zero: Any, span: tuple[float, float]) -> str:
        grid = (
            self._inline(f"scale_{float(scale).hex()}", scale),
            self._inline(f"zero_{type(zero).__name__}_{int(zero)}", zero),
        )
        return self._rounded(x, grid, span)

    def _rounded(self, x: str, grid: tuple[str, str], span: tuple[float, float]) -> str:
        levels = self._node("QuantizeLinear", [x, *grid])
        y = self._node("DequantizeLinear", [levels, *grid])
        self._coded[y], self._spans[y], self._grids[y] = levels, span, grid
        return y

    def _like(self, x: str, other: str) -> str:
        """x on the levels of another value."""
        return self._rounded(x, self._grids[other], self._spans[other])

    def _known(self, x: str, name: str) -> str:
        if name not in self._ranges:
            raise AssertionError(f"nothing is known of {name}")
        return self._fixed(x, *self._ranges[name])

    def _reach(self, x: str) -> float:
        low, high = self._spans[x]
        return max(-low, high, LEAST)

    def _input(self, name: str, span: tuple[float, float]) -> str:
        """An input of floats, on levels of its own."""
        if name not in self._given:
            self._given[name] = self._fixed(name, *span)
        return self._given[name]

    def _constant_levels(self, key: str, values: NDArray[np.float32]) -> str:
        """A constant on levels of its own."""
        span = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        scale, zero = _grid(*span)
        grid = (
            self._inline(f"scale_{float(scale).hex()}", scale),
            self._inline(f"zero_uint16_{zero}", np.uint16(zero)),
        )

        def stored() -> NDArray[np.uint16]:
            levels: NDArray[np.uint16] = np.clip(np.rint(values / scale) + zero, 0, _LEVELS).astype(
                np.uint16
            )
            return levels

        y = self._node("DequantizeLinear", [self._weight(key, _CONSTANTS, stored), *grid])
        self._spans[y], self._grids[y] = span, grid
        return y

    def _signed_constant(self, name: str) -> str:
        """A weight that is the right side of a product, as it is stored."""
        values = self._plain(name)
        step = np.float32(max(float(np.abs(values).max(initial=0.0)), LEAST) / _TOP)
        grid = (
            self._inline(f"scale_{float(step).hex()}", step),
            self._inline("zero_int16_0", np.int16(0)),
        )

        def stored() -> NDArray[np.int16]:
            levels: NDArray[np.int16] = np.rint(values / step).astype(np.int16)
            return levels

        return self._node("DequantizeLinear", [self._weight(f"{name}.s16", _SIGNED, stored), *grid])

    # --- the vocabulary ---

    def linear(
        self, x: str, weight: str, bias: str | None = None, rows: tuple[int, ...] | None = None
    ) -> str:
        bits = self._plan.bits_of(weight)
        if bits is None or rows is not None:
            raise ExportError(f"{weight} has no whole numbers in recipe {self._plan.recipe.name}")
        name = self._names.made_by(weight)
        if x not in self._spans:
            x = self._input(x, (-_PIXELS, _PIXELS))
        if self._by_bytes is None:
            y = self._node("MatMul", [x, self._matrix(weight, bits)])
        else:
            y = self._of_bytes(x, weight, bits, self._by_bytes)
        low, high = self._ranges[name]
        if bias is None:
            return self._fixed(y, low, high)
        offset = self._weights(bias)
        y = self._fixed(y, low - float(offset.max()), high - float(offset.min()))
        return self._fixed(self._node("Add", [y, self._levels_of(bias)]), low, high)

    def _of_bytes(self, x: str, weight: str, bits: int, given: Bytes) -> str:
        """Bytes times bytes make bytes on Qualcomm's HTP, here a share of what each channel of the
        result reaches. Channels that tower would take the others' levels, and pass beside them in
        16 bits; what of them saturates in bytes meets rows of zeros.
        """
        columns = given.columns.get(weight, ())
        reach = np.maximum(given.outputs[weight], LEAST).astype(np.float32)
        rest = self._bytes(x, self._ranges[rest_of(weight)])
        main = self._node("MatMul", [rest, self._matrix(weight, bits, columns, reach)])
        main = self._fixed(self._bytes(main, (-1.0, 1.0)), -1.0, 1.0)
        main = self._node("Mul", [main, self._constant_levels(f"{weight}.reach", reach)])
        most = float(reach.max())
        main = self._fixed(main, -most, most)
        if not columns:
            return main
        apart = self._move("Gather", x, (self._constant(columns),), axis=2)
        side = self._node("MatMul", [apart, self._rows(weight, columns)])
        low, high = self._ranges[weight]
        return self._node("Add", [main, self._fixed(side, low - most, high + most)])

    def _bytes(self, x: str, span: tuple[float, float]) -> str:
        scale, zero = _grid(*span, levels=255)
        return self._on(x, scale, np.uint8(zero), span)

    def _levels_of(self, name: str) -> str:
        return self._constant_levels(f"{name}.n16", self._plain(name))

    def layer_norm(self, x: str, weight: str, bias: str, eps: float) -> str:
        x = self._met(x, weight)
        inputs = [x, self._levels_of(weight), self._levels_of(bias)]
        y = self._node("LayerNormalization", inputs, axis=-1, epsilon=eps)
        return self._known(y, self._names.made_by(weight))

    def rms_norm(self, x: str, weight: str, eps: float) -> str:
        inputs = [self._met(x, weight), self._levels_of(weight)]
        y = self._node("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=eps)
        return self._known(y, self._names.made_by(weight))

    def _met(self, x: str, weight: str) -> str:
        """What a norm meets: where it is the graph's input it has no levels yet."""
        return x if x in self._spans else self._input(x, self._ranges[reaching(weight)])

    def activation(self, x: str, kind: str) -> str:
        if kind == "silu":
            # Not as one operator, on whose product Qualcomm's compiler runs out of memory.
            y = self._node("Mul", [x, self._fixed(self._node("Sigmoid", [x]), 0.0, 1.0)])
        else:
            y = self._node("Gelu", [x], approximate="tanh" if kind == "gelu_tanh" else "none")
        return self._known(y, self._names.next(kind))

    def add(self, x: str, y: str) -> str:
        x = self._given.get(x, x)
        return self._known(self._node("Add", [x, y]), self._names.next("add"))

    def mul(self, x: str, y: str) -> str:
        return self._known(self._node("Mul", [x, y]), self._names.next("mul"))

    def reshape(self, x: str, *shape: int) -> str:
        return self._reshaped(x, *shape)

    def patchify(self, pixels: str, image_size: int, patch: int) -> str:
        """Of one view: Qualcomm's library takes five dimensions and no sixth."""
        grid = image_size // patch
        x = self._input(pixels, (-_PIXELS, _PIXELS))
        if image_size % patch:
            ends = self._constant([grid * patch] * 2)
            x = self._move("Slice", x, (self._constant([0, 0]), ends, self._constant([2, 3])))
        x = self._reshaped(x, 3, grid, patch, grid, patch)
        x = self._move("Transpose", x, perm=[1, 3, 0, 2, 4])
        return self._reshaped(x, 1, grid * grid, 3 * patch * patch)

    def table(self, weight: str, rows: NDArray[np.int64]) -> str:
        whole = self._plain(weight)
        picked = whole.reshape(-1, whole.shape[-1])[rows]
        return self._constant_levels(f"{weight}.rows.n16", picked)

    def pixel_shuffle(self, x: str, grid: int, scale: int) -> str:
        side = grid // scale
        x = self._reshaped(x, 0, side, scale, side, -1)
        return self._reshaped(self._move("Transpose", x, perm=[0, 1, 3, 2, 4]), 0, side * side, -1)

    def blend(self, weight: str, inputs: dict[str, str]) -> str:
        """A product with the whole table, which is little beside the tower's own."""
        shares = self._input(inputs["table_spread"], (0.0, 1.0))
        y = self._node("MatMul", [shares, self._signed_constant(weight)])
        y = self._known(y, self._names.made_by(weight))
        return self._move("Unsqueeze", y, (self._constant([0]),))

    def scale(self, x: str, weight: str) -> str:
        y = self._node("Mul", [x, self._levels_of(weight)])
        return self._known(y, self._names.made_by(weight))

    def prepend(self, x: str, weight: str) -> str:
        """Of one view."""
        name = self._names.made_by(weight)
        first = self._constant_levels(f"{weight}.first.n16", self._plain(weight).reshape(1, 1, -1))
        low, high = self._ranges[name]
        return self._move("Concat", [self._fixed(each, low, high) for each in (first, x)], axis=1)

    def skip(self, x: str, count: int) -> str:
        return self._move("Slice", x, tuple(self._constant([n]) for n in (count, _END, 1)))

    def join(self, values: Sequence[str], to: str) -> str:
        return self._move("Concat", [self._known(each, to) for each in values], axis=-1)

    def split(self, x: str, parts: int, of: str = "") -> tuple[str, ...]:
        if x not in self._spans:
            x = self._input(x, self._ranges[of])
        extra = [f"Split_{len(self._nodes)}/{i}" for i in range(1, parts)]
        first = self._node("Split", [x], extra_outputs=extra, axis=-1, num_outputs=parts)
        return tuple(self._like(part, x) for part in (first, *extra))

    def take(self, x: str, index: str) -> str:
        raise ExportError("static graphs give all rows; a family takes some outside of them")

    def rope(self, x: str, rotation: tuple[str, str], heads: int, head_dim: int) -> str:
        """[1, S, heads * H], halves turned by cos and sin, which come as [S, H / 2]."""
        cos, sin = (self._wave(name) for name in rotation)
        x = self._reshaped(x, 0, 0, heads, head_dim)
        low, high = (
            self._move("Slice", x, tuple(self._constant([n]) for n in (begin, end, 3)))
            for begin, end in ((0, head_dim // 2), (head_dim // 2, head_dim))
        )
        name, reach = self._names.next("rope"), self._reach(x)
        products = [
            self._fixed(self._node("Mul", [half, wave]), -reach, reach)
            for half, wave in ((low, cos), (high, sin), (high, cos), (low, sin))
        ]
        turned = [
            self._known(self._node("Sub", products[:2]), name),
            self._known(self._node("Add", products[2:]), name),
        ]
        return self._reshaped(self._move("Concat", turned, axis=3), 0, 0, heads * head_dim)

    def _wave(self, name: str) -> str:
        """[S, H / 2] -> [1, S, 1, H / 2], once for all layers."""
        if name not in self._waves:
            self._waves[name] = self._move(
                "Unsqueeze", self._input(name, (-1.0, 1.0)), (self._constant([0, 2]),)
            )
        return self._waves[name]

    # --- attention ---

    def _move(self, op: str, x: str | list[str], more: tuple[str, ...] = (), **how: Any) -> str:
        moved = x if isinstance(x, list) else [x]
        return self._like(self._node(op, [*moved, *more], **how), moved[0])

    def _scaled(self, x: str, factor: float) -> str:
        number = self._constant_levels(f"number_{factor:.9g}", np.array([factor], np.float32))
        low, high = self._spans[x]
        return self._fixed(self._node("Mul", [x, number]), low * factor, high * factor)

    def _scores(self, q: str, k: str, key: str) -> str:
        reach = max(-self._ranges[key][0], self._ranges[key][1], LEAST)
        return self._fixed(self._node("MatMul", [q, k]), -reach, reach)

    def _masked(self, scores: str, mask: str) -> str:
        """Scores that count keep their levels; those that do not end at the lowest one."""
        reach = self._reach(scores)
        return self._fixed(self._node("Add", [scores, mask]), -(reach + _APART), reach)

    def _mask(self, groups: int) -> str:
        if self._tiled is None:
            mask = self._input("attention_bias", (self._hidden, 0.0))
            self._tiled = mask if groups == 1 else self._move("Concat", [mask] * groups, axis=2)
        return self._tiled

    def _softmax(self, scores: str) -> str:
        return self._fixed(self._node("Softmax", [scores], axis=-1), 0.0, 1.0)

    def _averaged(self, shares: str, v: str) -> str:
        return self._fixed(self._node("MatMul", [shares, v]), *self._spans[v])

    def _ready(self, x: str) -> str:
        return self._signed(x, np.float32(self._reach(x) / _TOP))

    def _cached(self, x: str, name: str, layer: int) -> str:
        # Unsigned around the middle: signed levels are multiplied, but not moved.
        step = np.float32(self._reach(x) / _TOP)
        x = self._on(x, step, np.uint16(_TOP + 1), (-float(step) * _TOP, float(step) * _TOP))
        self.cache_steps.append(float(step))
        # As floats: a transposition that is moved behind the last levels finds no kernel.
        self._node("Identity", [x], output=f"new_{name}_{layer}")
        past = self._node("DequantizeLinear", [f"past_{name}_{layer}", *self._grids[x]])
        both = self._node("Concat", [past, x], axis=3 if name == "key" else 2)
        return self._like(both, x)

    def mask_input(self, name: str) -> str:
        """An input [B, n] that is added to scores."""
        return self._input(name, (self._hidden, 0.0))

    def _hiding(self, mask: str) -> str:
        return self._move("Unsqueeze", mask, (self._constant([1, 2]),))

    def _next(self, what: str) -> str:
        return self._names.next(what)


def _grid(low: float, high: float, levels: int = _LEVELS) -> tuple[np.float32, int]:
    """Step and zero point of so many steps from `low` to `high`."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, LEAST) / levels)
    return scale, int(round(-low / float(scale)))
