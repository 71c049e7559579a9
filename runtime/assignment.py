"""Which nodes of a loaded session another provider computes than the one asked for, and why.

Takes an opened session and the file that it was opened from; gives a record for each such node.
The reason is what ONNX Runtime lets us know: the kernels of the providers that were built into it,
and that a compiler declined. Copies and casts that it puts between two providers afterwards are in
no list of its own: there are none of them unless there is a node elsewhere. Does not open sessions.
"""

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxruntime.capi import onnxruntime_pybind11_state as native

from edgejudge.errors import ProviderError
from edgejudge.wire import fields

__all__ = ["Elsewhere", "NodesElsewhere", "check_strict", "elsewhere", "nodes_of"]

# They compile runs of nodes; others have a kernel for a node or have none.
_COMPILING = ("QNNExecutionProvider", "OpenVINOExecutionProvider", "CoreMLExecutionProvider")
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
_SHAPES = ("Shape", "Size")
_NAMED = 3  # as many nodes as an error names
_TYPES = {
    1: "float",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "double",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
    21: "uint4",
    22: "int4",
}


class NodesElsewhere(ProviderError):
    """A provider was to take every node of a graph, and does not."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A node that is not on the provider that was asked for. `reason` goes on after "op node"."""

    op: str
    node: str
    provider: str  # where it is
    reason: str


@dataclass(frozen=True, slots=True)
class _Kernel:
    first_opset: int
    last_opset: int
    types: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Known:
    """What the file says of a node, which is nothing where ONNX Runtime made it."""

    types: tuple[str, ...] = ()  # of its inputs, those that are known
    opset: int | None = None
    at_the_edge: bool = False  # reads an input of the graph or writes an output
    of_shapes: bool = False  # its values depend on nothing but shapes


def nodes_of(inner: Any) -> list[tuple[str, Any]]:
    """(provider, node) of a session that records it. ONNX Runtime 1.27 leaves out those of a
    built-in WebGPU; the CPU's are always there.
    """
    groups = inner.get_provider_graph_assignment_info()
    return [(group.ep_name, node) for group in groups for node in group.get_nodes()]


def elsewhere(inner: Any, provider: str, model_path: Path) -> tuple[Elsewhere, ...]:
    """Needs a session opened with session.record_ep_graph_assignment_info=1."""
    strays = [(where, node) for where, node in nodes_of(inner) if where != provider]
    if not strays:
        return ()
    file = _read(model_path)
    return tuple(
        Elsewhere(
            node.op_type, node.name, where, _reason(node, provider, file.get(node.name, _Known()))
        )
        for where, node in strays
    )


def check_strict(found: Collection[Elsewhere], provider: str, file: str) -> None:
    """Raises NodesElsewhere if there are any."""
    if not found:
        return
    named = ", ".join(
        " ".join(part for part in (stray.op, stray.node, f"({stray.reason})") if part)
        for stray in list(found)[:_NAMED]
    )
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    nodes = "node" if len(found) == 1 else "nodes"
    raise NodesElsewhere(
        f"{file}: {len(found)} {nodes} would not run on {provider}: {named}{more}; "
        "drop --strict or place this stage on another device"
    )


def _reason(node: Any, provider: str, known: _Known) -> str:
    op = node.op_type
    types = " and ".join(dict.fromkeys(known.types))
    if provider in _COMPILING:
        if op in _QUANTIZING and known.at_the_edge:
            return "what comes in and goes out is quantized on the CPU"
        return f"its compiler declined it for {types}" if types else "its compiler declined it"
    if known.of_shapes:
        return "ONNX Runtime computes shapes on the CPU on purpose"
    listed = _kernels()
    if provider not in listed:
        return (
            f"it has no kernel for {op} of {types}" if types else f"it has no kernel for this {op}"
        )
    kernels = listed[provider].get((node.domain, op), [])
    if not kernels:
        return f"it has no kernel for {op}"
    opset = known.opset
    if opset is not None:
        kernels = [k for k in kernels if k.first_opset <= opset <= k.last_opset]
        if not kernels:
            return f"it has a kernel for {op}, but not of opset {opset}"
    if types and not any(k.types.issuperset(known.types) for k in kernels):
        return f"it has a kernel for {op}, but not for {types}"
    if not types or opset is None:
        return f"it has a kernel for {op}, but not for these types or this opset"
    return f"it has a kernel for {op}, but ONNX Runtime chose the CPU"


