"""The records of a calibration file, and the monotone maps of probabilities it consists of.

Frozen dataclasses of plain JSON values; edgejudge.calibration reads and checks them. Knows nothing
of how they were fitted.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

__all__ = [
    "METHODS",
    "AimRecord",
    "CalibratedRule",
    "CalibrationRecord",
    "EstimateRecord",
    "FittedOnRecord",
    "GuaranteeRecord",
    "MapRecord",
    "SideRecord",
    "UnfittedRule",
    "logit",
]

METHODS = ("none", "temperature", "platt", "isotonic")
_LEAST = 1e-6  # what results files round to: closer to 0 or 1 means nothing
_TILT = 1e-4  # of isotonic steps, so that what differs before differs after


@dataclass(frozen=True, slots=True)
class MapRecord:
    """A monotone map of probabilities. With x = logit(p), "temperature" and "platt" give
    1 / (1 + exp(-(slope x + intercept))), where a temperature is 1 / slope and has no intercept;
    "isotonic" goes in straight lines through `points` (x, probability); "none" changes nothing.
    """

    method: str
    slope: float
    intercept: float
    points: tuple[tuple[float, float], ...]

    def apply(self, probability: float) -> float:
        """Never falls as `probability` rises. Raises ValueError for what is no number in 0..1."""
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"{probability} is not a probability in 0..1")
        if self.method == "none":
            return probability
        x = logit(probability)
        if self.method == "isotonic":
            return (1 - _TILT) * self._between(x) + _TILT * probability
        z = self.slope * x + self.intercept
        if z >= 0:
            return 1 / (1 + math.exp(-z))
        return math.exp(z) / (1 + math.exp(z))

    def _between(self, x: float) -> float:
        place = bisect_right(self.points, x, key=lambda point: point[0])
        if place == 0:
            return self.points[0][1]
        x0, y0 = self.points[place - 1]
        if place == len(self.points):
            return y0
        x1, y1 = self.points[place]
        # Within the two ends whatever is rounded, or steps that are nearly level could fall.
        return min(max(y0 + (y1 - y0) * ((x - x0) / (x1 - x0)), y0), y1)

    def problem(self) -> str | None:
        """What makes this no map, or None."""
        numbers = (self.slope, self.intercept, *(each for point in self.points for each in point))
        if self.method not in METHODS:
            return f"method '{self.method}' is none of {', '.join(METHODS)}"
        if not all(map(math.isfinite, numbers)) or self.slope <= 0:
            return "a number is not finite, or the slope is not above 0"
        if (self.method == "isotonic") != bool(self.points):
            return "isotonic has points, and nothing else has"
        if any(len(point) != 2 or not 0 <= point[1] <= 1 for point in self.points):
            return "a point is no pair of a logit and a probability"
        for (x0, y0), (x1, y1) in zip(self.points, self.points[1:], strict=False):
            if x0 >= x1 or y0 > y1:
                return "the points do not rise"
        return None


@dataclass(frozen=True, slots=True)
class EstimateRecord:
    """A figure over `n` pictures; `low` and `high` are its 95 % interval, where it has one."""

    value: float
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class AimRecord:
    """What the threshold was chosen for: "precision" or "recall" of at least `target`, or the best
    F-beta ("fbeta", where `target` is beta).

    `by` says whether a target is met by the "lower bound" of confidence 1 - delta or by the "point
    estimate" alone, and `missing` what the bound would take; `met` is False where not even the
    point estimate is there. `precision` and `recall` are those of held-out pictures, None where
    none of them counts.
    """

    kind: str
    target: float
    by: str
    met: bool
    missing: str | None
    precision: EstimateRecord | None
    recall: EstimateRecord | None


@dataclass(frozen=True, slots=True)
class SideRecord:
    """Pictures decided one way, those of them decided wrongly, and the bound on that share."""

    n: int
    errors: int
    bound: float


@dataclass(frozen=True, slots=True)
class GuaranteeRecord:
    """With confidence 1 - `delta`, both at once: of pictures decided broken at most the share
    `alpha` is not, and of those decided not broken at most that share is. A side of None has no
    such promise, and `missing` says why and what it would take. `coverage` is the share of the
    labelled pictures that are decided.
    """

    alpha: float
    delta: float
    broken: SideRecord | None
    not_broken: SideRecord | None
    coverage: EstimateRecord
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CalibratedRule:
    """One rule as it was fitted. `map` follows the maps of single `questions` (text -> map), where
    those have their own. `log_likelihood` is that of held-out pictures per method, the mean over
    `positives` + `negatives`; None for a method that needs more labels. Errors after calibration
    are of held-out pictures too.
    """

    id: str
    conditions: tuple[tuple[str, ...], ...]
    positives: int
    negatives: int
    map: MapRecord
    questions: dict[str, MapRecord]
    threshold: float
    uncertain: tuple[float, ...]
    aim: AimRecord
    guarantee: GuaranteeRecord
    log_likelihood: dict[str, float | None]
    ece_before: EstimateRecord
    ece_after: EstimateRecord
    brier_before: EstimateRecord
    brier_after: EstimateRecord


@dataclass(frozen=True, slots=True)
class UnfittedRule:
    """A rule with too few labels: it is decided as without a calibration."""

    id: str
    positives: int
    negatives: int
    why: str


@dataclass(frozen=True, slots=True)
class FittedOnRecord:
    """The labels behind it: pictures that counted, those that could not be judged, and those that
    were there twice and counted once.
    """

    pictures: int
    not_judged: int
    repeated: int


@dataclass(frozen=True, slots=True)
class CalibrationRecord:
    """The file. `id` is the sha256 of its content without the id. `question` is the policy's own
    question template, None where it asks the bundle's.
    """

    schema_version: int
    id: str
    bundle: str
    bundle_sha256: str
    policy: str
    policy_version: str
    policy_sha256: str
    question: str | None
    fitted_on: FittedOnRecord
    rules: tuple[CalibratedRule, ...]
    unfitted: tuple[UnfittedRule, ...]


def logit(probability: float) -> float:
    """log(p / (1 - p)), with p kept off 0 and 1 by 1e-6."""
    p = min(max(probability, _LEAST), 1 - _LEAST)
    return math.log(p / (1 - p))
