"""What was measured against what happens: a device that has become slow is noticed and left."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import handover_story as told
from edgejudge.bundle import Bundle
from edgejudge.runtime import Engine
from edgejudge.runtime.predicted import CPU_DEVICE, Predicted
from edgejudge.runtime.scheduling import Profile, Task, keep_profile
from edgejudge.runtime.scheduling.profile import DeviceRecord
from edgejudge.runtime.scheduling.scenarios import invented
from edgejudge.runtime.stages import Stages

PLACE = "decoder=npu:cpu,writer=npu:cpu"
NPU = "npu:CPUExecutionProvider"
WAIT_S = 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return told.make_folder(tmp_path_factory.mktemp("predicted"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def engine(folder: Path) -> Engine:
    found = Engine.open(Bundle.open(folder), threads=1)
    found.chunk, found.pack_tokens = 4, 6
    found.fleet = told.fleet(found.bundle, PLACE)
    return found


def profile(engine: Engine, ms: float = 40.0, version: str | None = None) -> Profile:
    """The npu takes `ms` for any pass, the processor a tenth more; as they were measured."""
    (device,) = {a.device for a in engine.fleet.accelerators}
    units = ("vision", "decoder.0", "decoder.1")
    found = invented(
        {
            (u, d): {(1, 0): t, (512, 0): t}
            for u in units
            for d, t in ((NPU, ms), ("cpu:x", 1.1 * ms))
        },
        (0.0, 0.0),
    )
    names = {"cpu:x": ("cpu:x", "cpu", "CPUExecutionProvider", "any")}
    names[NPU] = (NPU, "npu", device.provider, device.version if version is None else version)
    devices = tuple(
        DeviceRecord(*names[d.name], d.memory_bytes, d.busy_watts, d.idle_watts, False)
        for d in found.devices
    )
    return replace(found, devices=devices)


def slow(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    own: Callable[..., Any] = Stages.part

    def part(stages: Stages, *args: Any) -> Any:
        if args[-1] == device:
            time.sleep(WAIT_S)
        return own(stages, *args)

    monkeypatch.setattr(Stages, "part", part)


def where(engine: Engine) -> list[str]:
    return [span.device for span in engine.trace.spans if span.name == "decoder"]


def test_a_slow_device_is_left_in_the_middle_and_not_begun_with_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = told.make_asked(engine)
    visual = engine.encode_image(asked.feeds)
    alone = engine.append(asked.ids, visual)[1]  # opens all sessions, and is right
    keep_profile(engine.bundle, profile(engine, ms=5.0))
    engine.foresee()
    slow(monkeypatch, NPU)
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
    slow(monkeypatch, NPU)
    engine.append([5] * 20)
    assert set(where(engine)) == {NPU} and not engine.trace.marks


def test_what_was_measured_with_another_driver_does_not_count(engine: Engine) -> None:
    keep_profile(engine.bundle, profile(engine, version="another"))
    assert Predicted.kept(engine.bundle, engine.fleet) is None
    keep_profile(engine.bundle, profile(engine))
    found = Predicted.kept(engine.bundle, engine.fleet)
    assert found is not None
    task = Task("t", "decoder.0", 7)
    assert found.ms(task, NPU) == pytest.approx(40) and found.ms(task, "cpu") == pytest.approx(44)
    assert found.device(task, [NPU, "cpu"]) == NPU


def test_a_profile_that_lacks_a_part_does_not_count(engine: Engine) -> None:
    whole = profile(engine)
    rows = tuple(row for row in whole.rows if (row.unit, row.device) != ("decoder.1", NPU))
    keep_profile(engine.bundle, replace(whole, rows=rows))
    assert Predicted.kept(engine.bundle, engine.fleet) is None
