"""The op vocabulary as ONNX nodes for the `cpu` target, with ONNX Runtime's fused operators.

Takes a checkpoint's weights, a recipe and a weight store; every op appends nodes to one graph, and
`model` gives it. Weights go to the store in the recipe's precision. Knows no family.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.export.blocks import Plan
from edgejudge.export.ledger import Ledger
from edgejudge.export.onnx_graph import OnnxGraph
from edgejudge.export.quantize import LEAST_PEAK
from edgejudge.export.store import WeightStore
from edgejudge.export.weights import Source, matrix_shape

__all__ = ["OnnxOps"]

_FLOAT_FILE = "weights.f32.bin"
_INTEGER_FILE = "weights.i8.bin"
# accuracy_level of MatMulNBits: activations as float32, or as int8 in blocks of one row
_FLOAT, _ROUNDED = 1, 4
_END = 2**31 - 1  # beyond any dimension


class OnnxOps(OnnxGraph):
    """Implements `Ops[str]`: values are the names of graph values."""

    def __init__(
        self,
        name: str,
        weights: Source,
        plan: Plan,
        store: WeightStore,
        ledger: Ledger,
    ) -> None:
        super().__init__(name, store)
        self._weights = weights
        self._plan = plan
        self._ledger = ledger
        # (value, its exact columns) -> its rounded form and steps; those columns of it
        self._tokens: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {}
        self._beside: dict[tuple[str, tuple[int, ...]], str] = {}
        # A value that each token's step is still to be multiplied into -> those steps [..., 1]; and
        # what it is after that.
        self._steps: dict[str, str] = {}
        self._whole: dict[str, str] = {}

    def _node(self, op: str, inputs: Sequence[str], **more: Any) -> str:
        """Whatever asks for a value gets it whole."""
        for value in inputs:
            if value in self._steps and value not in self._whole:
                self._whole[value] = super()._node("Mul", [value, self._steps[value]])
        return super()._node(op, [self._whole.get(value, value) for value in inputs], **more)

    def _float(self, name: str) -> str:
        return self._exact(name, lambda: self._plain(name))

    def _exact(self, key: str, make: Callable[[], NDArray[np.float32]]) -> str:
        """A weight in the floats that the graph computes in."""
        return self._weight(key, _FLOAT_FILE, make)

    def _scales(self, key: str, file: str) -> str:
        """Scales of blocks, which are stored already."""
        return self._weight(key, file, _never)

    def _plain(self, name: str) -> NDArray[np.float32]:
        value = self._weights(name)
        self._ledger.plain(name, value.nbytes)
        return value

    # --- the vocabulary ---

    def linear(
        self, x: str, weight: str, bias: str | None = None, rows: tuple[int, ...] | None = None
    ) -> str:
        # A few rows of the head decide every verdict and weigh nothing: they stay exact.
        bits = None if rows is not None else self._plan.bits_of(weight)
        if bits is not None and self._plan.integer(weight):
            return self._integer(x, weight, bias)
        if bits is not None:
            return self._quantized(x, weight, bits, bias)

        def transposed() -> NDArray[np.float32]:
            if rows is not None:
                matrix = self._weights.rows(weight, rows)
            else:
                matrix = self._plain(weight).reshape(matrix_shape(self._weights, weight))
            return np.ascontiguousarray(matrix.T)

        key = f"{weight}.T" if rows is None else f"{weight}.rows.T"
        y = self._node("MatMul", [x, self._exact(key, transposed)])
        return y if bias is None else self.add(y, self._float(bias))

    def _quantized(self, x: str, weight: str, bits: int, bias: str | None) -> str:
        recipe, file = self._plan.recipe, f"weights.q{bits}.bin"
        shape = matrix_shape(self._weights, weight)
        level_key = f"{weight}.q{bits}x{recipe.block}"
        scale_key = f"{level_key}.scales"
        if self._store.get(level_key) is None:
            self._store_quantized(weight, bits, file, level_key, scale_key)
        inputs = [
            x,
            self._weight(level_key, file, _never),
            self._scales(scale_key, file),
        ]
        zero_key = f"{level_key}.zeros"
        if self._store.get(zero_key) is not None:
            inputs.append(self._weight(zero_key, file, _never))
        if bias is not None:
            inputs += [""] * (5 - len(inputs)) + [self._float(bias)]
        return self._node(
            "MatMulNBits",
            inputs,
            domain="com.microsoft",
            N=shape[0],
            K=shape[1],
            bits=bits,
            block_size=recipe.block,
            accuracy_level=self._accuracy(weight),
        )

    def _accuracy(self, weight: str) -> int:
        """In what a matrix of blocks may be multiplied, as MatMulNBits calls it."""
        return _FLOAT if self._plan.rounding(weight) is None else _ROUNDED

    def _store_quantized(
        self, weight: str, bits: int, file: str, level_key: str, scale_key: str
    ) -> None:
        """The levels go to the file as they come, the scales after them."""
        rows, inner = matrix_shape(self._weights, weight)
        block = self._plan.recipe.block
        blocks = -(-inner // block)
        scales, error, square = [], 0.0, 0.0
        zeros: list[NDArray[np.uint8]] = []

        def levels() -> Iterator[NDArray[np.uint8]]:
            nonlocal error, square
            for part in self._plan.quantized(self._weights, weight):
                scales.append(part.q.scales)
                zeros.extend([] if part.q.zeros is None else [part.q.zeros])
                error, square = error + part.error, square + part.square
                yield part.q.levels

        shape = (rows, blocks, block * bits // 8)
        self._store.put_blocks(level_key, file, np.dtype(np.uint8), shape, levels())
        self._store.put(scale_key, file, np.concatenate(scales))
        nbytes = rows * blocks * (block * bits // 8 + 4)
        if zeros:  # in twos, as levels are
            whole = np.pad(np.concatenate(zeros), ((0, 0), (0, blocks % 2)))
            twos = whole[:, 0::2] | (whole[:, 1::2] << 4)
            self._store.put(f"{level_key}.zeros", file, twos)
            nbytes += twos.size
        self._ledger.quantized(weight, bits, block, nbytes, error, square, not zeros)

    def _integer(self, x: str, weight: str, bias: str | None) -> str:
        """Both sides in integers, whose sums are exact; then the token's scale, then the bias."""
        level_key, scale_key = f"{weight}.i8", f"{weight}.i8.scales"
        if self._store.get(level_key) is None:
            self._store_rows(weight, level_key, scale_key)
        columns = self._plan.exact_columns(weight)
        rounded, step = self._per_token(x, columns, matrix_shape(self._weights, weight)[1])
        inputs = [
            rounded,
            self._weight(level_key, _INTEGER_FILE, _never),
            self._inline("one", np.float32(1)),
            self._weight(scale_key, _INTEGER_FILE, _never),
            self._inline("zero_of_tokens", np.uint8(128)),
        ]
        y = self._node("MatMulIntegerToFloat", inputs, domain="com.microsoft")
        self._steps[y] = step
        if columns:
            beside = self._weight(f"{weight}.exact.T", _FLOAT_FILE, _never)
            y = self.add(y, self._node("MatMul", [self._picked(x, columns), beside]))
        return y if bias is None else self.add(y, self._float(bias))

    def _picked(self, x: str, columns: tuple[int, ...]) -> str:
        """[..., K] -> [..., C]"""
        if (x, columns) not in self._beside:
            some = super()._node("Gather", [x, self._constant(columns)], axis=-1)
            if x in self._steps:
                self._steps[some] = self._steps[x]
            self._beside[x, columns] = some
        return self._beside[x, columns]

    def _per_token(self, x: str, exact: tuple[int, ...], width: int) -> tuple[str, str]:
        """[..., K] -> bytes around 128, and what a level of each token means [..., 1], for which
        exact columns do not count: they may saturate, since their weights are zero.
        """
        if (x, exact) not in self._tokens:
            # Steps that are not in x yet change no level of it.
            seen = super()._node("Mul", [x, self._all_but(exact, width)]) if exact else x
            # Read twice: that is faster than to write what Abs gives.
            high, low = (
                super(OnnxOps, self)._node(f"Reduce{end}", [seen, self._constant([-1])])
                for end in ("Max", "Min")
            )
            tiny = self._inline("tiny", np.float32(LEAST_PEAK))
            largest = self._node("Max", [high, self._node("Neg", [low]), tiny])
            step = self._node("Div", [largest, self._inline("top", np.float32(127))])
            ends = [
                self._inline("one", np.float32(1)),
                self._inline("zero_of_tokens", np.uint8(128)),
            ]
            levels = self._node("QuantizeLinear", [super()._node("Div", [x, step]), *ends])
            if x in self._steps:
                step = self.mul(step, self._steps[x])
            self._tokens[x, exact] = levels, step
        return self._tokens[x, exact]

    def _all_but(self, columns: tuple[int, ...], width: int) -> str:
        """[width], one everywhere but in these columns."""
        name = f"all_{width}_but_" + "_".join(map(str, columns))
        if name not in self._initializers:
            ones = np.ones(width, np.float32)
            ones[list(columns)] = 0
            return self._inline(name, ones)
        return name

    def _store_rows(self, weight: str, level_key: str, scale_key: str) -> None:
        """[K, N], as the kernel takes it: one matrix of bytes is in memory at a time."""
        parts, bits = (
            list(self._plan.quantized(self._weights, weight)),
            self._plan.recipe.integer_bits,
        )
        levels = np.concatenate([p.q.levels.reshape(len(p.q.levels), -1) for p in parts])
        signed = (levels.astype(np.int16) - (1 << bits - 1)).astype(np.int8)
        self._store.put(level_key, _INTEGER_FILE, np.ascontiguousarray(signed.T))
        self._store.put(scale_key, _INTEGER_FILE, np.concatenate([p.q.scales[:, 0] for p in parts]))
        exact = np.concatenate([p.exact for p in parts])
        if exact.size:
            key = f"{weight}.exact.T"
            self._store.put(key, _FLOAT_FILE, np.ascontiguousarray(exact.T))
        error, square = sum(p.error for p in parts), sum(p.square for p in parts)
        self._ledger.quantized(
            weight,
            bits,
            0,
            signed.size + 4 * (len(signed) + exact.size),
            error,
            square,
        )

    def layer_norm(self, x: str, weight: str, bias: str, eps: float) -> str:
        inputs = [x, self._float(weight), self._float(bias)]
        return self._node("LayerNormalization", inputs, axis=-1, epsilon=eps)

    def rms_norm(self, x: str, weight: str, eps: float) -> str:
        inputs = [x, self._float(weight)]
        return self._node("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=eps)

    def activation(self, x: str, kind: str) -> str:
        if kind == "silu":
            return self._node("QuickGelu", [x], domain="com.microsoft", alpha=1.0)
        return self._node("Gelu", [x], approximate="tanh" if kind == "gelu_tanh" else "none")

    def add(self, x: str, y: str) -> str:
        return self._node("Add", [x, y])

    def mul(self, x: str, y: str) -> str:
        steps = [self._steps[value] for value in (x, y) if value in self._steps]
        product = super()._node("Mul", [x, y])
        if steps:  # they are smaller than what they belong to
            self._steps[product] = steps[0] if len(steps) == 1 else self._node("Mul", steps)
        return product

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps a dimension, -1 takes what is left."""
        return self._node("Reshape", [x, self._constant(shape)])

    def patchify(self, pixels: str, image_size: int, patch: int) -> str:
        grid = image_size // patch
        if image_size % patch:
            ends = self._constant([grid * patch] * 2)
            inputs = [pixels, self._constant([0, 0]), ends, self._constant([2, 3])]
            pixels = self._node("Slice", inputs)
        x = self.reshape(pixels, 0, 3, grid, patch, grid, patch)
        x = self._node("Transpose", [x], perm=[0, 2, 4, 1, 3, 5])
        return self.reshape(x, 0, grid * grid, 3 * patch * patch)

    def table(self, weight: str, rows: NDArray[np.int64]) -> str:
        def picked() -> NDArray[np.float32]:
            whole = self._plain(weight)
            return whole.reshape(-1, whole.shape[-1])[rows]

        return self._exact(f"{weight}.rows", picked)

    def pixel_shuffle(self, x: str, grid: int, scale: int) -> str:
        side = grid // scale
        # [V, side, scale, side, scale * D] -> a token holds scale rows of scale patches
        x = self.reshape(x, 0, side, scale, side, -1)
        x = self._node("Transpose", [x], perm=[0, 1, 3, 2, 4])
        return self.reshape(x, 0, side * side, -1)

    def full_attention(
        self, q: str, k: str, v: str, heads: int, scale: float, mask: str | None = None
    ) -> str:
        return self._node(
            "MultiHeadAttention",
            [q, k, v] if mask is None else [q, k, v, "", mask],
            domain="com.microsoft",
            num_heads=heads,
            scale=scale,
        )

    def blend(self, weight: str, inputs: dict[str, str]) -> str:
        found = self._node("Gather", [self._float(weight), inputs["table_rows"]], axis=0)
        shares = self._node("Unsqueeze", [inputs["table_shares"], self._constant([2])])
        rows = self._node("ReduceSum", [self.mul(found, shares), self._constant([1])], keepdims=0)
        return self._node("Unsqueeze", [rows, self._constant([0])])

    def scale(self, x: str, weight: str) -> str:
        return self.mul(x, self._float(weight))

    def prepend(self, x: str, weight: str) -> str:
        views = self._node("Shape", [x], start=0, end=1)
        shape = self._node("Concat", [views, self._constant([1, 1])], axis=0)
        first = self.reshape(self._float(weight), 1, 1, -1)
        return self._node("Concat", [self._node("Expand", [first, shape]), x], axis=1)

    def skip(self, x: str, count: int) -> str:
        ends = [self._constant([n]) for n in (count, _END, 1)]
        return self._node("Slice", [x, *ends])

    def join(self, values: Sequence[str], to: str) -> str:
        return self._node("Concat", list(values), axis=-1)

    def split(self, x: str, parts: int, of: str = "") -> tuple[str, ...]:
        extra = [f"Split_{len(self._nodes)}/{i}" for i in range(1, parts)]
        first = self._node("Split", [x], extra_outputs=extra, axis=-1, num_outputs=parts)
        return (first, *extra)

    def take(self, x: str, index: str) -> str:
        return self._node("Gather", [x, index], axis=1)

    def rope(self, x: str, rotation: tuple[str, str], heads: int, head_dim: int) -> str:
        return self._node(
            "RotaryEmbedding",
            [x, self._constant([0]), *rotation],  # the tables' first row is this pass's first token
            domain="com.microsoft",
            num_heads=heads,
            rotary_embedding_dim=head_dim,
        )

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
        inputs = [
            *(q, k, v),
            *(f"past_key_{layer}", f"past_value_{layer}"),
            *("seqlens_k", "total_sequence_length"),
            *("", "", "", "attention_bias"),
        ]
        more: dict[str, Any] = {}
        if (steps := self._plan.kv_steps.get(layer)) is not None:
            held = (("key", steps.keys), ("value", steps.values))
            inputs += ["", *(self._kv_step(f"{name}_step_{layer}", each) for name, each in held)]
            more = {f"{name}_quant_type": "PER_CHANNEL" for name in "kv"}
            more["kv_cache_bit_width"] = steps.bits
        return self._node(
            "GroupQueryAttention",
            inputs,
            domain="com.microsoft",
            extra_outputs=[f"present_key_{layer}", f"present_value_{layer}"],
            num_heads=heads,
            kv_num_heads=kv_heads,
            scale=scale,
            do_rotary=0,
            **more,
        )

    def _kv_step(self, name: str, step: NDArray[np.float32]) -> str:
        """[1, kv_heads, 1, H]"""
        return self._weight(name, _FLOAT_FILE, lambda: step[None, :, None])


def _never() -> NDArray[np.generic]:
    raise AssertionError("a quantized weight is stored before it is used")
