"""Metrics of scores against human scores: Pearson, Spearman, Kendall's tau-b.

Takes rows of kind score; gives estimates. An unscored or undecided row has no number, so it is left
out and counted beside the figure.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.evaluation.estimates import Estimate, counted, statistic
from edgejudge.evaluation.extra import needed
from edgejudge.evaluation.measured import Measured

__all__ = ["kendall", "mean_error", "pearson", "spearman"]

_CONSTANT = "not defined: all truths, or all scores, are the same"


def pearson(m: Measured) -> list[Estimate]:
    """Linear correlation."""
    return _correlation("Pearson", needed("scipy.stats").pearsonr, m)


def spearman(m: Measured) -> list[Estimate]:
    """Correlation of ranks, ties averaged."""
    return _correlation("Spearman", needed("scipy.stats").spearmanr, m)


def kendall(m: Measured) -> list[Estimate]:
    """Tau-b: concordant less discordant pairs, with ties on either side taken into account
    (Kendall, 1945).
    """
    return _correlation("Kendall tau-b", needed("scipy.stats").kendalltau, m)


def mean_error(m: Measured) -> list[Estimate]:
    """Mean absolute difference of score and truth."""
    truth, said, groups = _numbers(m)
    made = statistic(
        "mean absolute error",
        lambda t, s: float(np.abs(t - s).mean()),
        (truth, said),
        groups,
        "lower is better",
    )
    return [counted(made, m.rows)]


def _correlation(name: str, function: Any, m: Measured) -> list[Estimate]:
    truth, said, groups = _numbers(m)

    def value(t: NDArray[np.float64], s: NDArray[np.float64]) -> float:
        if len(t) < 2 or np.ptp(t) == 0 or np.ptp(s) == 0:
            return float("nan")
        with (
            warnings.catch_warnings()
        ):  # of nearly constant input, which has its interval to say so
            warnings.simplefilter("ignore")
            return float(function(t, s).statistic)

    undefined = _CONSTANT if len(truth) > 1 else "not defined for fewer than two scored rows"
    return [counted(statistic(name, value, (truth, said), groups, undefined=undefined), m.rows)]


def _numbers(m: Measured) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    rows = [row for row in m.scored if not row.undecided]
    return (
        np.array([row.truth for row in rows], np.float64),
        np.array([row.prediction for row in rows], np.float64),
        tuple(row.group for row in rows),
    )
