"""What a saved MIL program says, read from the model file of a Core ML package without coremltools.

Takes the bytes of a `.mlmodel`; gives its functions: inputs, outputs, states and operations with
the types and shapes of what they read and write. Weights lie in another file, of which places and
sizes are told. Refuses a model that is something else beside a program, points into files that are
not its own or may never end. The numbers of fields are those of Model.proto, FeatureTypes.proto and
MIL.proto. Imports nothing of ours but the errors, wire and printable.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap

from edgejudge.errors import BundleError
from edgejudge.printable import brief
from edgejudge.wire import fields, numbers

__all__ = [
    "CONSTANT",
    "Function",
    "Operation",
    "Program",
    "Value",
    "check_program",
    "read_program",
]

CONSTANT = "const"
_TYPES = {  # of MIL: name and bits of a value
    1: ("bool", 8),
    2: ("string", 0),
    10: ("float16", 16),
    11: ("float32", 32),
    12: ("float64", 64),
    13: ("bfloat16", 16),
    21: ("int8", 8),
    22: ("int16", 16),
    23: ("int32", 32),
    24: ("int64", 64),
    25: ("int4", 4),
    31: ("uint8", 8),
    32: ("uint16", 16),
    33: ("uint32", 32),
    34: ("uint64", 64),
    35: ("uint4", 4),
    36: ("uint2", 2),
    37: ("uint1", 1),
    38: ("uint6", 6),
    39: ("uint3", 3),
}
_ARRAYS = {  # of a model's description
    65552: "float16",
    65568: "float32",
    65600: "float64",
    131080: "int8",
    131104: "int32",
}
_BITS = dict(_TYPES.values())
_WHAT = ("input", "output", "state")
_MOST_NESTED = 64
_MODEL_PATH = b"@model_path"
_OWN_WEIGHTS = b"@model_path/weights/weight.bin"
_PROGRAM = 502  # one of the fields from here on, each of which makes a model of another kind
_KINDS_FROM = 200
# Why an operation is not wanted: what a bundle computes ends, and is all in it.
_REFUSED = {"while_loop": "a loop may never end", "custom_layer": "it calls code outside the model"}


@dataclass(frozen=True, slots=True)
class Value:
    """`made_by` is the type of the operation that it comes from, or "input" or "state". A dimension
    that is not fixed is -1. `numbers` are those of a constant that says places or sizes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    made_by: str
    numbers: tuple[int, ...] = ()

    @property
    def constant(self) -> bool:
        """Known when a device loads the program."""
        return self.made_by == CONSTANT or self.made_by.startswith("constexpr_")


