"""What a bundle's Core ML programs are, and what of them is known to leave the Neural Engine.

Takes an opened bundle; gives a report of every program as it stands in its files, after it was held
against the manifest: functions, inputs, outputs and states, their types and shapes. Needs no
coremltools and runs nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgejudge.bundle import Bundle, GraphRecord, TensorRecord
from edgejudge.errors import BundleError
from edgejudge.manifest import STATES
from edgejudge.mil_file import CONSTANT, Function, Program, Value, read_program
from edgejudge.neural_engine import Rule, leaving
from edgejudge.printable import brief

__all__ = [
    "NOTE",
    "SCHEMA_VERSION",
    "FunctionReport",
    "Leaving",
    "ProgramReport",
    "Report",
    "programs",
    "report",
]

SCHEMA_VERSION = 1
NOTE = (
    "What leaves the Neural Engine is told from what has been published about it and was measured "
    "on no device; the compute plan of a Mac or a phone tells what runs where (MLComputePlan, or "
    "Xcode's performance report)."
)
_SYSTEMS = {  # version of a specification -> the first systems that load it
    6: "iOS 15 / macOS 12",
    7: "iOS 16 / macOS 13",
    8: "iOS 17 / macOS 14",
    9: "iOS 18 / macOS 15",
    10: "iOS 26 / macOS 26",
}


@dataclass(frozen=True, slots=True)
class Leaving:
    """`count` operations of a function that leave the engine by one rule; of `reported` ones the
    sources disagree, or there is but one.
    """

    operation: str
    count: int
    rule: str
    reported: bool
    reason: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FunctionReport:
    """`operations` are all, by type; `computing` those that are no constants. `leaving` of them are
    known to leave the engine, and `reported` more are reported to.
    """

    name: str
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    states: tuple[TensorRecord, ...]
    operations: Mapping[str, int]
    computing: int
    leaving: int
    reported: int
    leaves: tuple[Leaving, ...]


@dataclass(frozen=True, slots=True)
class ProgramReport:
    """`shared_weight_bytes` are those of weights that more than one function reads."""

    file: str
    variant: str
    bytes: int
    weight_bytes: int
    shared_weight_bytes: int
    specification: int
    systems: str
    functions: tuple[FunctionReport, ...]


@dataclass(frozen=True, slots=True)
class Report:
    schema_version: int
    bundle: str
    fingerprint: str
    note: str
    programs: tuple[ProgramReport, ...]


def programs(bundle: Bundle) -> list[list[GraphRecord]]:
    """The records of each. Raises BundleError for a bundle without any."""
    found: dict[str, list[GraphRecord]] = {}
    for graph in bundle.manifest.graphs:
        if graph.target == "coreml":
            found.setdefault(graph.file, []).append(graph)
    if not found:
        raise BundleError(
            f"{bundle.path}: has no graphs for coreml; export it with --targets cpu,coreml"
        )
    return list(found.values())


def report(bundle: Bundle) -> Report:
    """Raises BundleError for a bundle without programs, for files that are none, and for a program
    that is not what the manifest says.
    """
    return Report(
        schema_version=SCHEMA_VERSION,
        bundle=bundle.manifest.name,
        fingerprint=bundle.fingerprint,
        note=NOTE,
        programs=tuple(_program_report(bundle, graphs) for graphs in programs(bundle)),
    )


def _program_report(bundle: Bundle, graphs: Sequence[GraphRecord]) -> ProgramReport:
    file = graphs[0].file
    data = bundle.graph_file(graphs[0]).read_bytes()
    program = read_program(data, file)
    functions = _checked(bundle, graphs, program)
    sizes = {record.name: record.bytes for record in bundle.manifest.files}
    read = Counter(blob for function in functions for blob in function.blobs.items())
    return ProgramReport(
        file=file,
        variant=graphs[0].variant,
        bytes=len(data),
        weight_bytes=sum(sizes[name] for name in graphs[0].weight_files),
        shared_weight_bytes=sum(size for (_, size), times in read.items() if times > 1),
        specification=program.specification,
        systems=_SYSTEMS.get(
            program.specification, f"specification version {program.specification}"
        ),
        functions=tuple(map(_function_report, functions)),
    )


def _function_report(function: Function) -> FunctionReport:
    found: Counter[tuple[str, Rule]] = Counter()
    known = reported = 0
    for operation in function.operations:
        rules = list(leaving(operation))
        found.update((operation.type, rule) for rule in rules)
        if any(not rule.reported for rule in rules):
            known += 1
        elif rules:
            reported += 1
    kinds = Counter(operation.type for operation in function.operations)
    return FunctionReport(
        name=function.name,
        inputs=_records(function.inputs),
        outputs=_records(function.outputs),
        states=_records(function.states),
        operations=dict(sorted(kinds.items())),
        computing=kinds.total() - kinds[CONSTANT],
        leaving=known,
        reported=reported,
        leaves=tuple(_leaving(kind, rule, n) for (kind, rule), n in found.most_common()),
    )


def _leaving(operation: str, rule: Rule, count: int) -> Leaving:
    reason = f"reported: {rule.reason}" if rule.reported else rule.reason
    return Leaving(operation, count, rule.name, rule.reported, reason, rule.sources)


def _records(values: Sequence[Value]) -> tuple[TensorRecord, ...]:
    return tuple(TensorRecord(v.name, v.dtype, tuple(map(str, v.shape))) for v in values)


# --- the file against the manifest ---


def _checked(bundle: Bundle, graphs: Sequence[GraphRecord], program: Program) -> list[Function]:
    """The functions in the order of their records."""
    file, held = graphs[0].file, {function.name: function for function in program.functions}
    wanted = [graph.function for graph in graphs]
    for name in wanted:
        if name not in held:
            raise _differs(f"{file}: has no function {name}, and the manifest has it")
    for name in held:
        if name not in wanted:
            raise _differs(f"{file}: has the function '{brief(name)}', and the manifest does not")
    for graph in graphs:
        function = held[graph.function]
        for what, ours, theirs in (
            ("input", graph.inputs, function.inputs),
            ("output", graph.outputs, function.outputs),
            ("state", _states(bundle, graph), function.states),
        ):
            _same(f"{file}: the function {graph.function}", what, ours, _records(theirs))
    return [held[name] for name in wanted]


def _same(
    where: str, what: str, ours: Sequence[TensorRecord], theirs: Sequence[TensorRecord]
) -> None:
    found = {tensor.name: tensor for tensor in theirs}
    for tensor in ours:
        other = found.pop(tensor.name, None)
        if other is None:
            raise _differs(f"{where} has no {what} {tensor.name}, and the manifest has it")
        if other != tensor:
            raise _differs(
                f"{where} has the {what} {tensor.name} as {_said(other)}, "
                f"and the manifest as {_said(tensor)}"
            )
    for name in found:
        raise _differs(f"{where} has the {what} '{brief(name)}', and the manifest does not")


def _states(bundle: Bundle, graph: GraphRecord) -> tuple[TensorRecord, ...]:
    kv = graph.kv
    if kv is None or kv.layout != "state":
        return ()
    parts = [part for part in bundle.manifest.parts if graph.part in (None, part.index)]
    layers = sum(part.last_layer - part.first_layer + 1 for part in parts)
    shape = (layers, kv.kv_heads, kv.length_buckets[0], kv.head_dim)
    return tuple(TensorRecord(name, kv.dtype, tuple(map(str, shape))) for name in STATES)


def _said(tensor: TensorRecord) -> str:
    return f"{tensor.dtype} [{', '.join(tensor.shape)}]"


def _differs(problem: str) -> BundleError:
    return BundleError(f"{problem}; export the bundle again")
