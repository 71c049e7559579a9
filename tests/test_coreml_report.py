"""The report of Core ML programs: it says what coremltools' own protobuf classes say, refuses files
that are not what the manifest says, and its rules see types, shapes and places.
"""

import json
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("coremltools", reason="the extra coreml is not installed")

from coremltools.proto import Model_pb2

from edgejudge.bundle import Bundle, FidelityRecord, TensorRecord
from edgejudge.cli import main
from edgejudge.coreml_packages import swift, write_packages
from edgejudge.coreml_report import NOTE, FunctionReport, Report, report
from edgejudge.errors import BundleError
from edgejudge.export import Cut, export, seal
from edgejudge.mil_file import read_program
from edgejudge.neural_engine import RULES, leaving
from families import FAMILIES
from mil_by_hand import Op, by_hand

ORDINARY = "smolvlm"
H = "float16"


def exported(family: str, root: Path) -> Bundle:
    checkpoint = FAMILIES[family].make_checkpoint(root / "checkpoint")
    export(checkpoint, root / "out", "small", Cut(3), targets=("cpu", "coreml"))
    seal(root / "out", FidelityRecord("synthetic", 0, 0.0, 0.0, 0.0, None, None, None))
    return Bundle.open(root / "out")


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exported(ORDINARY, tmp_path_factory.mktemp("one"))


# --- what coremltools says of the same files ------------------------------------------------------


