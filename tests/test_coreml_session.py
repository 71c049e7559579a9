"""Core ML programs behind the engine: a judge over them decides as it does on the processor, and
hands keys and values over; where it is found, and where not.

On a Mac (`make test-mac`) the tests of `how` run Core ML itself; everywhere they run the same
programs by an interpreter in its place, as do those of what a Mac does at its worst.
"""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("coremltools", reason="the extra coreml is not installed")

import interpreted_coreml as ic
from coreml_cases import BAND, ORDINARY, WRITTEN, Case, made
from coreml_engine import ALL, ENGINE, answers, engine_on, ran
from edgejudge import Judge
from edgejudge.cli import main
from edgejudge.errors import InputError, ProviderError
from edgejudge.export import Cut, export, seal
from edgejudge.policy import load_policy
from edgejudge.runtime import Engine, coreml_tools, devices
from edgejudge.runtime.placement import UNITS, read_places
from edgejudge.unit_costs import measure_costs
from families import FAMILIES
from real_devices import NANO, UNMEASURED

torch.set_num_threads(1)
REASON = coreml_tools.absence()[0]
MAC = pytest.mark.skipif(bool(REASON), reason=f"{REASON}; on a Mac: make test-mac")
HOWS = ["interpreted", pytest.param("mac", marks=[pytest.mark.mac, MAC])]
PICTURES = sorted((NANO / "samples").glob("*.jpg"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In which nothing was kept before."""
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=HOWS)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "interpreted":
        ic.pretend(monkeypatch)
    return str(request.param)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> ic.Interpreted:
    return ic.pretend(monkeypatch)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(ORDINARY, tmp_path_factory.mktemp("one"))


# --- what it computes ----------------------------------------------------------------------------


def test_an_engine_over_programs_gives_what_the_reference_gives(case: Case, how: str) -> None:
    engine = engine_on(case.bundle, ALL)
    assert not engine.fleet.unused
    found = answers(engine, case)
    assert np.abs(found - case.wanted).max() < BAND
    assert np.abs(found - answers(engine, case, packed=False)).max() < BAND / 3
    assert ran(engine, "vision", "decoder") == {ENGINE} and not engine.trace.marks


def test_forks_are_fresh_prompts_and_cost_no_rows(one: Case, how: str) -> None:
    engine = engine_on(one.bundle, ALL)
    before = engine.fleet.moved.bytes
    visual = engine.encode_image(one.image)
    prefix = engine.prefill(one.ids, visual, one.positions)
    first = engine.score(prefix, one.branches)
    engine.score(prefix, [[70] * 40, [70] * 30 + [80]])  # written over the same rows
    assert (engine.score(prefix, one.branches) == first).all()
    # Rows come out of the programs; none goes back in, since their states hold them.
    handed = [s for s in engine.trace.spans if s.name == "handover" and s.counts["rows"] < 0]
    assert not handed and engine.fleet.moved.bytes > before
    fresh = answers(engine_on(one.bundle, ALL), one)
    assert np.abs(fresh - first).max() < 1e-6


@pytest.mark.parametrize(
    "place",
    ["decoder.1=coreml", "decoder.0=coreml,decoder.2=coreml", "vision=coreml"],
)
def test_parts_work_with_those_of_the_processor(one: Case, how: str, place: str) -> None:
    engine = engine_on(one.bundle, place)
    assert np.abs(answers(engine, one) - one.wanted).max() < BAND
    assert ran(engine, "vision", "decoder") == {ENGINE, "cpu"}


def test_a_prefix_that_was_kept_is_written_into_the_state(one: Case, how: str) -> None:
    """As one that another device computed is."""
    cpu = Engine.open(one.bundle, threads=1)
    visual = cpu.encode_image(one.image)
    prefix = cpu.prefill(one.ids, visual, one.positions)
    rows, wanted = cpu.snapshot(prefix), cpu.score(prefix, one.branches)
    assert rows is not None
    engine = engine_on(one.bundle, ALL)
    engine.score(engine.prefill([70, 71] * 60), one.branches)  # something else lay there
    restored = engine.restore(rows, prefix.position)
    found = engine.score(restored, one.branches)
    assert np.abs(found - wanted).max() < BAND and ran(engine) == {ENGINE}
    assert np.abs(engine.score(restored, one.branches) - found).max() < 1e-6


def test_text_is_written_a_token_at_a_time(one: Case, how: str) -> None:
    engine, found = engine_on(one.bundle, ALL), []
    prefix = engine.prefill(one.ids, engine.encode_image(one.image), one.positions)
    for token in WRITTEN:
        prefix, hidden = engine.step(token, prefix)
        found.append(engine.label_logits(hidden[None])[0])
    assert ran(engine, "writer") == {ENGINE}
    assert np.abs(np.stack(found) - one.written).max() < BAND


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nano")
    policies = [load_policy("stickers").record()]
    export(NANO / "checkpoint", root / "nano", "w8", Cut(2), policies, targets=("cpu", "coreml"))
    seal(root / "nano", UNMEASURED)
    return root / "nano"


def test_nano_decides_as_on_the_processor(nano: Path, how: str) -> None:
    more: dict[str, Any] = {"allow_random": True, "threads": 1}
    judge, cpu = Judge.load(nano, place=ALL, **more), Judge.load(nano, **more)
    assert len(PICTURES) == 6
    for picture in PICTURES:
        ours, theirs = (j.screen(picture, policy="stickers") for j in (judge, cpu))
        assert ours.placement["decoder.0"] == ours.placement["vision"] == ENGINE
        assert [r.verdict for r in ours.rules] == [r.verdict for r in theirs.rules], picture
        for mine, other in zip(ours.rules, theirs.rules, strict=True):
            assert mine.probability == pytest.approx(other.probability, abs=5e-3)


def test_every_compute_unit_that_is_found_is_right(one: Case, how: str) -> None:
    found, _ = devices.survey()
    units = [d.provider for d in found if d.provider in UNITS]
    assert "CPU_ONLY" in units
    for each in units:
        place = f"vision=coreml:{each.lower()},decoder=coreml:{each.lower()}"
        engine = engine_on(one.bundle, place)
        assert not engine.fleet.unused, each
        assert np.abs(answers(engine, one) - one.wanted).max() < BAND, each


# --- what a state does ---------------------------------------------------------------------------


def test_a_prompt_near_the_end_of_the_state_is_left_to_the_processor(
    one: Case, core: ic.Interpreted
) -> None:
    """A chunk is written whole, whose last rows would lie behind the state."""
    engine = engine_on(one.bundle, "decoder=coreml")
    (graph,) = {g.kv for g in one.bundle.manifest.graphs if g.target == "coreml" and g.kv}
    rows = graph.length_buckets[0]
    long = np.random.default_rng(0).integers(70, 90, rows - 90).tolist()
    cpu = Engine.open(one.bundle, threads=1)
    wanted = cpu.score(cpu.prefill(long), one.branches)
    found = engine.score(engine.prefill(long), one.branches)
    assert np.abs(found - wanted).max() < BAND
    assert ran(engine) == {ENGINE, "cpu"}
    assert [code for code, _ in engine.trace.marks] == ["device_passed_over"]


def test_one_state_serves_all_functions_of_a_program(one: Case, core: ic.Interpreted) -> None:
    engine = engine_on(one.bundle, ALL)
    before, core.calls[:] = core.states, []
    prefix = engine.prefill(one.ids, engine.encode_image(one.image), one.positions)
    engine.step(70, prefix)
    functions = {function for folder, function in core.calls if "decoder" in folder}
    assert functions == {"tokens128", "tokens1"}
    assert core.states == before + len(one.bundle.manifest.parts)


def test_a_state_that_loses_what_is_written_is_noticed(one: Case, core: ic.Interpreted) -> None:
    class Lost(ic.InterpretedState):
        def write_state(self, name: str, value: Any) -> None:
            pass

    core.state = Lost
    cpu = Engine.open(one.bundle, threads=1)
    prefix = cpu.prefill(one.ids, cpu.encode_image(one.image), one.positions)
    rows, wanted = cpu.snapshot(prefix), cpu.score(prefix, one.branches)
    engine = engine_on(one.bundle, "decoder=coreml")
    assert rows is not None
    found = engine.score(engine.restore(rows, prefix.position), one.branches)
    assert (found == wanted).all()
    assert "its state does not hold what was written to it" in engine.trace.marks[0][1]


def test_its_costs_are_measured(one: Case, core: ic.Interpreted) -> None:
    """With an empty state and with the last chunk that fits; what is behind it is not taken."""
    measured = measure_costs(one.bundle, "vision=coreml,decoder=coreml", 1)
    (device,) = (d for d in measured.profile.devices if d.name == ENGINE)
    assert (device.target, device.padded) == ("coreml", True)
    own = [row for row in measured.profile.rows if row.device == ENGINE]
    assert {row.unit for row in own} == {"vision", "decoder.0", "decoder.1", "decoder.2"}
    shapes = {(row.tokens, row.past) for row in own if row.unit == "decoder.1"}
    assert shapes == {(1, 0), (1, 1920), (128, 0), (128, 1920)}
    assert not measured.left_out


def test_a_profile_tells_what_ran_on_compute_units(
    one: Case, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["profile", str(one.root / "bundle"), "--place", ALL, "--runs", "2", "--json"]
    assert main([*command, "--workload", "screen:images=1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["placement"]["vision"] == found["placement"]["decoder.0"] == ENGINE
    assert {"vision", "decoder", "handover"} <= set(found["stages"])
    assert found["compiled"] == 1 + len(one.bundle.manifest.parts)
    assert main([*command, "--workload", "decode:tokens=4"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["placement"]["writer.0"] == ENGINE and found["compiled"] == 0


# --- where it is, and where not ------------------------------------------------------------------


def test_compute_units_are_found(core: ic.Interpreted, capsys: pytest.CaptureFixture[str]) -> None:
    found, missing = devices.survey()
    assert [(d.provider, d.kind) for d in found if d.package == "coremltools"] == [
        ("CPU_AND_NE", "npu"),
        ("ALL", "npu"),
        ("CPU_ONLY", "cpu"),
    ], "those of the devices that are there"
    assert "CoreML" not in {absent.provider for absent in missing}
    assert main(["devices"]) == 0
    assert "CPU_AND_NE                 npu  Core ML on" in capsys.readouterr().out


def test_the_places_of_core_ml_are_its_compute_units(one: Case, core: ic.Interpreted) -> None:
    (wish,) = read_places("decoder=coreml:cpu_and_gpu")["decoder", None]
    assert (wish.target, wish.provider) == ("coreml", "CPU_AND_GPU")
    for wrong in ("decoder=coreml:webgpu", "decoder=gpu:cpu_and_ne", "decoder=npu:all"):
        with pytest.raises(InputError, match="of coreml cpu_and_ne, cpu_and_gpu, all, cpu_only"):
            read_places(wrong)
    with pytest.raises(ProviderError, match="no provider for the coreml target is here"):
        engine_on(one.bundle, "decoder=coreml:cpu_and_gpu")
    engine = engine_on(one.bundle, "decoder=coreml:cpu_only,vision=coreml")
    assert {a.device.name for a in engine.fleet.accelerators} == {"coreml:CPU_ONLY", ENGINE}


@pytest.mark.parametrize(
    ("system", "version", "package", "wanted", "install"),
    [
        ("Linux", "", True, "Core ML runs on macOS 15 and later, this is Linux: here", None),
        ("Darwin", "14.6.1", True, "it takes macOS 15 or later, this is 14.6.1: here", None),
        ("Darwin", "15.2", False, "its package coremltools is not installed", "[coreml]"),
        ("Darwin", "26.0", True, "", None),
    ],
)
def test_why_it_is_not_here(
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    version: str,
    package: bool,
    wanted: str,
    install: str | None,
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), ""))
    if not package:
        monkeypatch.setattr(coreml_tools.importlib.util, "find_spec", lambda _: None)
    reason, command = coreml_tools.absence()
    assert reason.startswith(wanted) and bool(reason) == bool(wanted)
    assert (command is None) == (install is None) and (install or "") in (command or "")


@pytest.mark.skipif(not REASON, reason="Core ML is here")
def test_elsewhere_a_placement_says_what_can_be_done(
    one: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(one.root / "bundle")
    place = ["--place", "decoder=coreml", "--allow-random"]
    assert main(["screen", str(PICTURES[0]), "--bundle", bundle, *place]) == 2
    told = capsys.readouterr().err
    assert "no provider for the coreml target is here: " in told and told.count("Core ML runs") == 1
    assert "written as packages with `edgejudge coreml`" in told and "Traceback" not in told
    assert main(["devices"]) == 0
    assert "CoreML                     npu  Core ML runs on macOS 15" in capsys.readouterr().out


def test_coremltools_that_does_not_load_is_a_reason(
    core: ic.Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise ImportError("no libcoremlpython")

    monkeypatch.setattr(devices, "tools", fail)
    _, missing = devices.survey()
    (absent,) = (a for a in missing if a.provider == "CoreML")
    assert absent.reason == "its package coremltools does not work here (no libcoremlpython)"