@functools.cache
def _kernels() -> Mapping[str, Mapping[tuple[str, str], list[_Kernel]]]:
    """Of providers built into this ONNX Runtime that list theirs: provider -> domain, op -> all."""
    found: dict[str, dict[tuple[str, str], list[_Kernel]]] = {}
    for listed in native.get_all_opkernel_def():
        types = {t.removeprefix("tensor(").removesuffix(")") for t in _flat(listed)}
        first, last = listed.version_range
        kernel = _Kernel(first, last, frozenset(types))
        ops = found.setdefault(listed.provider, {})
        ops.setdefault((listed.domain, listed.op_name), []).append(kernel)
    return found


def _flat(listed: Any) -> Iterator[str]:
    for types in listed.type_constraints.values():
        yield from types


def _read(path: Path) -> dict[str, _Known]:
    """Of the graph's named nodes; nothing for a file that cannot be read as one."""
    try:
        return _known_nodes(memoryview(path.read_bytes()))
    except (OSError, ValueError, IndexError):
        return {}


def _known_nodes(model: memoryview) -> dict[str, _Known]:
    # The numbers are those of onnx.proto's fields.
    graph = memoryview(b"")
    opsets: dict[str, int] = {}
    for number, value in fields(model):
        if number == 7:
            graph = _bytes(value)
        elif number == 8:
            opset = dict(fields(_bytes(value)))
            opsets[_text(opset.get(1, memoryview(b"")))] = _int(opset.get(2, 0))
    types: dict[str, str] = {}
    nodes: list[memoryview] = []
    constants: set[str] = set()
    edges: set[str] = set()
    for number, value in fields(graph):
        if number == 1:
            nodes.append(_bytes(value))
        elif number == 5:
            tensor = {n: v for n, v in fields(_bytes(value)) if n in (2, 8)}
            name = _text(tensor.get(8, memoryview(b"")))
            constants.add(name)
            types[name] = _type(tensor.get(2, 0))
        elif number in (11, 12, 13):
            info = dict(fields(_bytes(value)))
            name = _text(info.get(1, memoryview(b"")))
            types[name] = _type_of_value(_bytes(info.get(2, memoryview(b""))))
            if number != 13:
                edges.add(name)
    return _described(nodes, types, constants, edges - constants, opsets)


def _described(
    nodes: list[memoryview],
    types: Mapping[str, str],
    constants: set[str],
    edges: set[str],
    opsets: Mapping[str, int],
) -> dict[str, _Known]:
    found: dict[str, _Known] = {}
    shapes: set[str] = set()  # tensors that depend on nothing but shapes
    for data in nodes:  # in an order in which they can run
        inputs: list[str] = []
        outputs: list[str] = []
        single = {3: "", 4: "", 7: ""}  # name, operator, domain
        for number, value in fields(data):
            if number in (1, 2):
                (inputs if number == 1 else outputs).append(_text(value))
            elif number in single:
                single[number] = _text(value)
        inputs = [name for name in inputs if name]
        variable = [name for name in inputs if name not in constants]
        if not variable:
            constants.update(outputs)
        of_shapes = single[4] in _SHAPES or (bool(variable) and shapes.issuperset(variable))
        if of_shapes:
            shapes.update(outputs)
        found[single[3]] = _Known(
            tuple(types[name] for name in inputs if types.get(name)),
            opsets.get(single[7]),
            not edges.isdisjoint([*inputs, *outputs]),
            of_shapes,
        )
    found.pop("", None)
    return found


def _type_of_value(data: memoryview) -> str:
    for number, tensor in fields(data):
        if number == 1:
            return _type(dict(fields(_bytes(tensor))).get(1, 0))
    return ""


def _type(value: int | memoryview) -> str:
    return _TYPES.get(_int(value), "")


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode()


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number in place of bytes")
    return value


def _int(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes in place of a number")
    return value
