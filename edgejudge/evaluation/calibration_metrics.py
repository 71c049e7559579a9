"""How far probabilities can be believed: calibration errors, the Brier score, exact intervals.

Takes P(yes) and labels 0 or 1 per row; gives figures with their N and, on request, an interval by
bootstrap over pictures. Counts get the exact intervals of Clopper and Pearson. Knows nothing of
judges, policies or files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgejudge.evaluation.extra import needed

__all__ = [
    "BINS",
    "Bin",
    "Figure",
    "Resampling",
    "binomial_upper",
    "binomial_uppers",
    "bootstrap",
    "brier",
    "brier_skill",
    "checked",
    "clopper_pearson",
    "equal_mass_bins",
    "equal_mass_ece",
    "max_calibration_error",
]

BINS = 15
_Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate over `n` rows. `low` and `high` bound it with `confidence`, where asked for."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    confidence: float | None = None

    def to_json(self) -> dict[str, object]:
        interval = None if self.low is None else [self.low, self.high]
        return {
            "value": self.value,
            "n": self.n,
            "interval": interval,
            "confidence": self.confidence,
        }


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability diagram: mean probability against the share of label 1."""

    low: float
    high: float
    n: int
    probability: float
    share: float


@dataclass(frozen=True, slots=True)
class Resampling:
    """How an interval is found: rows are drawn again by whole groups.

    `groups` names the picture of each row, since the rows of one picture are not independent; None
    draws single rows. The same `seed` gives the same interval.
    """

    groups: Sequence[Any] | NDArray[Any] | None = None
    repeats: int = 1000
    confidence: float = 0.95
    seed: int = 0


def checked(probabilities: ArrayLike, labels: ArrayLike) -> _Pair:
    """Both as float64 [N]. Raises ValueError unless all probabilities lie in 0..1 (NaN does not),
    all labels are 0 or 1, and there is a row.
    """
    p = np.asarray(probabilities, np.float64)
    y = np.asarray(labels, np.float64)
    if p.ndim != 1 or p.shape != y.shape or not len(p):
        raise ValueError(f"expected as many labels as probabilities, got {p.shape} and {y.shape}")
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("a probability is not a number in 0..1")
    if not np.all((y == 0) | (y == 1)):
        raise ValueError("a label is neither 0 nor 1")
    return p, y


def equal_mass_bins(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS
) -> tuple[Bin, ...]:
    """Rows in order of probability, cut into `bins` parts of equal size (fewer for fewer rows).

    Rows of one probability share their mean label, so that their order changes nothing even where
    a cut falls between them.
    """
    p, y = checked(probabilities, labels)
    p, share = _ordered(p, y)
    parts = np.array_split(np.arange(len(p)), min(bins, len(p)))
    return tuple(
        Bin(
            float(p[part[0]]),
            float(p[part[-1]]),
            len(part),
            float(p[part].mean()),
            float(share[part].mean()),
        )
        for part in parts
    )


def equal_mass_ece(
    probabilities: ArrayLike,
    labels: ArrayLike,
    bins: int = BINS,
    resampling: Resampling | None = None,
) -> Figure:
    """Expected calibration error: the gap of `equal_mass_bins`, weighted by their size (Naeini,
    Cooper and Hauskrecht, AAAI 2015, with bins of equal mass as Nguyen and O'Connor, EMNLP 2015).

    It is never below 0, so noise alone makes it positive: about 0.3 sqrt(bins / N) for perfect
    probabilities that are spread evenly. The interval is the basic bootstrap, which takes off what
    drawing again adds, widened where that would leave out the estimate.
    """
    return _calibration_error(_ece, probabilities, labels, bins, resampling)


def max_calibration_error(
    probabilities: ArrayLike,
    labels: ArrayLike,
    bins: int = BINS,
    resampling: Resampling | None = None,
) -> Figure:
    """The largest gap of `equal_mass_bins`; noisier still than the mean one."""
    return _calibration_error(_mce, probabilities, labels, bins, resampling)


def brier(
    probabilities: ArrayLike, labels: ArrayLike, resampling: Resampling | None = None
) -> Figure:
    """Mean squared error of the probabilities (Brier, 1950)."""
    p, y = checked(probabilities, labels)
    return _figure(_brier, p, y, resampling, basic=False)


