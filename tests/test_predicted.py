"""What was measured against what happens: a device that has become slow is noticed and left."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import handover_story as told
from drifting import NPU, make_engine, profile, slow, where
from edgejudge.runtime import Engine
from edgejudge.runtime.predicted import CPU_DEVICE, Predicted
from edgejudge.runtime.scheduling import Task, keep_profile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return told.make_folder(tmp_path_factory.mktemp("predicted"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def engine(folder: Path) -> Engine:
    return make_engine(folder)


def test_a_slow_device_is_left_in_the_middle_and_not_begun_with_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = told.make_asked(engine)
    visual = engine.encode_image(asked.feeds)
    alone = engine.append(asked.ids, visual)[1]  # opens all sessions, and is right
    keep_profile(engine.bundle, profile(engine, ms=5.0))
    engine.foresee()
    slow(monkeypatch)
    engine.trace = engine.new_trace()
    hidden = engine.append(asked.ids, visual)[1]
    ran = where(engine)
    assert ran[0] == NPU and ran[-1] == CPU_DEVICE
    (code, sentence), *_ = engine.trace.marks
    assert code == "device_drift" and f"{NPU} takes" in sentence and "goes on on cpu" in sentence
    assert np.abs(hidden - alone).max() < 0.3  # of values of up to 10; they round differently
    engine.trace = engine.new_trace()
    engine.append(asked.ids, visual)
    assert set(where(engine)) == {CPU_DEVICE}


def test_without_anything_measured_nothing_is_moved_or_said(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.foresee()
    slow(monkeypatch)
    engine.append([5] * 20)
    assert set(where(engine)) == {NPU} and not engine.trace.marks


def test_what_was_measured_with_another_driver_does_not_count(engine: Engine) -> None:
    keep_profile(engine.bundle, profile(engine, version="another"))
    assert Predicted.kept(engine.bundle, engine.fleet, 1) is None
    keep_profile(engine.bundle, profile(engine))
    found = Predicted.kept(engine.bundle, engine.fleet, 1)
    assert found is not None
    task = Task("t", "decoder.0", 7)
    assert found.ms(task, NPU) == pytest.approx(40) and found.ms(task, "cpu") == pytest.approx(44)
    assert found.device(task, [NPU, "cpu"]) == NPU


def test_a_profile_that_lacks_a_part_does_not_count(engine: Engine) -> None:
    whole = profile(engine)
    rows = tuple(row for row in whole.rows if (row.unit, row.device) != ("decoder.1", NPU))
    keep_profile(engine.bundle, replace(whole, rows=rows))
    assert Predicted.kept(engine.bundle, engine.fleet, 1) is None
