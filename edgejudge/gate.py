"""What a bundle must hold against the reference, and whether it does.

Takes probabilities of the bundle and of the fp32 reference for the same decisions; gives counts,
bounds and a ruling. Knows no bundle, no model and no file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgejudge.manifest import DecisionsRecord, FlipCount, LabelMassRecord

__all__ = ["LIMITS", "Limits", "Tally", "up", "upper_bound"]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Limits:
    """Shares are held by their one-sided 95 % upper bounds."""

    decisions: int = 3000  # with fewer, a report is underpowered
    near_decisions: int = 600
    near: float = 0.25  # how close to its threshold the reference must be
    flips: float = 0.005
    near_flips: float = 0.05
    probability_error: float = 0.05  # 99th percentile


LIMITS = Limits()


def upper_bound(hits: int, count: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper bound of a share, exact (Clopper and Pearson, 1934); 1 without any count."""
    if hits >= count:
        return 1.0
    low, high = hits / count, 1.0
    for _ in range(60):  # the share under which so few hits have just 1 - confidence
        middle = (low + high) / 2
        if _at_most(hits, count, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def lower_bound(hits: int, count: int, confidence: float = CONFIDENCE) -> float:
    """The same from below; 0 without any hit."""
    return 1.0 - upper_bound(count - hits, count, confidence) if hits else 0.0


def _at_most(hits: int, count: int, share: float) -> float:
    """Probability of `hits` or fewer among `count`."""
    terms = [
        math.lgamma(count + 1)
        - math.lgamma(k + 1)
        - math.lgamma(count - k + 1)
        + k * math.log(share)
        + (count - k) * math.log1p(-share)
        for k in range(hits + 1)
    ]
    return float(math.fsum(map(math.exp, terms)))


@dataclass(slots=True)
class Tally:
    """Decisions as they come, one picture after another."""

    limits: Limits = LIMITS
    decisions: int = 0
    near_decisions: int = 0
    near_flips: int = 0
    unsafe_to_safe: int = 0
    safe_to_unsafe: int = 0
    errors: list[float] = field(default_factory=list)
    rules: dict[str, FlipCount] = field(default_factory=dict)
    pictures: dict[str, FlipCount] = field(default_factory=dict)

    @property
    def flips(self) -> int:
        return self.unsafe_to_safe + self.safe_to_unsafe

    def add(
        self,
        picture: str,
        rules: list[tuple[str, ...]],
        found: NDArray[np.float64],
        wanted: NDArray[np.float64],
        thresholds: NDArray[np.float64],
    ) -> None:
        """Probabilities [B] of the bundle and of the reference; `rules` ask each condition."""
        if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
            raise ValueError(f"{picture}: a probability is not a number")
        was, now = wanted >= thresholds, found >= thresholds
        near = np.abs(wanted - thresholds) <= self.limits.near
        self.decisions += len(found)
        self.near_decisions += int(near.sum())
        self.near_flips += int((near & (was != now)).sum())
        self.unsafe_to_safe += int((was & ~now).sum())
        self.safe_to_unsafe += int((~was & now).sum())
        self.errors += np.abs(found - wanted).tolist()
        _count(self.pictures, picture, was, now)
        for index, names in enumerate(rules):
            for name in names:
                _count(self.rules, name, was[index : index + 1], now[index : index + 1])

    @property
    def underpowered(self) -> bool:
        """Too few decisions for the limits to be shown to hold."""
        few = self.decisions < self.limits.decisions
        return few or self.near_decisions < self.limits.near_decisions

    def percentile_99(self) -> float:
        return float(np.percentile(self.errors, 99))

    def record(
        self, masses: Sequence[float], pictures: int, accepted: float | None = None
    ) -> DecisionsRecord:
        """`masses` are the label mass of each decision, `accepted` what --accept-flips allowed."""
        return DecisionsRecord(
            pictures=pictures,
            decisions=self.decisions,
            flips=self.flips,
            flips_upper=up(upper_bound(self.flips, self.decisions)),
            near_decisions=self.near_decisions,
            near_flips=self.near_flips,
            near_flips_upper=up(upper_bound(self.near_flips, self.near_decisions)),
            unsafe_to_safe=self.unsafe_to_safe,
            safe_to_unsafe=self.safe_to_unsafe,
            probability_error_99=up(self.percentile_99()),
            probability_error_max=up(max(self.errors)),
            probability_error_mean=up(float(np.mean(self.errors))),
            rules=tuple(self.rules[name] for name in sorted(self.rules)),
            flipped_pictures=tuple(
                count
                for _, count in sorted(self.pictures.items())
                if count.unsafe_to_safe + count.safe_to_unsafe
            ),
            underpowered=self.underpowered,
            accepted_flips=accepted,
            label_mass=LabelMassRecord(
                len(masses), round(float(np.mean(masses)), 4), round(min(masses), 4)
            ),
        )

    def violations(self, accepted: float | None = None) -> list[str]:
        """Every limit that does not hold, as a clause of a sentence.

        Where there are too few decisions to show that a share is small enough, one that is shown to
        be too large is still a violation. `accepted` takes the place of the limit of all flips, and
        waives the others.
        """
        limits = self.limits
        allowed = limits.flips if accepted is None else accepted
        shares = [("decisions flip", self.flips, self.decisions, allowed)]
        if accepted is None:
            what = f"decisions within {limits.near} of their threshold flip"
            shares.append((what, self.near_flips, self.near_decisions, limits.near_flips))
        found = []
        for what, hits, count, limit in shares:
            bound = (lower_bound if self.underpowered else upper_bound)(hits, count)
            if bound > limit:
                side = "at least" if self.underpowered else "up to"
                found.append(
                    f"{hits} of {count} {what}, {side} {bound:.2%} with 95 % confidence "
                    f"(allowed: {limit:.2%})"
                )
        if accepted is None and self.percentile_99() > limits.probability_error:
            found.append(
                f"probabilities move by {self.percentile_99():.3f} at the 99th percentile "
                f"(allowed: {limits.probability_error})"
            )
        return found


def up(value: float) -> float:
    """Rounded up to four decimals: a report promises no more than was measured."""
    return math.ceil(value * 1e4) / 1e4


def _count(
    counts: dict[str, FlipCount], name: str, was: NDArray[np.bool_], now: NDArray[np.bool_]
) -> None:
    old = counts.get(name, FlipCount(name, 0, 0, 0))
    counts[name] = FlipCount(
        name,
        old.decisions + len(was),
        old.unsafe_to_safe + int((was & ~now).sum()),
        old.safe_to_unsafe + int((~was & now).sum()),
    )
