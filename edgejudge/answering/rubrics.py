"""Rubrics and checklists: what a picture is scored by, and the arithmetic of scores.

Takes criteria, ordered labels and their values; gives questions, and from label scores the score.
Knows no engine and no file.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgejudge.answering import wordings
from edgejudge.answering.answers import Level, TaskScore
from edgejudge.answering.label_scores import LabelQuestion, LabelScores
from edgejudge.errors import InputError

__all__ = [
    "COMBINATIONS",
    "METHODS",
    "Checklist",
    "Criterion",
    "Rubric",
    "Tasks",
    "keep_groups",
    "rubric",
]


@dataclass(frozen=True, slots=True)
class Rubric:
    """One question with ordered labels. Its score is the expectation of their values.

    `wording` may name {criterion}, {first} and {last}, the latter two being labels; `lead` is what
    the answer is made to begin with. Logits are divided by `temperature`. `group` is for the
    combination "viescore".
    """

    name: str
    criterion: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    wording: str = wordings.SCORE
    lead: str = ""
    temperature: float = 1.0
    group: str | None = None

    def __post_init__(self) -> None:
        where = f"rubric '{self.name}'"
        if len(self.labels) != len(self.values):
            raise InputError(
                "rubric", f"{where}: {len(self.labels)} labels have {len(self.values)} values"
            )
        if not all(map(math.isfinite, self.values)) or len(set(self.values)) < 2:
            raise InputError(
                "rubric", f"{where}: its labels need at least two different values, all numbers"
            )
        if not 0 < self.temperature < math.inf:
            raise InputError("rubric", f"{where}: its temperature must be a number above 0")
        if not self.criterion.strip():
            raise InputError("rubric", f"{where}: its criterion is empty")

    def question(self) -> LabelQuestion:
        values = {
            "criterion": self.criterion,
            "first": self.labels[0],
            "last": self.labels[-1],
        }
        text = wordings.fill(self.wording, ["criterion"], **values)
        return LabelQuestion(text, self.labels, wordings.fill(self.lead, [], **values))

    def score(self, found: LabelScores) -> TaskScore:
        """The expectation: sum over k of softmax(score / temperature)[k] * value[k]."""
        probabilities = found.at(self.temperature)
        pairs = list(zip(probabilities, self.values, strict=True))
        value = math.fsum(p * v for p, v in pairs)
        least, most = min(self.values), max(self.values)
        value = min(max(value, least), most)  # rounding must not leave the scale
        return TaskScore(
            name=self.name,
            question=self.question().text,
            value=value,
            normalised=(value - least) / (most - least),
            deviation=math.sqrt(math.fsum(p * (v - value) ** 2 for p, v in pairs)),
            temperature=self.temperature,
            levels=tuple(map(Level, self.labels, self.values, probabilities)),
            mass=found.mass,
            head=found.head,
            group=self.group,
        )


@dataclass(frozen=True, slots=True)
class _Method:
    labels: tuple[str, ...]
    values: tuple[float, ...]
    wording: str = wordings.SCORE
    lead: str = ""


# rubric: five levels, as MLLM-as-a-Judge and Prometheus-Vision have them. quality: Q-Bench, where
# the first of the two has the probability. reward: Edit-R1 of UniWorld-V2, normalised by 5.
METHODS = {
    "rubric": _Method(("1", "2", "3", "4", "5"), (1.0, 2.0, 3.0, 4.0, 5.0)),
    "reward": _Method(("0", "1", "2", "3", "4", "5"), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)),
    "quality": _Method(("good", "poor"), (1.0, 0.0), wordings.QUALITY, wordings.QUALITY_LEAD),
    "count": _Method(
        wordings.COUNT_LABELS,
        tuple(map(float, wordings.COUNT_LABELS)),
        wordings.COUNT.replace("{condition}", "{criterion}"),
    ),
}


def rubric(
    criterion: str,
    method: str = "rubric",
    *,
    labels: Sequence[str] | Mapping[str, float] | None = None,
    wording: str | None = None,
    temperature: float = 1.0,
) -> Rubric:
    """A rubric of a known method, or with labels of its own: their values, or in rising order of
    1, 2, 3 and so on. Raises InputError for a method that is none of METHODS.
    """
    if method not in METHODS:
        raise InputError("rubric", f"method {method!r} is none of {', '.join(METHODS)}")
    chosen = METHODS[method]
    names, values, lead = chosen.labels, chosen.values, chosen.lead
    if labels is not None:
        names = tuple(labels)
        values = tuple(map(float, range(1, len(names) + 1)))
        if isinstance(labels, Mapping):
            values = tuple(map(float, labels.values()))
    if wording is not None:
        lead = ""  # it belongs to the wording that it goes with
    words = chosen.wording if wording is None else wording
    return Rubric(criterion, criterion, names, values, words, lead, temperature)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _geometric(values: Sequence[float]) -> float:
    return math.prod(values) ** (1 / len(values))


# Of normalised scores. "viescore" needs their groups and has a function of its own.
COMBINATIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": _mean,
    "min": min,
    "product": math.prod,
    "geometric": _geometric,
}


@dataclass(frozen=True, slots=True)
class Tasks:
    """Several rubrics for one picture, asked together, and how their normalised scores combine.

    "viescore" is sqrt(min(first group) * min(second group)), as VIEScore combines semantic
    consistency and perceptual quality.
    """

    name: str
    rubrics: tuple[Rubric, ...]
    combination: str = "mean"

    def __post_init__(self) -> None:
        where = f"tasks '{self.name}'"
        if not self.rubrics:
            raise InputError("rubric", f"{where}: no rubric was given; give at least one")
        known = (*COMBINATIONS, "viescore")
        if self.combination not in known:
            raise InputError(
                "rubric", f"{where}: combination {self.combination!r} is none of {', '.join(known)}"
            )
        groups = {each.group for each in self.rubrics}
        if self.combination == "viescore" and (len(groups) != 2 or None in groups):
            raise InputError(
                "rubric", f"{where}: viescore needs two groups, and a group for each rubric"
            )

    def combine(self, scores: Sequence[TaskScore]) -> float:
        """From 0 to 1."""
        if self.combination == "viescore":
            least: dict[str | None, float] = {}
            for score in scores:
                least[score.group] = min(score.normalised, least.get(score.group, 1.0))
            return math.sqrt(math.prod(least.values()))
        return float(COMBINATIONS[self.combination]([score.normalised for score in scores]))


def keep_groups(
    groups: Sequence[Sequence[float]], least_std: float = 0.05, most_mean: float = 0.9
) -> tuple[bool, ...]:
    """The low-variance filter of Edit-R1: a group of normalised scores, of pictures made from one
    request, is kept when its standard deviation (over the group, not estimated) is above
    `least_std` and its mean below `most_mean`. Otherwise its differences are the judge's noise.
    """
    kept = []
    for group in groups:
        mean = _mean(group) if group else 0.0
        std = math.sqrt(_mean([(score - mean) ** 2 for score in group])) if group else 0.0
        kept.append(std > least_std and mean < most_mean)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Criterion:
    """`text` is put into the bundle's question; `wanted` is the answer that meets it."""

    id: str
    text: str
    weight: float = 1.0
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Checklist:
    """Weighted yes/no criteria. `wording` with {criterion} takes the place of the bundle's own
    question, `band` around one half that of the bundle's.
    """

    name: str
    criteria: tuple[Criterion, ...]
    wording: str | None = None
    band: float | None = None

    def __post_init__(self) -> None:
        where = f"checklist '{self.name}'"
        if not self.criteria:
            raise InputError("checklist", f"{where}: it has no criteria; give at least one")
        ids = [each.id for each in self.criteria]
        for each in self.criteria:
            if ids.count(each.id) > 1:
                raise InputError("checklist", f"{where}: '{each.id}' is given twice; keep one")
            if not 0 < each.weight < math.inf:
                raise InputError(
                    "checklist", f"{where}: the weight of '{each.id}' must be a number above 0"
                )
        if self.band is not None and not 0 <= self.band < 0.5:
            raise InputError("checklist", f"{where}: its band must be from 0 to 0.5")
