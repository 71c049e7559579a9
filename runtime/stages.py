"""A bundle's graphs as steps of an executor: views, passes through the decoder's parts, heads.

Takes what is to be computed; says what waits for what, which device does it and what that should
take, and has it done. A pass through a part needs the keys and values of the pass before it in that
part and the hidden states of the part before it, so parts on several devices work on several passes
at once. Does not know what tokens mean, or what is held in a cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle, PartRecord
from edgejudge.models.packing import Packing
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime.accelerator import Accelerator
from edgejudge.runtime.decoding import PassFeeds, run_layers
from edgejudge.runtime.embeddings import check_visual
from edgejudge.runtime.executor import Executor, Step
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.scheduling.graph import Edge, Task
from edgejudge.runtime.scheduling.limits import Limits
from edgejudge.runtime.session import CPU, CPU_DEVICE, Session, open_session
from edgejudge.runtime.trace import Trace
from edgejudge.runtime.views import Views, in_groups

if TYPE_CHECKING:
    from edgejudge.runtime.predicted import Predicted

__all__ = ["PATCHES", "DecoderPass", "Stages"]

PATCHES = 1536  # of a pass through the vision tower, where views do not meet one another
_TARGET = "cpu"


@dataclass(slots=True, eq=False)
class DecoderPass:
    """S tokens behind `begin` rows of the cache, which has room for them. `made` gives their hidden
    states [S, D] and what all layers take, when the first part begins; `views` are the places of
    the groups that it needs. `out` [R, D] are the hidden states of its rows when it is done.
    """

    begin: int
    tokens: int
    made: Callable[[], tuple[NDArray[np.float32], PassFeeds]]
    views: Sequence[int] = ()
    out: NDArray[np.float32] | None = None
    _flow: NDArray[np.float32] | None = None  # [1, S, D] between two parts
    _given: PassFeeds | None = None


@dataclass(slots=True)
class Stages:
    bundle: Bundle
    spec: ModelSpec
    threads: int
    fleet: Fleet = field(default_factory=Fleet)
    # Stage, or part of it -> provider that ran it last, of stages used.
    placement: dict[str, str] = field(default_factory=dict)
    executor: Executor = field(init=False)
    predicted: "Predicted | None" = None  # where the costs of this bundle's stages were measured
    drifted: Callable[[], None] = lambda: None  # told when a device is slower or faster than that
    sessions: dict[tuple[str, int | None], Session] = field(default_factory=dict)
    _opening: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        # Hidden states of a pass lie between two parts: of so many passes at once, and no more.
        self.executor = Executor(Limits(chunks=len(self.bundle.manifest.parts) + 1))

    def expect(self, predicted: "Predicted | None") -> None:
        """What steps should take from now on; what takes much longer is noticed, and done elsewhere
        where that ends sooner.
        """
        if predicted is not None and self.predicted is not None:
            predicted.began = self.predicted.began
        self.predicted = predicted
        self.executor.replan(None if predicted is None else predicted.replanner(self._may_run))

    def views(self, feeds: Mapping[str, NDArray[Any]]) -> Views:
        """The vision graph's inputs in groups, none of them encoded yet."""
        graph = self.bundle.graph(_TARGET, "vision")
        groups = list(in_groups(graph, feeds, self.spec, PATCHES))
        sizes = tuple(self._visual_tokens(some) for some in groups)
        return Views(groups, sizes, [None] * len(groups), Packing.of(feeds))

    @property
    def apart(self) -> bool:
        """Whether views are encoded by another device than the one that takes them first."""
        parts = self.bundle.manifest.parts
        first = self.fleet.devices("decoder", parts[0].index)
        return self.fleet.devices("vision", None)[:1] != first[:1]

    def run(
        self,
        trace: Trace,
        cache: KvCache,
        passes: Sequence[DecoderPass],
        stage: str = "decoder",
        views: Views | None = None,
        check: Callable[[], None] | None = None,
        wanted: str | None = None,
    ) -> None:
        """Encodes what of the views is missing, and runs the passes one behind the other, each over
        the rows that those before it wrote; the cursor stays. `check` may prevent each from
        beginning by raising. What the device `wanted` has graphs for is done by it, when nobody
        else has work for it.
        """
        if wanted is None:
            self._open_first(trace, stage if passes else None, views)
        make = _Steps(self, trace, trace.innermost, cache, stage, check, wanted)
        if views is not None:
            # Beside the passes it is a stage of its own, not a part of theirs.
            make.encode(views, None if passes else make.inside)
        make.decode(passes)
        # A picture that is encoded by itself is for later: another one may have the engine.
        self._do(make.steps, trace, ahead=not passes or wanted is not None)

    def alone(
        self, stage: str, name: str, value: NDArray[Any], trace: Trace, ahead: bool = False
    ) -> NDArray[np.float32]:
        """What a graph of one input and one output gives, on the processor; `ahead` when nobody
        else has work for it.
        """
        session = self.session(stage, trace=trace)
        found: list[NDArray[Any]] = []

        def run(_: str) -> None:
            self.ran(stage, session.provider, trace)
            with trace.within(inside), trace.span(stage, CPU_DEVICE, rows=len(value)):
                found.extend(session.run({name: value}))

        inside = trace.innermost
        task = Task(stage, stage, len(value))
        self._do([Step(task, run, CPU_DEVICE, self._ms(task, CPU_DEVICE))], trace, ahead)
        return np.ascontiguousarray(found[0], np.float32)

    def ran(self, name: str, where: str, trace: Trace) -> None:
        self.placement[name] = trace.ran[name] = where

    def own(self, stage: str) -> str:
        """The stage of the processor's graphs, which are the decoder's where none are for text."""
        return stage if self.bundle.has(_TARGET, stage) else "decoder"

    def session(self, stage: str, part: int | None = None, *, trace: Trace) -> Session:
        """The processor's, opened when it is first needed."""
        key = (stage, part)
        with self._opening:
            if key not in self.sessions:
                with trace.span("load", "cpu"):
                    graph = self.bundle.graph(_TARGET, stage, part)
                    self.sessions[key] = open_session(self.bundle, graph, CPU, self.threads)
            return self.sessions[key]

    def release(self, stage: str | None = None) -> None:
        """Frees the sessions of a stage, or of all; they are opened again when they are needed."""
        with self._opening:  # another thread may be at work
            self.sessions = {k: v for k, v in self.sessions.items() if stage and k[0] != stage}

    def step(
        self,
        stage: str,
        part: int | None,
        task: Task,
        run: Callable[[str], None],
        trace: Trace,
        wanted: str | None = None,
    ) -> Step:
        """On the first device that has the stage, or on another one where that is slower now, or on
        the one that is wanted.
        """
        devices = [*self.fleet.devices(stage, part, trace), CPU_DEVICE]
        device = devices[0]
        if wanted in devices and (wanted != CPU_DEVICE or (self.own(stage), part) in self.sessions):
            device = wanted  # no graph is loaded for it alone
        elif self.predicted is not None:
            device = self.predicted.device(task, devices)
        return Step(task, run, device, self._ms(task, device))

    def encode(
        self, feeds: dict[str, NDArray[Any]], trace: Trace, device: str
    ) -> NDArray[np.float32]:
        """One group of views -> visual tokens [N, D]."""
        done = self._elsewhere(
            "vision", None, trace, device, lambda a: a.encode(feeds, PATCHES, trace)
        )
        if done is not None:
            self.ran("vision", done[1].device.name, trace)
            return done[0]
        session = self.session("vision", trace=trace)
        self.ran("vision", session.provider, trace)
        with trace.span("vision", CPU_DEVICE):
            (tokens,) = session.run(feeds)
        return np.asarray(tokens.reshape(-1, self.spec.width_at(0)), np.float32)

    def part(
        self,
        stage: str,
        part: PartRecord,
        flow: NDArray[np.float32],
        given: PassFeeds,
        cache: KvCache,
        trace: Trace,
        device: str,
    ) -> NDArray[np.float32]:
        """hidden [1, S, D] through one part, its keys and values put into the cache."""
        index = part.index
        # Whoever runs it: a device's copy of rows that another one writes now is out of date.
        self.fleet.forget(given.begin, index)
        done = self._elsewhere(
            *(stage, index, trace, device),
            lambda a: a.layers(part, flow, given, cache, stage, trace),
        )
        name = stage
        if len(self.bundle.manifest.parts) > 1 and self.fleet.routes:
            name = f"{stage}.{index}"
        if done is not None:
            self.ran(name, done[1].device.name, trace)
            last = part.last_layer == self.spec.text.layers - 1
            return done[0][:, given.rows] if last else done[0]
        session = self.session(self.own(stage), index, trace=trace)
        self.ran(name, session.provider, trace)
        with trace.span(stage, CPU_DEVICE, part=index, tokens=flow.shape[1]):
            return run_layers(session, part, flow, given, cache)

    def _elsewhere(
        self,
        stage: str,
        part: int | None,
        trace: Trace,
        device: str,
        work: Callable[[Accelerator], NDArray[np.float32]],
    ) -> tuple[NDArray[np.float32], Accelerator] | None:
        """What a device gives, and which one it was; None where the processor is to do it."""
        if device == CPU_DEVICE:
            return None
        return self.fleet.attempt(stage, part, trace, work, device)

    def _do(self, steps: Sequence[Step], trace: Trace, ahead: bool = False) -> None:
        def told(text: str) -> None:
            trace.marks.append(("device_drift", text))
            self.drifted()

        self.executor.run(steps, told, self.fleet.give_up, ahead)

    def _ms(self, task: Task, device: str) -> float:
        """Without costs in tokens, which says at least what is more work than what."""
        return float(task.tokens) if self.predicted is None else self.predicted.ms(task, device)

    def _may_run(self, unit: str, device: str) -> bool:
        stage, _, part = unit.partition(".")
        return device == CPU_DEVICE or device in self.fleet.devices(
            stage, int(part) if part else None
        )

    def _visual_tokens(self, feeds: Mapping[str, NDArray[Any]]) -> int:
        if "tokens" in feeds:
            return len(feeds["tokens"])
        if not self.spec.visual_tokens:
            return len(feeds["patches"]) // self.spec.scale_factor**2
        return len(next(iter(feeds.values()))) * self.spec.visual_tokens

    def _open_first(self, trace: Trace, stage: str | None, views: Views | None) -> None:
        """Sessions of the processor, before their first use is timed."""
        if views is not None and views.missing and not self.fleet.devices("vision", None):
            self.session("vision", trace=trace)
        for part in self.bundle.manifest.parts if stage else ():
            assert stage is not None
            if not self.fleet.devices(stage, part.index):
                self.session(self.own(stage), part.index, trace=trace)


