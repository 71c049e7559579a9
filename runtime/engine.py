"""The engine: prefixes computed once, any number of questions scored over them.

Takes an opened bundle, pixel views and token ids; gives visual tokens, prefixes in the KV cache
(system prompt, then image, then what questions share) and label logits at each question's last
token. Sessions open when first needed. Does not know policies, thresholds or text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle, PartRecord
from edgejudge.errors import BundleError, InputError
from edgejudge.models.fitting import check_fit
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime.decoding import PassFeeds, check_positions, run_layers
from edgejudge.runtime.embeddings import Embeddings
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.labels import rule_texts, yes_probabilities
from edgejudge.runtime.overflow import check_overflow
from edgejudge.runtime.session import CPU, Session, default_threads, open_session
from edgejudge.runtime.settings import Settings, kept_settings
from edgejudge.runtime.trace import Trace
from edgejudge.runtime.tree import causal, even_parts, plan_passes
from edgejudge.runtime.views import in_groups

__all__ = ["Engine", "Prefix"]

_TARGET = "cpu"
_PATCHES = 1536  # of a pass through the vision tower, where views do not meet one another


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens that lie in the engine's cache, from its first row on. `serial` tells it from others
    that lay there.
    """

    length: int
    position: int  # rope position of the first token after it
    serial: int


