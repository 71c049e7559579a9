"""An interpreter of saved MIL programs, in numpy: what a package says, read again from its files.

Takes the folder of an .mlpackage; runs a function of it over inputs and a state. Written from the
documentation of coremltools' operations, and knows nothing of how the package was made. Every value
is rounded to the type that the program states for it; products of matrices are summed in float32.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.proto import MIL_pb2, Model_pb2
from numpy.typing import NDArray

__all__ = ["Package"]

_TYPES: dict[int, Any] = {
    MIL_pb2.FLOAT16: np.float16,
    MIL_pb2.FLOAT32: np.float32,
    MIL_pb2.INT32: np.int32,
    MIL_pb2.INT16: np.int16,
    MIL_pb2.INT8: np.int8,
    MIL_pb2.UINT8: np.uint8,
    MIL_pb2.BOOL: np.bool_,
}
_SENTINEL = 0xDEADBEEF
Array = NDArray[Any]


class Package:
    """`functions` are the names of those that a program has."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "Manifest.json").read_bytes())
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        self.spec = Model_pb2.Model.FromString((folder / "Data" / root).read_bytes())
        self.folder = (folder / "Data" / root).parent
        self._blobs: dict[str, bytes] = {}
        self.program = self.spec.mlProgram
        self.functions = list(self.program.functions)

    def description(self, function: str) -> Any:
        """Inputs, outputs and states of a function."""
        for found in self.spec.description.functions:
            if found.name == function:
                return found
        assert self.functions == [function]
        return self.spec.description

    def new_state(self, function: str) -> dict[str, Array]:
        """Zeros, as a device makes them."""
        return {
            state.name: np.zeros(tuple(state.type.stateType.arrayType.shape), np.float16)
            for state in self.description(function).state
        }

    def block(self, function: str) -> Any:
        found = self.program.functions[function]
        return found.block_specializations[found.opset]

    def operations(self, function: str) -> list[str]:
        return [op.type for op in self.block(function).operations]

    def run(
        self, function: str, inputs: Mapping[str, Array], state: dict[str, Array] | None = None
    ) -> dict[str, Array]:
        """Outputs by name; `state` is written to in place."""
        block = self.block(function)
        known: dict[str, Any] = {}
        for wanted in self.description(function).input:
            array = wanted.type.multiArrayType
            given = np.asarray(inputs[wanted.name])
            assert given.shape == tuple(array.shape), (wanted.name, given.shape, array.shape)
            known[wanted.name] = given
        assert set(inputs) == set(known)
        machine = _Machine(self, known, {} if state is None else state)
        for op in block.operations:
            machine.step(op)
        return {name: known[name] for name in block.outputs}

    def value(self, value: Any) -> Array:
        """A constant, in the program itself or in its file of weights."""
        tensor = value.type.tensorType
        shape = tuple(int(d.constant.size) for d in tensor.dimensions)
        count = math.prod(shape)
        if value.HasField("blobFileValue"):
            data = self._blob(value.blobFileValue.fileName, value.blobFileValue.offset)
            if tensor.dataType in (MIL_pb2.INT4, MIL_pb2.UINT4):
                found = _nibbles(data, count).reshape(shape)
                return found if tensor.dataType == MIL_pb2.INT4 else found & 15
            return np.frombuffer(data, _TYPES[tensor.dataType], count).reshape(shape)
        found = value.immediateValue.tensor
        kind = found.WhichOneof("value")
        if kind == "bytes":
            if tensor.dataType == MIL_pb2.INT4:
                return _nibbles(found.bytes.values, count).reshape(shape)
            return np.frombuffer(found.bytes.values, _TYPES[tensor.dataType], count).reshape(shape)
        values = list(getattr(found, kind).values)
        if kind == "strings":
            return np.array(values[0])
        return np.array(values, _TYPES[tensor.dataType]).reshape(shape)

    def _blob(self, name: str, offset: int) -> bytes:
        """The bytes that a record of the file at `offset` speaks of."""
        file = name.removeprefix("@model_path/")
        if file not in self._blobs:
            self._blobs[file] = (self.folder / file).read_bytes()
        whole = self._blobs[file]
        sentinel, _, size, begin = struct.unpack_from("<IIQQ", whole, offset)
        assert sentinel == _SENTINEL and begin + size <= len(whole), "no record of a weight"
        return whole[begin : begin + size]


def _nibbles(data: bytes, count: int) -> NDArray[np.int8]:
    """Signed values of four bits, the first in the lower half of a byte."""
    raw = np.frombuffer(data, np.uint8)
    both = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[:count].astype(np.int8)
    return np.where(both > 7, both - 16, both).astype(np.int8)


class _Machine:
    def __init__(self, package: Package, known: dict[str, Any], state: dict[str, Array]) -> None:
        self.package, self.known, self.state = package, known, state

    def step(self, op: Any) -> None:
        if op.type == "const":
            self.known[op.outputs[0].name] = self.package.value(op.attributes["val"])
            return
        given = {name: self._read(argument) for name, argument in op.inputs.items()}
        if op.type == "read_state":
            found: Any = self.state[op.inputs["input"].arguments[0].name].copy()
        elif op.type == "write_state":
            target = self.state[op.inputs["input"].arguments[0].name]
            assert target.shape == given["data"].shape
            target[:] = given["data"]
            return
        else:
            found = _OPS[op.type](**given)
        many = found if isinstance(found, list) else [found]
        assert len(many) == len(op.outputs), op.type
        for output, value in zip(op.outputs, many, strict=True):
            tensor = output.type.tensorType
            shape = tuple(int(d.constant.size) for d in tensor.dimensions)
            assert np.shape(value) == shape, (op.type, output.name, np.shape(value), shape)
            with np.errstate(over="ignore"):
                self.known[output.name] = np.asarray(value).astype(_TYPES[tensor.dataType])

    def _read(self, argument: Any) -> Any:
        found = [
            self.package.value(a.value) if a.HasField("value") else self._named(a.name)
            for a in argument.arguments
        ]
        return found if len(found) > 1 else found[0]

    def _named(self, name: str) -> Any:
        return self.known[name] if name in self.known else name  # a state is read by its name


