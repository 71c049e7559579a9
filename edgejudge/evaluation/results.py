"""What a run found, as one JSON document: figures, curves, the worst rows, and what made them.

Takes rows and estimates; gives plain values. Knows no judge and draws nothing.
"""

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgejudge.evaluation.calibration_metrics import equal_mass_bins
from edgejudge.evaluation.estimates import Estimate
from edgejudge.evaluation.measured import Measured
from edgejudge.evaluation.metrics_beliefs import risk_coverage_curve
from edgejudge.evaluation.metrics_decisions import confusion, edit_distance
from edgejudge.evaluation.rows import Row, level

__all__ = ["SCHEMA_VERSION", "Results", "counts_of", "figures_of", "worst"]

SCHEMA_VERSION = 1
_MOST_POINTS = 200
_MOST_WORST = 20
_PACKAGES = ("edgejudge", "numpy", "onnxruntime", "scipy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Results:
    """`about` is what was run: recipe, bundle, policy, calibration. `figures` are what plots are
    drawn from, by name, where there is something to draw.
    """

    about: Mapping[str, Any]
    counts: Mapping[str, Any]
    estimates: tuple[Estimate, ...]
    figures: Mapping[str, Any]
    worst: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            **self.about,
            "versions": _versions(),
            "counts": dict(self.counts),
            "metrics": [each.to_json() for each in self.estimates],
            "figures": dict(self.figures),
            "worst": [dict(each) for each in self.worst],
            "notes": list(self.notes),
        }


def counts_of(m: Measured) -> dict[str, Any]:
    reasons = Counter((row.unscored or "").split(":")[0] for row in m.rows if not row.scored)
    return {
        "examples": len({row.example for row in m.rows}),
        "rows": len(m.rows),
        "groups": len({row.group for row in m.rows}),
        "unscored": sum(reasons.values()),
        "undecided": sum(row.undecided for row in m.rows),
        "unscored_reasons": dict(reasons.most_common()),
    }


def figures_of(m: Measured) -> dict[str, Any]:
    """Reliability, risk against coverage, and confusion, as numbers."""
    made: dict[str, Any] = {}
    beliefs = m.beliefs()
    if len(beliefs.outcomes):
        bins = equal_mass_bins(beliefs.probabilities, beliefs.outcomes)
        made["reliability"] = {
            "of": f"P({m.positive})" if beliefs.binary else "the likeliest label",
            "bins": [
                {
                    "low": each.low,
                    "high": each.high,
                    "n": each.n,
                    "probability": each.probability,
                    "share": each.share,
                }
                for each in bins
            ],
        }
    curve = risk_coverage_curve(m)
    if curve is not None:
        step = max(1, len(curve.coverage) // _MOST_POINTS)
        # From the end, so that the last point, of all that was answered, is there.
        places = list(range(len(curve.coverage) - 1, -1, -step))[::-1]
        made["risk_coverage"] = {
            "coverage": [float(curve.coverage[i]) for i in places],
            "risk": [float(curve.risk[i]) for i in places],
            "area": curve.area,
        }
    if m.kind != "order":
        truth, said, table = confusion(m)
        made["confusion"] = {"truth": list(truth), "said": list(said), "counts": table.tolist()}
    return made


def worst(m: Measured) -> tuple[dict[str, Any], ...]:
    """Rows that are furthest off: the surest of the wrong ones first, then the unscored."""
    found = [(_off(row), place, row) for place, row in enumerate(m.rows)]
    wrong = sorted((each for each in found if each[0] > 0), key=lambda each: (-each[0], each[1]))
    return tuple(
        {
            "example": row.example,
            "target": row.target,
            "path": row.path,
            "truth": row.truth,
            "prediction": row.prediction,
            "probabilities": row.probabilities,
            "unscored": row.unscored,
        }
        for _, _, row in wrong[:_MOST_WORST]
    )


def _off(row: Row) -> float:
    """How far off a row is, 0 where it is right. Undecided and unscored rows come after all wrong
    ones.
    """
    if not row.scored:
        return 1e-9
    if row.undecided:
        return 1e-6
    if row.kind == "score":
        return abs(float(row.prediction) - float(row.truth))
    if row.kind == "order":
        return float(edit_distance(row.prediction, row.truth))
    if level(row.prediction) == level(row.truth):
        return 0.0
    return (row.probabilities or {}).get(str(row.prediction), 0.0) + 1.0


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
