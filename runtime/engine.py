"""The engine: prefixes computed once, any number of questions scored over them.

Takes an opened bundle, pixel views and token ids; gives visual tokens, prefixes in the KV cache
(system prompt, then image, then what questions share) and label logits at each question's last
token. Sessions open when first needed. Does not know policies, thresholds or text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle
from edgejudge.errors import BundleError, InputError
from edgejudge.models.fitting import check_fit
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime.decoding import PassFeeds, check_positions
from edgejudge.runtime.embeddings import Embeddings, check_visual
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.labels import rule_texts, yes_probabilities
from edgejudge.runtime.overflow import check_overflow
from edgejudge.runtime.session import default_threads
from edgejudge.runtime.settings import Settings, costs_file, kept_settings
from edgejudge.runtime.stages import DecoderPass, Stages
from edgejudge.runtime.trace import Trace
from edgejudge.runtime.tree import Pass, causal, even_parts, plan_passes
from edgejudge.runtime.views import Views

__all__ = ["Engine", "Prefix"]

_TARGET = "cpu"
_CACHES = ("float32", "int8", "int4")


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
    stages: Stages
    _cache: KvCache
    _embeddings: Embeddings
    _serial: int = 0
    _held: list[Prefix] = field(default_factory=list)
    # Called before each pass, which it may prevent, in whatever thread.
    interrupt: Callable[[], None] | None = None
    release_vision: bool = False  # after each picture, where memory is dearer than loading it again
    watchers: list[Callable[[Trace], None]] = field(default_factory=list)  # of requests that begin

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
        if kv is None or kv.layout != "BNSH" or kv.dtype not in _CACHES:
            raise BundleError(
                f"{bundle.path}: the decoder's cache is {kv}, expected BNSH in one of "
                f"{', '.join(_CACHES)}"
            )
        cache = KvCache.of(kv, spec.text.layers)
        count = chosen.threads if threads is None else threads
        check_overflow(bundle, _TARGET, count)
        sizes = (count, chosen.chunk, chosen.pack_tokens)
        stages = Stages(bundle, spec, count)
        return cls(bundle, spec, *sizes, Trace(), stages, cache, Embeddings.of(bundle, spec))

    @property
    def fleet(self) -> Fleet:
        """Devices beside the processor."""
        return self.stages.fleet

    @fleet.setter
    def fleet(self, fleet: Fleet) -> None:
        self.stages.fleet = fleet

    @property
    def placement(self) -> dict[str, str]:
        """Stage, or part of it -> provider that ran it last, of stages used."""
        return self.stages.placement

    def foresee(self) -> None:
        """Takes what `edgejudge tune --costs` kept for the bundle and the devices in use: a device
        that has become slow is noticed from now on, and left where another one is quicker.
        """
        if costs_file(self.bundle).exists():
            from edgejudge.runtime.predicted import Predicted

            self.stages.expect(Predicted.kept(self.bundle, self.fleet, self.threads))

    def new_trace(self) -> Trace:
        """For a request, to be put in place of `trace` while the request has the engine."""
        trace = Trace(self.fleet.marks())
        for watcher in tuple(self.watchers):
            watcher(trace)
        return trace

    @property
    def held_stages(self) -> set[str]:
        """Those whose graphs are in memory."""
        return {stage for stage, _ in self.stages.sessions}

    def release(self, stage: str | None = None) -> None:
        """Frees the sessions of a stage, or of all; they are opened again when they are needed."""
        self.stages.release(stage)

    @property
    def overlaps(self) -> bool:
        """Whether a picture that `prefill` is given as `views` is there sooner than one that is
        encoded ahead: nothing is at work, and its stages are on several devices.
        """
        return self.stages.apart and not self.stages.executor.requests

    def views(self, feeds: Mapping[str, NDArray[Any]]) -> Views:
        """The vision graph's inputs, to be encoded while `prefill` puts the first of them behind a
        prefix.
        """
        return self.stages.views(feeds)

    def encode_image(
        self, feeds: Mapping[str, NDArray[Any]], trace: Trace | None = None
    ) -> NDArray[np.float32]:
        """The vision graph's inputs -> visual tokens [N, D]; timed in `trace`, where the engine is
        at work on another picture.
        """
        views = self.stages.views(feeds)
        self.stages.run(trace or self.trace, self._cache, (), views=views)
        if self.release_vision:
            self.release("vision")
        return views.tokens(0, views.count)

    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | Views | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Prefix | None = None,
    ) -> Prefix:
        """Puts tokens into the cache behind the prefix `after`, or in place of everything.

        `visual` [N, D] fills its N image tokens, in order; of `views` each is encoded before the
        first pass that needs it. `positions` [S] or [3, S] are the rope positions; None counts up
        from where `after` ends.
        """
        prefix, _ = self.append(ids, visual, positions, after)
        return prefix

    def append(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | Views | None = None,
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
        stage = "writer" if placed else self.stages.own("writer")
        return self._extend(stage, "write", [token], None, None, after)

    def _extend(
        self,
        stage: str,
        span: str,
        ids: Sequence[int],
        visual: NDArray[np.float32] | Views | None,
        positions: NDArray[np.int64] | None,
        after: Prefix | None,
    ) -> tuple[Prefix, NDArray[np.float32]]:
        begin, position = self._rewind(after)
        if positions is None:
            positions = position + np.arange(len(ids), dtype=np.int64)
        end = int(positions.max(initial=0))
        check_positions(self.spec.text, end)
        self._cache.reserve(len(ids))
        views = visual if isinstance(visual, Views) else None
        if isinstance(visual, Views):
            given = visual.count
        else:
            given = 0 if visual is None else len(visual)
        check_visual(given, list(ids).count(self.bundle.manifest.tokens.image))
        prompt = _Prompt(self, np.asarray(ids, np.int64), visual, positions, begin)
        passes = [prompt.one(part) for part in even_parts(len(ids), self.chunk)]
        with self.trace.span(span, tokens=len(ids)):
            self._run(passes, stage, views)
        if views is not None and self.release_vision:
            self.release("vision")
        self._cache.advance(len(ids))
        out = passes[-1].out
        assert out is not None
        return self._hold(begin + len(ids), end + 1), out[-1]

    def _run(self, passes: Sequence[DecoderPass], stage: str, views: Views | None = None) -> None:
        self.stages.run(self.trace, self._cache, passes, stage, views, self.interrupt)

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
        """A copy of a prefix's keys and values behind `after`: [layers, 2, kv_heads, S, width],
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
        vectors = self.stages.alone("relevance", "pixel_values", pixel_values, self.trace)
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
        return self.stages.alone(stage, "hidden", hidden, self.trace)

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
        start = self._cache.cursor
        ends = np.zeros((len(branches), self.spec.text.hidden), np.float32)
        trees = [(branches, np.arange(len(branches)))]
        if not packed:
            trees = [([branch], np.array([i])) for i, branch in enumerate(branches)]
        for some, places in trees:
            plans = plan_passes(some, start, position, self.pack_tokens)
            if not plans:
                continue
            for plan in plans:
                check_positions(self.spec.text, int(plan.positions.max()))
            self._cache.reserve(max(plan.kept + len(plan.ids) for plan in plans))
            passes = [self._branches(plan, start) for plan in plans]
            tokens = sum(one.tokens for one in passes)
            with self.trace.span("score", branches=len(some), tokens=tokens):
                self._run(passes, "decoder")
            for plan, one in zip(plans, passes, strict=True):
                assert one.out is not None
                ends[places[plan.members]] = one.out[: len(plan.members)]
        return ends

    def _branches(self, plan: Pass, start: int) -> DecoderPass:
        begin = start + plan.kept

        def made() -> tuple[NDArray[np.float32], PassFeeds]:
            hidden = self._embeddings.rows(plan.ids)
            given = (begin, plan.positions, plan.bias, plan.ends)
            return hidden, PassFeeds.of(self.spec.text, *given)

        return DecoderPass(begin, len(plan.ids), made)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Tokens in the cache from row `begin` on, taken apart into passes."""

    engine: Engine
    ids: NDArray[np.int64]
    visual: NDArray[np.float32] | Views | None
    positions: NDArray[np.int64]  # [S] or [3, S]
    begin: int

    def one(self, part: slice) -> DecoderPass:
        begin, count = self.begin + part.start, part.stop - part.start
        image = self.engine.bundle.manifest.tokens.image
        first = int((self.ids[: part.start] == image).sum())
        last = first + int((self.ids[part] == image).sum())

        def made() -> tuple[NDArray[np.float32], PassFeeds]:
            bias, end = causal(count, begin), np.array([count - 1])
            hidden = self.engine._embeddings.rows(self.ids[part], self._some(first, last))
            spec = self.engine.spec.text
            return hidden, PassFeeds.of(spec, begin, self.positions[..., part], bias, end)

        views = self.visual.groups(first, last) if isinstance(self.visual, Views) else ()
        return DecoderPass(begin, count, made, views)

    def _some(self, first: int, last: int) -> NDArray[np.float32] | None:
        if isinstance(self.visual, Views):
            return self.visual.tokens(first, last) if first < last else None
        return None if self.visual is None else self.visual[first:last]
