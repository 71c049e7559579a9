"""The metrics by name: what each is of, what rows must carry for it, and where it comes from.

Takes rows and chosen metrics; gives estimates. A metric that does not fit is refused by name before
anything runs.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from edgejudge.errors import InputError
from edgejudge.evaluation.estimates import Estimate
from edgejudge.evaluation.measured import Measured
from edgejudge.evaluation.metrics_beliefs import auroc, calibration, risk_coverage, skill
from edgejudge.evaluation.metrics_conduct import (
    cost,
    exception_recall,
    latency,
    majority_consistency,
    order_consistency,
    stability,
    unscored,
)
from edgejudge.evaluation.metrics_decisions import (
    accuracy,
    accuracy_with_tie,
    accuracy_without_tie,
    balanced_accuracy,
    f_beta,
    levenshtein,
    precision,
    recall,
)
from edgejudge.evaluation.metrics_numbers import kendall, mean_error, pearson, spearman
from edgejudge.evaluation.rows import KINDS, Kind

__all__ = ["METRICS", "Choice", "Metric", "check", "measure"]


@dataclass(frozen=True, slots=True)
class Metric:
    """`needs` is the field that rows must carry, None for what every row has; `positive` says
    whether one label may be named as the one that counts.
    """

    of: Callable[[Measured], list[Estimate]]
    kinds: tuple[Kind, ...]
    needs: str | None = None
    positive: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A metric of a recipe. `by_target` measures each target apart, `positive` names a label."""

    name: str
    by_target: bool = False
    positive: str | None = None

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "by_target": self.by_target, "positive": self.positive}


_WORDS: tuple[Kind, ...] = ("label", "pair")
METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, KINDS),
    "accuracy_with_tie": Metric(accuracy_with_tie, ("pair",)),
    "accuracy_without_tie": Metric(accuracy_without_tie, ("pair",)),
    "f1": Metric(partial(f_beta, beta=1.0), _WORDS, positive=True),
    "f2": Metric(partial(f_beta, beta=2.0), _WORDS, positive=True),
    "precision": Metric(precision, _WORDS, positive=True),
    "recall": Metric(recall, _WORDS, positive=True),
    "balanced_accuracy": Metric(balanced_accuracy, _WORDS),
    "pearson": Metric(pearson, ("score",)),
    "spearman": Metric(spearman, ("score",)),
    "kendall": Metric(kendall, ("score",)),
    "mean_error": Metric(mean_error, ("score",)),
    "levenshtein": Metric(levenshtein, ("order",)),
    "majority_consistency": Metric(majority_consistency, KINDS, "repeats"),
    "order_consistency": Metric(order_consistency, ("pair",), "orders"),
    "ece": Metric(calibration, ("label", "pair", "score"), "probabilities", positive=True),
    "brier_skill": Metric(skill, ("label", "pair", "score"), "probabilities", positive=True),
    "auroc": Metric(auroc, ("label",), "probabilities", positive=True),
    "risk_coverage": Metric(risk_coverage, ("label", "pair", "score"), "probabilities"),
    "unscored": Metric(unscored, KINDS),
    "exception_recall": Metric(exception_recall, ("label",), "exceptions"),
    "stability": Metric(stability, KINDS, "perturbed"),
    "cost": Metric(cost, KINDS, "cost"),
    "latency": Metric(latency, KINDS, "stages_ms"),
}
# How to get what rows lack.
_HOW = {
    "probabilities": "which this inferencer or these outputs do not give",
    "repeats": "which need `repeats` in the inferencer, or a column of them in recorded outputs",
    "orders": "which `compare` gives, or columns of recorded outputs",
    "perturbed": "which need `perturbations` in the inferencer",
    "exceptions": "which need `exceptions` in a screen inferencer",
    "cost": "which these recorded outputs do not have",
    "stages_ms": "which these recorded outputs do not have",
}


def check(
    choice: Choice, kind: Kind, labels: Sequence[str], gives: Collection[str], where: str
) -> None:
    """Raises InputError "metric" where rows of this kind, with these fields, lack such a figure."""
    metric = METRICS[choice.name]
    if kind not in metric.kinds:
        fitting = ", ".join(name for name, each in METRICS.items() if kind in each.kinds)
        raise InputError(
            "metric",
            f"{where}: {choice.name} is for answers of kind {' or '.join(metric.kinds)}, and these "
            f"are of kind {kind}; choose from {fitting}",
        )
    if metric.needs is not None and metric.needs not in gives:
        raise InputError(
            "metric", f"{where}: {choice.name} needs {metric.needs}, {_HOW[metric.needs]}"
        )
    if choice.positive is not None and choice.positive not in labels:
        known = ", ".join(labels) or "none"
        raise InputError(
            "metric", f"{where}: '{choice.positive}' is none of the labels here ({known})"
        )


def measure(choices: Sequence[Choice], m: Measured) -> list[Estimate]:
    """Every chosen metric, in order."""
    made = []
    for choice in choices:
        found = m
        if choice.positive is not None:
            found = replace(m, positive=choice.positive)
        made += _named(choice.name, "", found)
        if choice.by_target:
            for target in dict.fromkeys(row.target for row in m.rows):
                part = found.of([row for row in m.rows if row.target == target])
                made += _named(choice.name, target, part)
    return made


def _named(name: str, target: str, m: Measured) -> list[Estimate]:
    return [replace(each, metric=name, target=target) for each in METRICS[name].of(m)]
