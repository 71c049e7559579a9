"""What a time budget costs: decided shares and wrong decisions, budget by budget.

Takes pictures with labels and a way to screen one; gives a point for each budget and order of
rules. A pair is one picture and one rule that has a label. Needs the extra `eval`. Knows no files
and no engine.

Coverage is the share of pairs that are decided, selective risk the share of wrong ones among them
(El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification, JMLR 2010), with
the exact interval of Clopper and Pearson, which takes pairs to be independent.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edgejudge.evaluation.calibration_metrics import clopper_pearson
from edgejudge.plan import Plan
from edgejudge.report import plain_table
from edgejudge.stage_report import percentile
from edgejudge.time_budget import TimeBudget
from edgejudge.verdict import Verdict

__all__ = ["Labelled", "Order", "Point", "between", "measure", "table"]

Order = Literal["information", "random"]
_HEADINGS = (
    *("budget ms", "order", "decided", "wrong of decided (95 %)", "false safes"),
    *("mean ms", "p95 ms", "late"),
)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A picture, and by rule whether it breaks it."""

    path: str
    labels: Mapping[str, int]


@dataclass(slots=True)
class Point:
    """One budget and order: `pairs` with a label, of which `decided` and `wrong`; `false_safes` are
    broken rules that were called safe. `failed` pictures have no verdict, and decide nothing.
    """

    budget_ms: float
    order: Order
    pairs: int = 0
    decided: int = 0
    wrong: int = 0
    false_safes: int = 0
    failed: int = 0
    ms: list[float] = field(default_factory=list)

    def add(self, verdict: Verdict, labels: Mapping[str, int]) -> None:
        self.pairs += len(labels)
        self.failed += verdict.verdict is None
        self.ms.append(verdict.total_ms)
        for rule in verdict.rules:
            if rule.id in labels and rule.verdict != "uncertain":
                broken = labels[rule.id] == 1
                self.decided += 1
                self.wrong += broken != (rule.verdict == "unsafe")
                self.false_safes += broken and rule.verdict == "safe"

    @property
    def late(self) -> int:
        """Pictures that took longer than the budget."""
        return sum(ms > self.budget_ms for ms in self.ms)

    def to_json(self) -> dict[str, object]:
        decided = self.decided
        interval = list(clopper_pearson(self.wrong, decided)) if decided else None
        return {
            "budget_ms": None if math.isinf(self.budget_ms) else self.budget_ms,
            "order": self.order,
            "coverage": {"value": decided / self.pairs, "n": self.pairs},
            "risk": {
                "value": self.wrong / decided if decided else None,
                "wrong": self.wrong,
                "n": decided,
                "interval": interval,
                "confidence": 0.95,
            },
            "false_safes": self.false_safes,
            "pictures": len(self.ms),
            "failed": self.failed,
            "late": self.late,
            "mean_ms": sum(self.ms) / len(self.ms),
            "p95_ms": percentile(self.ms, 0.95),
        }


def between(before_ms: Sequence[float], whole_ms: Sequence[float], count: int = 5) -> list[float]:
    """Budgets that matter: evenly from where half of the pictures can be asked anything to where
    half can be asked everything, and as much again.
    """
    low, high = percentile(before_ms, 0.5), percentile(whole_ms, 0.5)
    step = (high - low) / (count - 2)
    return [round(low + step * place, 1) for place in range(count)]


def measure(
    screen: Callable[[str, Plan], Verdict],
    plan: Plan,
    pictures: Sequence[Labelled],
    budgets: Sequence[float],
    seed: int,
    progress: Callable[[int, int], None],
) -> list[Point]:
    """A point for each budget in both orders, and one without a budget. Each picture is screened
    under all of them in turn, so that a machine that gets slower does so for all.

    The other order is a random one, drawn anew for each picture and budget from `seed`: what it
    lacks is what the order by expected information brings.
    """
    orders: tuple[Order, ...] = ("information", "random")
    points = [Point(ms, order) for ms in budgets for order in orders]
    points.append(Point(math.inf, "information"))
    ids = [rule.id for rule in plan.rules]
    for count, picture in enumerate(pictures, 1):
        for point in points:
            order = None
            if point.order == "random":
                dice = random.Random(f"{seed} {picture.path} {point.budget_ms}")
                order = tuple(dice.sample(ids, len(ids)))
            timed = replace(plan, budget=TimeBudget(point.budget_ms, order=order))
            point.add(screen(picture.path, timed), picture.labels)
        progress(count, len(pictures))
    return points


def table(points: Sequence[Point]) -> str:
    return plain_table([_row(point) for point in points], _HEADINGS)


def _row(point: Point) -> tuple[str, ...]:
    risk = "-"
    if point.decided:
        low, high = clopper_pearson(point.wrong, point.decided)
        share = point.wrong / point.decided
        risk = f"{share:.3f} ({low:.3f} to {high:.3f}, N {point.decided})"
    endless = math.isinf(point.budget_ms)
    return (
        "none" if endless else f"{point.budget_ms:g}",
        "all asked" if endless else point.order,
        f"{point.decided / point.pairs:.1%} of {point.pairs}",
        risk,
        str(point.false_safes),
        f"{sum(point.ms) / len(point.ms):.1f}",
        f"{percentile(point.ms, 0.95):.1f}",
        "-" if endless else f"{point.late} of {len(point.ms)}",
    )
