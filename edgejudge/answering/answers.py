"""The records that `ask`, `score` and `checklist` return: frozen, plain JSON on request.

Knows the shape of an answer and nothing of how it was reached. There is no record of a failure:
what cannot be answered is an error.
"""

from dataclasses import dataclass
from typing import Literal

from edgejudge.verdict import Note, Table

__all__ = [
    "Answer",
    "ChecklistResult",
    "CriterionResult",
    "LabelAnswer",
    "Level",
    "PictureName",
    "Provenance",
    "Score",
    "TaskScore",
    "rounded",
]


@dataclass(frozen=True, slots=True)
class PictureName:
    """`path` is as the caller gave it, None for pictures in memory; `sha256` is of the encoded
    bytes, None where there were none.
    """

    path: str | None
    sha256: str | None

    def to_json(self) -> dict[str, object]:
        return {"path": self.path, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Provenance:
    """What an answer was made by, and from. `questions` is how many prompts were asked, orders and
    permutations counted; the rest is as in a Verdict.
    """

    bundle: str
    bundle_sha256: str
    images: tuple[PictureName, ...]
    questions: int
    notes: tuple[Note, ...]
    stages_ms: Table[float]
    placement: Table[str]
    prefix_cache: Literal["hit", "miss", "off"]
    reused_tokens: int

    def to_json(self) -> dict[str, object]:
        return {
            "images": [image.to_json() for image in self.images],
            "questions": self.questions,
            "notes": [note.to_json() for note in self.notes],
            "bundle": {"name": self.bundle, "sha256": self.bundle_sha256},
            "stages_ms": {name: round(ms, 3) for name, ms in self.stages_ms.items()},
            "placement": dict(self.placement),
            "prefix_cache": self.prefix_cache,
            "reused_tokens": self.reused_tokens,
        }


@dataclass(frozen=True, slots=True)
class LabelAnswer:
    """`spread` is the largest difference of the probability between orders of the options, 0 where
    there was one order.
    """

    label: str
    probability: float
    spread: float

    def to_json(self) -> dict[str, object]:
        return {
            "label": self.label,
            "probability": rounded(self.probability),
            "spread": rounded(self.spread),
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """`label` is the most probable one. `mass` is how probable all labels are together among what
    the model could write, the mean over orders; None where the verdict head was read. Of `orders`
    in which options were shown, `agreeing` give `label`.
    """

    question: str
    label: str
    labels: tuple[LabelAnswer, ...]
    mass: float | None
    head: Literal["verdict_head", "lm_head"]
    per_token: bool
    orders: int
    agreeing: int
    made: Provenance

    @property
    def probabilities(self) -> dict[str, float]:
        return {each.label: each.probability for each in self.labels}

    def to_json(self) -> dict[str, object]:
        return {
            "question": self.question,
            "label": self.label,
            "labels": [each.to_json() for each in self.labels],
            "label_mass": rounded(self.mass),
            "head": self.head,
            "per_token": self.per_token,
            "orders": self.orders,
            "orders_agreeing": self.agreeing,
            **self.made.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Level:
    """One label of a rubric, what it is worth, and how probable it is."""

    label: str
    value: float
    probability: float

    def to_json(self) -> dict[str, object]:
        return {
            "label": self.label,
            "value": self.value,
            "probability": rounded(self.probability),
        }


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One rubric's answer. `value` is the expectation over `levels` in their own unit, `normalised`
    the same from 0 (the least value) to 1, `deviation` the levels' standard deviation in their
    unit: how undecided the judge is, not how far off it may be.
    """

    name: str
    question: str
    value: float
    normalised: float
    deviation: float
    temperature: float
    levels: tuple[Level, ...]
    mass: float | None
    head: Literal["verdict_head", "lm_head"]
    group: str | None

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "question": self.question,
            "value": rounded(self.value),
            "normalised": rounded(self.normalised),
            "deviation": rounded(self.deviation),
            "temperature": self.temperature,
            "levels": [level.to_json() for level in self.levels],
            "label_mass": rounded(self.mass),
            "head": self.head,
            "group": self.group,
        }


@dataclass(frozen=True, slots=True)
class Score:
    """Of one rubric `value` is in its unit; of several, combined by `combination`, it is that of
    their normalised scores. `normalised` goes from 0 to 1 in both cases.
    """

    name: str
    value: float
    normalised: float
    combination: str | None
    tasks: tuple[TaskScore, ...]
    made: Provenance

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "value": rounded(self.value),
            "normalised": rounded(self.normalised),
            "combination": self.combination,
            "tasks": [task.to_json() for task in self.tasks],
            **self.made.to_json(),
        }


@dataclass(frozen=True, slots=True)
class CriterionResult:
    """`probability` is that of the criterion being met: P(yes), or P(no) where no is `wanted`."""

    id: str
    text: str
    wanted: Literal["yes", "no"]
    weight: float
    outcome: Literal["met", "unmet", "uncertain"]
    probability: float
    known: bool

    def to_json(self) -> dict[str, object]:
        return {
            "id": self.id,
            "text": self.text,
            "wanted": self.wanted,
            "weight": self.weight,
            "outcome": self.outcome,
            "probability": rounded(self.probability),
            "known": self.known,
        }


@dataclass(frozen=True, slots=True)
class ChecklistResult:
    """`score` is the expected share of the weights that is met; the share lies `between` the two
    that uncertain criteria would give if none of them, or all, were met.
    """

    name: str
    score: float
    between: tuple[float, float]
    band: float
    criteria: tuple[CriterionResult, ...]
    made: Provenance

    @property
    def uncertain(self) -> tuple[str, ...]:
        return tuple(each.id for each in self.criteria if each.outcome == "uncertain")

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "score": rounded(self.score),
            "between": [rounded(bound) for bound in self.between],
            "uncertain_band": self.band,
            "uncertain": list(self.uncertain),
            "criteria": [each.to_json() for each in self.criteria],
            **self.made.to_json(),
        }


def rounded(value: float | None) -> float | None:
    """As numbers stand in JSON: what lies below is noise of the arithmetic."""
    return None if value is None else round(value, 6)
