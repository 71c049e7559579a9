"""What every way of judging a picture shares: reading it, deciding, and the verdict itself.

Takes a picture and a plan's answers; gives a verdict, also for a picture that cannot be judged.
Knows no graph, provider or file format.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgejudge.array_store import ArrayStore, key_of
from edgejudge.bundle import Bundle
from edgejudge.cases import Cases, asked_blind
from edgejudge.decision import decide_picture
from edgejudge.errors import InputError, ProviderError
from edgejudge.images import ImageInput, Limits, Picture, decode, decode_all, read_bytes
from edgejudge.models.image import image_spec
from edgejudge.models.prompt import Prompts
from edgejudge.plan import Plan
from edgejudge.turns import Stop, Turns
from edgejudge.variants import worst
from edgejudge.verdict import InputFailure, Note, RuleVerdict, SeenIn, Table, Verdict

__all__ = ["ENDS", "Answerer", "Found", "Judging", "Prepared", "Spans", "failing", "stages_ms"]

Found = Literal["hit", "miss", "off"]
ENDS = ("timeout", "cancelled", "busy")  # failures of a request, whatever picture it is at


class Spans(Protocol):
    """The part of a trace that judging writes and reads."""

    @property
    def spans(self) -> Sequence[Any]: ...
    @property
    def marks(self) -> Sequence[tuple[str, str]]: ...
    @property
    def ran(self) -> Mapping[str, str]: ...
    def span(
        self, name: str, device: str = "host", **counts: int
    ) -> AbstractContextManager[None]: ...


class Answerer(Protocol):
    """What judging needs of any engine."""

    trace: Any
    interrupt: Callable[[], None] | None

    @property
    def placement(self) -> dict[str, str]: ...
    def new_trace(self) -> Any: ...
    def score_blind(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...
    def label_probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]: ...


@dataclass(slots=True)
class Prepared:
    """A picture on its way, and what was done with it: a file, or one of its variants. `failure` is
    set where it ends here.
    """

    trace: Spans
    path: str | None = None
    sha256: str | None = None
    notes: tuple[Note, ...] = ()
    failure: InputFailure | None = None
    used: list[str] = field(default_factory=list)
    prefixes: int = 0
    reasoned: int = 0
    seen_in: SeenIn | None = None

    def use(self, stage: str) -> None:
        if stage not in self.used:
            self.used.append(stage)


class Judging:
    """`store` keeps language priors longer than the process."""

    _engine: Answerer

    def __init__(
        self,
        bundle: Bundle,
        engine: Answerer,
        prompts: Prompts,
        limits: Limits,
        store: ArrayStore | None,
        identity: Sequence[bytes],
    ) -> None:
        """`identity` is all that a kept number depends on."""
        self._bundle, self._engine, self._prompts = bundle, engine, prompts
        self._limits, self._store, self._identity = limits, store, list(identity)
        self._label_rows = bundle.manifest.label_rows
        self._image_spec = image_spec(bundle.manifest.preprocessing)
        # By the policy's own question, where it has one, and the condition.
        self._priors: dict[tuple[str | None, str], float] = {
            (None, condition.text): condition.language_prior
            for policy in bundle.manifest.policies
            for rule in policy.rules
            for either in rule.conditions
            for condition in either
        }

    def _read(self, made: Prepared, image: ImageInput, check: Callable[[], None] | None) -> Picture:
        """All variants of it, before each of whose frames `check` is called; the first one alone
        where that is None.
        """
        with made.trace.span("decode"):
            if isinstance(image, str | PathLike):
                made.path = fspath(image)
                image = read_bytes(made.path, self._limits)
            if isinstance(image, bytes | bytearray | memoryview):
                made.sha256 = hashlib.sha256(image).hexdigest()
            if check is None:
                picture = decode(image, self._limits)
            else:
                picture = decode_all(image, self._limits, check)
        made.notes = picture.notes
        made.seen_in = picture.variants[0].seen_in
        return picture

    def _joined(
        self,
        made: Prepared,
        tried: Sequence[Prepared],
        decided: Sequence[tuple[Prepared, tuple[RuleVerdict, ...]]],
    ) -> tuple[RuleVerdict, ...]:
        """The rules of a file from those of its variants, the worst of each. Variants that were
        `tried` in vain keep it from being safe; it fails where all did, or where the request ended.
        """
        failures = {one.seen_in: one.failure for one in tried if one.failure is not None}
        ended = [failure for failure in failures.values() if failure.code in ENDS]
        made.failure = None
        if ended or not decided:
            made.failure = (ended or list(failures.values()))[0]
            return ()
        for one in tried:
            if one is not made:
                made.notes += one.notes
                made.prefixes += one.prefixes
                made.reasoned += one.reasoned
                for stage in one.used:
                    made.use(stage)
        for seen_in, failure in failures.items():
            message = f"what is {seen_in} could not be judged: {failure.message}"
            made.notes += (Note("variant_failed", message, doubtful=True),)
        made.notes = tuple(dict.fromkeys(made.notes))
        return worst(
            [
                tuple(replace(rule, seen_in=one.seen_in) for rule in rules)
                if one.seen_in is not None
                else rules
                for one, rules in decided
            ]
        )

    def _verdict(
        self,
        made: Prepared,
        plan: Plan,
        rules: tuple[RuleVerdict, ...],
        found: Found = "off",
        reused: int = 0,
    ) -> Verdict:
        failed = made.failure is not None
        marks = tuple(Note(code, message) for code, message in made.trace.marks)
        notes = marks if failed else made.notes + plan.notes + marks
        return Verdict(
            verdict=None if failed else decide_picture(rules, notes),
            path=made.path,
            sha256=made.sha256,
            rules=rules,
            notes=notes,
            error=made.failure,
            bundle=self._bundle.manifest.name,
            bundle_sha256=self._bundle.fingerprint,
            policy=plan.policy,
            policy_version=plan.version,
            policy_sha256=plan.sha256,
            stages_ms=stages_ms(made.trace),
            # Of this picture: another one may be encoded meanwhile.
            placement=Table({} if failed else made.trace.ran or self._engine.placement),
            prefix_cache=found,
            reused_tokens=reused,
            calibration=plan.calibration,
            method="thresholds" if plan.clue is None else "clue",
            stages_used=tuple(made.used),
            image_prefixes=made.prefixes,
            reasoning_calls=made.reasoned,
        )

    def _plan_priors(self, plan: Plan, stop: Stop, turns: Turns) -> dict[str, float]:
        """Those that the plan's rules are decided with."""
        return self.priors(asked_blind(plan), stop, turns, plan.question)

    def _probabilities(
        self, logits: NDArray[np.float32], branches: Sequence[int]
    ) -> dict[int, float]:
        """Label logits [B, R] -> P(yes) by branch."""
        found = self._engine.label_probabilities(logits).tolist()  # [B]
        return dict(zip(branches, found, strict=True))

    def _decided(self, made: Prepared, cases: Cases, why: str | None) -> tuple[RuleVerdict, ...]:
        """The rules. `why` says what keeps open questions from being reasoned about."""
        with made.trace.span("decide"):
            if why is not None and (case := cases.to_reason()) is not None:
                message = f"'{case.question.text}' stays undecided: {why}"
                made.notes += (Note("not_reasoned", message),)
            return cases.verdicts()

    def priors(
        self, texts: Sequence[str], stop: Stop, turns: Turns, question: str | None = None
    ) -> dict[str, float]:
        """P(yes | no image) of each condition: compiled into the bundle, kept from earlier, or
        computed now. `question` is a template that goes before the bundle's.
        """
        unique = dict.fromkeys(texts)
        if missing := [text for text in unique if (question, text) not in self._priors]:
            prompts = [self._prompts.blind_ids(text, question) for text in missing]
            store = self._store
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
            keys = [(question, text) for text in missing]
            self._priors |= dict(zip(keys, found.tolist(), strict=True))
        return {text: self._priors[question, text] for text in texts}

    @contextmanager
    def _turn(self, trace: Spans, stop: Stop, turns: Turns) -> Iterator[None]:
        with turns.turn(stop):
            self._engine.trace, self._engine.interrupt = trace, stop.check
            try:
                yield
            finally:
                self._engine.interrupt = None


@contextmanager
def failing(made: Prepared) -> Iterator[None]:
    """What goes wrong with one picture becomes its failure, and no more."""
    try:
        yield
    except (InputError, ProviderError) as error:
        code = error.code if isinstance(error, InputError) else "engine_failed"
        made.failure = InputFailure(code, str(error))
    except MemoryError:
        made.failure = InputFailure("out_of_memory", "it does not fit into memory; scale it down")


def stages_ms(*traces: Spans) -> Table[float]:
    """Outermost spans only: a stage inside another is part of that one's time."""
    stages: dict[str, float] = {}
    for trace in traces:
        for span in trace.spans:
            if span.parent is None:
                stages[span.name] = stages.get(span.name, 0.0) + span.ms
    return Table(stages)
