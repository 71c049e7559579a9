"""The report of Core ML programs: it says what coremltools' own protobuf classes say, and files
that are not what the manifest says, or no programs, are refused.
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
from edgejudge.neural_engine import leaving
from families import FAMILIES
from mil_by_hand import state

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
        "integers": 3,  # where to begin, where to end, and a sum
        "state_width": 6,
        "state_write": 2,
        "moving_slice": 2,
    }
    assert (token.leaving, token.reported) == (10, 8)
    assert _left(chunk) == _left(token) | {"long_update": 2}
    head = _function(found, "verdict_head", "tokens64")
    assert _left(head) == {"float32": head.computing} and head.leaving == head.computing
    assert found.note == NOTE


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