def _wide(x: Array) -> NDArray[np.float32]:
    return np.asarray(x, np.float32)


def _matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    left, right = _wide(x), _wide(y)
    left = left.swapaxes(-1, -2) if transpose_x else left
    right = right.swapaxes(-1, -2) if transpose_y else right
    found: Array = left @ right
    return found


def _unpacked(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """Each block of the data times its scale, in the type of the scale."""
    wide = data.astype(np.float32)
    for axis, (whole, blocks) in enumerate(zip(data.shape, scale.shape, strict=True)):
        assert whole % blocks == 0
        scale = np.repeat(scale, whole // blocks, axis)
        offset = None if offset is None else np.repeat(offset, whole // blocks, axis)
    if offset is not None:
        wide -= offset.astype(np.float32)
    found: Array = (wide * scale.astype(np.float32)).astype(scale.dtype)
    return found


def _looked_up(indices: Array, lut: Array) -> Array:
    """One value for each place; a table serves a block of places, and none gives several values."""
    assert lut.ndim == indices.ndim + 2 and lut.shape[-1] == 1
    tables = lut[..., 0]
    for axis, whole in enumerate(indices.shape):
        assert whole % lut.shape[axis] == 0
        tables = np.repeat(tables, whole // lut.shape[axis], axis)
    found: Array = np.take_along_axis(tables, indices[..., None].astype(np.intp), -1)[..., 0]
    return found


def _slices(x: Array, begin: Array, end: Array, **masks: Any) -> tuple[slice, ...]:
    assert not any(np.any(mask) for mask in masks.values()), "no masks are known here"
    return tuple(slice(int(b), int(e)) for b, e in zip(begin, end, strict=True))


def _slice_update(x: Array, update: Array, begin: Array, end: Array, **masks: Any) -> Array:
    found = x.copy()
    place = _slices(x, begin, end, **masks)
    assert found[place].shape == update.shape, "what is written does not fit its place"
    found[place] = update
    return found


def _softmax(x: Array, axis: Array) -> Array:
    wide = _wide(x) - _wide(x).max(int(axis), keepdims=True)
    shares = np.exp(wide)
    found: Array = shares / shares.sum(int(axis), keepdims=True)
    return found


def _gelu(x: Array, mode: Array = np.array("EXACT")) -> Array:  # noqa: B008
    wide = x.astype(np.float64)
    if str(mode) == "TANH_APPROXIMATION":
        inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
        found: Array = wide * 0.5 * (1 + np.tanh(inner))
        return found
    erf = np.vectorize(math.erf)
    found = wide * 0.5 * (1 + erf(wide / np.sqrt(2)))
    return found


def _pad(x: Array, pad: Array, mode: Array, constant_val: Array) -> Array:
    assert str(mode) == "constant"
    widths = np.asarray(pad).reshape(-1, 2)
    widths = np.concatenate([np.zeros((x.ndim - len(widths), 2), int), widths])
    return np.pad(x, widths, constant_values=constant_val)


def _concat(values: Any, axis: Array, interleave: Array = np.array(False)) -> Array:  # noqa: B008
    assert not interleave
    return np.concatenate(values if isinstance(values, list) else [values], int(axis))


def _ints(values: Array) -> tuple[int, ...]:
    return tuple(int(v) for v in np.atleast_1d(values))


_OPS: dict[str, Callable[..., Any]] = {
    "constexpr_blockwise_shift_scale": _unpacked,
    "constexpr_lut_to_dense": _looked_up,
    "matmul": _matmul,
    "add": lambda x, y: _wide(x) + _wide(y) if x.dtype.kind == "f" else x + y,
    "sub": lambda x, y: _wide(x) - _wide(y),
    "mul": lambda x, y: _wide(x) * _wide(y),
    "real_div": lambda x, y: _wide(x) / _wide(y),
    "maximum": lambda x, y: np.maximum(x, y),
    "abs": lambda x: np.abs(x),
    "sqrt": lambda x: np.sqrt(_wide(x)),
    "reduce_mean": lambda x, axes, keep_dims: _wide(x).mean(_ints(axes), keepdims=bool(keep_dims)),
    "reduce_max": lambda x, axes, keep_dims: x.max(_ints(axes), keepdims=bool(keep_dims)),
    "softmax": _softmax,
    "gelu": _gelu,
    "silu": lambda x: _wide(x) * 0.5 * (1 + np.tanh(_wide(x) / 2)),
    "reshape": lambda x, shape: x.reshape(_ints(shape)),
    "transpose": lambda x, perm: x.transpose(_ints(perm)),
    "concat": _concat,
    "split": lambda x, num_splits, axis: np.split(x, int(num_splits), int(axis)),
    "slice_by_index": lambda x, **how: x[_slices(x, **how)],
    "slice_update": _slice_update,
    "tile": lambda x, reps: np.tile(x, _ints(reps)),
    "pad": _pad,
    "expand_dims": lambda x, axes: np.expand_dims(x, _ints(axes)),
    "identity": lambda x: x,
    "cast": lambda x, dtype: x,
}
