"""The op vocabulary for the `coreml` target: operations of a MIL program.

Takes a checkpoint's weights and a plan; every op adds operations to the function that is being
built. Weights are the levels and scales that other targets store, as constants that Core ML unpacks
itself; keys and values are the program's state. Shapes are fixed. In 16 bits norms are scaled by
each token's largest value, as for graphics cards: residuals of ten thousand do not overflow when
they are squared. Knows no family and no file.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

from edgejudge.errors import ExportError
from edgejudge.export.blocks import Plan
from edgejudge.export.ledger import Ledger
from edgejudge.export.weights import Source, matrix_shape

__all__ = ["MilOps", "Shared"]

_LEAST_PEAK = 2.0**-13  # of a token: its square and eps over it are still numbers in 16 bits
_LEAST_ROOT = 2.0**-13
_NIBBLE: Any = types.np_int4_dtype
_PLACE: Any = types.np_uint4_dtype  # in a table of sixteen
_TABLE = np.arange(-8, 8, dtype=np.int8).reshape(1, 1, 16, 1)  # of the levels of four bits


class Shared:
    """Weights as every function of one package has them: read and rounded once, stored once.
    `kind` is the floats that it computes in. With `tables` levels of four bits are places in a
    table of levels (lut), which is how the Neural Engine wants few bits: the same weights in as
    many bytes.
    """

    def __init__(
        self,
        weights: Source,
        plan: Plan,
        ledger: Ledger,
        kind: Any = np.float16,
        tables: bool = False,
    ) -> None:
        self.weights, self.plan, self.ledger, self.kind = weights, plan, ledger, kind
        self.tables = tables
        self.at = "its beginning"  # the weight that was asked for last: where a fault is
        self._held: dict[str, NDArray[Any]] = {}
        self._rounded: set[str] = set()
        self._quantized: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}

    def floats(self, key: str, make: Callable[[], NDArray[np.float32]]) -> NDArray[Any]:
        if key not in self._held:
            with np.errstate(over="ignore"):  # told below, by name
                found = make().astype(self.kind)
            if not np.isfinite(found).all():
                raise ExportError(
                    f"{key} holds values beyond 16-bit floats, in which the coreml target "
                    "computes; leave that target out"
                )
            self._held[key] = found
        return self._held[key]

    def plain(self, name: str) -> NDArray[np.float32]:
        """A weight that is stored as floats."""
        self.at = name
        value = self.weights(name)
        size = value.size * np.dtype(self.kind).itemsize
        if self.kind is np.float32:
            self.ledger.plain(name, size)
        elif name not in self._rounded:
            self._rounded.add(name)
            with np.errstate(over="ignore"):  # told where it is stored, by name
                error = np.square(value.astype(self.kind) - value, dtype=np.float64).sum()
            square = np.square(value, dtype=np.float64).sum()
            self.ledger.rounded(name, "float16", size, float(error), float(square))
        return value

    def levels(self, name: str, bits: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Signed levels [N, K up to whole blocks], or their places, and scales [N, blocks]."""
        self.at = name
        if name not in self._quantized:
            parts = list(self.plan.quantized(self.weights, name))
            levels = np.concatenate([part.q.levels for part in parts])
            if bits == 4:
                levels = np.stack([levels & 15, levels >> 4], axis=-1)
            rows, block = len(levels), parts[0].q.block
            signed = (levels.reshape(rows, -1).astype(np.int16) - (1 << bits - 1)).astype(np.int8)
            scales = np.concatenate([part.q.scales for part in parts])
            error, square = sum(p.error for p in parts), sum(p.square for p in parts)
            nbytes = signed.size * bits // 8 + np.dtype(self.kind).itemsize * scales.size
            self.ledger.quantized(name, bits, block, nbytes, error, square)
            typed: NDArray[Any] = signed
            if bits == 4:
                typed = (signed + 8).astype(_PLACE) if self.tables else signed.astype(_NIBBLE)
            self._quantized[name] = typed, self.floats(f"{name} scales", lambda: scales)
        return self._quantized[name]


