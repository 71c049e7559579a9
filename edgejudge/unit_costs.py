"""What stages and parts of a bundle cost on each device here, for planning.

Takes an opened bundle; gives a `Profile`: milliseconds of the vision tower by views, of each part
of the decoder by tokens and by what lies before them, and what carrying keys and values to a device
costs. Runs real graphs with drawn input, on one device after another. Keeps nothing.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle
from edgejudge.canaries import placed
from edgejudge.energy import Watts, meter
from edgejudge.errors import EdgeJudgeError, InputError
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.prompt import screen_ids
from edgejudge.models.tiles import TileSpec
from edgejudge.runtime import Engine
from edgejudge.runtime.devices import survey
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.scheduling import Profile
from edgejudge.runtime.scheduling.profile import SCHEMA_VERSION, DeviceRecord, Link, Row
from edgejudge.runtime.scheduling.workload import view_tokens
from edgejudge.runtime.session import CPU

__all__ = ["WATTS", "Measured", "measure_costs"]

_PICTURES = ((224, 224), (448, 448), (1080, 1920))  # height, width
_VIEWS = (1, 4)
_TOKENS = (1, 16, 64, 128, 256, 384)
_PASTS = (0, 512)
_MIB = 1 << 20
_IDLE_S = 1.0  # how long it is looked at what the processor draws when nothing is to be done
_ROWS = (1, 24)  # of a head
# Busy and idle, where no counter tells: a phone's order of magnitude. A stated model, not measured.
WATTS = {"cpu": (4.0, 0.5), "gpu": (3.0, 0.3), "npu": (1.5, 0.1)}


@dataclass(frozen=True, slots=True)
class Measured:
    """`left_out` says of each target that was not measured why."""

    profile: Profile
    left_out: tuple[str, ...]


@dataclass(slots=True)
class _Rows:
    """Milliseconds seen, by unit, tokens and past."""

    device: str
    seen: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)

    def add(self, unit: str, tokens: int, past: int, ms: float) -> None:
        self.seen.setdefault((unit, tokens, past), []).append(ms)

    def rows(self) -> Iterator[Row]:
        for (unit, tokens, past), some in sorted(self.seen.items()):
            p50 = round(statistics.median(some), 4)
            yield Row(unit, self.device, tokens, past, p50, len(some))


def measure_costs(
    bundle: Bundle,
    place: str | None = None,
    rounds: int = 5,
    progress: Callable[[str], None] = lambda _: None,
) -> Measured:
    """`place` says which devices beside the processor are measured, as for judging; None takes one
    for each target that the bundle has graphs for and that is here. Raises InputError for less than
    one round, and with `place` what placing raises.
    """
    if rounds < 1:
        raise InputError("usage", f"--rounds must be at least 1, got {rounds}")
    engine = Engine.open(bundle)
    engine.chunk = max(engine.chunk, *_TOKENS)  # one pass for each shape
    view = view_tokens(engine.spec)
    progress(f"cpu:{CPU}")
    bench = _Bench(engine, engine.fleet, view, _Rows(f"cpu:{CPU}"), rounds)
    watts = _watts_of(bench)
    here = {device.provider: device for device in survey()[0]}
    own = here[CPU]
    cpu = DeviceRecord(
        bench.rows.device, "cpu", CPU, own.version, None, *(watts or WATTS["cpu"]), False
    )
    devices, found = [cpu], list(bench.rows.rows())
    links: list[Link] = []
    left_out: list[str] = []
    for wanted in [place] if place else _targets(bundle):
        try:
            fleet = placed(bundle, engine, wanted)
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
            bench = _Bench(engine, fleet, view, _Rows(device.name), rounds)
            if "vision" in stages:
                bench.vision()
            if "decoder" in stages:
                bench.decoder(*_shapes(bundle, device.target, stages["decoder"]))
            found += bench.rows.rows()
            memory = here[device.provider].memory_bytes if device.provider in here else None
            names = device.name, device.target, device.provider, device.version
            padded = device.target == "npu"
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
    rows, ways = tuple(found), tuple(links)
    profile = Profile(
        SCHEMA_VERSION, source, bundle.fingerprint, {}, tuple(devices), rows, ways, ()
    )
    return Measured(profile, tuple(left_out))


def _watts_of(bench: "_Bench") -> tuple[float, float] | None:
    """Measures the processor; its watts meanwhile and while it idles, where a counter tells."""
    counters, idle, busy = meter(), Watts(), Watts()
    if counters is not None:
        with counters.watts() as idle:
            time.sleep(_IDLE_S)
    with counters.watts() if counters else nullcontext(busy) as busy:
        bench.vision()
        bench.decoder(_TOKENS, _PASTS)
        bench.heads()
    if busy.value is None or idle.value is None:
        return None
    return round(max(busy.value, idle.value), 3), round(idle.value, 3)


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
    rows = {graph.kv.length_buckets[0] for graph in graphs if graph.kv}
    return fixed, sorted(rows)


@contextmanager
def _at(engine: Engine, fleet: Fleet) -> Iterator[None]:
    """With these devices and a trace of its own."""
    before, engine.fleet = engine.fleet, fleet
    engine.trace = engine.new_trace()
    try:
        yield
    finally:
        engine.fleet = before


@dataclass(frozen=True, slots=True)
class _Bench:
    """One device's graphs, run `rounds` times in each shape, after once that allocates."""

    engine: Engine
    fleet: Fleet
    view_tokens: int
    rows: _Rows
    rounds: int

    def vision(self) -> None:
        for feeds in self._pictures():
            for number in range(self.rounds + 1):
                with _at(self.engine, self.fleet):
                    found = self.engine.encode_image(feeds)
                views = max(1, round(len(found) / self.view_tokens))
                for ms in self._spent("vision").values():
                    if number:
                        self.rows.add("vision", views, 0, ms)

    def _pictures(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Few views and many: some of a picture's tiles, or pictures of several sizes."""
        spec = image_spec(self.engine.bundle.manifest.preprocessing)
        if not isinstance(spec, TileSpec):
            for height, width in _PICTURES:
                yield dict(preprocess(canary_image(height, width), spec).feeds)
            return
        views = preprocess(canary_image(*_PICTURES[-1]), spec).feeds["pixel_values"]
        for count in sorted({n for n in _VIEWS if n < len(views)} | {len(views)}):
            yield {"pixel_values": np.ascontiguousarray(views[:count])}

    def decoder(self, tokens: Sequence[int], pasts: Sequence[int]) -> None:
        """Of a static graph `pasts` are the rows that it has, all of them in use."""
        engine, token = self.engine, screen_ids(self.engine.bundle)[0]
        for past in pasts:
            if past >= engine.spec.text.max_positions:
                continue
            # By the processor, which is there for any length.
            before = engine.prefill([token] * past) if past else None
            room = engine.room(before) if before else engine.spec.text.max_positions
            for count in (count for count in tokens if count <= room):
                for number in range(self.rounds + 1):
                    with _at(engine, self.fleet):
                        engine.append([token] * count, after=before)
                    for part, ms in self._spent("decoder").items():
                        if number:
                            self.rows.add(f"decoder.{part}", count, past, ms)

    def heads(self) -> None:
        engine = self.engine
        heads = {"verdict_head": engine.label_logits, "lm_head": engine.full_logits}
        for stage, run in heads.items():
            if not engine.bundle.has("cpu", stage):
                continue
            for count in _ROWS:
                hidden = np.ones((count, engine.spec.text.hidden), np.float32)
                for number in range(self.rounds + 1):
                    with _at(engine, self.fleet):
                        run(hidden)
                    if number:
                        self.rows.add(stage, count, 0, engine.trace.totals()[stage])

    def _spent(self, name: str) -> dict[int | None, float]:
        """Milliseconds of the device's spans of one name, by part. What another device did in its
        place is none of them.
        """
        own = "cpu" if self.rows.device.startswith("cpu:") else self.rows.device
        found: dict[int | None, float] = {}
        for span in self.engine.trace.spans:
            if span.name == name and span.device == own:
                part = span.counts.get("part")
                found[part] = found.get(part, 0.0) + span.ms
        return found
