"""Bundles on execution providers that are really here, and what proves that these did the work.

Takes a bundle and places; gives engines whose devices run forms that are named, unasked by a
canary. `python tests/real_devices.py` exports the nano judge for every target, once for a state of
the sources, and prints where it lies.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgejudge.bundle import Bundle, FidelityRecord
from edgejudge.export import Cut, export, seal
from edgejudge.policy import COMPILED, load_policy
from edgejudge.runtime import Engine
from edgejudge.runtime.accelerator import Accelerator
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.placement import Place, read_places, resolved

ROOT = Path(__file__).parent.parent
NANO = ROOT / "models" / "nano"
CPU, GPU, NPU = "CPUExecutionProvider", "gpu:WebGpuExecutionProvider", "npu:QNNExecutionProvider"
PLAIN = {"gpu": "float32.plain", "npu": "a16w8"}  # target -> form
UNMEASURED = FidelityRecord("none", 0, 0.0, 0.0, 0.0, None, None, None)
_OUT = ROOT / "build" / "providers"


def nano() -> Path:
    """The nano judge in two parts with graphs of all targets. Sealed so that it opens, and not
    measured: that takes minutes more.
    """
    out, stamp, state = _OUT / "nano6", _OUT / "nano6.sources", _sources()
    with _alone(_OUT):
        if out.is_dir() and stamp.is_file() and stamp.read_text() == state:
            return out
        policies = [load_policy(name).record() for name in COMPILED]
        targets = ("cpu", "gpu", "npu", "npu:a16w4", "npu:a8w8")
        export(NANO / "checkpoint", out, "w8", Cut(2), policies, force=True, targets=targets)
        seal(out, UNMEASURED)
        stamp.write_text(state)
    return out


def _sources() -> str:
    """Of everything that the bundle is made from."""
    files = [f for name in ("export", "models") for f in (ROOT / name).glob("*.py")]
    files += [f for f in (ROOT / "export" / "recipes").iterdir() if f.is_file()]
    files += [f for name in ("checkpoint", "calibration") for f in (NANO / name).iterdir()]
    files += [ROOT / "edgejudge" / "manifest.py", *(ROOT / "edgejudge" / "policies").iterdir()]
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Tests run in several processes, which all need the bundle."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def accelerators(bundle: Bundle, place: str, **forms: str) -> dict[str, Accelerator]:
    """By target, of the providers that are meant where none is named."""
    forms = {**PLAIN, **forms}
    fleet = Fleet.of(bundle, resolved(read_places(place), bundle), 2)
    for accelerator in fleet.accelerators:
        for stage in fleet.stages_of(accelerator):
            accelerator.use(stage, forms[accelerator.device.target])
    return {accelerator.device.target: accelerator for accelerator in fleet.accelerators}


def everywhere(bundle: Bundle, target: str) -> str:
    """Every stage that the target has graphs of."""
    vision = any((g.target, g.stage) == (target, "vision") for g in bundle.manifest.graphs)
    return f"decoder={target},writer={target}" + (f",vision={target}" if vision else "")


def fleet_of(bundle: Bundle, found: dict[str, Accelerator], place: str) -> Fleet:
    """Places on accelerators that are there, which keep their sessions from one fleet to the
    next.
    """
    routes: dict[Place, tuple[Accelerator, ...]] = {}
    for (stage, part), (wish,) in read_places(place).items():
        parts = [part] if stage == "vision" or part is not None else _parts(bundle)
        if wish.target != "cpu":
            routes |= {(stage, one): (found[wish.target],) for one in parts}
    return Fleet(routes)


def _parts(bundle: Bundle) -> list[int | None]:
    return [part.index for part in bundle.manifest.parts]


def engine_on(bundle: Bundle, place: str, **forms: str) -> Engine:
    engine = Engine.open(bundle, threads=2)
    engine.fleet = fleet_of(bundle, accelerators(bundle, place, **forms), place)
    return engine


def ran(engine: Engine) -> dict[str, set[str]]:
    """Stage, or part of one, -> devices that ran its graphs, by the trace."""
    found: dict[str, set[str]] = {}
    for span in engine.trace.spans:
        part = f".{span.counts['part']}" if "part" in span.counts else ""
        if span.device != "host" and (span.name == "vision" or part):
            device = CPU if span.device == "cpu" else span.device
            found.setdefault(f"{span.name}{part}", set()).add(device)
    return found


if __name__ == "__main__":
    print(nano())
