"""Thresholds for a wanted precision, recall or F-beta, and where nothing is decided.

Takes calibrated probabilities and labels 0 or 1 of pictures; gives thresholds, and ends of the
interval with an exact bound on the share of wrong decisions. Needs the extra `eval`. Knows nothing
of judges, rules or how probabilities were calibrated.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgejudge.decision import uncertain_between
from edgejudge.errors import InputError
from edgejudge.evaluation.calibration_metrics import (
    binomial_upper,
    binomial_uppers,
    clopper_pearson,
)

__all__ = [
    "LEAST_DECIDED",
    "Aim",
    "Interval",
    "Side",
    "Threshold",
    "choose_threshold",
    "find_interval",
    "fixed_sequence",
    "needed_without_errors",
]

Floats = NDArray[np.float64]
LEAST_DECIDED = 30  # pictures; no end of the interval is tried with fewer beyond it
_EDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Aim:
    """ "precision" or "recall" of at least `target`, or the best "fbeta" with beta = `target`.

    With `bound`, a target is met by its exact lower bound of confidence 1 - delta, else by the
    point estimate, which is missed on new pictures about every second time.
    """

    kind: str
    target: float
    bound: bool = True

    @classmethod
    def parse(cls, text: str, bound: bool = True) -> "Aim":
        """`precision=0.95`, `recall=0.9`, `f1`, `f2`, `f0.5`. Raises InputError."""
        if match := re.fullmatch(r"(precision|recall)=(\d*\.?\d+)", text):
            if 0 < float(match[2]) < 1:
                return cls(match[1], float(match[2]), bound)
        elif (match := re.fullmatch(r"f(\d*\.?\d+)", text)) and 0 < float(match[1]) <= 10:
            return cls("fbeta", float(match[1]), bound)
        raise InputError(
            "aim",
            f"aim '{text}' is none; write precision=0.95 or recall=0.9 (between 0 and 1), or f1, "
            "f2, f0.5 (F-beta, beta up to 10)",
        )

    def __str__(self) -> str:
        return f"f{self.target:g}" if self.kind == "fbeta" else f"{self.kind}={self.target:g}"


@dataclass(frozen=True, slots=True)
class Threshold:
    """`by` is "lower bound", "point estimate" or, of F-beta, "expected"; `met` is False where the
    target is out of reach and the threshold is the nearest to it. `missing` says what a lower bound
    that was asked for would take.
    """

    value: float
    by: str
    met: bool
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """What lies beyond one end of the interval: pictures, wrong ones, and the bound on their
    share."""

    n: int
    errors: int
    bound: float


@dataclass(frozen=True, slots=True)
class Interval:
    """Pictures at or above `high` are decided broken, at or below `low` not broken. A side of None
    is not bounded, and `missing` says why.
    """

    low: float
    high: float
    broken: Side | None
    not_broken: Side | None
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Every way to part the rows by a value, the highest first: rows with at least `values[i]` are
    above it, `n[i]` of them, of which `hits[i]` count. `at[i]` is half-way to the next value.
    """

    values: Floats
    at: Floats
    n: NDArray[np.int64]
    hits: NDArray[np.int64]

    def at_place(self, place: int) -> float:
        """A threshold strictly between 0 and 1."""
        return _inside(float(self.at[place]))


def needed_without_errors(alpha: float, delta: float) -> int:
    """How many pictures, none of them wrong, bound the share of wrong ones by alpha: the least n
    with (1 - alpha)^n <= delta.
    """
    return math.ceil(math.log(delta) / math.log(1 - alpha) - 1e-9)


