"""Figures with their N and interval: shares, and statistics of rows, drawn again by picture.

Takes arrays with one value per row; gives `Estimate`s. A share of independent rows gets the exact
interval of Clopper and Pearson, everything else a percentile bootstrap over groups. Knows no
metric.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.evaluation.calibration_metrics import (
    Figure,
    Resampling,
    bootstrap,
    clopper_pearson,
)
from edgejudge.evaluation.rows import Row

__all__ = ["CONFIDENCE", "Estimate", "counted", "nothing", "of_figure", "share", "statistic"]

CONFIDENCE = 0.95
_DRAWS = 1000
_ONE_GROUP = "no interval from one group"
_SAME = "no interval: every draw gives the same"
_UNSTABLE = "no interval: undefined in most draws"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure over `n` decisions of `groups` groups.

    `unscored` and `undecided` count the rows that were looked at for it and had no answer, or an
    answer that decides nothing. `value` is None where the figure is not defined, and `low` and
    `high` where it has no interval; `note` says why. `method` is exact, bootstrap or none.
    """

    metric: str
    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int
    unscored: int
    undecided: int
    method: str
    note: str = ""
    target: str = ""

    def to_json(self) -> dict[str, object]:
        return {
            "metric": self.metric,
            "name": self.name,
            "target": self.target,
            "value": self.value,
            "interval": None if self.low is None else [self.low, self.high],
            "confidence": CONFIDENCE if self.low is not None else None,
            "method": self.method,
            "n": self.n,
            "groups": self.groups,
            "unscored": self.unscored,
            "undecided": self.undecided,
            "note": self.note,
        }


def counted(estimate: Estimate, rows: Sequence[Row]) -> Estimate:
    """With the unscored and undecided rows among all that were looked at."""
    return replace(
        estimate,
        unscored=sum(not row.scored for row in rows),
        undecided=sum(row.undecided for row in rows),
    )


def nothing(name: str, why: str, n: int = 0, groups: int = 0) -> Estimate:
    """A figure that is not defined here."""
    return Estimate("", name, None, None, None, n, groups, 0, 0, "none", why)


def share(name: str, hits: NDArray[Any], groups: Sequence[str], note: str = "") -> Estimate:
    """How many of `hits` [N] are true.

    Exact where each group has one row. Where the groups have more and all rows agree, a bootstrap
    would have no width: the groups are then counted as if each were one row.
    """
    hits = np.asarray(hits, bool)
    n, many, right = len(hits), len(set(groups)), int(hits.sum())
    if n == 0:
        return nothing(name, note or "no rows")
    if many == n or right in (0, n):
        low, high = clopper_pearson(right if many == n else many * right // n, many, CONFIDENCE)
        return Estimate("", name, right / n, low, high, n, many, 0, 0, "exact", note)
    return statistic(name, lambda x: float(x.mean()), (hits.astype(np.float64),), groups, note)


def statistic(
    name: str,
    function: Callable[..., float],
    arrays: Sequence[NDArray[Any]],
    groups: Sequence[str],
    note: str = "",
    undefined: str = "not defined for these rows",
) -> Estimate:
    """`function(*arrays)` of arrays [N]; it gives NaN where it is not defined."""
    n, many = len(groups), len(set(groups))
    if n == 0:
        return nothing(name, note or "no rows")
    value = function(*arrays)
    if not math.isfinite(value):
        return nothing(name, undefined, n, many)
    interval = bootstrap(function, arrays, _resampling(groups))
    return _with(name, value, interval, n, many, note)


def of_figure(
    name: str,
    measure: Callable[[Resampling], Figure],
    groups: Sequence[str],
    note: str = "",
    undefined: str = "not defined for these rows",
) -> Estimate:
    """A figure that brings its own interval."""
    figure, many = measure(_resampling(groups)), len(set(groups))
    if not math.isfinite(figure.value):
        return nothing(name, undefined, figure.n, many)
    interval = None
    if figure.low is not None and figure.high is not None:
        interval = (figure.low, figure.high)
    return _with(name, figure.value, interval, figure.n, many, note)


def _resampling(groups: Sequence[str]) -> Resampling:
    return Resampling(list(groups), _DRAWS, CONFIDENCE)


def _with(
    name: str, value: float, interval: tuple[float, float] | None, n: int, groups: int, note: str
) -> Estimate:
    if interval is None or interval[0] == interval[1]:
        # No width is no certainty: a few rows that are all right say little of the next ones.
        why = _ONE_GROUP if groups < 2 else _UNSTABLE if interval is None else _SAME
        note = f"{note}; {why}" if note else why
        return Estimate("", name, value, None, None, n, groups, 0, 0, "none", note)
    return Estimate("", name, value, *interval, n, groups, 0, 0, "bootstrap", note)
