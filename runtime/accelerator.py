"""One device beside the processor: its sessions, its copies of the cache, a thread of its own.

Takes an opened bundle and a `Device`; runs a vision tower or parts of a decoder there. Whatever
goes wrong there is a `DeviceFault`, and so are values that are no numbers and a run that does not
end; what becomes of the work is not decided here. Does not know other devices.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle, GraphRecord, PartRecord
from edgejudge.errors import BundleError, EdgeJudgeError, ProviderError
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime.assignment import Elsewhere, elsewhere
from edgejudge.runtime.compiled import KEEPS, Origin, prepared
from edgejudge.runtime.decoding import PassFeeds
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.padded import NoGraph, run_padded, typed
from edgejudge.runtime.placement import Device
from edgejudge.runtime.provider import open_inner
from edgejudge.runtime.replica import Moved, Replica
from edgejudge.runtime.session import CPU, Session, first_line
from edgejudge.runtime.state_replica import StateReplica
from edgejudge.runtime.trace import Trace
from edgejudge.runtime.views import in_groups, static_groups
from edgejudge.runtime.worker import Worker

if TYPE_CHECKING:
    from edgejudge.runtime.coreml import Programs

__all__ = ["Accelerator", "DeviceFault", "Loaded", "NotTaken"]

T = TypeVar("T")
# Deadlines that loading a Core ML program may take: for the Neural Engine it is minutes, once.
_LOADING = 10
# Otherwise the CPU provider rounds activations where a graph says nothing of it, and adds products
# of bytes in 16 bits on processors without VNNI.
_EXACT = {"session.qdq_matmulnbits_accuracy_level": "0", "session.x64quantprecision": "1"}


class DeviceFault(ProviderError):
    """A device failed at a piece of work, which another one can do."""


class NotTaken(DeviceFault):
    """No graph of a device takes a piece of work; nothing is wrong with the device."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A graph in a session: which nodes its device did not take, and whether it was compiled."""

    graph: GraphRecord
    elsewhere: tuple[Elsewhere, ...]
    origin: Origin