def fixed_sequence(
    confidence: Floats, wrong: Floats, alpha: float, delta: float, floor: float
) -> tuple[float, float] | None:
    """The widest range of cuts of `confidence` for which the share of wrong rows at or above any of
    them is at most alpha, all at once with probability 1 - delta; None where there is none.

    Cuts are tried from the highest down and the first whose exact bound R+ exceeds alpha ends it:
    a fixed-sequence test, as in "Trust or Escalate" (Jung, Brahman and Choi, ICLR 2025, arXiv
    2407.18370, algorithm 1), and with its least of 30 rows, or as many as could pass without an
    error if those are more. Since all cuts in the range hold at once, any of them may be chosen by
    looking at the same rows. What must not depend on the rows is the order of `confidence`; any
    monotone map of it leaves that as it was. `floor` bounds confidences from below.
    """
    cuts = _cut(confidence, wrong, floor)
    start = max(LEAST_DECIDED, needed_without_errors(alpha, delta))
    tried = np.flatnonzero(cuts.n >= start)
    if not len(tried):
        return None
    passed = binomial_uppers(cuts.hits[tried], cuts.n[tried], delta) <= alpha
    last = len(passed) if passed.all() else int(np.argmin(passed))
    if last == 0:
        return None
    return float(cuts.at[tried[last - 1]]), float(cuts.values[tried[0]])


def find_interval(
    scores: Floats, labels: Floats, threshold: float, alpha: float, delta: float, band: float
) -> Interval:
    """The interval around `threshold` outside which at most the share alpha of the pictures decided
    broken is not, and at most that share of those decided not broken is: both at once with
    probability 1 - delta, so each with half of delta.

    A side on which no end passes is not bounded and ends where an uncalibrated one would, by
    `band`; `missing` says how many more pictures it would take.
    """
    low, high = uncertain_between(threshold, band)
    above = below = None
    missing = []
    found = fixed_sequence(scores, 1 - labels, alpha, delta / 2, 0.0)
    if found is not None and threshold <= found[1]:
        high = max(threshold, found[0])
        above = _side(1 - labels[scores >= high], delta)
    else:
        missing.append(_lacking("broken", scores, 1 - labels, threshold, alpha, delta / 2))
    # The same from below; minus, not 1 minus, which would make very small scores equal.
    found = fixed_sequence(-scores, labels, alpha, delta / 2, -1.0)
    if found is not None and -threshold <= found[1]:
        low = min(threshold, -found[0])
        below = _side(labels[(scores <= low) & (scores < high)], delta)
    else:
        missing.append(_lacking("not broken", -scores, labels, -threshold, alpha, delta / 2))
    return Interval(low, high, above, below, tuple(missing))


def choose_threshold(aim: Aim, scores: Floats, labels: Floats, delta: float) -> Threshold:
    """The threshold that meets the aim at the least cost: the lowest with the precision, the
    highest with the recall, or the one with the best F-beta, the highest of equals.

    The F-beta is the one that the scores let expect, which have to be calibrated: labels enter by
    the map alone. The best on the labels themselves is another one with every few labels more, and
    worse on new pictures (Ye et al., ICML 2012; Lipton, Elkan and Narayanaswamy, ECML 2014).

    Where a lower bound is out of reach the point estimate must do, and `by` says so. The bound of a
    precision is that of `fixed_sequence`; the one of a recall is exact for the share of positives
    below the threshold, which only grows with it, so that here too looking for it costs nothing.
    """
    cuts = _cut(scores, labels, 0.0)
    positives = int(labels.sum())
    if aim.kind == "fbeta":
        weight, counts = aim.target**2, np.diff(cuts.n, prepend=0)
        expected = np.cumsum(cuts.values * counts)
        f = (1 + weight) * expected / (weight * max(expected[-1], _EDGE) + cuts.n)
        return Threshold(cuts.at_place(int(np.argmax(f))), "expected", True)
    if aim.kind == "precision":
        return _for_precision(aim, cuts, scores, labels, delta)
    return _for_recall(aim, cuts, positives, delta)