@dataclass(frozen=True, slots=True)
class Operation:
    type: str
    inputs: Mapping[str, tuple[Value, ...]]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Function:
    """`blobs` are the weights that it reads: place in their file -> bytes."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    states: tuple[Value, ...]
    operations: tuple[Operation, ...]
    blobs: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Program:
    """`specification` is the version that says which systems load it."""

    specification: int
    functions: tuple[Function, ...]


def check_program(data: mmap | bytes, name: str) -> None:
    """Raises BundleError, which calls the file `name`, for bytes that are no MIL program, and for
    one that points into another file than its own weights, or asks for what is refused.
    """
    place = data.find(_MODEL_PATH)
    while place >= 0:
        if data[place : place + len(_OWN_WEIGHTS)] != _OWN_WEIGHTS:
            raise BundleError(f"{name}: points into a file that is not its weights; do not use it")
        place = data.find(_MODEL_PATH, place + 1)
    for function in read_program(data, name).functions:
        for operation in function.operations:
            if why := _REFUSED.get(operation.type):
                raise BundleError(
                    f"{name}: has the operation {operation.type}: {why}; do not use this bundle"
                )


def read_program(data: mmap | bytes, name: str) -> Program:
    """Raises BundleError, which calls the file `name`, for bytes that are no MIL program."""
    try:
        return _program(_Message(memoryview(data)))
    except (IndexError, ValueError) as error:
        why = "it is cut short" if isinstance(error, IndexError) else error
        raise BundleError(
            f"{name}: is no Core ML program ({why}); export the bundle again"
        ) from None


class _Message:
    """Fields by number. What two readers could read differently is a ValueError."""

    def __init__(self, data: memoryview) -> None:
        self._found: dict[int, list[int | memoryview]] = {}
        for number, value in fields(data):
            self._found.setdefault(number, []).append(value)

    @property
    def kinds(self) -> set[int]:
        """Of a model, fields that say what it is."""
        return {field for field in self._found if field >= _KINDS_FROM}

    def number(self, field: int) -> int:
        value = self._only(field)
        if isinstance(value, memoryview):
            raise ValueError(f"field {field} holds no number")
        return value or 0

    def numbers(self, field: int) -> tuple[int, ...]:
        """Signed, packed or one by one."""
        found: list[int] = []
        for value in self._found.get(field, ()):
            found.extend(numbers(value) if isinstance(value, memoryview) else (value,))
        return tuple(n - (1 << 64) if n >> 63 else n for n in found)

    def text(self, field: int) -> str:
        value = self._only(field)
        if isinstance(value, int):
            raise ValueError(f"field {field} holds no text")
        return "" if value is None else bytes(value).decode()

    def texts(self, field: int) -> list[str]:
        found = []
        for value in self._found.get(field, ()):
            if isinstance(value, int):
                raise ValueError(f"field {field} holds no text")
            found.append(bytes(value).decode())
        return found

    def many(self, field: int) -> Iterator["_Message"]:
        for value in self._found.get(field, ()):
            if isinstance(value, int):
                raise ValueError(f"field {field} holds no message")
            yield _Message(value)

    def one(self, field: int) -> "_Message | None":
        self._only(field)
        return next(self.many(field), None)

    def entries(self, field: int) -> dict[str, "_Message"]:
        """Of a map of messages."""
        found: dict[str, _Message] = {}
        for entry in self.many(field):
            key = entry.text(1)
            if key in found:
                raise ValueError(f"'{brief(key)}' is there twice")
            found[key] = entry.one(2) or _EMPTY
        return found

    def _only(self, field: int) -> int | memoryview | None:
        found = self._found.get(field, (None,))
        if len(found) > 1:
            raise ValueError(f"field {field} is there twice")
        return found[0]


_EMPTY = _Message(memoryview(b""))


def _program(model: _Message) -> Program:
    described, program = model.one(2), model.one(_PROGRAM)
    if other := model.kinds - {_PROGRAM}:
        raise ValueError(f"it is a model of another kind, by field {min(other)}")
    if described is None or program is None:
        raise ValueError("it has no program or no description of one")
    functions, descriptions = program.entries(2), {d.text(1): d for d in described.many(20)}
    if not descriptions and len(functions) == 1:
        (only,) = functions  # of one function the model itself is the description
        found = [_function(only, functions[only], described, (1, 10, 13))]
    elif not functions or descriptions.keys() != functions.keys():
        raise ValueError("its functions are not those that it describes")
    else:
        found = [
            _function(name, function, descriptions[name], (2, 3, 6))
            for name, function in functions.items()
        ]
    return Program(model.number(1), tuple(found))


def _function(name: str, function: _Message, about: _Message, places: Sequence[int]) -> Function:
    block = function.entries(3).get(function.text(2))
    if block is None:
        raise ValueError(f"the function '{brief(name)}' has no operations for its own version")
    reader = _Reader()
    for given in function.many(1):
        kind = given.one(2) or _EMPTY
        state = kind.one(5)
        if state is not None:
            kind = state.one(1) or _EMPTY
        reader.add(_value(given.text(1), kind, "state" if state is not None else "input"))
    known = dict(reader.known)
    reader.block(block, 0)
    outputs = {text: reader.named(text) for text in block.texts(2)}
    inputs = {n: v for n, v in known.items() if v.made_by == "input"}
    states = {n: v for n, v in known.items() if v.made_by == "state"}
    said = [
        [_described(feature, what) for feature in about.many(place)]
        for place, what in zip(places, _WHAT, strict=True)
    ]
    for what, held, described in zip(_WHAT, (inputs, outputs, states), said, strict=True):
        if sorted((v.name, v.dtype, v.shape) for v in described) != sorted(
            (name, v.dtype, v.shape) for name, v in held.items()
        ):
            raise ValueError(f"the {what}s of '{brief(name)}' are not those that it describes")
    return Function(
        name=name,
        inputs=tuple(said[0]),
        outputs=tuple(said[1]),
        states=tuple(said[2]),
        operations=tuple(reader.operations),
        blobs=reader.blobs,
    )


def _described(feature: _Message, what: str) -> Value:
    kind = feature.one(3) or _EMPTY
    if what == "state":
        kind = kind.one(8) or _EMPTY
    array = kind.one(1 if what == "state" else 5) or _EMPTY
    dtype = _ARRAYS.get(array.number(2))
    if dtype is None:
        raise ValueError(f"the {what} '{brief(feature.text(1))}' is no array")
    return Value(feature.text(1), dtype, array.numbers(1), what)


class _Reader:
    """Follows a block: what is known by name, and the operations so far."""

    def __init__(self) -> None:
        self.known: dict[str, Value] = {}
        self.operations: list[Operation] = []
        self.blobs: dict[int, int] = {}

    def add(self, value: Value) -> None:
        if value.name in self.known:
            raise ValueError(f"'{brief(value.name)}' is made twice")
        self.known[value.name] = value

    def named(self, name: str) -> Value:
        if name not in self.known:
            raise ValueError(f"'{brief(name)}' is read and never made")
        return self.known[name]

    def block(self, block: _Message, depth: int) -> None:
        if depth > _MOST_NESTED:
            raise ValueError("its blocks are nested too deeply")
        for operation in block.many(3):
            self._operation(operation, depth)

    def _operation(self, operation: _Message, depth: int) -> None:
        kind = operation.text(1)
        inputs = {
            parameter: tuple(self._bound(binding) for binding in argument.many(1))
            for parameter, argument in operation.entries(2).items()
        }
        for nested in operation.many(4):
            for given in nested.many(1):
                self.add(_value(given.text(1), given.one(2) or _EMPTY, "input"))
            self.block(nested, depth + 1)
        outputs = [_value(made.text(1), made.one(2) or _EMPTY, kind) for made in operation.many(3)]
        if kind == CONSTANT:
            held = operation.entries(5).get("val", _EMPTY)
            outputs = [self._constant(value.name, held) for value in outputs]
        for value in outputs:
            self.add(value)
        self.operations.append(Operation(kind, inputs, tuple(outputs)))

    def _bound(self, binding: _Message) -> Value:
        held = binding.one(2)
        return self.named(binding.text(1)) if held is None else self._constant("", held)

    def _constant(self, name: str, held: _Message) -> Value:
        value = _value(name, held.one(2) or _EMPTY, CONSTANT)
        blob = held.one(5)
        if -1 in value.shape:
            raise ValueError(f"'{brief(name)}' is a constant of no fixed size")
        if blob is not None:
            self.blobs[blob.number(2)] = -(-math.prod(value.shape) * _BITS[value.dtype] // 8)
            return value
        if value.dtype != "int32":
            return value
        tensor = (held.one(3) or _EMPTY).one(1) or _EMPTY
        said = (tensor.one(2) or _EMPTY).numbers(1)
        return Value(name, value.dtype, value.shape, CONSTANT, said)


def _value(name: str, kind: _Message, made_by: str) -> Value:
    tensor = kind.one(1)
    if tensor is None:
        raise ValueError(f"'{brief(name)}' is no tensor")
    if (number := tensor.number(1)) not in _TYPES:
        raise ValueError(f"'{brief(name)}' is of the unknown type {number}")
    shape = []
    for dimension in tensor.many(3):
        fixed = dimension.one(1)
        shape.append(-1 if fixed is None else fixed.number(1))
    return Value(name, _TYPES[number][0], tuple(shape), made_by)