@dataclass(slots=True, eq=False)
class Accelerator:
    """`variants` say for each stage which of the target's forms is in use; until a canary has
    chosen one, a stage has none and cannot run.
    """

    bundle: Bundle
    spec: ModelSpec
    device: Device
    threads: int
    deadline_s: float
    strict: bool = False
    variants: dict[str, str] = field(default_factory=dict)
    loaded: dict[str, Loaded] = field(default_factory=dict)  # by the key of a graph's record
    _sessions: dict[str, Session] = field(default_factory=dict)
    _replicas: dict[int, Replica] = field(default_factory=dict)
    _programs: "Programs | None" = None  # of Core ML
    _worker: Worker = field(init=False)

    def __post_init__(self) -> None:
        # Here, since two threads may be the first to have something for it.
        self._worker = Worker(self.device.name, self.deadline_s)

    @property
    def moved(self) -> Moved:
        """What converting keys and values has cost."""
        return Moved.of(replica.moved for replica in self._replicas.values())

    @property
    def hung(self) -> bool:
        return self._worker.abandoned

    def give_up(self) -> None:
        """Leaves behind what is at work now, as if it had hung."""
        self._worker.give_up()

    def renew(self) -> None:
        """Forgets sessions, copies and a thread that hangs."""
        self._sessions.clear()
        self._replicas.clear()
        self._programs = None
        self._worker = Worker(self.device.name, self.deadline_s)

    def use(self, stage: str, variant: str | None) -> None:
        """This form of a stage's graphs, or none at all; those of others are freed."""
        self.variants.pop(stage, None)
        for graph in self.bundle.manifest.graphs:
            if graph.stage == stage and (graph.target, graph.variant) != (
                self.device.target,
                variant,
            ):
                self._sessions.pop(graph.key, None)
                self.loaded.pop(graph.key, None)
        if variant is not None:
            self.variants[stage] = variant
        if stage == "decoder":
            self._replicas.clear()

    def open(self, stage: str, trace: Trace) -> None:
        """Every graph of a stage, before it is needed."""
        for graph in self.bundle.graphs(self.device.target, self.variants[stage], stage):
            self._open(graph, trace)

    def forget(self, rows: int, part: int | None = None) -> None:
        """What lies behind so many rows of the cache was replaced, or of a part's layers of it."""
        for index, replica in list(self._replicas.items()):
            if part is None or index == part:
                replica.forget(rows)

    def encode(
        self, feeds: Mapping[str, NDArray[Any]], most: int, trace: Trace
    ) -> NDArray[np.float32]:
        """The vision graph's inputs -> visual tokens [N, D]; `most` patches in one run."""
        groups, width = [], self.spec.width_at(0)
        try:
            for graph, some, wanted in self._groups(feeds, most):
                session = self._open(graph, trace)
                with trace.span("vision", self.device.name):
                    (tokens,) = self._run(session, graph, some)
                if tokens.shape[-1] != width:
                    raise DeviceFault(f"{graph.file} gave the shape {tokens.shape}")
                rows = np.asarray(tokens, np.float32).reshape(-1, width)
                groups.append(rows if wanted is None else rows[wanted])
        except NoGraph as error:
            raise NotTaken(str(error)) from None
        found = np.ascontiguousarray(np.concatenate(groups))
        if not np.isfinite(found).all():
            raise DeviceFault(f"{graph.file} gave values that are no numbers on {self.device.name}")
        return found

    def _groups(
        self, feeds: Mapping[str, NDArray[Any]], most: int
    ) -> Iterator[tuple[GraphRecord, dict[str, NDArray[Any]], NDArray[np.int64] | None]]:
        """A graph, what it is fed, and which of the rows that it gives are wanted."""
        graphs = self._graphs("vision", None)
        if graphs[0].tokens is not None:
            yield from static_groups(graphs, feeds)
        else:
            for some in in_groups(graphs[0], feeds, self.spec, most):
                yield graphs[0], some, None

    def layers(
        self,
        part: PartRecord,
        hidden: NDArray[np.float32],
        given: PassFeeds,
        cache: KvCache,
        span: str,
        trace: Trace,
    ) -> NDArray[np.float32]:
        """As run_layers of the processor; timed as `span`."""
        graphs = self._graphs("decoder", part.index)
        replica = self._replica(graphs[0], part, cache)

        def run(graph: GraphRecord, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
            session = self._open(graph, trace)
            with trace.span(span, self.device.name, part=part.index, tokens=hidden.shape[1]):
                return self._run(session, graph, feeds)

        try:
            return run_padded(graphs, run, part, hidden, given, cache, replica, trace)
        except NoGraph as error:
            raise NotTaken(str(error)) from None
        except (ProviderError, ValueError) as error:  # the latter of shapes that are no graph's
            replica.lost(given.begin)
            raise DeviceFault(str(error)) from None

    def _graphs(self, stage: str, part: int | None) -> list[GraphRecord]:
        if stage not in self.variants:
            raise DeviceFault(f"no form of {stage} graphs is right on {self.device.name}")
        found = self.bundle.graphs(self.device.target, self.variants[stage], stage)
        return [graph for graph in found if graph.part == part]

    def _replica(self, graph: GraphRecord, part: PartRecord, cache: KvCache) -> Replica:
        if part.index not in self._replicas:
            if graph.kv is None:
                raise AssertionError("a decoder graph has a cache")
            kind = StateReplica if graph.kv.layout == "state" else Replica
            self._replicas[part.index] = kind(graph.kv, part)
        if self.forget not in cache.watchers:
            cache.watchers.append(self.forget)
        return self._replicas[part.index]

    def _run(
        self, session: Session, graph: GraphRecord, feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        ready = typed(graph, dict(feeds))

        def work() -> list[NDArray[Any]]:
            session.begin(feeds)
            return session.run(ready)

        return self._safely(work)

    def _open(self, graph: GraphRecord, trace: Trace) -> Session:
        if found := self._sessions.get(graph.key):
            return found
        with trace.span("load", self.device.name):
            deadlines = _LOADING if self.device.target == "coreml" else 1
            session, loaded = self._safely(lambda: self._opened(graph), deadlines)
        self._sessions[graph.key], self.loaded[graph.key] = session, loaded
        return session

    def _opened(self, graph: GraphRecord) -> tuple[Session, Loaded]:
        device, strict = self.device, self.strict
        if device.target == "coreml":
            if self._programs is None:
                # Imported here: few have it.
                from edgejudge.runtime.coreml import Programs

                self._programs = Programs(self.bundle, device)
            return self._programs.open(graph, strict)

        def load(path: Any, config: Mapping[str, str]) -> Any:
            more = {**_EXACT, **config}
            return open_inner(path, device, self.threads, strict=strict, config=more)

        origin: Origin = "compiled"
        if device.provider in KEEPS:
            inner, origin = prepared(self.bundle, graph, device, load)
        else:
            inner = load(self.bundle.graph_file(graph), {})
        path = self.bundle.graph_file(graph)
        stray = () if device.provider == CPU else elsewhere(inner, device.provider, path)
        return Session(graph, device.provider, inner), Loaded(graph, stray, origin)

    def _safely(self, work: Callable[[], T], deadlines: int = 1) -> T:
        """On the device's own thread, with a deadline."""
        try:
            return self._worker.call(work, deadlines)
        except BundleError:
            raise
        except EdgeJudgeError as error:
            raise DeviceFault(str(error)) from None
        except Exception as error:  # a driver raises whatever it pleases
            raise DeviceFault(f"{self.device.name} failed ({first_line(error)})") from None