def _protobuf(bundle: Bundle, file: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The model, its descriptions and its blocks by function."""
    model = Model_pb2.Model.FromString((bundle.path / file).read_bytes())
    about = {d.name: d for d in model.description.functions}
    functions = model.mlProgram.functions
    if not about:
        about = dict.fromkeys(functions, model.description)
    return model, about, {n: f.block_specializations[f.opset] for n, f in functions.items()}


def _shapes(features: Any, state: bool = False) -> list[tuple[str, tuple[str, ...]]]:
    arrays = [f.type.stateType.arrayType if state else f.type.multiArrayType for f in features]
    return [(f.name, tuple(map(str, a.shape))) for f, a in zip(features, arrays, strict=True)]


def _named(tensors: tuple[TensorRecord, ...]) -> list[tuple[str, tuple[str, ...]]]:
    return [(t.name, t.shape) for t in tensors]


def _weights(bundle: Bundle, file: str, blocks: dict[str, Any]) -> int:
    """Bytes that several functions read, as the records in the file of weights have them."""
    data = (bundle.path / file.replace(".mlmodel", ".weights.bin")).read_bytes()
    places = Counter(
        place
        for block in blocks.values()
        for place in {
            value.blobFileValue.offset
            for op in block.operations
            for value in (
                *op.attributes.values(),
                *(bound.value for read in op.inputs.values() for bound in read.arguments),
            )
            if value.HasField("blobFileValue")
        }
    )
    sizes = {place: struct.unpack_from("<IIQQ", data, place)[2] for place in places}
    return sum(size for place, size in sizes.items() if places[place] > 1)


def test_the_report_says_what_the_protobuf_classes_say(bundle: Bundle) -> None:
    found = report(bundle)
    graphs = [g for g in bundle.manifest.graphs if g.target == "coreml"]
    assert [p.file for p in found.programs] == list(dict.fromkeys(g.file for g in graphs))
    for program in found.programs:
        model, about, blocks = _protobuf(bundle, program.file)
        assert program.specification == model.specificationVersion
        assert program.systems == "iOS 18 / macOS 15"
        weights = bundle.path / program.file.replace(".mlmodel", ".weights.bin")
        assert program.weight_bytes == weights.stat().st_size
        assert program.bytes == (bundle.path / program.file).stat().st_size
        assert program.shared_weight_bytes == _weights(bundle, program.file, blocks)
        assert {f.name for f in program.functions} == blocks.keys()
        for function in program.functions:
            described, operations = about[function.name], blocks[function.name].operations
            assert _named(function.inputs) == _shapes(described.input)
            assert _named(function.outputs) == _shapes(described.output)
            assert _named(function.states) == _shapes(described.state, True)
            assert function.operations == Counter(op.type for op in operations)
            constants = function.operations.get("const", 0)
            assert function.computing == len(operations) - constants


def _function(found: Report, stage: str, name: str) -> FunctionReport:
    (program,) = [p for p in found.programs if f".{stage}." in p.file]
    (function,) = [f for f in program.functions if f.name == name]
    return function


def _left(function: FunctionReport) -> dict[str, int]:
    by_rule: Counter[str] = Counter()
    for left in function.leaves:
        assert left.reason.startswith("reported: ") == left.reported and left.sources
        by_rule[left.rule] += left.count
    return dict(by_rule)


def test_a_judge_is_told_what_leaves_the_engine(one: Bundle) -> None:
    """Of one layer, whose keys are half as wide as an engine wants."""
    found = report(one)
    chunk = _function(found, "decoder.0", "tokens128")
    token = _function(found, "decoder.0", "tokens1")
    assert _left(token) == {
        "blocks": 7,  # q, k, v, o and three of the layer's network
        "integers": 6,  # of keys and of values: where to begin, where to end, and a sum
        "state_width": 6,
        "state_write": 2,
        "moving_slice": 2,
    }
    assert (token.leaving, token.reported) == (13, 8)
    assert _left(chunk) == _left(token) | {"long_update": 2}
    head = _function(found, "verdict_head", "tokens64")
    assert _left(head) == {"float32": head.computing} and head.leaving == head.computing
    assert found.note == NOTE


# --- rules ----------------------------------------------------------------------------------------

X = {"x": (H, (1, 64))}


def matmul(wide: int, kind: str = H) -> bytes:
    product: Op = ("matmul", {"x": "x", "y": (kind, (wide, 64))}, {"y": (kind, (1, wide))})
    return by_hand([product], {"x": (kind, (1, 64))})


def conv(channels: int) -> bytes:
    product: Op = (
        "conv",
        {"x": "x", "weight": (H, (channels, 64, 1, 1))},
        {"y": (H, (1, channels, 1, 8))},
    )
    return by_hand([product], {"x": (H, (1, 64, 1, 8))})


def unpacked(scale: tuple[int, ...], palette: bool = False) -> bytes:
    operations: list[Op] = []
    data: Any = ("int4", (32, 64))
    if palette:
        table = {"indices": ("uint4", (32, 64)), "lut": (H, (1, 1, 16, 1))}
        operations.append(("constexpr_lut_to_dense", table, {"dense": (H, (32, 64))}))
        data = "dense"
    scaled = {"data": data, "scale": (H, scale)}
    operations.append(("constexpr_blockwise_shift_scale", scaled, {"w": (H, (32, 64))}))
    operations.append(("matmul", {"x": "x", "y": "w"}, {"y": (H, (1, 32))}))
    return by_hand(operations, X)


def palette() -> bytes:
    table = {"indices": ("uint4", (32, 64)), "lut": (H, (1, 1, 16, 1))}
    dense: Op = ("constexpr_lut_to_dense", table, {"w": (H, (32, 64))})
    return by_hand([dense, ("matmul", {"x": "x", "y": "w"}, {"y": (H, (1, 32))})], X)


def shaped(kind: str, *shape: int) -> bytes:
    made: Op = (kind, {"x": "x", "y": "x"}, {"y": (H, shape)})
    return by_hand([made], {"x": (H, shape)})


def state(width: int, rows: int = 1, write: bool = False) -> bytes:
    """Reads a state, puts rows into what it read, and may write it back."""
    whole = (H, (2, 4, 256, width))
    place: dict[str, Any] = {"begin": [0, 0, 0, 0], "end": [1, 4, rows, width]}
    operations: list[Op] = [
        ("read_state", {"input": "s"}, {"old": whole}),
        ("slice_update", {"x": "old", "update": "x", **place}, {"y": whole}),
    ]
    if write:
        operations.append(("write_state", {"input": "s", "data": "y"}, {}))
    return by_hand(operations, {"x": (H, (1, 4, rows, width))}, {"s": whole})


def sliced(kind: str, moving: bool) -> bytes:
    place: Any = {"begin": "at" if moving else [0, 0], "end": [1, 8]}
    made: Op = (kind, {"x": "x", **place}, {"y": (H, (1, 8))})
    return by_hand([made], {**X, "at": ("int32", (2,))})


def typed(kind: str) -> bytes:
    return by_hand([("add", {"x": "x", "y": "x"}, {"y": (kind, (1, 64))})], {"x": (kind, (1, 64))})


def repeated(times: int) -> bytes:
    made: Op = ("tile", {"x": "x", "reps": [1, times]}, {"y": (H, (1, 64 * times))})
    return by_hand([made], X)


def plain(kind: str) -> bytes:
    return by_hand([(kind, {"x": "x"}, {"y": (H, (1, 64))})], X)


# rule -> a program by which it leaves the engine, and its twin that stays
TWINS: dict[str, list[tuple[bytes, bytes]]] = {
    "float32": [(typed("float32"), typed(H)), (matmul(64, "float32"), matmul(64))],
    "integers": [(typed("int32"), typed(H))],
    "blocks": [
        (unpacked((32, 2)), unpacked((32, 1))),
        (unpacked((4, 1)), unpacked((1, 1))),
    ],
    "axis_65536": [(matmul(65537), matmul(16384)), (conv(65537), conv(65536))],
    "axis_16384": [
        (matmul(16385), matmul(16384)),
        (matmul(65536), conv(65536)),
        (shaped("add", 1, 64, 1, 16385), shaped("add", 1, 64, 1, 16384)),
    ],
    "rank_6": [(shaped("add", 1, 1, 1, 1, 2, 2), shaped("add", 1, 1, 2, 2))],
    "matmul_rank": [(shaped("matmul", 1, 1, 1, 2, 2), shaped("matmul", 1, 1, 2, 2))],
    "rank_5": [(shaped("transpose", 1, 1, 1, 2, 2), shaped("transpose", 1, 1, 2, 2))],
    "state_width": [(state(80), state(96))],
    "state_write": [(state(64, write=True), state(64))],
    "moving_slice": [
        (sliced(kind, True), sliced(kind, False)) for kind in ("slice_update", "slice_by_index")
    ],
    "long_update": [(state(64, rows=33), state(64, rows=32))],
    "scaled_palette": [(unpacked((32, 1), palette=True), palette())],
    "tile": [(repeated(6), repeated(8)), (repeated(7), repeated(1))],
    "gather": [(plain("gather"), plain("relu"))],
    "no_path": [(plain("scatter"), plain("relu")), (plain("lstm"), plain("silu"))],
}


def fired(data: bytes) -> set[str]:
    (function,) = read_program(data, "x").functions
    return {rule.name for op in function.operations for rule in leaving(op)}


def test_every_rule_has_twins_and_sources() -> None:
    assert TWINS.keys() == {rule.name for rule in RULES}
    assert all(url.startswith("https://") for rule in RULES for url in rule.sources)
    assert all(rule.sources for rule in RULES)


@pytest.mark.parametrize(
    ("rule", "bad", "good"), [(rule, *pair) for rule, pairs in TWINS.items() for pair in pairs]
)
def test_a_rule_fires_on_a_program_and_on_its_twin_it_does_not(
    rule: str, bad: bytes, good: bytes
) -> None:
    assert fired(bad) - fired(good) == {rule} and rule not in fired(good)


def test_what_is_cast_and_what_is_unpacked_stays() -> None:
    operations: list[Op] = [
        ("cast", {"x": "x"}, {"z": (H, (1, 64))}),
        ("cast", {"x": "z"}, {"y": ("float32", (1, 64))}),
    ]
    assert fired(by_hand(operations, {"x": ("float32", (1, 64))})) == set()
    assert fired(unpacked((32, 1))) == set()


# --- the file against the manifest ----------------------------------------------------------------


def _changed(bundle: Bundle, stage: str, change: Callable[[Any], Any]) -> Bundle:
    """The bundle as if its manifest said something else of a stage's first program."""
    graphs = list(bundle.manifest.graphs)
    at = next(i for i, g in enumerate(graphs) if (g.target, g.stage) == ("coreml", stage))
    graphs[at : at + 1] = change(graphs[at])
    return replace(bundle, manifest=replace(bundle.manifest, graphs=tuple(graphs)))


def _input(shape: tuple[str, ...], dtype: str = "int32") -> Callable[[Any], Any]:
    def change(graph: Any) -> Any:
        inputs = [t for t in graph.inputs if t.name != "begin"]
        return [replace(graph, inputs=(*inputs, TensorRecord("begin", dtype, shape)))]

    return change


def _kv(**changes: Any) -> Callable[[Any], Any]:
    return lambda graph: [replace(graph, kv=replace(graph.kv, **changes))]


def _without(which: str) -> Callable[[Any], Any]:
    return lambda graph: [replace(graph, **{which: getattr(graph, which)[1:]})]


def _more(graph: Any) -> Any:
    return [replace(graph, outputs=(*graph.outputs, TensorRecord("new_key_0", H, ("1",))))]


DIFFERENT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an input's shape": (_input(("2",)), r"tokens128 has the input begin as int32 \[1\], and .*2"),
    "an input's type": (_input(("1",), H), r"tokens128 has the input begin as int32 .* float16"),
    "an input more": (_without("inputs"), r"tokens128 has the input 'hidden', and the manifest d"),
    "an output more": (_without("outputs"), r"tokens128 has the output 'hidden_out', and the man"),
    "an output less": (_more, r"tokens128 has no output new_key_0, and the manifest has it"),
    "the state's rows": (_kv(length_buckets=(64,)), r"the state keys as float16 \[1, 2, 2048, 16"),
    "the state's type": (_kv(dtype="float32"), r"tokens128 has the state keys as float16"),
    "no state": (_kv(layout="BNSH"), r"tokens128 has the state 'keys', and the manifest does not"),
    "a function less": (lambda g: [g, replace(g, tokens=7)], r"has no function tokens7, and the"),
    "a function more": (lambda g: [], r"has the function 'tokens128', and the manifest does not"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_file_that_is_not_what_the_manifest_says_is_refused_by_name(
    one: Bundle, what: str, tmp_path: Path
) -> None:
    change, said = DIFFERENT[what]
    other = _changed(one, "decoder", change)
    with pytest.raises(BundleError, match=rf"^coreml\..*decoder\.0\.mlmodel: .*{said}") as problem:
        report(other)
    assert str(problem.value).endswith("export the bundle again")
    with pytest.raises(BundleError, match=said):
        write_packages(other, tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


def test_layers_of_a_part_are_those_of_its_state(one: Bundle) -> None:
    parts = [replace(part, last_layer=part.last_layer + 1) for part in one.manifest.parts]
    other = replace(one, manifest=replace(one.manifest, parts=tuple(parts)))
    with pytest.raises(BundleError, match=r"state keys as .*\[1, 2, 2048, 16\], and .* \[2, 2, "):
        report(other)


# --- bytes of strangers ---------------------------------------------------------------------------


def test_a_program_that_ends_anywhere_is_refused(one: Bundle) -> None:
    graph = next(g for g in one.manifest.graphs if (g.target, g.stage) == ("coreml", "lm_head"))
    data = (one.path / graph.file).read_bytes()
    read_program(data, "x")
    for end in range(0, len(data), 37):
        with pytest.raises(BundleError, match="x: is no Core ML program .*export the bundle again"):
            read_program(data[:end], "x")


@given(st.binary(max_size=200))
def test_bytes_of_strangers_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="is no Core ML program"):
        read_program(data, "x")


WHOLE = state(96, write=True)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), st.binary(max_size=3))
@settings(max_examples=300)
def test_changed_bytes_are_a_program_or_refused(at: int, byte: int, more: bytes) -> None:
    """Whatever is read can be reported on."""
    data = WHOLE[:at] + bytes([byte]) + more + WHOLE[at + 1 :]
    try:
        program = read_program(data, "x")
    except BundleError as error:
        assert "\n" not in str(error)
    else:
        for function in program.functions:
            for operation in function.operations:
                list(leaving(operation))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.ClearField("mlProgram"), "it has no program"),
        (lambda m: m.mlProgram.functions["other"], "its functions are not those"),
        (lambda m: m.description.input[0].type.multiArrayType.shape.append(2), "the inputs of"),
        (lambda m: m.description.ClearField("state"), "the states of 'main' are not those"),
        (lambda m: _block(m).outputs.append("z"), "'z' is read and never made"),
        (lambda m: _block(m).operations.add().CopyFrom(_block(m).operations[0]), "made twice"),
        (lambda m: setattr(m.mlProgram.functions["main"], "opset", "?"), "no operations for its"),
    ],
)
def test_programs_that_contradict_themselves_are_refused(
    change: Callable[[Any], Any], said: str
) -> None:
    model = Model_pb2.Model.FromString(WHOLE)
    change(model)
    with pytest.raises(BundleError, match=said):
        read_program(model.SerializeToString(), "x")


