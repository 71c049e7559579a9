"""What repeated runs say of a time, and how sure that is.

Takes milliseconds in the order in which they were measured; gives percentiles with 95 % bootstrap
intervals, reasons to distrust them, and ratios of two. Measures nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERCENTILES", "Distribution", "Ratio"]

PERCENTILES = (50, 90, 95, 99)
_ROUNDS = 1000
_FEWEST = 5  # runs below which nothing is said of a spread
_WIDE = 0.1  # of the median, to either side: an interval wider than that says little
_LATER = 1.2  # times the first half's median, and the second half's says that the machine changed


@dataclass(frozen=True, slots=True)
class Distribution:
    """Milliseconds over `n` runs. `intervals` are of the percentiles, by name, and empty for one
    run. `values` are the runs themselves, in their order.
    """

    n: int
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    intervals: dict[str, tuple[float, float]]
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Raises ValueError for none."""
        if not len(values):
            raise ValueError("there is no run to say anything of")
        array: NDArray[np.float64] = np.asarray(values, np.float64).round(3)  # as records have them
        found = {f"p{q}": round(float(v), 3) for q, v in zip(PERCENTILES, _of(array), strict=True)}
        intervals: dict[str, tuple[float, float]] = {}
        if len(array) > 1:
            drawn = np.percentile(_resampled(array), PERCENTILES, axis=1)
            low, high = np.percentile(drawn, [2.5, 97.5], axis=1)
            intervals = {
                f"p{q}": (round(float(a), 3), round(float(b), 3))
                for q, a, b in zip(PERCENTILES, low, high, strict=True)
            }
        least, most = round(float(array.min()), 3), round(float(array.max()), 3)
        kept = tuple(float(v) for v in array)
        return cls(n=len(array), min=least, max=most, intervals=intervals, values=kept, **found)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """As `to_json` of a record has it. Raises KeyError, TypeError or ValueError."""
        return cls.of([float(v) for v in value["values"]])

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why its median should not be relied on; none where it may be."""
        found = []
        if self.n < _FEWEST:
            found.append(f"only {self.n} runs; take at least {_FEWEST}")
        elif self.p50 > 0:
            low, high = self.intervals["p50"]
            off = max(high - self.p50, self.p50 - low) / self.p50
            if off > _WIDE:
                found.append(f"its median is known to {off:.0%} only; run more, or less beside it")
        half = self.n // 2
        if half >= _FEWEST:
            first, second = (float(np.median(v)) for v in (self.values[:half], self.values[-half:]))
            if second > _LATER * first > 0:
                found.append(
                    f"it became {second / first:.2f} times as slow while it ran: the machine "
                    "throttles, or does other work"
                )
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of two medians, new over old, with a 95 % bootstrap interval; none where either was run
    once.
    """

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, new: Distribution, old: Distribution) -> "Ratio | None":
        """None where the old median is nothing, which nothing is a multiple of."""
        if old.p50 <= 0:
            return None
        value = round(new.p50 / old.p50, 4)
        if min(new.n, old.n) < 2:
            return cls(value, None, None)
        a, b = (
            np.median(_resampled(np.asarray(d.values), seed), axis=1)
            for seed, d in enumerate((new, old))
        )
        low, high = np.percentile(a / np.maximum(b, 1e-9), [2.5, 97.5])
        return cls(value, round(float(low), 4), round(float(high), 4))


def _of(array: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.percentile(array, PERCENTILES)
    return found


def _resampled(array: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """[rounds, n], the same for the same runs."""
    rounds = max(200, min(_ROUNDS, 2_000_000 // len(array)))
    picks = np.random.default_rng(seed).integers(0, len(array), (rounds, len(array)))
    return array[picks]
