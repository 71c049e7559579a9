"""The records that a screening returns: frozen, comparable, and plain JSON on request.

Knows the shape of an answer and nothing of how it was reached. A verdict of None is a failure: the
input could not be judged, `error` says why, and it must never be read as `safe`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = [
    "AlternativeVerdict",
    "Answered",
    "Background",
    "ConditionVerdict",
    "Escalation",
    "InputFailure",
    "Note",
    "Outcome",
    "RuleVerdict",
    "SeenIn",
    "Stability",
    "Table",
    "Test",
    "Verdict",
]

Outcome = Literal["safe", "unsafe", "uncertain"]
Answered = Literal["holds", "fails", "uncertain"]
Background = Literal["white", "black"]
# By what a question was decided: a threshold; one of CLUE's tests, of which "undecided" is none;
# the relevance gate for the whole rule; the one answer for a whole policy; or it was not, being
# unknown or not asked.
Test = Literal[
    "threshold",
    "language_prior",
    "score",
    "region",
    "reasoning",
    "undecided",
    "relevance",
    "answer",
    "unknown_concept",
    "not_asked",
]
T = TypeVar("T", bound=float | str)


class Table(Mapping[str, T]):
    """A small read-only mapping; unlike a dict it can be part of a frozen record."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Mapping[str, T]) -> None:
        self._pairs: tuple[tuple[str, T], ...] = tuple(pairs.items())

    def __getitem__(self, key: str) -> T:
        for name, value in self._pairs:
            if name == key:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __hash__(self) -> int:
        return hash(frozenset(self._pairs))

    def __repr__(self) -> str:
        return repr(dict(self._pairs))


@dataclass(frozen=True, slots=True)
class Note:
    """Something about the input or the policy that a reader of the verdict should know.

    `doubtful` means that it alone keeps the picture from being called safe.
    """

    code: str
    message: str
    doubtful: bool = False

    def to_json(self) -> dict[str, object]:
        return {"code": self.code, "message": self.message, "doubtful": self.doubtful}


@dataclass(frozen=True, slots=True)
class InputFailure:
    """Why an input could not be judged: `code` for programs, `message` for people."""

    code: str
    message: str

    def to_json(self) -> dict[str, object]:
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True, slots=True)
class AlternativeVerdict:
    """One question: P(yes) for `text`, of the cut-out where CLUE looks at a small object by itself,
    None where it was not asked; `known` is False outside the bundle's concepts.

    `test` is what decided it, or left it undecided. `raw_probability` is the model's where
    `probability` was calibrated. CLUE fills the rest: `prior` is P(yes | no image),
    `without_region` P(yes) after its object was removed, `rationale` what the model wrote.
    """

    text: str
    probability: float | None
    known: bool
    outcome: Answered = "uncertain"
    test: Test = "not_asked"
    raw_probability: float | None = None
    prior: float | None = None
    without_region: float | None = None
    rationale: str | None = None

    def to_json(self) -> dict[str, object]:
        return {
            "text": self.text,
            "probability": _rounded(self.probability),
            "raw_probability": _rounded(self.raw_probability),
            "known": self.known,
            "outcome": self.outcome,
            "test": self.test,
            "prior": _rounded(self.prior),
            "without_region": _rounded(self.without_region),
            "rationale": self.rationale,
        }


@dataclass(frozen=True, slots=True)
class ConditionVerdict:
    """A condition holds when any of its alternatives does; its probability is the maximum of those
    that were asked. `decided_by` is the place of the alternative that decided.
    """

    outcome: Answered
    probability: float | None
    alternatives: tuple[AlternativeVerdict, ...]
    decided_by: int = 0

    @property
    def deciding(self) -> AlternativeVerdict:
        """The alternative that decided the condition, or that leaves it undecided."""
        return self.alternatives[self.decided_by]

    @property
    def test(self) -> Test:
        return self.deciding.test

    def to_json(self) -> dict[str, object]:
        by = self.deciding
        return {
            "outcome": self.outcome,
            "probability": _rounded(self.probability),
            "decided_by": by.text,
            "test": by.test,
            "prior": _rounded(by.prior),
            "without_region": _rounded(by.without_region),
            "rationale": by.rationale,
            "alternatives": [alternative.to_json() for alternative in self.alternatives],
        }


@dataclass(frozen=True, slots=True)
class SeenIn:
    """One variant of a file: its frame, page or picture, counted from 1, and what a transparent one
    lies on. None where there is only one.
    """

    frame: int | None = None
    background: Background | None = None

    def __str__(self) -> str:
        parts = [f"in frame {self.frame}"] if self.frame is not None else []
        return " ".join([*parts, *([f"over {self.background}"] if self.background else [])])

    def to_json(self) -> dict[str, object]:
        return {
            name: value
            for name, value in (("frame", self.frame), ("background", self.background))
            if value is not None
        }


