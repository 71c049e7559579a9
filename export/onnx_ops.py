"""The op vocabulary as ONNX nodes for the `cpu` target, with ONNX Runtime's fused operators.

Takes a checkpoint's weights, a recipe and a weight store; every op appends nodes to one graph, and
`model` gives it. Weights go to the store in the recipe's precision. Knows no family.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgejudge.bundle import TensorRecord
from edgejudge.export.blocks import Plan
from edgejudge.export.ledger import Ledger
from edgejudge.export.quantize import LEAST_PEAK
from edgejudge.export.recipe import INTEGER_BITS
from edgejudge.export.store import Place, WeightStore
from edgejudge.export.weights import Source, matrix_shape

__all__ = ["IR_VERSION", "OPSETS", "OnnxOps"]

IR_VERSION = 10  # onnx's own default is newer than the runtimes read
OPSETS = {"": 21, "com.microsoft": 1}
_FLOAT_FILE = "weights.f32.bin"
_INTEGER_FILE = "weights.i8.bin"
_TYPES = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
}


class OnnxOps:
    """Implements `Ops[str]`: values are the names of graph values."""

    def __init__(
        self,
        name: str,
        weights: Source,
        plan: Plan,
        store: WeightStore,
        ledger: Ledger,
    ) -> None:
        self._name = name
        self._weights = weights
        self._plan = plan
        self._store = store
        self._ledger = ledger
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[TensorRecord] = []
        self._outputs: list[TensorRecord] = []
        self._used: dict[str, Place] = {}
        self._tokens: dict[str, tuple[str, str]] = {}  # value -> its rounded form and steps

    # --- graph ---

    def input(self, name: str, dtype: str, *shape: int | str) -> str:
        self._inputs.append(TensorRecord(name, dtype, tuple(map(str, shape))))
        return name

    def output(self, value: str, name: str, dtype: str, *shape: int | str) -> None:
        if value != name:
            self._node("Identity", [value], output=name)
        self._outputs.append(TensorRecord(name, dtype, tuple(map(str, shape))))

    @property
    def inputs(self) -> tuple[TensorRecord, ...]:
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[TensorRecord, ...]:
        return tuple(self._outputs)

    @property
    def weight_files(self) -> tuple[str, ...]:
        return tuple(sorted({place.file for place in self._used.values()}))

    @property
    def weight_bytes(self) -> int:
        return sum(place.bytes for place in self._used.values())

    def model(self) -> bytes:
        """The serialized model; the same calls give the same bytes."""
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [_value_info(t) for t in self._inputs],
            [_value_info(t) for t in self._outputs],
            list(self._initializers.values()),
        )
        model = helper.make_model(
            graph,
            producer_name="edgejudge",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid(d, v) for d, v in OPSETS.items()],
        )
        return bytes(model.SerializeToString(deterministic=True))

    def _node(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        domain: str = "",
        output: str | None = None,
        extra_outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        name = f"{op}_{len(self._nodes)}"
        out = output or f"{name}/out"
        self._nodes.append(
            helper.make_node(
                op, list(inputs), [out, *extra_outputs], name=name, domain=domain, **attributes
            )
        )
        return out

    def _constant(self, values: Sequence[int]) -> str:
        """A small shape-like constant, inside the graph itself."""
        name = "const_" + "_".join(str(v).replace("-", "m") for v in values)
        if name not in self._initializers:
            array = np.array(values, np.int64)
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def _weight(self, key: str, file: str, make: Callable[[], NDArray[np.generic]]) -> str:
        """A weight by reference; `make` runs only when no graph has stored it yet."""
        if key in self._initializers:
            return key
        place = self._store.get(key) or self._store.put(key, file, make())
        tensor = TensorProto(
            name=key,
            data_type=_TYPES[place.dtype],
            dims=place.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for field, value in (
            ("location", place.file),
            ("offset", place.offset),
            ("length", place.bytes),
        ):
            tensor.external_data.add(key=field, value=str(value))
        self._initializers[key] = tensor
        self._used[key] = place
        return key

    def _float(self, name: str) -> str:
        return self._weight(name, _FLOAT_FILE, lambda: self._plain(name))

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
        y = self._node("MatMul", [x, self._weight(key, _FLOAT_FILE, transposed)])
        return y if bias is None else self.add(y, self._float(bias))

    def _quantized(self, x: str, weight: str, bits: int, bias: str | None) -> str:
        recipe, file = self._plan.recipe, f"weights.q{bits}.bin"
        shape = matrix_shape(self._weights, weight)
        level_key, scale_key = f"{weight}.q{bits}", f"{weight}.q{bits}.scales"
        if self._store.get(level_key) is None:
            self._store_quantized(weight, bits, file, level_key, scale_key)
        inputs = [
            x,
            self._weight(level_key, file, _never),
            self._weight(scale_key, file, _never),
        ]
        if bias is not None:
            inputs += ["", "", self._float(bias)]
        return self._node(
            "MatMulNBits",
            inputs,
            domain="com.microsoft",
            N=shape[0],
            K=shape[1],
            bits=bits,
            block_size=recipe.block,
            accuracy_level=recipe.accuracy_level,
        )

    def _store_quantized(
        self, weight: str, bits: int, file: str, level_key: str, scale_key: str
    ) -> None:
        """The levels go to the file as they come, the scales after them."""
        rows, inner = matrix_shape(self._weights, weight)
        block = self._plan.recipe.block
        blocks = -(-inner // block)
        scales, error, square = [], 0.0, 0.0

        def levels() -> Iterator[NDArray[np.uint8]]:
            nonlocal error, square
            for part in self._plan.quantized(self._weights, weight):
                scales.append(part.q.scales)
                error, square = error + part.error, square + part.square
                yield part.q.levels

        shape = (rows, blocks, block * bits // 8)
        self._store.put_blocks(level_key, file, np.dtype(np.uint8), shape, levels())
        self._store.put(scale_key, file, np.concatenate(scales))
        nbytes = rows * blocks * (block * bits // 8 + 4)
        self._ledger.quantized(weight, bits, block, nbytes, error, square)

    def _integer(self, x: str, weight: str, bias: str | None) -> str:
        """Both sides in integers, whose sums are exact; then the token's scale, then the bias."""
        level_key, scale_key = f"{weight}.i8", f"{weight}.i8.scales"
        if self._store.get(level_key) is None:
            self._store_rows(weight, level_key, scale_key)
        rounded, step = self._per_token(x)
        inputs = [
            rounded,
            self._weight(level_key, _INTEGER_FILE, _never),
            self._scalar("one", np.float32(1)),
            self._weight(scale_key, _INTEGER_FILE, _never),
            self._scalar("zero_of_tokens", np.uint8(128)),
        ]
        y = self.mul(self._node("MatMulIntegerToFloat", inputs, domain="com.microsoft"), step)
        return y if bias is None else self.add(y, self._float(bias))

    def _per_token(self, x: str) -> tuple[str, str]:
        """[..., K] -> bytes around 128, and what a level of each token means [..., 1]."""
        if x not in self._tokens:
            largest = self._node("ReduceMax", [self._node("Abs", [x]), self._constant([-1])])
            largest = self._node("Max", [largest, self._scalar("tiny", np.float32(LEAST_PEAK))])
            step = self._node("Div", [largest, self._scalar("top", np.float32(127))])
            ends = [
                self._scalar("one", np.float32(1)),
                self._scalar("zero_of_tokens", np.uint8(128)),
            ]
            levels = self._node("QuantizeLinear", [self._node("Div", [x, step]), *ends])
            self._tokens[x] = levels, step
        return self._tokens[x]

    def _scalar(self, name: str, value: np.generic) -> str:
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _store_rows(self, weight: str, level_key: str, scale_key: str) -> None:
        """[K, N], as the kernel takes it: one matrix of bytes is in memory at a time."""
        parts = list(self._plan.quantized(self._weights, weight))
        levels = np.concatenate([p.q.levels.reshape(len(p.q.levels), -1) for p in parts])
        signed = (levels.astype(np.int16) - (1 << INTEGER_BITS - 1)).astype(np.int8)
        self._store.put(level_key, _INTEGER_FILE, np.ascontiguousarray(signed.T))
        self._store.put(scale_key, _INTEGER_FILE, np.concatenate([p.q.scales[:, 0] for p in parts]))
        error, square = sum(p.error for p in parts), sum(p.square for p in parts)
        self._ledger.quantized(
            weight, INTEGER_BITS, 0, signed.size + 4 * len(signed), error, square
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
        return self._node("Mul", [x, y])

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
        return self._weight(
            f"{weight}.rows",
            _FLOAT_FILE,
            lambda: self._plain(weight)[rows],
        )

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

    def split(self, x: str, parts: int) -> tuple[str, ...]:
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
        self, q: str, k: str, v: str, layer: int, heads: int, kv_heads: int, scale: float
    ) -> str:
        return self._node(
            "GroupQueryAttention",
            [
                *(q, k, v),
                *(f"past_key_{layer}", f"past_value_{layer}"),
                *("seqlens_k", "total_sequence_length"),
                *("", "", "", "attention_bias"),
            ],
            domain="com.microsoft",
            extra_outputs=[f"present_key_{layer}", f"present_value_{layer}"],
            num_heads=heads,
            kv_num_heads=kv_heads,
            scale=scale,
            do_rotary=0,
        )


def _never() -> NDArray[np.generic]:
    raise AssertionError("a quantized weight is stored before it is used")


def _value_info(tensor: TensorRecord) -> onnx.ValueInfoProto:
    shape = [int(d) if d.isdigit() else d for d in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], shape)
