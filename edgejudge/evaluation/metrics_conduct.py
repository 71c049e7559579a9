"""Metrics of how a judge behaves: consistency, stability, exceptions to a policy, cost, time.

Takes rows that carry what was asked again; gives estimates. Cost and time are of whole examples, so
an example with many decisions counts once.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgejudge.evaluation.estimates import Estimate, counted, nothing, share, statistic
from edgejudge.evaluation.measured import Measured
from edgejudge.evaluation.rows import UNDECIDED, Row, level

__all__ = [
    "cost",
    "exception_recall",
    "latency",
    "majority_consistency",
    "order_consistency",
    "stability",
    "unscored",
]

_PERCENTILES = (50, 90, 95, 99)


def majority_consistency(m: Measured) -> list[Estimate]:
    """MCC: the share of rows whose commonest answer came more than half of the times they were
    asked, four of six as MLLM-as-a-Judge (arXiv 2402.04788) has it. A missing answer is no answer.
    """
    rows = [row for row in m.rows if row.repeats]

    def agreed(row: Row) -> bool:
        said = [level(each) for each in row.repeats or () if each is not None]
        most = max(Counter(said).values(), default=0)
        return 2 * most > len(row.repeats or ())

    times = sorted({len(row.repeats or ()) for row in rows})
    note = f"asked {', '.join(map(str, times))} times" if times else "nothing was asked again"
    return [_share("majority consistency", [agreed(row) for row in rows], rows, m, note)]


def order_consistency(m: Measured) -> list[Estimate]:
    """The share of pairs with one winner in both orders. An order without a winner is none."""
    rows = [row for row in m.rows if row.orders]

    def agreed(row: Row) -> bool:
        orders = set(row.orders or ())
        return len(orders) == 1 and not orders & {None, *UNDECIDED}

    note = "" if rows else "no row was asked in both orders"
    return [_share("order consistency", [agreed(row) for row in rows], rows, m, note)]


def stability(m: Measured) -> list[Estimate]:
    """By perturbation: the share of answers that stay, and how far probabilities move on average
    (half the sum of the differences over the labels, which is |difference of P| with two).
    """
    made = []
    for name in sorted({name for row in m.rows for name in row.perturbed or {}}):
        rows = [row for row in m.scored if name in (row.perturbed or {})]
        seen = [(row, (row.perturbed or {})[name]) for row in rows]
        same = [level(row.prediction) == level(other.prediction) for row, other in seen]
        made.append(_share(f"unchanged under {name}", same, rows, m, ""))
        moved, groups = [], []
        for row, other in seen:
            if row.probabilities and other.probabilities:
                labels = {*row.probabilities, *other.probabilities}
                a, b = row.probabilities, other.probabilities
                moved.append(sum(abs(a.get(k, 0.0) - b.get(k, 0.0)) for k in labels) / 2)
                groups.append(row.group)
        arrays = (np.array(moved, np.float64),)
        note = "lower is better" if moved else "no probabilities"
        title = f"mean change of probability under {name}"
        made.append(counted(statistic(title, _mean, arrays, groups, note), m.rows))
    return made or [counted(nothing("stability", "no row was perturbed"), m.rows)]


def exception_recall(m: Measured) -> list[Estimate]:
    """The share of rows whose verdict follows a policy that relaxes or tightens a category (policy
    exception recall of LlavaGuard, arXiv 2406.05113), over the rows for which another verdict is
    right under the changed policy.
    """
    made = []
    for change in sorted({e.change for row in m.rows for e in row.exceptions or ()}):
        pairs = [(row, e) for row in m.rows for e in row.exceptions or () if e.change == change]
        hits = [e.prediction == e.expected for _, e in pairs]
        rows = [row for row, _ in pairs]
        made.append(_share(f"exception recall, {change}", hits, rows, m, ""))
    why = "no row has another verdict under a changed policy"
    return made or [counted(nothing("exception recall", why), m.rows)]


def unscored(m: Measured) -> list[Estimate]:
    """The shares of rows without an answer, with the commonest reasons, and of undecided ones."""
    groups = [row.group for row in m.rows]
    reasons = Counter((row.unscored or "").split(":")[0] for row in m.rows if not row.scored)
    note = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(3))
    return [
        counted(share("unscored", np.array([not r.scored for r in m.rows]), groups, note), m.rows),
        counted(share("undecided", np.array([r.undecided for r in m.rows]), groups), m.rows),
    ]


def cost(m: Measured) -> list[Estimate]:
    """What an example takes on average, of what its rows record: image prefixes, question tokens,
    calls for reasoning.
    """
    rows = _first([row for row in m.rows if row.cost])
    made = []
    for key in sorted({key for row in rows for key in row.cost or {}}):
        values = np.array([(row.cost or {}).get(key, 0.0) for row in rows], np.float64)
        groups = [row.group for row in rows]
        title = f"{key.replace('_', ' ')} per example"
        note = f"{values.sum():g} in all"
        made.append(counted(statistic(title, _mean, (values,), groups, note), m.rows))
    return made or [counted(nothing("cost", "no row records what it cost"), m.rows)]


def latency(m: Measured) -> list[Estimate]:
    """Percentiles of the milliseconds an example took, the sum of its stages."""
    rows = _first([row for row in m.rows if row.stages_ms])
    ms = np.array([sum((row.stages_ms or {}).values()) for row in rows], np.float64)
    groups = [row.group for row in rows]
    if not rows:
        return [counted(nothing("latency", "no row records its stages"), m.rows)]
    return [
        counted(
            statistic(
                f"latency p{percent}, ms",
                lambda x, q=percent: float(np.percentile(x, q)),
                (ms,),
                groups,
            ),
            m.rows,
        )
        for percent in _PERCENTILES
    ]


def _share(
    name: str, hits: Sequence[bool], rows: Sequence[Row], m: Measured, note: str
) -> Estimate:
    made = share(name, np.array(hits, bool), [row.group for row in rows], note)
    return counted(made, m.rows)


def _first(rows: Sequence[Row]) -> list[Row]:
    """One row of each example."""
    return list({row.example: row for row in reversed(rows)}.values())[::-1]


def _mean(x: Any) -> float:
    return float(x.mean())
