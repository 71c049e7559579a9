"""The Core ML target: packages read from their files and run by an interpreter of their own give
what the reference gives over the same weights, packed or one by one, and mutated ones do not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("coremltools", reason="the extra coreml is not installed")

from coreml_cases import BAND, ORDINARY, Case, made
from coreml_judge import CoremlJudge
from edgejudge.bundle import Bundle
from edgejudge.cli import main
from edgejudge.coreml_packages import write_packages
from edgejudge.coreml_report import report
from edgejudge.errors import BundleError, ExportError
from edgejudge.export import (
    Cut,
    Exact,
    Plan,
    Reference,
    asked_of,
    export,
    open_checkpoint,
    recipe_named,
    yes_probability,
)
from families import FAMILIES
from mil_program import Package
from outliers import HUGE, huge_residuals, pictures_of

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(ORDINARY, tmp_path_factory.mktemp("one"))


def asked(
    case: Case, packed: bool = True, change: Callable[[CoremlJudge], None] | None = None
) -> Any:
    judge = CoremlJudge(case.bundle, case.root / "packages")
    if change is not None:
        change(judge)
    position = judge.prefill(case.ids, judge.encode(case.image), case.positions)
    return judge.ask(case.branches, position, packed)


def test_packages_give_what_the_reference_gives(case: Case) -> None:
    found = asked(case)
    assert np.abs(found - case.wanted).max() < BAND
    labels = case.opened.labels.labels
    ours, theirs = (yes_probability(x.astype(np.float64), labels) for x in (found, case.wanted))
    assert np.abs(ours - theirs).max() < 0.02 and ((ours > 0.5) == (theirs > 0.5)).all()


def test_packed_questions_are_separate_ones(case: Case) -> None:
    assert np.abs(asked(case) - asked(case, packed=False)).max() < BAND / 3


def test_a_fork_is_a_fresh_prompt(one: Case) -> None:
    judge = CoremlJudge(one.bundle, one.root / "packages")
    position = judge.prefill(one.ids, judge.encode(one.image), one.positions)
    first = judge.ask(one.branches, position, True)
    judge.ask([[70] * 40], position, True)  # written over the same rows
    assert (judge.ask(one.branches, position, True) == first).all()


def swapped_states(judge: CoremlJudge) -> None:
    run = judge.run

    def mutated(graph: Any, feeds: Any, state: Any = None) -> Any:
        if state is not None:
            state["keys"], state["values"] = state["values"].copy(), state["keys"].copy()
        return run(graph, feeds, state)

    judge.run = mutated  # type: ignore[method-assign]


def a_row_late(judge: CoremlJudge) -> None:
    run = judge.run

    def mutated(graph: Any, feeds: Any, state: Any = None) -> Any:
        if "begin" in feeds:
            feeds = {**feeds, "begin": [feeds["begin"][0] + 1]}
        return run(graph, feeds, state)

    judge.run = mutated  # type: ignore[method-assign]


def the_other_parts_weights(judge: CoremlJudge) -> None:
    """Blobs of the same sizes, whose contents are those of other layers."""
    first, second = (judge.package(judge.graphs("decoder", part)[0]) for part in (0, 1))
    first.folder, second.folder = second.folder, first.folder


def another_matrix(judge: CoremlJudge) -> None:
    """In the function of a chunk, the scales of two projections of one layer changed places."""
    block = judge.package(judge.graphs("decoder", 0)[0]).block("tokens128")
    _, keys, values, *_ = (
        op.inputs["scale"].arguments[0].value.blobFileValue
        for op in block.operations
        if op.type == "constexpr_blockwise_shift_scale"
    )
    keys.offset, values.offset = values.offset, keys.offset


# Rules about a state: who writes to it, how wide it is, and the integers that say where.
STATEFUL = {"integers", "state_width", "state_write", "moving_slice", "long_update"}
MUTATIONS = (swapped_states, a_row_late, the_other_parts_weights, another_matrix)


@pytest.mark.parametrize("change", MUTATIONS, ids=lambda f: f.__name__)
def test_what_is_wrong_is_seen(one: Case, change: Callable[[CoremlJudge], None]) -> None:
    assert np.abs(asked(one) - one.wanted).max() < BAND
    assert np.abs(asked(one, change=change) - one.wanted).max() > 3 * BAND


# --- structure and bad input ---------------------------------------------------------------------


def test_functions_share_weights_and_say_what_they_take(one: Case) -> None:
    graphs = [g for g in one.bundle.manifest.graphs if g.target == "coreml"]
    sizes = {file.name: file.bytes for file in one.bundle.manifest.files}
    for graph in graphs:
        package = CoremlJudge(one.bundle, one.root / "packages").package(graph)
        described = package.description(graph.function)
        for ours, theirs in (
            (graph.inputs, described.input),
            (graph.outputs, described.output),
        ):
            assert [t.name for t in ours] == [t.name for t in theirs]
            assert [tuple(map(int, t.shape)) for t in ours] == [
                tuple(t.type.multiArrayType.shape) for t in theirs
            ]
        assert [s.name for s in described.state] == (["keys", "values"] if graph.kv else [])
        assert package.spec.specificationVersion == 9, "iOS 18"
        kinds = set(package.operations(graph.function))
        assert ("constexpr_blockwise_shift_scale" in kinds) == (graph.stage != "verdict_head")
    decoder = [g for g in graphs if g.stage == "decoder" and g.part == 0]
    assert [g.tokens for g in decoder] == [128, 1] and decoder[0].file == decoder[1].file
    (weights,) = decoder[0].weight_files
    stored = sum(record.bytes for record in _target(one).quantization if record.group == "decoder")
    # All parts together are the records' bytes: nothing is there once for each function.
    parts = sum(sizes[weights.replace(".0.", f".{part}.")] for part in range(3))
    assert parts < 1.2 * stored


def _target(one: Case) -> Any:
    (target,) = one.bundle.manifest.targets
    return target


def test_chunks_of_64_can_be_had(tmp_path: Path) -> None:
    checkpoint = FAMILIES[ORDINARY].make_checkpoint(tmp_path / "checkpoint")
    export(checkpoint, tmp_path / "out", "w8", targets=("cpu", "coreml:chunk64"))
    manifest = Bundle.open(tmp_path / "out", unsealed=True).manifest
    sizes = {g.tokens for g in manifest.graphs if (g.target, g.stage) == ("coreml", "decoder")}
    assert sizes == {64, 1}


def test_tables_of_levels_are_the_same_weights(tmp_path: Path) -> None:
    """To the last bit, in as many bytes; and they are what the matrices are read from."""
    checkpoint = FAMILIES[ORDINARY].make_checkpoint(tmp_path / "checkpoint")
    export(checkpoint, tmp_path / "out", "small", targets=("cpu", "coreml", "coreml:lut"))
    bundle = Bundle.open(tmp_path / "out", unsealed=True)
    write_packages(bundle, tmp_path / "packages")
    sizes = {file.name: file.bytes for file in bundle.manifest.files}
    rng = np.random.default_rng(0)
    for stage in ("vision", "decoder.0", "lm_head"):
        plain, tables = (
            Package(tmp_path / "packages" / f"coreml.{form}.{stage}.mlpackage")
            for form in ("chunk128", "lut")
        )
        for function in plain.functions:
            kinds = tables.operations(function)
            levels = kinds.count("constexpr_blockwise_shift_scale")
            wanted = 0 if stage == "vision" else levels  # a tower's are of eight bits
            assert levels and kinds.count("constexpr_lut_to_dense") == wanted
            feeds = {
                tensor.name: rng.standard_normal(tuple(tensor.type.multiArrayType.shape))
                for tensor in plain.description(function).input
            }
            typed = {
                name: np.array([3], np.int32) if name == "begin" else value.astype(np.float16)
                for name, value in feeds.items()
            }
            ours, theirs = (p.run(function, typed, p.new_state(function)) for p in (tables, plain))
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
        weights = f"coreml.chunk128.{stage}.weights.bin"
        more = sizes[weights.replace("chunk128", "lut")] - sizes[weights]
        assert 0 <= more <= 256 * levels, "a table and its record for each matrix"


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_one_scale_are_weights_of_their_own(family: str, tmp_path: Path) -> None:
    """As their own record in the manifest says; nothing of a tower is known to leave the Neural
    Engine then, and of a decoder what has to do with its state alone.
    """
    case = made(family, tmp_path, "coreml:rows", lambda recipe: recipe.for_npu(8))
    (record,) = case.bundle.manifest.targets
    assert record.variant == "rows" and {q.bits for q in record.quantization} == {8, 16, 32}
    assert np.abs(asked(case) - case.wanted).max() < BAND
    for program in report(case.bundle).programs:
        told = {left.rule for f in program.functions for left in f.leaves}
        if ".vision." in program.file:
            assert not told
        elif ".decoder." in program.file:
            assert told <= STATEFUL


def test_a_program_that_points_elsewhere_is_refused(one: Case, tmp_path: Path) -> None:
    from edgejudge.mil_file import check_program

    (graph, *_) = [g for g in one.bundle.manifest.graphs if g.target == "coreml"]
    data = (one.bundle.path / graph.file).read_bytes()
    check_program(data, "x")
    with pytest.raises(BundleError, match="points into a file that is not its weights"):
        check_program(data.replace(b"@model_path/weights/", b"@model_path/../../../", 1), "x")


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_of_ten_thousand_do_not_overflow(family: str, tmp_path: Path) -> None:
    """In the tower and in the decoder, with weights that are not rounded but to 16 bits."""
    opened = huge_residuals(
        open_checkpoint(FAMILIES[family].make_checkpoint(tmp_path / "checkpoint"))
    )
    plan = Plan(recipe_named("exact"), opened.family.group_of)
    export(opened, tmp_path / "out", plan, Cut(2), targets=("cpu", "coreml"))
    bundle = Bundle.open(tmp_path / "out", unsealed=True)
    write_packages(bundle, tmp_path / "packages")
    (asked_for,) = asked_of(opened, pictures_of(opened, 1))
    exact = Reference(opened.spec, Exact(opened.weights), opened.tokens.image, torch.float64)
    (wanted,) = exact.ask([asked_for], opened.labels.token_ids)
    judge = CoremlJudge(bundle, tmp_path / "packages")
    seen: list[float] = []
    run = judge.run

    def watched(graph: Any, feeds: Any, state: Any = None) -> Any:
        found = run(graph, feeds, state)
        seen.append(float(np.abs(found).max()))
        return found

    judge.run = watched  # type: ignore[method-assign]
    visual = judge.encode(dict(asked_for.feeds))
    position = judge.prefill(asked_for.ids, visual, asked_for.positions)
    found = judge.ask(asked_for.branches, position, True)
    assert np.isfinite(found).all() and max(seen) > 0.9 * HUGE
    assert np.abs(found - wanted).max() < BAND


def test_what_coremltools_refuses_names_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgejudge.export import coreml_ops

    checkpoint = FAMILIES[ORDINARY].make_checkpoint(tmp_path / "checkpoint")
    calls = iter(range(100))

    def refuse(**given: Any) -> Any:
        if next(calls) == 1:
            raise ValueError("Input x has rank\n 7")
        return silu(**given)

    silu = coreml_ops.mb.silu
    monkeypatch.setattr(coreml_ops.mb, "silu", refuse)
    with pytest.raises(ExportError) as caught:
        export(checkpoint, tmp_path / "out", "w8", targets=("cpu", "coreml"))
    told = str(caught.value)
    assert told.startswith(
        "the program coreml.chunk128.decoder.0: coremltools refuses what is done"
    )
    assert "layers.1.mlp" in told and "(Input x has rank 7); leave the target coreml out" in told
    assert not (tmp_path / "out").exists()


def test_weights_beyond_16_bits_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = FAMILIES[ORDINARY].make_checkpoint(tmp_path / "checkpoint")
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("text_model.norm.weight") or "norm" in n)
    weights[name] = weights[name] * 1e6
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ExportError, match=r"norm.* holds values beyond 16-bit floats"):
        export(checkpoint, tmp_path / "out", "w8", targets=("cpu", "coreml"))
    assert not (tmp_path / "out").exists()


def test_packages_of_a_bundle_without_them_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nano = Path(__file__).parent.parent / "models" / "nano" / "bundle"
    assert main(["coreml", str(nano), "--out", str(tmp_path / "p")]) == 2
    assert "export it with --targets cpu,coreml" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_packages_do_not_take_the_place_of_others(one: Case, tmp_path: Path) -> None:
    from edgejudge.errors import InputError

    made = write_packages(one.bundle, tmp_path)
    assert (tmp_path / "Judge.swift").read_text().count(".mlpackage, tokens") >= len(made)
    with pytest.raises(InputError, match="is there already"):
        write_packages(one.bundle, tmp_path)


def test_without_coremltools_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith("edgejudge.export.coreml")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "coremltools", None)
    monkeypatch.setitem(sys.modules, "coremltools.converters.mil", None)
    checkpoint = FAMILIES[ORDINARY].make_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match=r"edgejudge\[export,coreml\]"):
        export(checkpoint, tmp_path / "out", "w8", targets=("cpu", "coreml"))
