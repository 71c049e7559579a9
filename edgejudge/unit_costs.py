"""What stages and parts of a bundle cost on each device here, for planning.

Takes an opened bundle; gives a `Profile`: milliseconds of the vision tower by views, of each part
of the decoder by tokens and by what lies before them, and what carrying keys and values to a device
costs. Or takes such a profile and an engine that judges with it, and measures the same shapes
again. Keeps nothing.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from edgejudge.bundle import Bundle
from edgejudge.canaries import placed
from edgejudge.energy import Watts, meter
from edgejudge.errors import EdgeJudgeError, InputError
from edgejudge.runtime import Engine
from edgejudge.runtime.devices import survey
from edgejudge.runtime.scheduling import Profile
from edgejudge.runtime.scheduling.profile import SCHEMA_VERSION, DeviceRecord, Link, Row
from edgejudge.runtime.session import CPU, CPU_DEVICE
from edgejudge.unit_bench import UnitBench

__all__ = ["WATTS", "Measured", "measure_costs", "measured_again"]

_TOKENS = (1, 16, 64, 128, 256, 384)
_PASTS = (0, 512)
_MIB = 1 << 20
_IDLE_S = 1.0  # how long it is looked at what the processor draws when nothing is to be done
_HEADS = ("verdict_head", "lm_head")
_ROWS = (1, 24)  # of a head
# Busy and idle, where no counter tells: a phone's order of magnitude. A stated model, not measured.
WATTS = {"cpu": (4.0, 0.5), "gpu": (3.0, 0.3), "npu": (1.5, 0.1), "coreml": (1.5, 0.1)}


@dataclass(frozen=True, slots=True)
class Measured:
    """`left_out` says of each target that was not measured why."""

    profile: Profile
    left_out: tuple[str, ...]


@dataclass(slots=True)
class _Rows:
    """Milliseconds of one device's units, by unit, tokens and past. Each shape is run `rounds`
    times, after once that allocates. `name` is the profile's for the device `device`.
    """

    bench: UnitBench
    device: str
    name: str
    rounds: int
    seen: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)

    def vision(self, views: int) -> None:
        for number in range(self.rounds + 1):
            self._add(number, "vision", views, 0, self.bench.vision(views, self.device))

    def decoder(self, tokens: int, past: int) -> None:
        for number in range(self.rounds + 1):
            for part, ms in self.bench.decoder(tokens, past, self.device).items():
                self._add(number, f"decoder.{part}", tokens, past, ms)

    def head(self, stage: str, count: int) -> None:
        for number in range(self.rounds + 1):
            self._add(number, stage, count, 0, self.bench.head(stage, count, self.device))

    def _add(self, number: int, unit: str, tokens: int, past: int, ms: float | None) -> None:
        if number and ms is not None:
            self.seen.setdefault((unit, tokens, past), []).append(ms)

    def rows(self) -> Iterator[Row]:
        for (unit, tokens, past), some in sorted(self.seen.items()):
            p50 = round(statistics.median(some), 4)
            yield Row(unit, self.name, tokens, past, p50, len(some))


def measure_costs(
    bundle: Bundle,
    place: str | None = None,
    rounds: int = 5,
    progress: Callable[[str], None] = lambda _: None,
    threads: int | None = None,
) -> Measured:
    """With as many `threads` as a judge has, or these. `place` says which devices beside the
    processor are measured, as for judging; None takes one for each target that the bundle has
    graphs for and that is here. Raises InputError for less than one round, and with `place` what
    placing raises.
    """
    if rounds < 1:
        raise InputError("usage", f"--rounds must be at least 1, got {rounds}")
    engine = Engine.open(bundle, threads=threads)
    bench, name = UnitBench.of(engine), f"cpu:{CPU}"
    progress(name)
    own_rows = _Rows(bench, CPU_DEVICE, name, rounds)
    watts = _watts_of(own_rows)
    here = {device.provider: device for device in survey()[0]}
    own = here[CPU]
    cpu = DeviceRecord(name, "cpu", CPU, own.version, None, *(watts or WATTS["cpu"]), False)
    devices, found = [cpu], list(own_rows.rows())
    links: list[Link] = []
    left_out: list[str] = []
    for wanted in [place] if place else _targets(bundle):
        try:
            fleet = engine.fleet = placed(bundle, engine, wanted)
        except EdgeJudgeError as error:
            if place:
                raise
            left_out.append(f"{wanted}: {error}")
            continue
        left_out += [f"{name} for {stage}: {why}" for (name, stage), why in fleet.unused.items()]
        for accelerator in fleet.accelerators:
            device, stages = accelerator.device, accelerator.variants
            if not stages:
                continue
            progress(device.name)
            rows = _Rows(bench, device.name, device.name, rounds)
            for views in bench.views if "vision" in stages else ():
                rows.vision(views)
            if "decoder" in stages:
                _decoder(rows, *_shapes(bundle, device.target, stages["decoder"]))
            found += rows.rows()
            memory = here[device.provider].memory_bytes if device.provider in here else None
            names = device.name, device.target, device.provider, device.version
            padded = device.target in ("npu", "coreml")
            devices.append(DeviceRecord(*names, memory, *WATTS[device.target], padded))
            moved = accelerator.moved
            each = round(moved.ms / (moved.bytes / _MIB), 4) if moved.bytes else 0.0
            links += [
                Link(cpu.name, device.name, 0.0, each),
                Link(device.name, cpu.name, 0.0, each),
            ]
            if device.simulator:
                left_out.append(f"{device.name} is a simulator: its times mean nothing")
    links += [
        Link(a.name, b.name, 0.0, round(_way(links, a.name) + _way(links, b.name), 4))
        for a in devices[1:]
        for b in devices[1:]
        if a is not b
    ]
    told = "watts of the CPU by its counters, others" if watts else "watts"
    source = f"edgejudge tune --costs, {rounds} runs of each shape; {told} are a stated model's"
    here_are = tuple(devices), tuple(found), tuple(links)
    machine = {"threads": str(engine.threads)}
    profile = Profile(SCHEMA_VERSION, source, bundle.fingerprint, machine, *here_are, ())
    return Measured(profile, tuple(left_out))


def measured_again(
    engine: Engine, profile: Profile, rounds: int, go_on: Callable[[], bool] = lambda: True
) -> Profile | None:
    """The profile with new times of all shapes whose graphs the engine has loaded now, measured
    while it judges; others keep theirs. None when `go_on`, asked before each, said no.
    """
    bench = UnitBench.of(engine)
    new: dict[tuple[str, str, int, int], Row] = {}
    for device in profile.devices:
        name = CPU_DEVICE if device.target == "cpu" else device.name
        rows = _Rows(bench, name, device.name, rounds)
        own = [
            row for row in profile.rows if row.device == device.name and _here(engine, row, name)
        ]
        for stage, tokens, past in dict.fromkeys(
            (r.unit.partition(".")[0], r.tokens, r.past) for r in own
        ):
            if not go_on():
                return None
            if stage == "vision" and tokens in bench.views:
                rows.vision(tokens)
            elif stage == "decoder":
                rows.decoder(tokens, past)
            elif stage in _HEADS:
                rows.head(stage, tokens)
        new |= {(row.unit, row.device, row.tokens, row.past): row for row in rows.rows()}
    kept = tuple(new.get((r.unit, r.device, r.tokens, r.past), r) for r in profile.rows)
    return replace(profile, rows=kept)


def _here(engine: Engine, row: Row, device: str) -> bool:
    """Whether the graphs of a unit are loaded for a device, so that running them takes no memory
    that was not taken before.
    """
    stage, _, number = row.unit.partition(".")
    part = int(number) if number else None
    if device == CPU_DEVICE:
        return (stage, part) in engine.stages.sessions
    return device in engine.fleet.devices(stage, part)


def _watts_of(rows: _Rows) -> tuple[float, float] | None:
    """Measures the processor; its watts meanwhile and while it idles, where a counter tells."""
    counters, idle, busy = meter(), Watts(), Watts()
    if counters is not None:
        with counters.watts() as idle:
            time.sleep(_IDLE_S)
    with counters.watts() if counters else nullcontext(busy) as busy:
        for views in rows.bench.views:
            rows.vision(views)
        _decoder(rows, _TOKENS, _PASTS)
        for stage in _HEADS:
            for count in _ROWS if rows.bench.stages.bundle.has("cpu", stage) else ():
                rows.head(stage, count)
    if busy.value is None or idle.value is None:
        return None
    return round(max(busy.value, idle.value), 3), round(idle.value, 3)


def _decoder(rows: _Rows, tokens: Sequence[int], pasts: Sequence[int]) -> None:
    """Of a static graph `pasts` are the rows that it has, all of them in use."""
    for past in pasts:
        for count in tokens:
            rows.decoder(count, past)


def _way(links: Sequence[Link], device: str) -> float:
    """Between the processor and a device: two devices hand over by the processor's memory."""
    return next(link.ms_per_mib for link in links if link.source == device)


def _targets(bundle: Bundle) -> list[str]:
    """Places for all that the bundle has graphs for, one target each."""
    stages: dict[str, list[str]] = {}
    for graph in bundle.manifest.graphs:
        name = graph.stage if graph.stage == "vision" else "decoder"
        if graph.target != "cpu" and name not in stages.setdefault(graph.target, []):
            stages[graph.target].append(name)
    return [",".join(f"{s}={target}" for s in some) for target, some in stages.items()]


def _shapes(bundle: Bundle, target: str, variant: str) -> tuple[Sequence[int], Sequence[int]]:
    """Tokens and pasts to run: those of static graphs, or the processor's."""
    graphs = bundle.graphs(target, variant, "decoder")
    fixed = sorted({graph.tokens for graph in graphs if graph.tokens})
    if not fixed:
        return _TOKENS, _PASTS
    rows = sorted({graph.kv.length_buckets[0] for graph in graphs if graph.kv})
    if any(graph.kv is not None and graph.kv.layout == "state" for graph in graphs):
        return fixed, (0, rows[-1] - fixed[-1])  # a state holds the pass's own rows, too
    return fixed, rows
