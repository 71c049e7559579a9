"""Core ML at its worst: what it refuses, spoils, plans elsewhere or ends with the whole process,
and how a judge goes on. An interpreter in its place is told to.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("coremltools", reason="the extra coreml is not installed")

import interpreted_coreml as ic
from coreml_cases import BAND, ORDINARY, Case, made
from coreml_engine import ALL, ENGINE, answers, engine_on, ran
from edgejudge.cli import main
from edgejudge.errors import ProviderError
from edgejudge.runtime.compiled import compiled_path
from edgejudge.runtime.worker import Worker

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In which nothing was kept before."""
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> ic.Interpreted:
    return ic.pretend(monkeypatch)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(ORDINARY, tmp_path_factory.mktemp("one"))


def failing(core: ic.Interpreted, at: set[int]) -> None:
    """Some of the next calls fail after they have spoiled the state, as a driver may."""
    calls = iter(range(1000))

    def after(found: dict[str, Any]) -> dict[str, Any]:
        if next(calls) in at:
            return {name: np.full_like(value, np.nan) for name, value in found.items()}
        return found

    core.after = after


@pytest.mark.parametrize("at", [{0}, {3}, {4, 5}])
def test_the_processor_goes_on_where_a_program_gives_no_numbers(
    one: Case, core: ic.Interpreted, at: set[int]
) -> None:
    engine = engine_on(one.bundle, "decoder=coreml")
    failing(core, at)
    assert np.abs(answers(engine, one) - one.wanted).max() < BAND
    assert {code for code, _ in engine.trace.marks} == {"device_failed"}
    assert ran(engine) == {ENGINE, "cpu"}
    core.after = lambda found: found
    engine.trace = engine.new_trace()
    assert np.abs(answers(engine, one) - one.wanted).max() < BAND
    assert ran(engine) == {ENGINE}, "and it is asked again"


def test_no_number_stays_in_a_state(one: Case, core: ic.Interpreted) -> None:
    """Masked rows are multiplied by zero, and what is no number stays none."""
    engine = engine_on(one.bundle, "decoder=coreml")
    states: list[ic.InterpretedState] = []

    def spoiled(arrays: dict[str, Any]) -> ic.InterpretedState:
        states.append(ic.InterpretedState(arrays))
        return states[-1]

    core.state = spoiled
    for accelerator in engine.fleet.accelerators:
        accelerator.renew()
    failing(core, {1})
    answers(engine, one)
    for state in states:  # what the failing pass may have left behind
        for array in state.arrays.values():
            array[:, :, -1] = np.nan
    failing(core, {0, 1, 2})
    answers(engine, one)
    core.after = lambda found: found
    engine.fleet.revive()
    engine.trace = engine.new_trace()
    assert np.abs(answers(engine, one) - one.wanted).max() < BAND
    assert ran(engine) == {ENGINE}


def test_what_core_ml_says_is_one_sentence(one: Case, core: ic.Interpreted) -> None:
    engine = engine_on(one.bundle, "vision=coreml")

    def fail() -> None:
        raise RuntimeError('{\n    NSLocalizedDescription = "Failed to evaluate";\n}')

    core.before = fail
    assert np.abs(answers(engine, one) - one.wanted).max() < BAND
    ((code, told),) = engine.trace.marks
    assert code == "device_failed" and "\n" not in told and "Failed to evaluate" in told


def test_programs_are_compiled_once(one: Case, core: ic.Interpreted, cache: Path) -> None:
    first = answers(engine_on(one.bundle, ALL), one)
    assert len(core.compiled) == 1 + len(one.bundle.manifest.parts)
    again = engine_on(one.bundle, ALL)
    assert (answers(again, one) == first).all()
    assert len(core.compiled) == 1 + len(one.bundle.manifest.parts)
    graph = one.bundle.graphs("coreml", "chunk128", "vision")[0]
    (device,) = (a.device for a in again.fleet.accelerators)
    folder = compiled_path(one.bundle, graph, device)
    (weights,) = folder.rglob("program.mlmodelc/**/weight.bin")
    weights.unlink()  # not written to: it is the bundle's own file, linked
    weights.write_bytes(b"something else")
    assert (answers(engine_on(one.bundle, ALL), one) == first).all()
    assert len(core.compiled) == 2 + len(one.bundle.manifest.parts), "it alone, again"
    assert not list(cache.rglob(".partial-*"))