@dataclass(slots=True)
class Engine:
    """One bundle, loaded. Not for use by two threads at once, since the cache is one; but for
    `encode_image`, which may run beside the rest.

    `chunk` is how many prompt tokens run in one pass at most, `pack_tokens` how many of packed
    branches. Prefixes are held as a stack, each continuing the one below; what is asked of one
    drops those above it.
    """

    bundle: Bundle
    spec: ModelSpec
    threads: int
    chunk: int
    pack_tokens: int
    trace: Trace  # of the request that has the engine; another may be put in its place
    _cache: KvCache
    _embeddings: Embeddings
    _serial: int = 0
    _held: list[Prefix] = field(default_factory=list)
    _sessions: dict[tuple[str, int | None], Session] = field(default_factory=dict)
    _opening: Lock = field(default_factory=Lock)
    interrupt: Callable[[], None] | None = None  # called before each pass, which it may prevent
    release_vision: bool = False  # after each picture, where memory is dearer than loading it again
    # Stage, or part of it -> provider that ran it last, of stages used.
    placement: dict[str, str] = field(default_factory=dict)
    fleet: Fleet = field(default_factory=Fleet)  # of devices beside the processor

    @classmethod
    def open(
        cls, bundle: Bundle, settings: Settings | None = None, threads: int | None = None
    ) -> Self:
        """With these settings; None takes what `edgejudge tune` kept for the bundle, or what suits
        most. `threads` overrides theirs. Raises BundleError for files that are not what the
        manifest says.
        """
        check_fit(bundle.manifest, str(bundle.path))
        chosen = settings or kept_settings(bundle) or Settings(default_threads())
        spec = ModelSpec.from_json(bundle.manifest.spec)
        kv = bundle.graph(_TARGET, "decoder", 0).kv
        if kv is None or kv.layout != "BNSH" or kv.dtype not in ("float32", "int8"):
            raise BundleError(
                f"{bundle.path}: the decoder's cache is {kv}, expected BNSH in float32 or int8"
            )
        cache = KvCache(spec.text.layers, kv.kv_heads, kv.head_dim, kv.length_buckets, kv.dtype)
        count = chosen.threads if threads is None else threads
        check_overflow(bundle, _TARGET, count)
        sizes = (count, chosen.chunk, chosen.pack_tokens)
        return cls(bundle, spec, *sizes, Trace(), cache, Embeddings.of(bundle))

    def new_trace(self) -> Trace:
        """For a request, to be put in place of `trace` while the request has the engine."""
        return Trace(self.fleet.marks())

    @property
    def held_stages(self) -> set[str]:
        """Those whose graphs are in memory."""
        return {stage for stage, _ in self._sessions}

    def release(self, stage: str | None = None) -> None:
        """Frees the sessions of a stage, or of all; they are opened again when they are needed."""
        with self._opening:  # `encode_image` may be at work on a thread of its own
            self._sessions = {k: v for k, v in self._sessions.items() if stage and k[0] != stage}

    def encode_image(
        self, feeds: Mapping[str, NDArray[Any]], trace: Trace | None = None
    ) -> NDArray[np.float32]:
        """The vision graph's inputs -> visual tokens [N, D]; timed in `trace`, where the engine is
        at work on another picture.
        """
        spans = trace or self.trace
        done = self.fleet.attempt("vision", None, spans, lambda a: a.encode(feeds, _PATCHES, spans))
        if done is not None:
            self._ran("vision", done[1].device.name, spans)
            return done[0]
        session = self._session("vision", trace=trace)
        self._ran("vision", session.provider, spans)
        groups = []
        for some in in_groups(session.graph, feeds, self.spec, _PATCHES):
            with spans.span("vision", "cpu"):
                (tokens,) = session.run(some)
            groups.append(np.asarray(tokens.reshape(-1, self.spec.text.hidden), np.float32))
        if self.release_vision:
            del session
            self.release("vision")
        return np.ascontiguousarray(np.concatenate(groups))

    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Prefix | None = None,
    ) -> Prefix:
        """Puts tokens into the cache behind the prefix `after`, or in place of everything.

        `visual` [N, D] fills its N image tokens, in order. `positions` [S] or [3, S] are the rope
        positions; None counts up from where `after` ends.
        """
        prefix, _ = self.append(ids, visual, positions, after)
        return prefix

    def append(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Prefix | None = None,
    ) -> tuple[Prefix, NDArray[np.float32]]:
        """As `prefill`, with the last token's hidden state [D] before the final norm."""
        return self._extend("decoder", "prefill", ids, visual, positions, after)

    def step(self, token: int, after: Prefix) -> tuple[Prefix, NDArray[np.float32]]:
        """As `append`, for a token that was just written, by the graphs made for writing; they are
        loaded with the first one.
        """
        placed = any(stage == "writer" for stage, _ in self.fleet.routes)
        stage = "writer" if placed else self._own("writer")
        return self._extend(stage, "write", [token], None, None, after)

    def _extend(
        self,
        stage: str,
        span: str,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None,
        positions: NDArray[np.int64] | None,
        after: Prefix | None,
    ) -> tuple[Prefix, NDArray[np.float32]]:
        self._load_decoder(stage)
        begin, position = self._rewind(after)
        if positions is None:
            positions = position + np.arange(len(ids), dtype=np.int64)
        self._check_fit(len(ids), int(positions.max(initial=0)))
        with self.trace.span(span, tokens=len(ids)):
            hidden = self._embeddings.rows(np.asarray(ids, np.int64), visual)
            for part in even_parts(len(ids), self.chunk):
                some = hidden[part]
                bias, last = causal(len(some), self._cache.cursor), np.array([len(some) - 1])
                flow = self._decode(some, positions[..., part], bias, last, stage)
                self._cache.advance(len(some))
        return self._hold(begin + len(ids), int(positions.max()) + 1), flow[-1]

    def holds(self, prefix: Prefix) -> bool:
        """Whether the prefix still lies in the cache."""
        return prefix in self._held

    def room(self, prefix: Prefix) -> int:
        """How many tokens, one after another, still fit behind it."""
        rows = max(self._cache.buckets) - prefix.length
        return max(0, min(rows, self.spec.text.max_positions - prefix.position))

    def snapshot(
        self, prefix: Prefix, after: Prefix | None = None, most: int | None = None
    ) -> NDArray[Any] | None:
        """A copy of a prefix's keys and values behind `after`: [layers, 2, kv_heads, S, head_dim],
        for `restore`. None where it would take more than `most` bytes, or holds what is no number.
        """
        self._must_hold(prefix)
        begin = 0 if after is None else after.length
        if most is not None and self._cache.row_bytes * (prefix.length - begin) > most:
            return None
        rows = self._cache.read(begin, prefix.length)
        return rows if np.isfinite(rows).all() else None

    def restore(self, rows: NDArray[Any], position: int, after: Prefix | None = None) -> Prefix:
        """Puts a snapshot behind the prefix that it was taken behind, instead of computing it;
        `position` is the prefix's.
        """
        begin, _ = self._rewind(after)
        with self.trace.span("restore", tokens=rows.shape[3]):
            self._cache.write(rows)
        return self._hold(begin + rows.shape[3], position)

    def score(
        self, prefix: Prefix, branches: Sequence[Sequence[int]], packed: bool = True
    ) -> NDArray[np.float32]:
        """Label logits [B, R] at the end of each branch over the prefix.

        Branches are a tree: what some begin with in common is computed once. `packed=False` runs
        every branch by itself: the reference that packing is tested against.
        """
        return self.label_logits(self.ends(prefix, branches, packed))

    def score_blind(
        self, prompts: Sequence[Sequence[int]], packed: bool = True
    ) -> NDArray[np.float32]:
        """Label logits [B, R] of whole prompts without an image. Empties the cache."""
        self._rewind(None)
        return self.label_logits(self._ends(prompts, 0, packed))

    def full_logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states [B, D] before the final norm -> logits [B, vocabulary]."""
        return self._logits("lm_head", hidden)

    def label_probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """P(yes) of two labels [B]; ProviderError where a logit is not a number."""
        return yes_probabilities(logits, self.bundle.manifest.labels)

    def relevance(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine [R] of a picture with each rule's text, in the order of the manifest's record.

        pixel_values [1, 3, S, S] as models.crop prepares them. Raises BundleError for a bundle
        without an encoder.
        """
        rules = rule_texts(self.bundle)  # before a graph that is not there is opened
        session = self._session("relevance")
        with self.trace.span("relevance", "cpu"):
            (vectors,) = session.run({"pixel_values": pixel_values})
        cosines: NDArray[np.float32] = rules @ vectors[0]
        return cosines

    def ends(
        self, prefix: Prefix | None, branches: Sequence[Sequence[int]], packed: bool = True
    ) -> NDArray[np.float32]:
        """Hidden states [B, D] before the final norm, at each branch's end; None: whole prompts."""
        _, position = self._rewind(prefix)
        return self._ends(branches, position, packed)

    def label_logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states [B, D] before the final norm -> label logits [B, R]."""
        return self._logits("verdict_head", hidden)

    def _logits(self, stage: str, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        head = self._session(stage)
        self._ran(stage, head.provider, self.trace)
        with self.trace.span(stage, "cpu", rows=len(hidden)):
            (logits,) = head.run({"hidden": hidden})
        return np.ascontiguousarray(logits, np.float32)

    def _must_hold(self, prefix: Prefix) -> None:
        if not self.holds(prefix):
            raise InputError(
                "stale_prefix", "this prefix was replaced by a later prefill; prefill it again"
            )

    def _rewind(self, prefix: Prefix | None) -> tuple[int, int]:
        """Drops all that lies behind a prefix; gives its length and the position after it."""
        if prefix is None:
            self._held.clear()
            self._cache.rewind(0)
            return 0, 0
        self._must_hold(prefix)
        del self._held[self._held.index(prefix) + 1 :]
        self._cache.rewind(prefix.length)
        return prefix.length, prefix.position

    def _hold(self, length: int, position: int) -> Prefix:
        self._serial += 1
        prefix = Prefix(length, position, self._serial)
        self._held.append(prefix)
        return prefix

    def _ends(
        self, branches: Sequence[Sequence[int]], position: int, packed: bool
    ) -> NDArray[np.float32]:
        """Over what lies before the cursor, which stays where it is."""
        self._load_decoder()
        start = self._cache.cursor
        ends = np.zeros((len(branches), self.spec.text.hidden), np.float32)
        trees = [(branches, np.arange(len(branches)))]
        if not packed:
            trees = [([branch], np.array([i])) for i, branch in enumerate(branches)]
        try:
            for some, places in trees:
                passes = plan_passes(some, start, position, self.pack_tokens)
                tokens = sum(len(step.ids) for step in passes)
                with self.trace.span("score", branches=len(some), tokens=tokens):
                    for step in passes:
                        self._cache.rewind(start + step.kept)
                        hidden = self._embeddings.rows(step.ids)
                        flow = self._decode(hidden, step.positions, step.bias, step.ends)
                        self._cache.advance(len(step.ids))
                        ends[places[step.members]] = flow[: len(step.members)]
        finally:
            self._cache.rewind(start)
        return ends

    def _decode(
        self,
        hidden: NDArray[np.float32],
        positions: NDArray[np.int64],
        bias: NDArray[np.float32],
        rows: NDArray[np.int64],
        stage: str = "decoder",
    ) -> NDArray[np.float32]:
        """Runs all parts over S tokens after the cursor, writing their KV; the cursor stays.

        hidden [S, D], positions [S] or [3, S]; gives the hidden states [R, D] of `rows`.
        """
        if self.interrupt is not None:
            self.interrupt()
        cache, tokens = self._cache, len(hidden)
        self._check_fit(tokens, int(positions.max()))
        given = PassFeeds.of(self.spec.text, cache.cursor, positions, bias, rows)
        flow = np.ascontiguousarray(hidden[None])  # [1, S, D]
        for part in self.bundle.manifest.parts:
            flow = self._part(stage, part, flow, given, tokens)
        out: NDArray[np.float32] = flow[0]
        return out

    def _part(
        self,
        stage: str,
        part: PartRecord,
        flow: NDArray[np.float32],
        given: PassFeeds,
        tokens: int,
    ) -> NDArray[np.float32]:
        """hidden [1, S, D] through one part, on its device or on the processor."""
        cache, trace, index = self._cache, self.trace, part.index
        done = self.fleet.attempt(
            stage, index, trace, lambda a: a.layers(part, flow, given, cache, stage, trace)
        )
        name = stage
        if len(self.bundle.manifest.parts) > 1 and self.fleet.routes:
            name = f"{stage}.{index}"
        if done is not None:
            self._ran(name, done[1].device.name, trace)
            last = part.last_layer == self.spec.text.layers - 1
            return done[0][:, given.rows] if last else done[0]
        session = self._session(self._own(stage), index)
        self._ran(name, session.provider, trace)
        with trace.span(stage, "cpu", part=index, tokens=tokens):
            return run_layers(session, part, flow, given, cache)

    def _ran(self, name: str, where: str, trace: Trace) -> None:
        self.placement[name] = trace.ran[name] = where

    def _check_fit(self, tokens: int, last: int) -> None:
        """Room for the tokens, of which the last stands at position `last`."""
        check_positions(self.spec.text, last)
        self._cache.reserve(tokens)

    def _load_decoder(self, stage: str = "decoder") -> None:
        """Opens the processor's parts before their first use is timed."""
        for part in self.bundle.manifest.parts:
            if (stage, part.index) not in self.fleet.routes:
                self._session(self._own(stage), part.index)

    def _own(self, stage: str) -> str:
        """The stage of the processor's graphs, which are the decoder's where none are for text."""
        return stage if self.bundle.has(_TARGET, stage) else "decoder"

    def _session(self, stage: str, part: int | None = None, trace: Trace | None = None) -> Session:
        key = (stage, part)
        with self._opening:
            if key not in self._sessions:
                with (trace or self.trace).span("load", "cpu"):
                    graph = self.bundle.graph(_TARGET, stage, part)
                    self._sessions[key] = open_session(self.bundle, graph, CPU, self.threads)
            return self._sessions[key]