def brier_skill(
    probabilities: ArrayLike, labels: ArrayLike, resampling: Resampling | None = None
) -> Figure:
    """1 - Brier / Brier of always saying the base rate: 1 is perfect, 0 no better than that. NaN
    with labels of one class, where the base rate is never wrong.
    """
    p, y = checked(probabilities, labels)
    return _figure(_skill, p, y, resampling, basic=False)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a share k / n (Clopper and Pearson, 1934); (0, 1) for n = 0."""
    if not 0 <= k <= n or not 0 < confidence < 1:
        raise ValueError(f"{k} of {n} is no count, or {confidence} no confidence")
    if n == 0:
        return 0.0, 1.0
    inverse = needed("scipy.special").betaincinv
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(inverse(k, n - k + 1, tail))
    high = 1.0 if k == n else float(inverse(k + 1, n - k, 1 - tail))
    return low, high


def binomial_upper(errors: int, n: int, delta: float) -> float:
    """The largest error rate r under which `errors` or fewer of n still have probability delta:
    sup {r : BinomCDF(errors; n, r) >= delta}, an upper bound of confidence 1 - delta; 1 for n = 0.
    """
    if not 0 <= errors <= n or not 0 < delta < 1:
        raise ValueError(f"{errors} of {n} is no count, or {delta} no probability")
    return float(binomial_uppers(np.array([errors]), np.array([n]), delta)[0])


def binomial_uppers(
    errors: NDArray[np.int64], n: NDArray[np.int64], delta: float
) -> NDArray[np.float64]:
    """`binomial_upper` of arrays of one shape, which may be large."""
    free = n > errors  # where all are wrong, nothing below 1 can be excluded
    inverse = needed("scipy.special").betaincinv
    bound = inverse(errors + 1, np.where(free, n - errors, 1), 1 - delta)
    return np.where(free, bound, 1.0)


def bootstrap(
    statistic: Callable[..., float],
    rows: Sequence[NDArray[Any]],
    resampling: Resampling,
    basic: bool = False,
) -> tuple[float, float] | None:
    """Interval of `statistic(*rows)` by bootstrap over groups (Efron and Tibshirani, 1993).

    Percentile, or the basic one, which mirrors it at the estimate and so takes off a bias. Draws
    for which the statistic is not finite are left out; None where more than half are, or where
    there are fewer than two groups.
    """
    size = len(rows[0])
    groups = np.arange(size) if resampling.groups is None else np.asarray(resampling.groups)
    if groups.shape != (size,) or any(len(row) != size for row in rows):
        raise ValueError("expected one group and one value per row")
    _, which = np.unique(groups, return_inverse=True)
    order = np.argsort(which, kind="stable")
    lengths = np.bincount(which)
    starts = np.cumsum(lengths) - lengths
    if len(lengths) < 2:
        return None
    random = np.random.default_rng(resampling.seed)
    found = []
    for _ in range(resampling.repeats):
        drawn = random.integers(len(lengths), size=len(lengths))
        taken = lengths[drawn]
        within = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)
        picked = order[np.repeat(starts[drawn], taken) + within]
        found.append(statistic(*(row[picked] for row in rows)))
    values = np.asarray(found)
    values = values[np.isfinite(values)]
    if 2 * len(values) < resampling.repeats:
        return None
    tail = (1 - resampling.confidence) / 2
    low, high = (float(each) for each in np.quantile(values, [tail, 1 - tail]))
    if basic:
        centre = 2 * statistic(*rows)
        low, high = centre - high, centre - low
    return low, high


def _ordered(p: NDArray[np.float64], y: NDArray[np.float64]) -> _Pair:
    """In order of probability, labels averaged among equal ones."""
    values, where, counts = np.unique(p, return_inverse=True, return_counts=True)
    means = np.bincount(where, y) / counts
    return np.repeat(values, counts), np.repeat(means, counts)


def _gaps(p: NDArray[np.float64], y: NDArray[np.float64], bins: int) -> _Pair:
    """|mean probability - mean label| of each bin, and the bins' shares of all rows."""
    p, share = _ordered(p, y)
    count = min(bins, len(p))
    # As np.array_split cuts: the first ones take what is left over.
    sizes = np.full(count, len(p) // count)
    sizes[: len(p) % count] += 1
    starts = np.cumsum(sizes) - sizes
    return np.abs(np.add.reduceat(p - share, starts)) / sizes, sizes / len(p)


def _ece(p: NDArray[np.float64], y: NDArray[np.float64], bins: int) -> float:
    gaps, weights = _gaps(p, y, bins)
    return float(gaps @ weights)


def _mce(p: NDArray[np.float64], y: NDArray[np.float64], bins: int) -> float:
    return float(_gaps(p, y, bins)[0].max())


def _brier(p: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(np.mean((p - y) ** 2))


def _skill(p: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    rate = float(y.mean())
    return float("nan") if rate in (0.0, 1.0) else 1 - _brier(p, y) / (rate * (1 - rate))


def _calibration_error(
    statistic: Callable[[NDArray[np.float64], NDArray[np.float64], int], float],
    probabilities: ArrayLike,
    labels: ArrayLike,
    bins: int,
    resampling: Resampling | None,
) -> Figure:
    if bins < 1:
        raise ValueError(f"expected at least 1 bin, got {bins}")
    p, y = checked(probabilities, labels)

    def error(p: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return statistic(p, y, bins)

    return _figure(error, p, y, resampling, basic=True)


def _figure(
    statistic: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    p: NDArray[np.float64],
    y: NDArray[np.float64],
    resampling: Resampling | None,
    basic: bool,
) -> Figure:
    value = statistic(p, y)
    interval = None if resampling is None else bootstrap(statistic, (p, y), resampling, basic)
    if resampling is None or interval is None:
        return Figure(value, len(p))
    low, high = min(interval[0], value), max(interval[1], value)
    if basic:
        low, high = max(low, 0.0), min(high, 1.0)
    return Figure(value, len(p), low, high, resampling.confidence)
