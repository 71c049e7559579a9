"""An engine for little memory: a few layers at a time are loaded, and pass all pictures of a batch.

Takes an opened bundle, how many bytes the process may take, and requests; gives label logits. What
layers hand to the next ones waits on disk, keys and values live as long as the layers that made
them. Weights are read again for each batch, so large batches are cheaper. An executor does it, one
step after another: a slice's loading, then each picture's way through it. Knows no policy.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle, PartRecord
from edgejudge.errors import BundleError, EdgeJudgeError, InputError, ProviderError
from edgejudge.models.fitting import check_fit
from edgejudge.models.packing import PACKED_ROWS, PACKED_SHARES, Packing
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime.decoding import PassFeeds, check_positions, run_layers
from edgejudge.runtime.embeddings import Embeddings
from edgejudge.runtime.executor import Executor, Step
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.labels import yes_probabilities
from edgejudge.runtime.memory import Room, fits, free_unused, most_pixels
from edgejudge.runtime.overflow import check_overflow
from edgejudge.runtime.scheduling.graph import Edge, Task
from edgejudge.runtime.session import CPU, CPU_DEVICE, Session, default_threads, open_session
from edgejudge.runtime.trace import Trace
from edgejudge.runtime.tree import Pass, causal, even_parts, plan_passes
from edgejudge.runtime.views import Views, in_groups

__all__ = ["Request", "SlicedEngine", "fits", "most_pixels"]

_TARGET = "cpu"
_TOKENS = 256  # of a pass: longer ones gain little and take room
_PATCHES = 768  # of a pass through the vision tower, where views do not meet one another


@dataclass(frozen=True, slots=True)
class Request:
    """Label logits wanted at the end of each branch over a prefix. `feeds` are the vision graph's
    inputs, where there is a picture. `positions` [S] or [3, S] are the prefix's rope positions,
    None counts them.
    """

    branches: Sequence[Sequence[int]]
    ids: Sequence[int] = ()
    positions: NDArray[np.int64] | None = None
    feeds: Mapping[str, NDArray[Any]] | None = None
    trace: Trace = field(default_factory=Trace)


@dataclass(slots=True)
class _Picture:
    """A request on its way; its arrays lie in `folder`."""

    request: Request
    folder: Path
    ends: NDArray[np.float32]  # [B, D], filled by the last layers
    groups: int = 0  # of views that pass the tower together
    failure: EdgeJudgeError | None = None

    def put(self, name: str, array: NDArray[Any]) -> None:
        try:
            np.save(self.folder / f"{name}.npy", array)
        except OSError as error:
            raise _no_room(error) from None

    def get(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = np.load(self.folder / f"{name}.npy")
        return found


@dataclass(slots=True)
class SlicedEngine:
    """What `Engine` does for a verdict, in less memory; text it does not write. Not for use by two
    threads at once.
    """

    bundle: Bundle
    spec: ModelSpec
    threads: int
    room: Room
    trace: Trace
    _embeddings: Embeddings
    interrupt: Callable[[], None] | None = None  # called before each pass, which it may prevent
    placement: dict[str, str] = field(default_factory=dict)
    executor: Executor = field(default_factory=Executor)
    watchers: list[Callable[[Trace], None]] = field(default_factory=list)  # of requests that begin

    @classmethod
    def open(cls, bundle: Bundle, budget: int, threads: int | None = None) -> Self:
        """`budget` in bytes is for the whole process. Raises BundleError for one that is less than
        the largest slice needs.
        """
        check_fit(bundle.manifest, str(bundle.path))
        spec = ModelSpec.from_json(bundle.manifest.spec)
        manifest, text, vision = bundle.manifest, spec.text, spec.vision
        if not (manifest.vision_slices and manifest.decoder_slices):
            raise BundleError(f"{bundle.path}: has no slices; export it again with this edgejudge")
        room = Room(budget)
        room.check(manifest.vision_slices, _PATCHES, vision.hidden, vision.intermediate)
        room.check(manifest.decoder_slices, _TOKENS, text.hidden, text.intermediate)
        chosen = default_threads() if threads is None else threads
        check_overflow(bundle, _TARGET, chosen)
        return cls(bundle, spec, chosen, room, Trace(), Embeddings.of(bundle, spec))

    def new_trace(self) -> Trace:
        trace = Trace()
        for watcher in tuple(self.watchers):
            watcher(trace)
        return trace

    def ask(self, requests: Iterable[Request]) -> list[NDArray[np.float32] | EdgeJudgeError]:
        """Label logits [B, R] of each request, or what kept it from having some.

        Requests are taken one after another and their arrays put on disk before the next is.
        """
        with _scratch() as scratch:
            pictures: list[_Picture] = []
            for request in requests:
                folder = scratch / str(len(pictures))
                folder.mkdir()
                pictures.append(self._begin(request, folder))
            self._encode([p for p in pictures if p.groups])
            self._decode(pictures)
            return self._logits(pictures)

    def score_blind(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Label logits [B, R] of whole prompts without an image."""
        (found,) = self.ask([Request(prompts, trace=self.trace)])
        if isinstance(found, EdgeJudgeError):
            raise found
        return found

    def label_probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """P(yes) of two labels [B]; ProviderError where a logit is not a number."""
        return yes_probabilities(logits, self.bundle.manifest.labels)

    def _begin(self, request: Request, folder: Path) -> _Picture:
        ends = np.zeros((len(request.branches), self.spec.text.hidden), np.float32)
        picture = _Picture(request, folder, ends)
        if request.feeds is not None:
            first = self.bundle.graph(_TARGET, "vision_slice", 0)
            taken = {tensor.name for tensor in first.inputs}
            for group in in_groups(first, request.feeds, self.spec, _PATCHES):
                for name, array in group.items():
                    picture.put(f"{name}.{picture.groups}", array)
                picture.groups += 1
            for name in request.feeds.keys() - taken:  # which a later slice takes, or none
                picture.put(f"{name}.0", request.feeds[name])
            picture.request = Request(
                request.branches, request.ids, request.positions, trace=request.trace
            )
        return picture

    def _encode(self, pictures: Sequence[_Picture]) -> None:
        def ready(_: PartRecord, session: Session) -> Callable[[_Picture], None]:
            names = [tensor.name for tensor in session.graph.inputs]

            def work(picture: _Picture) -> None:
                for group in range(picture.groups):
                    self._may_go_on()
                    feeds = {name: picture.get(f"{name}.{group}") for name in names}
                    (out,) = session.run(feeds)
                    picture.put(f"hidden.{group}", out)

            return work

        self._through("vision", self.bundle.manifest.vision_slices, pictures, ready)

    def _visual(self, picture: _Picture) -> NDArray[np.float32]:
        groups = [picture.get(f"hidden.{group}") for group in range(picture.groups)]
        width = self.spec.width_at(0)
        found = [np.asarray(g.reshape(-1, width), np.float32) for g in groups]
        packing = None
        if self.spec.line_end:
            packing = Packing(picture.get(f"{PACKED_ROWS}.0"), picture.get(f"{PACKED_SHARES}.0"))
        views = Views([], tuple(map(len, found)), [*found], packing)
        return views.tokens(0, views.count)

    def _decode(self, pictures: Sequence[_Picture]) -> None:
        """Fills `ends` of each."""
        longest = 0
        for picture in _left(pictures):
            with _failing(picture):
                longest = max(longest, self._embed(picture))

        def ready(part: PartRecord, session: Session) -> Callable[[_Picture], None]:
            cache = self._cache(part)
            cache.buckets = (longest,)  # of the batch: not a row more than it needs
            cache.reserve(longest)
            return lambda picture: self._run(picture, part, session, cache)

        self._through("decoder", self.bundle.manifest.decoder_slices, pictures, ready)

    def _embed(self, picture: _Picture) -> int:
        """Puts down what the first layers take; gives how many tokens the cache must hold."""
        visual = self._visual(picture) if picture.groups else None
        longest = used = 0
        for index, step in enumerate(self._steps(picture.request)):
            image = self.bundle.manifest.tokens.image
            count = int((step.ids == image).sum())
            some = None if visual is None else visual[used : used + count]
            picture.put(f"pass.{index}", self._embeddings.rows(step.ids, some)[None])
            used += count
            longest = max(longest, step.kept + len(step.ids))
            check_positions(self.spec.text, int(step.positions.max()))
        if visual is not None and used != len(visual):
            raise ProviderError(
                f"the vision graph gave {len(visual)} visual tokens for {used} places in the "
                "prompt; check the bundle with `edgejudge screen --verify`, or export it again"
            )
        for part in self.bundle.manifest.decoder_slices:
            cache = self._cache(part)
            cache.bucket(longest)
            self.room.check_cache(cache.row_bytes * longest)
        return longest

    def _cache(self, part: PartRecord) -> KvCache:
        """Of one slice, with nothing reserved yet."""
        kv = self.bundle.graph(_TARGET, "decoder_slice", part.index).kv
        if kv is None:
            raise AssertionError("a decoder graph has a cache")
        layers = part.last_layer + 1 - part.first_layer
        return KvCache.of(kv, layers)

    def _run(self, picture: _Picture, part: PartRecord, session: Session, cache: KvCache) -> None:
        cache.rewind(0)
        last = part.last_layer == self.spec.text.layers - 1
        for index, step in enumerate(self._steps(picture.request)):
            self._may_go_on()
            cache.rewind(step.kept)
            given = PassFeeds.of(self.spec.text, step.kept, step.positions, step.bias, step.ends)
            hidden = picture.get(f"pass.{index}")
            hidden = run_layers(session, part, hidden, given, cache, part.first_layer)
            cache.advance(len(step.ids))
            if last:
                picture.ends[step.members] = hidden[0, : len(step.members)]
            else:
                picture.put(f"pass.{index}", hidden)

    def _steps(self, request: Request) -> Iterator[Pass]:
        """The prefix in passes, then the questions; `kept` counts from the first token on."""
        ids, positions = np.asarray(request.ids, np.int64), request.positions
        if positions is None:
            positions = np.arange(len(ids), dtype=np.int64)
        none = np.zeros(0, np.int64)
        for some in even_parts(len(ids), _TOKENS):
            bias = causal(some.stop - some.start, some.start)
            yield Pass(some.start, ids[some], positions[..., some], bias, none, none)
        position = int(positions.max(initial=-1)) + 1
        for step in plan_passes(request.branches, len(ids), position, _TOKENS):
            yield replace(step, kept=len(ids) + step.kept)

    def _through(
        self,
        stage: str,
        slices: Sequence[PartRecord],
        pictures: Sequence[_Picture],
        ready: Callable[[PartRecord, Session], Callable[[_Picture], None]],
    ) -> None:
        """Each picture that is left through what a loaded slice was made `ready` for, one slice
        after another, each freed before the next is loaded. Loading is timed as that of the first
        one.
        """
        loaded: list[Callable[[_Picture], None]] = []

        def load(part: PartRecord) -> None:
            loaded.clear()
            free_unused()
            for first in _left(pictures)[:1]:
                session = self._open(f"{stage}_slice", part.index, first.request.trace)
                loaded.append(ready(part, session))

        def go(picture: _Picture) -> None:
            for work in loaded if picture.failure is None else ():
                with _failing(picture), picture.request.trace.span(stage, CPU_DEVICE):
                    work(picture)

        steps: list[tuple[str, Callable[[], None]]] = []
        for part in slices:
            unit = f"{stage}.{part.index}"
            steps.append((unit, partial(load, part)))
            steps += [(unit, partial(go, picture)) for picture in pictures]
        try:
            self._do(steps)
        finally:
            loaded.clear()
            free_unused()

    def _do(self, works: Sequence[tuple[str, Callable[[], None]]]) -> None:
        """Each by the unit whose work it is, after the one before."""
        steps = []
        for number, (unit, work) in enumerate(works):
            after = (Edge(number - 1, 0),) if number else ()
            task = Task(f"{unit} {number}", unit, 1, after=after)
            steps.append(Step(task, partial(_called, work), CPU_DEVICE, 1.0))
        self.executor.run(steps)

    def _open(self, stage: str, part: int | None, trace: Trace) -> Session:
        with trace.span("load", CPU_DEVICE):
            graph = self.bundle.graph(_TARGET, stage, part)
            session = open_session(self.bundle, graph, CPU, self.threads, lean=True)
        self.placement[stage] = session.provider
        return session

    def _logits(self, pictures: Sequence[_Picture]) -> list[NDArray[np.float32] | EdgeJudgeError]:
        found: dict[int, NDArray[np.float32]] = {}
        sessions: list[Session] = []

        def head(picture: _Picture) -> None:
            trace = picture.request.trace
            if not sessions:
                sessions.append(self._open("verdict_head", None, trace))
            with trace.span("verdict_head", CPU_DEVICE):
                (logits,) = sessions[0].run({"hidden": picture.ends})
            found[id(picture)] = np.ascontiguousarray(logits, np.float32)

        self._do([("verdict_head", partial(head, picture)) for picture in _left(pictures)])
        return [p.failure or found[id(p)] for p in pictures]

    def _may_go_on(self) -> None:
        if self.interrupt is not None:
            self.interrupt()


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of its own under TMPDIR, gone afterwards."""
    try:
        # Who is called off twice does not wait for what runs, which may write once more.
        folder = tempfile.TemporaryDirectory(prefix="edgejudge-", ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_room(error) from None
    with folder as path:
        yield Path(path)


def _no_room(error: OSError) -> InputError:
    return InputError(
        "no_room",
        "what layers hand on could not be written to the folder for temporary files "
        f"({error.strerror or error}); make room there, or set TMPDIR to another one",
    )


def _called(work: Callable[[], None], _: str) -> None:
    work()


def _left(pictures: Sequence[_Picture]) -> list[_Picture]:
    return [picture for picture in pictures if picture.failure is None]


@contextmanager
def _failing(picture: _Picture) -> Iterator[None]:
    """What goes wrong with one picture is its failure and ends its way, not that of others."""
    try:
        yield
    except (InputError, ProviderError) as error:
        picture.failure = error
    except MemoryError:
        message = "it does not fit into memory; scale it down"
        picture.failure = InputError("out_of_memory", message)
