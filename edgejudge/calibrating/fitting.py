"""Monotone maps of probabilities, fitted to labels and chosen by pictures they have not seen.

Takes P(yes), labels 0 or 1 and the picture of each row; gives the map, and what it and its rivals
are worth on held-out pictures. Needs the extra `eval`. Knows nothing of rules or thresholds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgejudge.calibration_records import METHODS, MapRecord, logit
from edgejudge.evaluation.extra import needed

__all__ = [
    "FOLDS",
    "IDENTITY",
    "LEAST_OF_A_CLASS",
    "Choice",
    "Floats",
    "apply_map",
    "choose",
    "deal",
    "fit",
    "held_out",
    "log_likelihood",
    "methods_for",
]

Floats = NDArray[np.float64]
FOLDS = 5
# Labels of the rarer class that a method is tried from. Two of each class in a fold are the least
# that a held-out likelihood can tell anything by; a second parameter wants twice as many; steps are
# worse than a sigmoid for small samples (Niculescu-Mizil and Caruana, ICML 2005).
LEAST_OF_A_CLASS = {"none": 10, "temperature": 10, "platt": 20, "isotonic": 50}
_SLOPES = (0.05, 20.0)
_MOST_STEPS, _MOST_HALVES = 100, 40
_RIDGE = 1e-12  # for probabilities that are all alike, which leave one number free
IDENTITY = MapRecord("none", 1.0, 0.0, ())


def methods_for(labels: Floats) -> tuple[str, ...]:
    """Those there are labels enough for; the empty tuple where there are not even for "none"."""
    rarer = min(int(labels.sum()), int(len(labels) - labels.sum()))
    return tuple(method for method in METHODS if rarer >= LEAST_OF_A_CLASS[method])


def fit(method: str, probabilities: Floats, labels: Floats) -> MapRecord:
    """The map of one method with the greatest likelihood.

    Slope and intercept (Platt, 1999; a temperature is a slope alone: Guo et al., ICML 2017) are
    fitted to Platt's targets (n+ + 1) / (n+ + 2) and 1 / (n- + 2) in place of 1 and 0, which keep
    them finite where a threshold parts the labels. Slopes stay above 0: a map that turned the order
    round would hide that the judge is worse than chance. Steps (Zadrozny and Elkan, KDD 2002) are
    kept off 0 and 1 by 1 / (n + 2), since no number of labels proves either.
    """
    if method == "none":
        return IDENTITY
    x = np.array([logit(p) for p in probabilities.tolist()])
    if method == "isotonic":
        return _isotonic(x, labels)
    positives = float(labels.sum())
    targets = np.where(
        labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2)
    )
    slope, intercept = _logistic(x, targets, method == "platt")
    return MapRecord(method, slope, intercept, ())


def apply_map(made: MapRecord, probabilities: Floats) -> Floats:
    """As judging will apply it."""
    return np.array([made.apply(p) for p in probabilities.tolist()], np.float64)


def log_likelihood(probabilities: Floats, labels: Floats) -> float:
    """Mean over rows, natural logarithm; probabilities are kept off 0 and 1 by 1e-6."""
    p = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return float(np.mean(np.where(labels == 1, np.log(p), np.log1p(-p))))


def deal(labels: Floats, groups: Sequence[str], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """The fold of each row: whole pictures, dealt in turn, those with a label 1 before others."""
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    positive = np.bincount(which, labels) > 0
    shuffled = np.random.default_rng(seed).permutation(len(positive))
    order = np.concatenate([shuffled[positive[shuffled]], shuffled[~positive[shuffled]]])
    fold = np.empty(len(positive), np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold[which]


def held_out(method: str, probabilities: Floats, labels: Floats, fold: NDArray[np.int64]) -> Floats:
    """Each row by the method's map of the rows outside its fold."""
    found = np.empty_like(probabilities)
    for each in np.unique(fold):
        seen = fold != each
        made = fit(method, probabilities[seen], labels[seen])
        found[~seen] = apply_map(made, probabilities[~seen])
    return found


@dataclass(frozen=True, slots=True)
class Choice:
    """The method chosen, its map of all rows, and the held-out likelihood of every candidate."""

    map: MapRecord
    log_likelihood: dict[str, float | None]


def choose(
    probabilities: Floats,
    labels: Floats,
    groups: Sequence[str],
    methods: Sequence[str],
    seed: int = 0,
) -> Choice:
    """The one of `methods` with the greatest held-out likelihood, the first of equals, fitted to
    all rows. `groups` names the picture of each.
    """
    fold = deal(labels, groups, FOLDS, seed)
    worth: dict[str, float | None] = dict.fromkeys(METHODS)
    best, chosen = -math.inf, methods[0]
    for method in methods:
        value = log_likelihood(held_out(method, probabilities, labels, fold), labels)
        worth[method] = value
        if value > best + 1e-12:
            best, chosen = value, method
    return Choice(fit(chosen, probabilities, labels), worth)


def _logistic(x: Floats, targets: Floats, with_intercept: bool) -> tuple[float, float]:
    """Slope within _SLOPES, and intercept, with the least cross-entropy of the sigmoid. It is
    convex in both: Newton's steps within the bounds, halved where they lead too far. An optimizer
    of a library would wake its threads, which take more time than the sums themselves.
    """
    at = np.array([1.0, 0.0])
    value = _cross_entropy(x, targets, at)
    for _ in range(_MOST_STEPS):
        p = _sigmoid(at[0] * x + at[1])
        curve = p * (1 - p)
        by_slope, by_intercept = float(np.mean((p - targets) * x)), float(np.mean(p - targets))
        a, b, c = (float(np.mean(curve * each)) for each in (x * x, x, np.ones_like(x)))
        a, c = a + _RIDGE, c + _RIDGE
        if not with_intercept:
            by_intercept, b, c = 0.0, 0.0, 1.0
        slope = (b * by_intercept - c * by_slope) / (a * c - b * b)
        slope = min(max(slope, _SLOPES[0] - at[0]), _SLOPES[1] - at[0])
        step = np.array([slope, -(by_intercept + b * slope) / c])
        for _ in range(_MOST_HALVES):
            ahead = _cross_entropy(x, targets, at + step)
            if ahead <= value:
                break
            step /= 2
        else:
            break
        at, value = at + step, ahead
        if float(np.abs(step).max()) < 1e-9:
            break
    return float(at[0]), float(at[1])


def _cross_entropy(x: Floats, targets: Floats, at: Floats) -> float:
    z = at[0] * x + at[1]
    return float(np.mean(np.logaddexp(0.0, z) - targets * z))


def _isotonic(x: Floats, labels: Floats) -> MapRecord:
    n = len(labels)
    if x.min() == x.max():  # one step, of the share of label 1
        share = min(max(float(labels.mean()), 1 / (n + 2)), (n + 1) / (n + 2))
        return MapRecord("isotonic", 1.0, 0.0, ((float(x[0]), share),))
    model = needed("sklearn.isotonic").IsotonicRegression(
        y_min=1 / (n + 2), y_max=(n + 1) / (n + 2), out_of_bounds="clip"
    )
    model.fit(x, labels)
    at, steps = model.X_thresholds_.tolist(), np.maximum.accumulate(model.y_thresholds_).tolist()
    return MapRecord("isotonic", 1.0, 0.0, tuple(zip(at, steps, strict=True)))


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)), np.float64)
