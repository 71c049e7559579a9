"""Metrics of what was decided: accuracy, F, balanced accuracy, edit distance of orders.

Takes rows; gives estimates. Every metric comes twice: "of scored" leaves unscored rows out, "over
all" counts them as wrong, so that a judge cannot gain by failing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.evaluation.estimates import Estimate, counted, nothing, share, statistic
from edgejudge.evaluation.measured import Codes, Measured
from edgejudge.evaluation.rows import Row

__all__ = [
    "accuracy",
    "accuracy_with_tie",
    "accuracy_without_tie",
    "balanced_accuracy",
    "confusion",
    "edit_distance",
    "f_beta",
    "levenshtein",
    "precision",
    "recall",
]

TIE = "C"
_Counter = Callable[[Any, Any], float]


def _both(name: str, of: Callable[[str, Sequence[Row]], Estimate], m: Measured) -> list[Estimate]:
    return [
        counted(of(f"{name} of scored", m.scored), m.rows),
        counted(of(f"{name} over all", m.rows), m.rows),
    ]


def accuracy(m: Measured) -> list[Estimate]:
    """The share of predictions that are the truth. An undecided one never is."""

    def of(name: str, rows: Sequence[Row]) -> Estimate:
        codes = m.codes(rows)
        return share(name, codes.truth == codes.predicted, codes.groups)

    return _both("accuracy", of, m)


def accuracy_with_tie(m: Measured) -> list[Estimate]:
    """Agreement with ties as votes like others (Zheng et al., MT-Bench, arXiv 2306.05685; FastChat
    counts orders that disagree as a tie, and so does this).
    """

    def of(name: str, rows: Sequence[Row]) -> Estimate:
        hits = [_vote(row) == row.truth for row in rows]
        return share(name, np.array(hits, bool), [row.group for row in rows])

    return _both("accuracy with tie", of, m)


def accuracy_without_tie(m: Measured) -> list[Estimate]:
    """As `accuracy_with_tie`, over the rows where neither side said tie."""
    name = "accuracy without tie"
    kept = [row for row in m.rows if TIE not in (row.truth, _vote(row))]

    def of(name: str, rows: Sequence[Row]) -> Estimate:
        hits = [_vote(row) == row.truth for row in rows]
        note = f"{len(m.rows) - len(kept)} rows with a tie left out"
        return share(name, np.array(hits, bool), [row.group for row in rows], note)

    return _both(name, of, m.of(kept))


def _vote(row: Row) -> Any:
    return TIE if row.undecided else row.prediction


def f_beta(m: Measured, beta: float) -> list[Estimate]:
    """(1 + beta^2) TP / ((1 + beta^2) TP + beta^2 FN + FP) of the positive label (van Rijsbergen,
    1979); the mean over the labels where none is positive.

    An undecided row is no positive call: it is missed where it is positive, and no false alarm. Not
    defined where no row is positive, in truth or in what was said.
    """

    def score(truth: Any, said: Any) -> float:
        hit, miss, alarm = (
            (a & b).sum() for a, b in ((truth, said), (truth, ~said), (~truth, said))
        )
        square = beta * beta
        whole = (1 + square) * hit + square * miss + alarm
        return float((1 + square) * hit / whole) if whole else float("nan")

    return _counts(f"F{beta:g}", score, m)


def precision(m: Measured) -> list[Estimate]:
    """The share of positive calls that are right; not defined without one."""

    def score(truth: Any, said: Any) -> float:
        return float(truth[said].mean()) if said.any() else float("nan")

    return _counts("precision", score, m, lambda truth, said: said)


def recall(m: Measured) -> list[Estimate]:
    """The share of positive rows that are called so; not defined without one."""

    def score(truth: Any, said: Any) -> float:
        return float(said[truth].mean()) if truth.any() else float("nan")

    return _counts("recall", score, m, lambda truth, said: truth)


def _counts(
    name: str, score: _Counter, m: Measured, among: Callable[[Any, Any], Any] | None = None
) -> list[Estimate]:
    """Of the positive label, or the mean over the labels that occur and for which it is defined.

    A score that is the share of right rows `among` some is one of these rows, which has the exact
    interval of a share.
    """

    def of(title: str, rows: Sequence[Row]) -> Estimate:
        codes = m.codes(rows)
        if m.positive is not None:
            place = codes.labels.index(m.positive)
            wanted, note = [place], f"positive: {m.positive}"
        else:
            occur = {*codes.truth.tolist(), *codes.predicted.tolist()}
            wanted = [i for i in range(len(codes.labels)) if i in occur]
            note = "mean over the labels"

        def value(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
            found = np.array([score(truth == i, predicted == i) for i in wanted])
            found = found[np.isfinite(found)]
            return float(found.mean()) if len(found) else float("nan")

        undefined = "no row is positive, in truth or in what was said"
        if among is not None and m.positive is not None:
            truth, said = codes.truth == wanted[0], codes.predicted == wanted[0]
            chosen = np.flatnonzero(among(truth, said))
            if not len(chosen):
                return nothing(title, f"not defined: there is nothing to take a share of; {note}")
            own = [codes.groups[i] for i in chosen]
            return share(title, (truth & said)[chosen], own, note)
        arrays = (codes.truth, codes.predicted)
        return statistic(title, value, arrays, codes.groups, note, undefined)

    return _both(name, of, m)


def balanced_accuracy(m: Measured) -> list[Estimate]:
    """The mean over the labels that are true somewhere of the share of their rows that are right
    (Brodersen et al., ICPR 2010).
    """

    def of(name: str, rows: Sequence[Row]) -> Estimate:
        codes = m.codes(rows)
        # Over the labels of all rows: a draw that lacks one is no estimate of the same figure.
        classes = np.unique(codes.truth).tolist()

        def value(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
            own = [predicted[truth == i] == i for i in classes]
            return float(np.mean([x.mean() for x in own])) if all(map(len, own)) else float("nan")

        note = "" if len(classes) > 1 else "one label only is ever true"
        return statistic(name, value, (codes.truth, codes.predicted), codes.groups, note)

    return _both("balanced accuracy", of, m)


def levenshtein(m: Measured) -> list[Estimate]:
    """Mean edit distance of the order to the true one, divided by the longer length: 0 is the same
    order (MLLM-as-a-Judge, arXiv 2402.04788). An unscored or undecided row is 1 away.
    """

    def of(name: str, rows: Sequence[Row]) -> Estimate:
        away = [
            edit_distance(row.prediction, row.truth) / max(len(row.prediction), len(row.truth), 1)
            if row.scored and not row.undecided
            else 1.0
            for row in rows
        ]
        return statistic(
            name,
            lambda x: float(x.mean()),
            (np.array(away, np.float64),),
            [row.group for row in rows],
            "lower is better",
        )

    return _both("Levenshtein distance", of, m)


def edit_distance(one: str, other: str) -> int:
    """Insertions, deletions and substitutions from one to the other (Levenshtein, 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def confusion(m: Measured) -> tuple[tuple[str, ...], tuple[str, ...], NDArray[np.int64]]:
    """True labels, what was said (with `undecided` and `unscored` where they occur), and counts
    [truth, said].
    """
    codes: Codes = m.codes(m.rows)
    extra = [
        word
        for word, there in (
            ("undecided", any(row.undecided for row in m.rows)),
            ("unscored", any(not row.scored for row in m.rows)),
        )
        if there
    ]
    said = (*codes.labels, *extra)
    table = np.zeros((len(codes.labels), len(said)), np.int64)
    for row, truth, predicted in zip(m.rows, codes.truth, codes.predicted, strict=True):
        if not row.scored:
            column = said.index("unscored")
        elif row.undecided:
            column = said.index("undecided")
        else:
            column = int(predicted)
        table[int(truth), column] += 1
    return codes.labels, said, table
