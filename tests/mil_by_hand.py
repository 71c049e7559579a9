"""MIL programs written by hand with coremltools' own protobuf classes, operation by operation.

Takes operations with the types and shapes of what they make; gives the bytes of a model file.
Checks nothing, so that programs can be made which no converter would write.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from coremltools.proto import FeatureTypes_pb2, MIL_pb2, Model_pb2

__all__ = ["Op", "by_hand", "state"]

Tensor = tuple[str, tuple[int, ...]]  # type and shape
# An operation: its type; what it reads, by parameter, each the name of a value, numbers, or a
# constant of a type and shape; and what it makes, by name.
Op = tuple[str, Mapping[str, "str | list[int] | Tensor"], Mapping[str, Tensor]]
_ARRAYS = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType


def by_hand(
    operations: Sequence[Op],
    inputs: Mapping[str, Tensor],
    states: Mapping[str, Tensor] = {},  # noqa: B006
    outputs: Sequence[str] = ("y",),
    function: str = "main",
) -> bytes:
    """A model of one function whose `outputs` are made by the operations."""
    model = Model_pb2.Model(specificationVersion=9)
    made = model.mlProgram.functions[function]
    made.opset = "CoreML8"
    block = made.block_specializations["CoreML8"]
    for name, tensor in inputs.items():
        given = made.inputs.add(name=name)
        _typed(given.type.tensorType, tensor)
        _array(model.description.input.add(name=name).type.multiArrayType, tensor)
    for name, tensor in states.items():
        given = made.inputs.add(name=name)
        _typed(given.type.stateType.wrappedType.tensorType, tensor)
        _array(model.description.state.add(name=name).type.stateType.arrayType, tensor)
    known: dict[str, Tensor] = {}
    for kind, reads, makes in operations:
        constants = {n: what for n, what in reads.items() if isinstance(what, tuple)}
        for parameter, tensor in constants.items():
            name = f"constant_{len(block.operations)}_{parameter}"
            held = block.operations.add(type="const")
            _typed(held.outputs.add(name=name).type.tensorType, tensor)
            value = held.attributes["val"]
            _typed(value.type.tensorType, tensor)
            value.blobFileValue.fileName = "@model_path/weights/weight.bin"
            value.blobFileValue.offset = 64 * len(block.operations)
            reads = {**reads, parameter: name}
        op = block.operations.add(type=kind)
        for parameter, what in reads.items():
            binding = op.inputs[parameter].arguments.add()
            if isinstance(what, str):
                binding.name = what
            else:
                _numbers(binding.value, what)
        for name, tensor in makes.items():
            _typed(op.outputs.add(name=name).type.tensorType, tensor)
            known[name] = tensor
    for name in outputs:
        block.outputs.append(name)
        _array(model.description.output.add(name=name).type.multiArrayType, known[name])
    data: bytes = model.SerializeToString()
    return data


def _typed(found: Any, tensor: Tensor) -> None:
    kind, shape = tensor
    found.dataType = MIL_pb2.DataType.Value(kind.upper())
    found.rank = len(shape)
    for size in shape:
        found.dimensions.add().constant.size = size


def _array(found: Any, tensor: Tensor) -> None:
    kind, shape = tensor
    found.dataType = _ARRAYS.Value(kind.upper())
    found.shape.extend(shape)


def _numbers(value: Any, numbers: Any) -> None:
    _typed(value.type.tensorType, ("int32", (len(numbers),)))
    value.immediateValue.tensor.ints.values.extend(numbers)


def state(width: int, rows: int = 1, write: bool = False) -> bytes:
    """Reads a state, puts rows into what it read, and may write it back."""
    whole = ("float16", (2, 4, 256, width))
    place: dict[str, Any] = {"begin": [0, 0, 0, 0], "end": [1, 4, rows, width]}
    operations: list[Op] = [
        ("read_state", {"input": "s"}, {"old": whole}),
        ("slice_update", {"x": "old", "update": "x", **place}, {"y": whole}),
    ]
    if write:
        operations.append(("write_state", {"input": "s", "data": "y"}, {}))
    return by_hand(operations, {"x": ("float16", (1, 4, rows, width))}, {"s": whole})