def _for_precision(
    aim: Aim, cuts: _Cuts, scores: Floats, labels: Floats, delta: float
) -> Threshold:
    if aim.bound:
        found = fixed_sequence(scores, 1 - labels, 1 - aim.target, delta, 0.0)
        if found is not None:
            return Threshold(_inside(found[0]), "lower bound", True)
    enough = np.flatnonzero(cuts.hits / cuts.n >= aim.target)
    if not len(enough):
        lower = [clopper_pearson(k, n)[0] for k, n in zip(cuts.hits, cuts.n, strict=True)]
        return Threshold(cuts.at_place(int(np.argmax(lower))), "point estimate", False)
    value = cuts.at_place(int(enough[-1]))
    missing = None
    if aim.bound:
        missing = _lacking("broken", scores, 1 - labels, value, 1 - aim.target, delta)
    return Threshold(value, "point estimate", True, missing)


def _for_recall(aim: Aim, cuts: _Cuts, positives: int, delta: float) -> Threshold:
    missing = None
    if aim.bound:
        missed = binomial_uppers(positives - cuts.hits, np.full_like(cuts.hits, positives), delta)
        enough = np.flatnonzero(missed <= 1 - aim.target)
        if len(enough):
            return Threshold(cuts.at_place(int(enough[0])), "lower bound", True)
        least = needed_without_errors(1 - aim.target, delta)
        missing = (
            f"of {positives} pictures that break it, {least} are the least that bound a recall of "
            f"{aim.target:g}, when none of them is missed: {least - positives} more"
        )
    enough = np.flatnonzero(cuts.hits / positives >= aim.target)
    return Threshold(cuts.at_place(int(enough[0])), "point estimate", True, missing)


def _cut(confidence: Floats, hit: Floats, floor: float) -> _Cuts:
    values, where, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    hits = np.rint(np.bincount(where, hit)).astype(np.int64)
    values = values[::-1]
    below = np.append(values[1:], floor)
    at = (values + below) / 2
    at = np.where(at > below, at, values)  # neighbours with nothing in between
    n = np.cumsum(counts[::-1]).astype(np.int64)
    return _Cuts(values, at, n, np.cumsum(hits[::-1]))


def _inside(value: float) -> float:
    return min(max(value, _EDGE), 1 - _EDGE)


def _side(wrong: Floats, delta: float) -> Side:
    n, errors = len(wrong), int(wrong.sum())
    return Side(n, errors, binomial_upper(errors, n, delta / 2))


def _lacking(
    what: str, confidence: Floats, wrong: Floats, threshold: float, alpha: float, delta: float
) -> str:
    """Why a side is not bounded, and what it would take."""
    order = np.argsort(-confidence, kind="stable")
    decided = wrong[order][confidence[order] >= threshold]
    n, errors = len(decided), int(decided.sum())
    least = max(LEAST_DECIDED, needed_without_errors(alpha, delta))
    said = f"of {n} pictures that the threshold calls {what}, {errors} are not"
    if errors and errors >= alpha * n - 1e-9:  # 1 - 0.85 is more than 0.15
        return f"{said}: no fewer than {alpha:g} of them; allow more, or use a better judge"
    if n >= least and binomial_upper(errors, n, delta) <= alpha:
        first = int(decided[:least].sum())
        return (
            f"{said}, but {first} of the {least} surest are among those; "
            "look whether their labels are right"
        )

    def enough(count: int) -> bool:
        expected = math.ceil(count * errors / max(n, 1))
        return binomial_upper(expected, count, delta) <= alpha

    below = wanted = max(least, n)
    while not enough(wanted):
        below, wanted = wanted, 2 * wanted
    while wanted - below > max(1, wanted // 100):  # so near is near enough for an estimate
        middle = (below + wanted) // 2
        below, wanted = (below, middle) if enough(middle) else (middle, wanted)
    labels = f", about {math.ceil((wanted - n) * len(wrong) / n)} more labels" if n else ""
    return (
        f"{said}; if that share stays, {wanted} of them would bound it by {alpha:g}: "
        f"{wanted - n} more{labels}"
    )
