"""The way of one picture: decoded and encoded, prefilled or found, asked, decided.

Takes one picture and a plan; gives a verdict, also for a picture that cannot be judged. `prepare`
needs no turn with the engine and may run ahead; `finish` waits for one. Knows no graph, provider or
file format.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from threading import Lock
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgejudge.array_store import key_of
from edgejudge.bundle import Bundle
from edgejudge.decision import decide_picture, decide_rule
from edgejudge.errors import InputError, ProviderError
from edgejudge.images import ImageInput, Limits, decode, read_bytes
from edgejudge.models.image import image_spec, preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.plan import Plan
from edgejudge.prefix_cache import KeptPrefix, PrefixCache
from edgejudge.turns import Stop, Turns
from edgejudge.verdict import AlternativeVerdict, InputFailure, Note, RuleVerdict, Table, Verdict

__all__ = ["Prepared", "Scorer", "Screening"]


class Spans(Protocol):
    """The part of a trace that judging writes and reads."""

    @property
    def spans(self) -> Sequence[Any]: ...
    def span(
        self, name: str, device: str = "host", **counts: int
    ) -> AbstractContextManager[None]: ...


class Scorer(Protocol):
    """What a Judge needs of an engine; `edgejudge.runtime.Engine` is one."""

    trace: Any
    interrupt: Callable[[], None] | None

    @property
    def placement(self) -> dict[str, str]: ...
    def new_trace(self) -> Any: ...
    def encode_image(
        self, feeds: Mapping[str, NDArray[Any]], trace: Any = None
    ) -> NDArray[np.float32]: ...
    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> Any: ...
    def holds(self, prefix: Any) -> bool: ...
    def snapshot(
        self, prefix: Any, after: Any = None, most: int | None = None
    ) -> NDArray[np.float32] | None: ...
    def restore(self, rows: NDArray[np.float32], position: int, after: Any = None) -> Any: ...
    def append(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> tuple[Any, NDArray[np.float32]]: ...
    def step(self, token: int, after: Any) -> tuple[Any, NDArray[np.float32]]: ...
    def full_logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def room(self, prefix: Any) -> int: ...
    def score_blind(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...
    def score(self, prefix: Any, branches: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...
    def label_probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]: ...


@dataclass(slots=True)
class _Encoded:
    """A picture as the text model takes it."""

    rows: int
    cols: int
    visual: NDArray[np.float32]  # [N, D]


@dataclass(slots=True)
class Prepared:
    """A picture on its way. `failure` is set where it ends here; without `encoded` its prefix was
    found in the cache.
    """

    trace: Spans
    path: str | None = None
    sha256: str | None = None
    notes: tuple[Note, ...] = ()
    failure: InputFailure | None = None
    rgb: NDArray[np.uint8] | None = None
    key: str | None = None
    encoded: _Encoded | None = None


# A prefix, where it came from, and how many of its tokens were there already.
_Had = tuple[Any, Literal["hit", "miss", "off"], int]


class Screening:
    """`prepare` may run in any thread, `finish` takes turns."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Scorer,
        prompts: Prompts,
        limits: Limits,
        cache: PrefixCache | None,
    ) -> None:
        self._bundle, self._engine, self._prompts = bundle, engine, prompts
        self._limits, self._cache = limits, cache
        manifest = bundle.manifest
        self._label_rows = manifest.label_rows
        self._image_spec = image_spec(manifest.preprocessing)
        # The fingerprint is of all that prompts, pixels and graphs are made from.
        self._identity = [bundle.fingerprint.encode(), *(() if cache is None else _versions())]
        self._system: Any = None  # the prefix before the picture, while the engine holds it
        self._priors = {
            condition.text: condition.language_prior
            for policy in manifest.policies
            for rule in policy.rules
            for either in rule.conditions
            for condition in either
        }
        self._encoding = Lock()  # many threads may prepare, and each encoding takes much memory

    def prepare(self, image: ImageInput, stop: Stop) -> Prepared:
        """Decodes and encodes, unless the cache knows the picture."""
        made = Prepared(self._engine.new_trace())
        with _failing(made):
            with made.trace.span("decode"):
                if isinstance(image, str | PathLike):
                    made.path = fspath(image)
                    image = read_bytes(made.path, self._limits)
                if isinstance(image, bytes | bytearray | memoryview):
                    made.sha256 = hashlib.sha256(image).hexdigest()
                picture = decode(image, self._limits)
            made.rgb, made.notes = picture.rgb, picture.notes
            if self._cache is not None:
                with made.trace.span("look up"):
                    made.key = self._key(picture.rgb)
                    if made.key in self._cache:
                        return made
            stop.check()
            made.encoded = self._encode(picture.rgb, made.trace)
        return made

    def finish(self, made: Prepared, plan: Plan, stop: Stop, turns: Turns) -> Verdict:
        """Waits for a turn with the engine, asks and decides."""
        rules: tuple[RuleVerdict, ...] = ()
        reused, placement = 0, {}
        found: Literal["hit", "miss", "off"] = "off"
        if made.failure is None:
            with _failing(made), self.having([made], stop, turns) as (prefix, found, reused):
                rules = self._ask(prefix, plan, made.trace)
                placement = self._engine.placement
        notes = made.notes + plan.notes if made.failure is None else ()
        manifest = self._bundle.manifest
        return Verdict(
            verdict=None if made.failure else decide_picture(rules, notes),
            path=made.path,
            sha256=made.sha256,
            rules=rules,
            notes=notes,
            error=made.failure,
            bundle=manifest.name,
            bundle_sha256=self._bundle.fingerprint,
            policy=plan.policy,
            policy_version=plan.version,
            policy_sha256=plan.sha256,
            stages_ms=_stages_ms(made.trace),
            placement=Table(placement),
            prefix_cache=found,
            reused_tokens=reused,
        )

    def priors(self, texts: Sequence[str], stop: Stop, turns: Turns) -> dict[str, float]:
        """P(yes | no image) of each condition: compiled into the bundle, kept from earlier, or
        computed now.
        """
        if missing := [text for text in dict.fromkeys(texts) if text not in self._priors]:
            prompts = [self._prompts.blind_ids(text) for text in missing]
            store = None if self._cache is None else self._cache.store
            # Together, as they were asked: each is that of its own prompt within 1e-5.
            ids = [np.array(prompt, "<i4").tobytes() for prompt in prompts]
            key = key_of([*self._identity, b"language priors", *ids])
            kept = None if store is None else store.get(key)
            if kept is not None and kept[0].shape == (len(prompts), len(self._label_rows)):
                logits = kept[0]
            else:
                with self._turn(self._engine.new_trace(), stop, turns):
                    logits = self._engine.score_blind(prompts)
            found = self._engine.label_probabilities(logits)
            if store is not None and kept is None:
                store.put(key, logits)
            self._priors |= dict(zip(missing, found.tolist(), strict=True))
        return {text: self._priors[text] for text in texts}

    @contextmanager
    def having(self, made: Sequence[Prepared], stop: Stop, turns: Turns) -> Iterator[_Had]:
        """The engine for the caller alone, with the pictures in it, one behind the other."""
        with self._turn(made[0].trace, stop, turns):
            yield self._prefix(made)

    @contextmanager
    def _turn(self, trace: Spans, stop: Stop, turns: Turns) -> Iterator[None]:
        with turns.turn(stop):
            self._engine.trace, self._engine.interrupt = trace, stop.check
            try:
                yield
            finally:
                self._engine.interrupt = None

    def _key(self, rgb: NDArray[np.uint8]) -> str:
        pixels = np.ascontiguousarray(rgb)
        return key_of([*self._identity, repr(pixels.shape).encode(), pixels.data])

    def _encode(self, rgb: NDArray[np.uint8], trace: Spans) -> _Encoded:
        with trace.span("preprocess"):
            seen = preprocess(rgb, self._image_spec)
        with self._encoding:
            return _Encoded(seen.rows, seen.cols, self._engine.encode_image(seen.feeds, trace))

    def _prefix(self, made: Sequence[Prepared]) -> _Had:
        """The pictures' prefix, where it came from, and how many of its tokens were there
        already.
        """
        reused = self._put_system()
        after, key = self._system, None
        found: set[Literal["hit", "miss", "off"]] = set()
        for count, one in enumerate(made):
            # What a picture's keys and values are depends on all that lies before it.
            key = (
                one.key if count == 0 or one.key is None else key_of([f"{key} {one.key}".encode()])
            )
            try:
                after, how, tokens = self._put_picture(one, after, key)
            except InputError as error:
                if error.code == "too_long" and len(made) > 1:
                    raise InputError(
                        "too_many_images",
                        f"{count} of {len(made)} pictures fill the context ({error})",
                    ) from None
                raise
            found.add(how)
            reused += tokens
        return after, "miss" if "miss" in found else found.pop(), reused

    def _put_picture(self, one: Prepared, after: Any, key: str | None) -> _Had:
        """One picture behind the prefix `after`; `key` names both."""
        engine = self._engine
        if self._cache is not None and key is not None:
            kept = self._cache.get(key)
            if kept is not None:
                return engine.restore(kept.rows, kept.position, after), "hit", kept.rows.shape[3]
        if one.encoded is None:  # it was there when it was looked up, or is there by itself
            assert one.rgb is not None
            one.encoded = self._encode(one.rgb, one.trace)
        rows, cols = one.encoded.rows, one.encoded.cols
        ids = self._prompts.image_ids(rows, cols)
        positions = self._prompts.image_positions(
            rows, cols, 0 if after is None else after.position
        )
        prefix = engine.prefill(ids, one.encoded.visual, positions, after)
        if self._cache is None or key is None:
            return prefix, "off", 0
        with one.trace.span("keep"):
            self._keep(self._cache, key, prefix, after)
        return prefix, "miss", 0

    def _keep(self, cache: PrefixCache, key: str, prefix: Any, after: Any) -> None:
        rows = self._engine.snapshot(prefix, after, cache.most)
        if rows is not None:
            cache.put(key, KeptPrefix(rows, prefix.position))

    def _put_system(self) -> int:
        """Sees to it that the engine holds the prefix before the picture; gives how many of its
        tokens were known.
        """
        engine, head = self._engine, list(self._prompts.record.head)
        if not head or (self._system is not None and engine.holds(self._system)):
            return len(head)
        key = key_of([*self._identity, b"system prompt"])
        kept = None if self._cache is None else self._cache.get(key)
        if kept is not None:
            self._system = engine.restore(kept.rows, kept.position)
            return len(head)
        self._system = engine.prefill(head)
        if self._cache is not None:
            self._keep(self._cache, key, self._system, None)
        return 0

    def _ask(self, prefix: Any, plan: Plan, trace: Spans) -> tuple[RuleVerdict, ...]:
        logits = self._engine.score(prefix, plan.branches)  # [B, R]
        with trace.span("decide"):
            probabilities = self._engine.label_probabilities(logits).tolist()  # [B]
            return tuple(
                decide_rule(
                    rule.id,
                    rule.text,
                    rule.category,
                    rule.threshold,
                    plan.band,
                    [
                        [AlternativeVerdict(q.text, probabilities[q.branch], q.known) for q in each]
                        for each in rule.conditions
                    ],
                )
                for rule in plan.rules
            )


@contextmanager
def _failing(made: Prepared) -> Iterator[None]:
    """What goes wrong with one picture becomes its failure, and no more."""
    try:
        yield
    except InputError as error:
        made.failure = InputFailure(error.code, str(error))
    except MemoryError:
        made.failure = InputFailure("out_of_memory", "it does not fit into memory; scale it down")
    except ProviderError as error:
        made.failure = InputFailure("engine_failed", str(error))


def _versions() -> tuple[bytes, bytes]:
    """Of what computes a prefix: a kept one may outlive the process. Both are loaded already, and
    asking the installed packages' metadata would cost a cold start several milliseconds.
    """
    import onnxruntime

    import edgejudge

    return edgejudge.__version__.encode(), onnxruntime.__version__.encode()


def _stages_ms(trace: Spans) -> Table[float]:
    """Outermost spans only: a stage inside another is part of that one's time."""
    stages: dict[str, float] = {}
    for span in trace.spans:
        if span.parent is None:
            stages[span.name] = stages.get(span.name, 0.0) + span.ms
    return Table(stages)
