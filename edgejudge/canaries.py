"""Which devices may be trusted with a bundle, and with which form of its graphs.

Takes an opened bundle, an engine and what a user wants placed where; gives devices whose every
stage has given the canary's label logits in the form that is used, each tried by itself with all
else on the processor. A provider that computes wrongly says nothing of it: only the numbers tell.
What was measured is kept for a bundle, a device and the versions of what runs there.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgejudge.bundle import Bundle, TargetRecord, cache_folder, keep_json
from edgejudge.errors import EdgeJudgeError, ProviderError
from edgejudge.goldens import canary_distance, step_distance

if TYPE_CHECKING:
    from edgejudge.runtime import Engine
    from edgejudge.runtime.accelerator import Accelerator
    from edgejudge.runtime.fleet import Fleet

__all__ = ["Found", "placed", "tolerance_of"]

# What a device's numbers may depend on that no version says.
_ENVIRONMENT = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "CUDA_VISIBLE_DEVICES")
Found = Mapping[str, float | str]  # variant -> how far off it is, or why it does not run


def placed(
    bundle: Bundle,
    engine: "Engine",
    place: str,
    deadline_s: float | None = None,
    strict: bool = False,
    again: bool = False,
) -> "Fleet":
    """Devices that are ready. `again` asks canaries whose answers are kept. Raises what
    runtime.placement raises, and with `strict` ProviderError for a stage that has no right form.
    """
    from edgejudge.runtime.fleet import DEADLINE_S, Fleet
    from edgejudge.runtime.placement import read_places, resolved

    places = resolved(read_places(place), bundle)
    seconds = DEADLINE_S if deadline_s is None else deadline_s
    if not seconds > 0:
        raise ProviderError(f"a deadline is a positive number of seconds, got {deadline_s}")
    fleet = Fleet.of(bundle, places, engine.threads, seconds, strict)
    before, engine.fleet = engine.fleet, fleet
    try:
        for accelerator in fleet.accelerators:
            for stage in fleet.stages_of(accelerator):
                _choose(bundle, engine, accelerator, stage, strict, again)
    finally:
        engine.fleet = before
        engine.placement.clear()  # what canaries ran on says nothing of pictures
    return fleet


def _choose(
    bundle: Bundle,
    engine: "Engine",
    accelerator: "Accelerator",
    stage: str,
    strict: bool,
    again: bool,
) -> None:
    """The first form, of those in the manifest's order, that is right."""
    device, fleet = accelerator.device, engine.fleet
    parts = [part for (_, part), some in fleet.routes.items() if accelerator in some]
    file = _file(bundle, accelerator, stage, parts)
    known = {} if again or strict else _kept(file)
    found: dict[str, float | str] = {}
    for record in _forms(bundle, device.target, stage):
        name, limit = record.variant, tolerance_of(bundle, record)
        answer: float | str
        if name in known:
            answer = known[name]
        else:
            for graph in bundle.graphs(device.target, name, stage):
                if graph.part in parts:
                    bundle.graph_file(graph)  # a damaged file is no answer of the device
            with _trying(file.with_suffix(f".{name}.trying"), again or strict) as ended:
                answer = ended or _ask(bundle, engine, accelerator, stage, name)
        found[name] = answer
        if isinstance(answer, float) and answer <= limit:
            accelerator.use(stage, name)
            if strict:  # also those that the canary did not need
                accelerator.open(stage, engine.trace)
            break
    # What could not be asked, be it a device that was busy for once, is asked again.
    numbers = {name: answer for name, answer in found.items() if isinstance(answer, float)}
    if numbers:
        with contextlib.suppress(OSError):
            keep_json(file, numbers)
    fleet.answers[device.name, stage] = found
    if stage in accelerator.variants:
        return
    accelerator.use(stage, None)
    reasons = [
        f"{name}: {answer}"
        if isinstance(answer, str)
        else f"{name}: label logits of the canary are {answer:.2g} off"
        for name, answer in found.items()
    ]
    fleet.unused[device.name, stage] = "; ".join(reasons)
    if strict:
        raise ProviderError(
            f"{device.name} is not right for {stage} ({'; '.join(reasons)}); leave it to the CPU, "
            "or drop --strict"
        )


def _forms(bundle: Bundle, target: str, stage: str) -> list[TargetRecord]:
    """Of a target, those that have graphs of the stage."""
    return [
        record
        for record in bundle.manifest.targets
        if record.target == target and bundle.graphs(target, record.variant, stage)
    ]


def tolerance_of(bundle: Bundle, record: TargetRecord) -> float:
    """How far label logits may be where some stages are of this target and others the CPU's: what a
    device may add, and how far the reference itself is apart between their weights.
    """
    ours = np.array(bundle.manifest.canary.golden.label_logits)
    apart = float(np.abs(ours - np.array(record.canary_logits)).max(initial=0.0))
    return record.tolerance + bundle.manifest.canary.tolerance + apart


def _ask(
    bundle: Bundle, engine: "Engine", accelerator: "Accelerator", stage: str, variant: str
) -> float | str:
    """How far off the canary is, or why it could not be asked."""
    try:
        with engine.fleet.only(stage, accelerator, variant):
            error = canary_distance(bundle, engine)
            if stage == "decoder":
                error = max(error, step_distance(bundle, engine))
            return error
    except EdgeJudgeError as error:
        return str(error)


@contextlib.contextmanager
def _trying(file: Path, again: bool) -> Iterator[str]:
    """Why a form is not tried, empty where it is: a driver may end the whole process, as Apple's
    does with some programs (coremltools issue 2758), and would do so at every start. While it is
    tried a file says so; one that lies there from before was left by a process that ended.
    """
    if not again and _left_behind(file):
        yield (
            "a process ended while it tried this form; `edgejudge check`, or loading with "
            "verify=True, tries it again"
        )
        return
    with contextlib.suppress(OSError):
        keep_json(file, {"pid": os.getpid()})
    try:
        yield ""
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def _left_behind(file: Path) -> bool:
    try:
        data = file.read_bytes()
    except OSError:
        return False
    try:
        pid = json.loads(data)["pid"]
        if sys.platform != "win32":  # where asking would end it
            os.kill(pid, 0)
            return False
    except PermissionError:  # somebody else's, which is there
        return False
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return True  # nobody has that number any more, or what is there is no such file
    return True


def _kept(file: Path) -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError):
        value: Any = json.loads(file.read_bytes())
        if isinstance(value, dict):
            return {str(k): v for k, v in value.items() if isinstance(v, float)}
    return {}


def _file(
    bundle: Bundle, accelerator: "Accelerator", stage: str, parts: Sequence[int | None]
) -> Path:
    """Named after everything that the answer depends on."""
    from edgejudge.runtime.settings import machine

    key = {
        "machine": machine(),
        "device": asdict(accelerator.device),
        "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
        "parts": sorted({part for part in parts if part is not None}),
    }
    short = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "canaries" / bundle.fingerprint / f"{stage}-{short}.json"
