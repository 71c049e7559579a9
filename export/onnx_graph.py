"""One ONNX graph in the making: inputs, nodes, weights by reference, outputs.

Takes a weight store; gives the serialized model and what it uses. Knows no op vocabulary, no recipe
and no family.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgejudge.bundle import TensorRecord
from edgejudge.export.store import Place, WeightStore

__all__ = ["IR_VERSION", "OPSETS", "OnnxGraph", "overflow_check"]

IR_VERSION = 10  # onnx's own default is newer than the runtimes read
_CHECKED = (64, 32)  # rows and columns of what an overflow check multiplies
OPSETS = {"": 21, "com.microsoft": 1}
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "int4": TensorProto.INT4,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
}


class OnnxGraph:
    """Values are known by their names."""

    def __init__(self, name: str, store: WeightStore) -> None:
        self._name = name
        self._store = store
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[TensorRecord] = []
        self._outputs: list[TensorRecord] = []
        self._used: dict[str, Place] = {}

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

    def _weight(
        self,
        key: str,
        file: str,
        make: Callable[[], NDArray[np.generic]],
        packed: tuple[int, ...] | None = None,
    ) -> str:
        """A weight by reference; `make` runs only when no graph has stored it yet. `packed` is the
        shape of one whose bytes hold two signed values of four bits each, the first one lower.
        """
        if key in self._initializers:
            return key
        place = self._store.get(key) or self._store.put(key, file, make())
        tensor = TensorProto(
            name=key,
            data_type=_TYPES["int4" if packed else place.dtype],
            dims=packed or place.shape,
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

    def _inline(self, name: str, value: np.generic | NDArray[np.generic]) -> str:
        """A small constant, inside the graph itself."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def overflow_check(store: WeightStore) -> OnnxGraph:
    """`levels` uint8 [S, K] against the largest and the smallest bytes there are, by the kernel of
    integer matrices: `sums` [S, N]. Where pairs of products are added in 16 bits they overflow.
    """
    graph = OnnxGraph("overflow_check", store)
    graph.input("levels", "uint8", "S", _CHECKED[0])
    extremes = np.where(np.arange(_CHECKED[1]) % 2, -127, 127).astype(np.int8)
    weights = graph._inline("extremes", np.broadcast_to(extremes, _CHECKED).copy())
    one, zero = graph._inline("one", np.float32(1)), graph._inline("zero", np.uint8(128))
    inputs = ["levels", weights, one, one, zero]
    sums = graph._node("MatMulIntegerToFloat", inputs, domain="com.microsoft")
    graph.output(sums, "sums", "float32", "S", _CHECKED[1])
    return graph


def _value_info(tensor: TensorRecord) -> onnx.ValueInfoProto:
    shape = [int(d) if d.isdigit() else d for d in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], shape)
