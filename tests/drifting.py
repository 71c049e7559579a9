"""A judge in two parts on the processor and on a device that is no slower, with costs to go by."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import handover_story as told
from edgejudge.bundle import Bundle
from edgejudge.runtime import Engine
from edgejudge.runtime.accelerator import Accelerator
from edgejudge.runtime.scheduling import Profile
from edgejudge.runtime.scheduling.profile import DeviceRecord
from edgejudge.runtime.scheduling.scenarios import invented

PLACE = "decoder=npu:cpu,writer=npu:cpu"
NPU = "npu:CPUExecutionProvider"
WAIT_S = 0.05


def make_engine(folder: Path) -> Engine:
    """Of a folder of `told.make_folder`."""
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
    return replace(found, devices=devices, machine={"threads": str(engine.threads)})


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the npu runs takes WAIT_S longer."""
    own: Callable[..., Any] = Accelerator._run

    def run(*args: Any) -> Any:
        time.sleep(WAIT_S)
        return own(*args)

    monkeypatch.setattr(Accelerator, "_run", run)


def where(engine: Engine) -> list[str]:
    return [span.device for span in engine.trace.spans if span.name == "decoder"]
