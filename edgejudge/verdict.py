"""The records that a screening returns: frozen, comparable, and plain JSON on request.

Knows the shape of an answer and nothing of how it was reached. A verdict of None is a failure: the
input could not be judged, `error` says why, and it must never be read as `safe`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = [
    "AlternativeVerdict",
    "ConditionVerdict",
    "InputFailure",
    "Note",
    "Outcome",
    "RuleVerdict",
    "Table",
    "Verdict",
]

Outcome = Literal["safe", "unsafe", "uncertain"]
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
    """One question: P(yes) for `text`; `known` is False outside the bundle's concepts."""

    text: str
    probability: float
    known: bool

    def to_json(self) -> dict[str, object]:
        return {
            "text": self.text,
            "probability": round(self.probability, 6),
            "known": self.known,
        }


@dataclass(frozen=True, slots=True)
class ConditionVerdict:
    """A condition holds when any of its alternatives does; its probability is their maximum."""

    outcome: Literal["holds", "fails", "uncertain"]
    probability: float
    alternatives: tuple[AlternativeVerdict, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "outcome": self.outcome,
            "probability": round(self.probability, 6),
            "alternatives": [alternative.to_json() for alternative in self.alternatives],
        }


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """A rule is broken (`unsafe`) when all conditions hold; its probability is their minimum.

    `uncertain_between` are the probabilities around the threshold inside which nothing is decided.
    """

    id: str
    text: str
    category: str
    verdict: Outcome
    probability: float
    threshold: float
    uncertain_between: tuple[float, float]
    conditions: tuple[ConditionVerdict, ...]

    def to_json(self) -> dict[str, object]:
        low, high = self.uncertain_between
        return {
            "id": self.id,
            "text": self.text,
            "category": self.category,
            "verdict": self.verdict,
            "probability": round(self.probability, 6),
            "threshold": round(self.threshold, 6),
            "uncertain_between": [round(low, 6), round(high, 6)],
            "conditions": [condition.to_json() for condition in self.conditions],
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """One picture against one policy.

    `path` is as the caller gave it, None for pictures in memory; `sha256` is of the encoded bytes,
    None where there were none. `stages_ms` and `placement` say how long each stage took and which
    execution provider ran it. `prefix_cache` says whether the picture's prefix was kept from an
    earlier verdict ("off": nothing is kept, or there was no picture to look up), and
    `reused_tokens` how many prompt tokens were not computed again.
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

    @property
    def broken(self) -> tuple[RuleVerdict, ...]:
        """The rules that are broken, most probable first."""
        broken = [rule for rule in self.rules if rule.verdict == "unsafe"]
        return tuple(sorted(broken, key=lambda rule: -rule.probability))

    def to_json(self) -> dict[str, object]:
        """A dict of plain JSON values, as `edgejudge screen --json` prints it."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "verdict": self.verdict,
            "rules": [rule.to_json() for rule in self.rules],
            "notes": [note.to_json() for note in self.notes],
            "error": self.error.to_json() if self.error else None,
            "bundle": {"name": self.bundle, "sha256": self.bundle_sha256},
            "policy": {
                "name": self.policy,
                "version": self.policy_version,
                "sha256": self.policy_sha256,
            },
            "stages_ms": {name: round(ms, 3) for name, ms in self.stages_ms.items()},
            "placement": dict(self.placement),
            "prefix_cache": self.prefix_cache,
            "reused_tokens": self.reused_tokens,
        }
