"""Metrics of probabilities: calibration errors, Brier skill, AUROC, risk against coverage.

Takes rows with probabilities; gives estimates and the curves behind them. With two labels these are
about P(positive); with more, about the likeliest label and whether it is right.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.evaluation.calibration_metrics import (
    BINS,
    brier_skill,
    equal_mass_ece,
    max_calibration_error,
)
from edgejudge.evaluation.estimates import Estimate, counted, nothing, of_figure, statistic
from edgejudge.evaluation.extra import needed
from edgejudge.evaluation.measured import Beliefs, Measured, likeliest
from edgejudge.evaluation.rows import level

__all__ = ["Curve", "auroc", "calibration", "risk_coverage", "risk_coverage_curve", "skill"]

_ONE_CLASS = "not defined: the rows with probabilities are all of one label"


@dataclass(frozen=True, slots=True)
class Curve:
    """Share of errors among the most confident rows, by how many of all rows these are."""

    coverage: NDArray[np.float64]  # [K]
    risk: NDArray[np.float64]  # [K]
    area: float


def calibration(m: Measured) -> list[Estimate]:
    """ECE over 15 bins of equal mass, and MCE, the largest gap of a bin (Naeini et al., AAAI 2015).

    Neither can be negative, so noise alone makes both positive.
    """
    b = m.beliefs()
    if not len(b.outcomes):
        return [_no_beliefs("ECE", m, b), _no_beliefs("MCE", m, b)]
    note = _note(m, b, f"{min(BINS, len(b.outcomes))} bins of equal mass, lower is better")
    made = []
    for name, of in (("ECE", equal_mass_ece), ("MCE", max_calibration_error)):
        measured = partial(of, b.probabilities, b.outcomes, BINS)
        made.append(counted(of_figure(name, measured, b.groups, note), m.rows))
    return made


def skill(m: Measured) -> list[Estimate]:
    """1 - Brier score / Brier score of always saying the base rate: 0 is no better than that."""
    b = m.beliefs()
    if not len(b.outcomes):
        return [_no_beliefs("Brier skill", m, b)]
    made = of_figure(
        "Brier skill",
        lambda r: brier_skill(b.probabilities, b.outcomes, r),
        b.groups,
        _note(m, b),
        _ONE_CLASS,
    )
    return [counted(made, m.rows)]


def auroc(m: Measured) -> list[Estimate]:
    """The chance that a positive row has a higher probability than a negative one, ties half
    (Hanley and McNeil, 1982); over more than two labels, the mean of each against the rest.
    """
    b = m.beliefs()
    if not len(b.outcomes):
        return [_no_beliefs("AUROC", m, b)]
    if b.binary:
        scores, truth = b.probabilities[:, None], b.outcomes[:, None]
    else:
        rows = [row for row in m.scored if row.probabilities]
        labels = m.labels or tuple(sorted({k for row in rows for k in row.probabilities or {}}))
        scores = np.array([[(r.probabilities or {}).get(k, 0.0) for k in labels] for r in rows])
        truth = np.array([[level(r.truth) == k for k in labels] for r in rows], np.float64)
    ranks_of: Any = needed("scipy.stats").rankdata

    def one(scores: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
        # From the ranks' sum, as Mann and Whitney have it: a thousand draws take a fraction of what
        # scikit-learn's curve takes.
        right = int(truth.sum())
        above = ranks_of(scores)[truth == 1].sum() - right * (right + 1) / 2
        return float(above / (right * (len(truth) - right)))

    def value(s: NDArray[np.float64], t: NDArray[np.float64]) -> float:
        both = [i for i in range(t.shape[1]) if 0 < t[:, i].mean() < 1]
        found = [one(s[:, i], t[:, i]) for i in both]
        return float(np.mean(found)) if found else float("nan")

    note = _note(m, b, "" if b.binary else "mean over the labels")
    return [counted(statistic("AUROC", value, (scores, truth), b.groups, note, _ONE_CLASS), m.rows)]


def risk_coverage(m: Measured) -> list[Estimate]:
    """The area under the risk-coverage curve: the mean share of errors over all coverages, lower is
    better (El-Yaniv and Wiener, 2010; AURC of Geifman et al., ICLR 2019).
    """
    name = "area under risk-coverage"
    confidence, wrong, groups, missing = _ranked(m)
    if not len(wrong):
        return [_no_beliefs(name, m, m.beliefs())]

    def area(c: NDArray[np.float64], w: NDArray[np.float64]) -> float:
        return float(_risks(c, w).mean())

    note = "lower is better" + (f"; {missing} scored rows without probabilities" if missing else "")
    return [counted(statistic(name, area, (confidence, wrong), groups, note), m.rows)]


def risk_coverage_curve(m: Measured) -> Curve | None:
    """None without probabilities. Coverage is of all rows: one that ends before 1 lacks answers."""
    confidence, wrong, _, _ = _ranked(m)
    if not len(wrong):
        return None
    risks = _risks(confidence, wrong)
    coverage = np.arange(1, len(wrong) + 1) / len(m.rows)
    return Curve(coverage, risks, float(risks.mean()))


def _ranked(
    m: Measured,
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...], int]:
    """Confidence, error and group of the scored rows with probabilities, and how many have none.

    Confidence is the probability of the label that was said. A row that was left undecided comes
    after all that were decided and counts as wrong.
    """
    rows = [row for row in m.scored if row.probabilities]
    confidence, wrong = [], []
    for row in rows:
        found = row.probabilities or {}
        said = likeliest(row) if row.undecided else level(row.prediction)
        p = found.get(str(said), 0.0)
        confidence.append(p - 1.0 if row.undecided else p)
        wrong.append(row.undecided or said != level(row.truth))
    return (
        np.array(confidence, np.float64),
        np.array(wrong, np.float64),
        tuple(row.group for row in rows),
        len(m.scored) - len(rows),
    )


def _risks(confidence: NDArray[np.float64], wrong: NDArray[np.float64]) -> NDArray[np.float64]:
    """Error share of the k most confident rows, k = 1..N [N]. Rows of one confidence share their
    mean error, so that their order changes nothing.
    """
    _, where, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    means = np.bincount(where, wrong) / counts
    running: NDArray[np.float64] = np.cumsum(np.repeat(means, counts))
    return running / np.arange(1, len(wrong) + 1)


def _note(m: Measured, b: Beliefs, more: str = "") -> str:
    what = f"P({m.positive})" if b.binary else "probability of the likeliest label"
    parts = [what, more, f"{b.missing} scored rows without probabilities" if b.missing else ""]
    return "; ".join(part for part in parts if part)


def _no_beliefs(name: str, m: Measured, b: Beliefs) -> Estimate:
    made = nothing(name, "no scored row has probabilities")
    return replace(counted(made, m.rows), n=len(b.outcomes))