@dataclass(frozen=True, slots=True)
class Stability:
    """How much a rule's probability moved over a picture and changed copies of it: the least, the
    most and the standard deviation over `pictures`, and the names of those that by themselves break
    the rule or do not.
    """

    pictures: int
    least: float
    most: float
    deviation: float
    unsafe_in: tuple[str, ...]
    safe_in: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "pictures": self.pictures,
            "min": _rounded(self.least),
            "max": _rounded(self.most),
            "sd": _rounded(self.deviation),
            "unsafe_in": list(self.unsafe_in),
            "safe_in": list(self.safe_in),
        }


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """A rule is broken (`unsafe`) when all conditions hold; its probability is the minimum of those
    that were asked, None where none was.

    `uncertain_between` are the probabilities around the threshold inside which nothing is decided;
    both are None where CLUE decides, whose limits are of each question. `raw_probability` is the
    model's where `probability` was calibrated. `relevance` is the cosine of the picture with the
    rule's text, where the gate was asked for; a rule that it skipped was asked nothing. `bundle` is
    the name of the second one of a cascade where that was asked. `seen_in` is the variant of the
    file that counts, where it has several; `stability` is of a picture that was judged with copies.
    """

    id: str
    text: str
    category: str
    verdict: Outcome
    probability: float | None
    threshold: float | None
    uncertain_between: tuple[float, float] | None
    conditions: tuple[ConditionVerdict, ...]
    raw_probability: float | None = None
    relevance: float | None = None
    bundle: str | None = None
    seen_in: SeenIn | None = None
    stability: Stability | None = None

    def to_json(self) -> dict[str, object]:
        between = self.uncertain_between
        return {
            "id": self.id,
            "text": self.text,
            "category": self.category,
            "verdict": self.verdict,
            "probability": _rounded(self.probability),
            "raw_probability": _rounded(self.raw_probability),
            "threshold": _rounded(self.threshold),
            "uncertain_between": None if between is None else [round(end, 6) for end in between],
            "relevance": _rounded(self.relevance),
            "seen_in": self.seen_in.to_json() if self.seen_in else None,
            "stability": self.stability.to_json() if self.stability else None,
            "conditions": [condition.to_json() for condition in self.conditions],
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


@dataclass(frozen=True, slots=True)
class Escalation:
    """What a second bundle was asked about one picture, and what it took. `before` are the rules as
    the first one left them; `error` says why the second gave nothing, and they stand.
    """

    bundle: str
    bundle_sha256: str
    calibration: str | None
    method: Literal["thresholds", "clue"]
    before: tuple[RuleVerdict, ...]
    error: InputFailure | None
    stages_used: tuple[str, ...]
    stages_ms: Table[float]
    placement: Table[str]

    def to_json(self) -> dict[str, object]:
        return {
            "bundle": {"name": self.bundle, "sha256": self.bundle_sha256},
            "calibration": self.calibration,
            "method": self.method,
            "before": [rule.to_json() for rule in self.before],
            "error": self.error.to_json() if self.error else None,
            "stages_used": list(self.stages_used),
            "stages_ms": {name: round(ms, 3) for name, ms in self.stages_ms.items()},
            "placement": dict(self.placement),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """One picture against one policy.

    `path` is as the caller gave it, None for pictures in memory; `sha256` is of the encoded bytes,
    None where there were none. `stages_ms` and `placement` say how long each stage took and which
    execution provider ran it. `prefix_cache` says whether the picture's prefix was kept from an
    earlier verdict ("off": nothing is kept, or there was no picture to look up), and
    `reused_tokens` how many prompt tokens were not computed again.

    `calibration` is the id of the calibration that was applied, `method` how questions without one
    are decided, `stages_used` the steps that it took: relevance, tokens, region, reasoning,
    stability. `image_prefixes` counts the pictures that were prefilled, over all variants of the
    file and with regions, crops and copies among them, `reasoning_calls` the conditions that were
    reasoned about.

    All of this is the first bundle's, where a cascade asked a second one about what the first left
    open; the second's own is in `escalated`. `rules` and the `verdict` are what became of both.
    """

    verdict: Outcome | None
    path: str | None
    sha256: str | None
    rules: tuple[RuleVerdict, ...]
    notes: tuple[Note, ...]
    error: InputFailure | None
    bundle: str
    bundle_sha256: str
    policy: str
    policy_version: str
    policy_sha256: str
    stages_ms: Table[float]
    placement: Table[str]
    prefix_cache: Literal["hit", "miss", "off"]
    reused_tokens: int
    calibration: str | None = None
    method: Literal["thresholds", "clue"] = "thresholds"
    stages_used: tuple[str, ...] = ()
    image_prefixes: int = 0
    reasoning_calls: int = 0
    escalated: Escalation | None = None

    @property
    def total_ms(self) -> float:
        """All stages together, a second bundle's too."""
        second = 0.0 if self.escalated is None else sum(self.escalated.stages_ms.values())
        return sum(self.stages_ms.values()) + second

    @property
    def broken(self) -> tuple[RuleVerdict, ...]:
        """The rules that are broken, most probable first."""
        broken = [rule for rule in self.rules if rule.verdict == "unsafe"]
        return tuple(sorted(broken, key=lambda rule: -(rule.probability or 0.0)))

    def to_json(self) -> dict[str, object]:
        """A dict of plain JSON values, as `edgejudge screen --json` prints it."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "verdict": self.verdict,
            "rules": [
                rule.to_json() | {"bundle": rule.bundle or self.bundle} for rule in self.rules
            ],
            "notes": [note.to_json() for note in self.notes],
            "error": self.error.to_json() if self.error else None,
            "bundle": {"name": self.bundle, "sha256": self.bundle_sha256},
            "policy": {
                "name": self.policy,
                "version": self.policy_version,
                "sha256": self.policy_sha256,
                "method": self.method,
            },
            "calibration": self.calibration,
            "stages_used": list(self.stages_used),
            "stages_ms": {name: round(ms, 3) for name, ms in self.stages_ms.items()},
            "placement": dict(self.placement),
            "prefix_cache": self.prefix_cache,
            "reused_tokens": self.reused_tokens,
            "image_prefixes": self.image_prefixes,
            "reasoning_calls": self.reasoning_calls,
            "escalated": self.escalated.to_json() if self.escalated else None,
        }