class MilOps:
    """Implements `Ops[Var]` within a function that is open. `begin` is the row of the cache that
    the first token of the pass is written to, `states` the names of keys and values, each
    [layers, kv_heads, C, head_dim] from layer `first` on; `new` are the rows [1, kv_heads, S,
    head_dim] that were written to them.
    """

    def __init__(
        self,
        shared: Shared,
        begin: Any = None,
        bias: Any = None,
        states: tuple[Any, Any] | None = None,
        first: int = 0,
    ) -> None:
        self._shared, self._begin, self._bias = shared, begin, bias
        self._states, self._first = states, first
        self._tiled: Any = None
        self._end: Any = None
        self.new: dict[str, Any] = {}  # rows of keys and values that were added, by name

    # --- constants ---

    def _const(self, key: str, value: NDArray[Any]) -> Any:
        """One blob for all functions of the package that name the same key."""
        made = mb.const(val=value)
        made.op.weight_id = key
        return made

    def _float(self, key: str, make: Callable[[], NDArray[np.float32]]) -> Any:
        return self._const(key, self._shared.floats(key, make))

    def _plain(self, name: str) -> Any:
        return self._float(name, lambda: self._shared.plain(name))

    def _number(self, value: float) -> Any:
        return self._shared.kind(value)

    def _matrix(self, weight: str, bits: int) -> Any:
        levels, scales = self._shared.levels(weight, bits)
        named = {}
        if bits == 4 and self._shared.tables:
            # Whole numbers in the table: scales over one of floats are refused by the Neural
            # Engine's compiler (coremltools pull request 2688).
            levels = mb.constexpr_lut_to_dense(indices=levels, lut=_TABLE)
            named["data"] = levels.op.inputs["indices"]
        made = mb.constexpr_blockwise_shift_scale(data=levels, scale=scales)
        named = {**{n: made.op.inputs[n] for n in ("data", "scale")}, **named}
        for name, value in named.items():
            value.op.weight_id = f"{weight} {name}"
        return made

    # --- the vocabulary ---

    def linear(
        self, x: Any, weight: str, bias: str | None = None, rows: tuple[int, ...] | None = None
    ) -> Any:
        shared = self._shared
        bits = None if rows is not None else shared.plan.bits_of(weight)
        if bits is None:
            shape = matrix_shape(shared.weights, weight)

            def make() -> NDArray[np.float32]:
                if rows is not None:
                    return shared.weights.rows(weight, rows)
                return shared.plain(weight).reshape(shape)

            matrix = self._float(f"{weight} {'matrix' if rows is None else 'rows'}", make)
        else:
            matrix = self._matrix(weight, bits)
        inner = int(matrix.shape[1])
        if x.shape[-1] != inner:  # zeros meet the rest of the last block
            pad = [0] * (2 * x.rank - 1) + [inner - int(x.shape[-1])]
            x = mb.pad(x=x, pad=pad, mode="constant", constant_val=self._number(0))
        y = mb.matmul(x=x, y=matrix, transpose_y=True)
        return y if bias is None else self.add(y, self._plain(bias))

    def rms_norm(self, x: Any, weight: str, eps: float) -> Any:
        if self._shared.kind is np.float32:
            mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
            root = mb.sqrt(x=mb.add(x=mean, y=self._number(eps)))
            return self.mul(mb.real_div(x=x, y=root), self._plain(weight))
        peak = self._peak(x)
        small = mb.real_div(x=x, y=peak)
        return self.mul(self._divided(small, peak, eps), self._plain(weight))

    def layer_norm(self, x: Any, weight: str, bias: str, eps: float) -> Any:
        peak = self._peak(x)
        small = mb.real_div(x=x, y=peak)
        apart = mb.sub(x=small, y=mb.reduce_mean(x=small, axes=[-1], keep_dims=True))
        scaled = self.mul(self._divided(apart, peak, eps), self._plain(weight))
        return self.add(scaled, self._plain(bias))

    def _peak(self, x: Any) -> Any:
        largest = mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True)
        return mb.add(x=largest, y=self._number(_LEAST_PEAK))

    def _divided(self, small: Any, peak: Any, eps: float) -> Any:
        """As export/gpu_ops.py has it: eps becomes the square of its root over the peak."""
        mean = mb.reduce_mean(x=mb.mul(x=small, y=small), axes=[-1], keep_dims=True)
        floor = mb.real_div(x=self._number(eps**0.5), y=peak)
        root = mb.sqrt(x=mb.add(x=mean, y=mb.mul(x=floor, y=floor)))
        return mb.real_div(x=small, y=mb.maximum(x=root, y=self._number(_LEAST_ROOT)))

    def activation(self, x: Any, kind: str) -> Any:
        if kind == "silu":
            return mb.silu(x=x)
        return mb.gelu(x=x, mode="TANH_APPROXIMATION" if kind == "gelu_tanh" else "EXACT")

    def add(self, x: Any, y: Any) -> Any:
        return mb.add(x=x, y=y)

    def mul(self, x: Any, y: Any) -> Any:
        return mb.mul(x=x, y=y)

    def scale(self, x: Any, weight: str) -> Any:
        return self.mul(x, self._plain(weight))

    def reshape(self, x: Any, *shape: int) -> Any:
        sizes = [int(x.shape[i]) if n == 0 else n for i, n in enumerate(shape)]
        return mb.reshape(x=x, shape=sizes)

    def patchify(self, pixels: Any, image_size: int, patch: int) -> Any:
        """Of one view. In four dimensions: programs of five were refused by the Neural Engine."""
        grid = image_size // patch
        if image_size % patch:
            end = grid * patch
            pixels = mb.slice_by_index(x=pixels, begin=[0, 0, 0, 0], end=[1, 3, end, end])
        x = mb.reshape(x=pixels, shape=[3 * grid, patch, grid, patch])
        x = mb.transpose(x=x, perm=[0, 2, 1, 3])
        x = mb.reshape(x=x, shape=[3, grid * grid, patch * patch])
        x = mb.transpose(x=x, perm=[1, 0, 2])
        return mb.reshape(x=x, shape=[1, grid * grid, 3 * patch * patch])

    def table(self, weight: str, rows: NDArray[np.int64]) -> Any:
        def make() -> NDArray[np.float32]:
            value = self._shared.plain(weight)
            return value.reshape(-1, value.shape[-1])[rows]

        return self._float(f"{weight} table", make)

    def pixel_shuffle(self, x: Any, grid: int, scale: int) -> Any:
        side, views = grid // scale, int(x.shape[0])
        x = mb.reshape(x=x, shape=[views * side, scale, side, -1])
        x = mb.transpose(x=x, perm=[0, 2, 1, 3])
        return mb.reshape(x=x, shape=[views, side * side, -1])

    def blend(self, weight: str, inputs: dict[str, Any]) -> Any:
        """A product with the whole table, which is little beside the tower's own."""
        y = mb.matmul(x=inputs["table_spread"], y=self._plain(weight))
        return mb.expand_dims(x=y, axes=[0])

    def prepend(self, x: Any, weight: str) -> Any:
        plain = self._shared.plain
        first = self._float(f"{weight} token", lambda: plain(weight).reshape(1, 1, -1))
        return mb.concat(values=[first, x], axis=1)

    def skip(self, x: Any, count: int) -> Any:
        return mb.slice_by_index(x=x, begin=[0, count, 0], end=[int(n) for n in x.shape])

    def split(self, x: Any, parts: int, of: str = "") -> tuple[Any, ...]:
        return tuple(mb.split(x=x, num_splits=parts, axis=-1))

    def join(self, values: Sequence[Any], to: str) -> Any:
        return mb.concat(values=list(values), axis=-1)

    def take(self, x: Any, index: Any) -> Any:
        raise ExportError("static graphs give all rows; a family takes some outside of them")

    def rope(self, x: Any, rotation: tuple[Any, Any], heads: int, head_dim: int) -> Any:
        """[1, S, heads * H], halves turned by cos and sin, which come as [S, H / 2]."""
        tokens = int(x.shape[1])
        cos, sin = (mb.reshape(x=w, shape=[1, tokens, 1, head_dim // 2]) for w in rotation)
        x = mb.reshape(x=x, shape=[1, tokens, heads, head_dim])
        low, high = mb.split(x=x, num_splits=2, axis=-1)
        turned = [
            mb.sub(x=mb.mul(x=low, y=cos), y=mb.mul(x=high, y=sin)),
            mb.add(x=mb.mul(x=high, y=cos), y=mb.mul(x=low, y=sin)),
        ]
        return mb.reshape(x=mb.concat(values=turned, axis=-1), shape=[1, tokens, heads * head_dim])

    # --- attention ---

    def full_attention(
        self, q: Any, k: Any, v: Any, heads: int, scale: float, mask: Any = None
    ) -> Any:
        q, k, v = (_by_head(x, heads) for x in (mb.mul(x=q, y=self._number(scale)), k, v))
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        if mask is not None:
            scores = mb.add(x=scores, y=mb.expand_dims(x=mask, axes=[1, 2]))
        return _merged(mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v))

    def cached_attention(
        self,
        q: Any,
        k: Any,
        v: Any,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
    ) -> Any:
        """Heads that share keys become rows of one product. New rows are written over what the
        state holds from `begin` on; the mask says which rows count.
        """
        if self._states is None:
            raise AssertionError("a function without states has no cache")
        tokens, groups = int(q.shape[1]), heads // kv_heads
        q = _by_head(mb.mul(x=q, y=self._number(scale)), heads)
        q = mb.reshape(x=q, shape=[1, kv_heads, groups * tokens, head_dim])
        new = {f"new_key_{layer}": _by_head(k, kv_heads)}
        new[f"new_value_{layer}"] = _by_head(v, kv_heads)
        self.new |= new
        place = self._place(layer - self._first, kv_heads, tokens, head_dim)
        keys, values = (
            self._written(state, rows, layer - self._first, place)
            for state, rows in zip(self._states, new.values(), strict=True)
        )
        scores = mb.add(x=mb.matmul(x=q, y=keys, transpose_y=True), y=self._mask(groups))
        y = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=values)
        return _merged(mb.reshape(x=y, shape=[1, heads, tokens, head_dim]))

    def _place(self, layer: int, heads: int, tokens: int, width: int) -> tuple[Any, Any]:
        """Where new rows begin and end, of keys and of values alike."""
        if self._end is None:
            self._end = mb.add(x=self._begin, y=np.int32(tokens))
        begin, end = (
            mb.concat(values=[np.array(before, np.int32), row, np.array([after], np.int32)], axis=0)
            for before, row, after in (
                ([layer, 0], self._begin, 0),
                ([layer + 1, heads], self._end, width),
            )
        )
        return begin, end

    def _written(self, state: Any, new: Any, layer: int, place: tuple[Any, Any]) -> Any:
        """The layer's rows [1, kv_heads, C, H], the new ones among them."""
        begin, end = place
        whole = mb.slice_update(x=mb.read_state(input=state), update=new, begin=begin, end=end)
        whole = mb.coreml_update_state(state=state, value=whole)
        sizes = [int(n) for n in whole.shape]
        return mb.slice_by_index(x=whole, begin=[layer, 0, 0, 0], end=[layer + 1, *sizes[1:]])

    def _mask(self, groups: int) -> Any:
        """attention_bias [1, 1, S, C] once for each head that shares keys."""
        if self._tiled is None:
            self._tiled = self._bias
            if groups > 1:
                # Not tiled: few counts of repeats are the Neural Engine's.
                self._tiled = mb.concat(values=[self._bias] * groups, axis=2)
        return self._tiled


def _by_head(x: Any, heads: int) -> Any:
    """[B, S, heads * H] -> [B, heads, S, H]"""
    shape = [int(x.shape[0]), int(x.shape[1]), heads, -1]
    return mb.transpose(x=mb.reshape(x=x, shape=shape), perm=[0, 2, 1, 3])


def _merged(x: Any) -> Any:
    """[B, heads, S, H] -> [B, S, heads * H]"""
    batch, _, tokens, _ = (int(n) for n in x.shape)
    return mb.reshape(x=mb.transpose(x=x, perm=[0, 2, 1, 3]), shape=[batch, tokens, -1])