def _block(model: Any) -> Any:
    return model.mlProgram.functions["main"].block_specializations["CoreML8"]


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_the_report_without_coremltools(one: Bundle) -> None:
    """Nor a library for protobuf, nor torch."""
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('coremltools', 'google.protobuf', 'torch', 'onnx'))\n"
        "from edgejudge.cli import main\n"
        f"sys.exit(main(['coreml', {str(one.path)!r}, '--json']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()
    found = json.loads(line)
    assert found["schema_version"] == 1 and found["fingerprint"] == one.fingerprint
    assert [p["file"] for p in found["programs"]] == [p.file for p in report(one).programs]


def test_the_command_says_what_leaves_and_why(
    one: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["coreml", str(one.path)]) == 0
    said = capsys.readouterr().out
    assert "keeps keys 1 x 2 x 2048 x 16 float16" in said and NOTE in said
    for program in report(one).programs:
        assert program.file in said
        for function in program.functions:
            for left in function.leaves:
                assert f"{left.count} {left.operation}" in said
                assert f"{left.rule}: {left.reason}" in said


def test_packages_come_with_the_report(
    one: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["coreml", str(one.path), "--out", str(tmp_path / "packages"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "packages" / "report.json").read_bytes()) == printed
    assert (tmp_path / "packages" / "Judge.swift").is_file()


def test_the_name_of_a_bundle_is_no_code(one: Bundle) -> None:
    evil = replace(one, manifest=replace(one.manifest, name="nano\nimport Evil"))
    code = [line for line in swift(evil).splitlines() if line and not line.startswith("//")]
    assert code[0] == "import CoreML" and not any("Evil" in line for line in code)


def test_a_bundle_without_programs_has_no_report(capsys: pytest.CaptureFixture[str]) -> None:
    nano = Path(__file__).parent.parent / "models" / "nano" / "bundle"
    assert main(["coreml", str(nano)]) == 2
    assert (
        "has no graphs for coreml; export it with --targets cpu,coreml" in capsys.readouterr().err
    )
