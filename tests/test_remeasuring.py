"""Costs measured again beside the work: no answer changes, and what is slow now is known."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import handover_story as told
from drifting import NPU, make_engine, profile, slow, where
from edgejudge import Judge
from edgejudge.cli import main
from edgejudge.errors import EdgeJudgeError, InputError
from edgejudge.remeasuring import Remeasuring
from edgejudge.runtime import Engine
from edgejudge.runtime.scheduling import keep_profile, kept_profile
from edgejudge.runtime.session import CPU_DEVICE
from edgejudge.unit_bench import UnitBench

SHAPES = ((1, 0), (6, 0), (6, 8))  # tokens, past


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return told.make_folder(tmp_path_factory.mktemp("remeasuring"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def engine(folder: Path) -> Engine:
    return make_engine(folder)


def know(engine: Engine, ms: float = 5.0, cpu: float = 1.0) -> None:
    """Has the engine go by costs of a few shapes, the processor's so many times as much."""
    found = profile(engine, ms)
    rows = {(r.unit, r.device): r for r in found.rows}.values()
    shapes = [
        replace(
            row, tokens=tokens, past=past, p50_ms=row.p50_ms * (1 if row.device == NPU else cpu)
        )
        for row in rows
        for tokens, past in (SHAPES if row.unit != "vision" else ((2, 0),))
    ]
    keep_profile(engine.bundle, replace(found, rows=tuple(shapes)))
    engine.foresee()
    assert engine.stages.predicted is not None


def changed(engine: Engine, before: Any) -> set[tuple[str, str]]:
    """Units and devices whose every row is another one now."""
    after = kept_profile(engine.bundle)
    assert after is not None and len(after.rows) == len(before.rows)
    kept = {(a.unit, a.device) for a, b in zip(after.rows, before.rows, strict=True) if a == b}
    return {(row.unit, row.device) for row in after.rows} - kept


def test_answers_stay_while_costs_are_measured(engine: Engine) -> None:
    asked = told.make_asked(engine)
    alone = told.story(engine, asked, [engine.fleet])
    know(engine, cpu=1e4)  # so that nothing moves there, where numbers are others
    before = kept_profile(engine.bundle)
    seen: list[str] = []
    measuring = Remeasuring(engine, seen.append)
    for _ in range(3):
        measuring.start()
        beside = told.story(engine, asked, [engine.fleet])
        for name, logits in alone.items():
            assert np.array_equal(beside[name], logits), name
        assert measuring.wait(60)
    assert len(seen) == 3 and all("were measured again" in text for text in seen)
    # The processor's decoder is not loaded: the npu does its work, and writes.
    parts = {(f"decoder.{part}", NPU) for part in range(2)}
    assert changed(engine, before) == parts
    assert ("decoder", 0) not in engine.stages.sessions
    found = kept_profile(engine.bundle)
    assert found is not None and found.source.count("measured again beside the work") == 1
    after = told.story(engine, asked, [engine.fleet])
    assert all(np.array_equal(after[name], alone[name]) for name in alone)


def test_what_is_loaded_is_measured_where_it_is(engine: Engine) -> None:
    bench = UnitBench.of(engine)
    assert bench.decoder(6, 8, NPU).keys() == {0, 1}
    assert bench.decoder(6, 8, CPU_DEVICE) == {}, "nothing is loaded for it"
    told.story(engine, told.make_asked(engine), [engine.fleet])
    assert bench.vision(bench.views[0], CPU_DEVICE) is not None
    assert bench.vision(bench.views[0], NPU) is None
    assert bench.head("verdict_head", 3, CPU_DEVICE) is not None
    assert bench.decoder(10**6, 0, NPU) == {}


def test_a_slow_device_stays_left_until_a_measurement_shows_that_it_is_not(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgejudge.remeasuring._PAUSE_S", 0.05)
    monkeypatch.setattr("edgejudge.remeasuring._SHARE", 0.1)
    monkeypatch.setattr("edgejudge.remeasuring._ROUNDS", 1)
    asked = told.make_asked(engine)
    visual = engine.encode_image(asked.feeds)
    engine.append(asked.ids, visual)
    for part in range(2):  # so that the processor's costs are known to be true
        engine.stages.session("decoder", part, trace=engine.trace)
    know(engine, ms=20.0)
    seen: list[str] = []
    measuring = Remeasuring(engine, seen.append, rounds=1).on_drift()

    def run() -> list[str]:
        engine.trace = engine.new_trace()
        engine.append(asked.ids, visual)
        return where(engine)

    with monkeypatch.context() as patch:
        slow(patch)
        assert run()[0] == NPU and any(code == "device_drift" for code, _ in engine.trace.marks)
        until(lambda: len(seen) >= 2)
        assert set(run()) == {CPU_DEVICE}, "measured as slow, and left for that"
    # Nothing is asked of it, and yet it comes back.
    until(lambda: run()[0] == NPU)
    measuring.stop()
    assert measuring.wait(60)


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_measurement_that_is_stopped_keeps_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(engine)
    before = kept_profile(engine.bundle)
    reached, let_go = threading.Event(), threading.Event()

    def decoder(bench: UnitBench, *args: Any) -> dict[int, float]:
        reached.set()
        assert let_go.wait(60)
        return {0: 1.0}

    monkeypatch.setattr(UnitBench, "decoder", decoder)
    measuring = Remeasuring(engine)
    measuring.start()
    assert reached.wait(60) and not measuring.wait(0)
    measuring.start()  # one at a time
    measuring.stop()
    let_go.set()
    assert measuring.wait(60)
    assert kept_profile(engine.bundle) == before
    measuring.start()
    assert measuring.wait(0), "it was stopped for good"


def test_what_goes_wrong_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    know(engine)
    seen: list[str] = []

    def fails(*_: Any) -> None:
        raise EdgeJudgeError("the device is gone")

    monkeypatch.setattr("edgejudge.remeasuring.measured_again", fails)
    measuring = Remeasuring(engine, seen.append)
    measuring.start()
    assert measuring.wait(60)
    assert "could not be measured again (the device is gone)" in seen[0]


def test_without_costs_there_is_nothing_to_measure_again(
    engine: Engine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="tune BUNDLE --costs") as caught:
        Remeasuring(engine)
    assert caught.value.code == "no_costs"
    know(engine)
    with pytest.raises(InputError, match="at least 1"):
        Remeasuring(engine, rounds=0)
    with pytest.raises(InputError, match="tune BUNDLE --costs"):
        Judge.load().remeasure()
    (tmp_path / "x.png").write_bytes(b"")
    assert main(["screen", str(tmp_path / "x.png"), "--remeasure"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "edgejudge tune BUNDLE --costs" in line