@dataclass(slots=True)
class _Steps:
    """The steps of one request as they come."""

    stages: Stages
    trace: Trace
    inside: int | None  # the span that passes belong to
    cache: KvCache
    stage: str
    check: Callable[[], None] | None
    wanted: str | None
    steps: list[Step] = field(default_factory=list)
    _views: dict[int, int] = field(default_factory=dict)  # group -> its step

    def encode(self, views: Views, inside: int | None) -> None:
        view = self.stages.spec.visual_tokens or 256
        for place in views.missing:
            count = max(1, round(views.sizes[place] / view))
            task = Task(f"views {place}", "vision", count, fixed=self.wanted is not None)
            self._views[place] = len(self.steps)
            self._add("vision", None, task, self._encoding(views, place, inside))

    def decode(self, passes: Sequence[DecoderPass]) -> None:
        spec, parts = self.stages.spec.text, self.stages.bundle.manifest.parts
        width = 4 * spec.hidden
        row = self.cache.row_bytes // spec.layers
        before: list[int] = []  # each part's step of the pass before
        for number, one in enumerate(passes):
            own: list[int] = []
            for part in parts:
                edges = [Edge(own[-1], one.tokens * width)] if own else self._needed(one, width)
                if before:
                    layers = part.last_layer - part.first_layer + 1
                    edges.append(Edge(before[part.index], one.begin * row * layers))
                unit = f"decoder.{part.index}"
                task = Task(
                    f"pass {number} {unit}",
                    unit,
                    one.tokens,
                    one.begin,
                    tuple(edges),
                    chunk=number,
                    cached=self.wanted is None,  # else nobody waits for its cache
                    fixed=self.wanted is not None,
                )
                own.append(len(self.steps))
                self._add(self.stage, part.index, task, self._decoding(one, part))
            before = own

    def _add(self, stage: str, part: int | None, task: Task, run: Callable[[str], None]) -> None:
        self.steps.append(self.stages.step(stage, part, task, run, self.trace, self.wanted))

    def _needed(self, one: DecoderPass, width: int) -> list[Edge]:
        return [Edge(self._views[v], one.tokens * width) for v in one.views if v in self._views]

    def _encoding(self, views: Views, place: int, inside: int | None) -> Callable[[str], None]:
        def run(device: str) -> None:
            if self.check is not None:
                self.check()
            with self.trace.within(inside):
                found = self.stages.encode(views.feeds[place], self.trace, device)
            check_visual(len(found), views.sizes[place])
            views.found[place] = found

        return run

    def _decoding(self, one: DecoderPass, part: PartRecord) -> Callable[[str], None]:
        stages, last = self.stages, self.stages.bundle.manifest.parts[-1].index

        def run(device: str) -> None:
            if one._given is None:
                if self.check is not None:
                    self.check()
                hidden, one._given = one.made()
                one._flow = np.ascontiguousarray(hidden[None])
            assert one._flow is not None
            with self.trace.within(self.inside):
                one._flow = stages.part(
                    self.stage, part, one._flow, one._given, self.cache, self.trace, device
                )
            if part.index == last:
                one.out, one._flow, one._given = one._flow[0], None, None

        return run