def test_loading_may_take_ten_deadlines(
    one: Case, core: ic.Interpreted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the Neural Engine a program is compiled for minutes, and kept."""
    call, given = Worker.call, []

    def watched(self: Worker, fn: Any, deadlines: int = 1) -> Any:
        given.append(deadlines)
        return call(self, fn, deadlines)

    monkeypatch.setattr(Worker, "call", watched)
    answers(engine_on(one.bundle, "vision=coreml"), one)
    assert given[0] == 10 and set(given[1:]) == {1}


def test_a_program_that_does_not_compile_is_passed_over(one: Case, core: ic.Interpreted) -> None:
    def refuse(package: Path, out: Path) -> None:
        raise RuntimeError("Error reading protobuf spec")

    core.compile = refuse  # type: ignore[method-assign]
    engine = engine_on(one.bundle, "decoder=coreml")
    assert "Core ML cannot compile it" in engine.fleet.unused[ENGINE, "decoder"]
    assert np.abs(answers(engine, one) - one.wanted).max() < BAND
    with pytest.raises(ProviderError, match="leave it to the CPU, or drop --strict"):
        engine_on(one.bundle, "decoder=coreml", strict=True)


def test_operations_that_are_meant_for_the_processor_are_told(
    one: Case, core: ic.Interpreted, capsys: pytest.CaptureFixture[str]
) -> None:
    core.planned = lambda op: "cpu" if op == "slice_update" else "npu"
    assert main(["check", str(one.root / "bundle"), "--place", ALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_file = {s["file"]: s["elsewhere"] for s in found["sessions"]}
    assert by_file["coreml.chunk128.vision.mlmodel:tokens1"] == []
    stray = by_file["coreml.chunk128.decoder.0.mlmodel:tokens128"]
    assert {(s["op"], s["provider"]) for s in stray} == {("slice_update", "cpu")}
    assert stray[0]["reason"] == (
        "Core ML means it for the CPU; the Neural Engine could run it, too"
    )
    engine_on(one.bundle, "vision=coreml", strict=True)
    with pytest.raises(ProviderError, match="would not run on CPU_AND_NE: slice_update"):
        engine_on(one.bundle, "decoder=coreml", strict=True)
    engine_on(one.bundle, "decoder=coreml:all", strict=True)


@pytest.mark.parametrize("plan", [[], RuntimeError("MLComputePlan is not supported.")])
def test_what_core_ml_does_not_plan_is_told(
    one: Case, core: ic.Interpreted, monkeypatch: pytest.MonkeyPatch, plan: Any
) -> None:
    """And not taken for granted."""

    def planned(compiled: Path, units: str, function: str) -> Any:
        if isinstance(plan, Exception):
            raise plan
        return iter(plan)

    monkeypatch.setattr(core, "plan", planned)
    engine = engine_on(one.bundle, "vision=coreml")
    (loaded,) = engine.fleet.accelerators[0].loaded.values()
    ((op, node, where, reason),) = (astuple(stray) for stray in loaded.elsewhere)
    assert (op, node, where) == ("program", "tokens1", "no device that is known")
    assert reason.startswith("Core ML does not say where it would run")
    with pytest.raises(ProviderError, match="would not run on CPU_AND_NE: program tokens1"):
        engine_on(one.bundle, "vision=coreml", strict=True)


ENDS = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import pytest
import interpreted_coreml as ic
from edgejudge import Judge
core = ic.pretend(pytest.MonkeyPatch())
if sys.argv[3] == "ends":
    core.before = lambda: os.kill(os.getpid(), signal.SIGKILL)
more = {"verify": True} if sys.argv[3] == "again" else {}
judge = Judge.load(sys.argv[2], place="decoder=coreml", allow_random=True, **more)
print(sorted(judge.engine.fleet.unused.values()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process is killed otherwise there")
def test_a_program_that_ends_the_process_is_not_tried_again_and_again(
    one: Case, cache: Path
) -> None:
    def load(what: str) -> subprocess.CompletedProcess[str]:
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", ENDS, here, str(one.root / "bundle"), what]
        return subprocess.run(command, capture_output=True, text=True)

    assert load("ends").returncode == -signal.SIGKILL
    assert list(cache.rglob("*.trying"))
    second = load("ends")
    assert second.returncode == 0 and "a process ended while it tried this form" in second.stdout
    assert load("again").stdout == "[]\n", "when it is asked for"
    assert not list(cache.rglob("*.trying")) and load("well").stdout == "[]\n"


def test_a_process_that_is_trying_now_ended_nothing(
    one: Case, core: ic.Interpreted, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_on(one.bundle, "decoder=coreml")
    (kept,) = cache.rglob("canaries/**/decoder-*.json")
    kept.unlink()
    trying = kept.with_suffix(".chunk128.trying")
    trying.write_text(json.dumps({"pid": os.getppid()}))
    assert not engine_on(one.bundle, "decoder=coreml").fleet.unused
    for text in ("", "[]", '{"pid": "x"}', '{"pid": 99999999999999999999}'):
        kept.unlink(missing_ok=True)
        trying.write_text(text)
        assert engine_on(one.bundle, "decoder=coreml").fleet.unused, text
