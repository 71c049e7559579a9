"""What a metric is given: the rows of a run, and what their labels are.

Takes rows; gives the arrays that several metrics start from. Knows no metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgejudge.evaluation.rows import Kind, Row, level

__all__ = ["Beliefs", "Codes", "Measured", "likeliest"]

NO_LABEL = -1  # of a prediction that is none of the labels


@dataclass(frozen=True, slots=True)
class Codes:
    """Truths and predictions as places in `labels`, with NO_LABEL where nothing was decided."""

    labels: tuple[str, ...]
    truth: NDArray[np.int64]  # [N]
    predicted: NDArray[np.int64]  # [N]
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Beliefs:
    """Probabilities and what turned out. `binary`: of the positive label; otherwise of the
    likeliest label, which is right or not.
    """

    probabilities: NDArray[np.float64]  # [N]
    outcomes: NDArray[np.float64]  # [N], 0 or 1
    groups: tuple[str, ...]
    binary: bool
    missing: int  # scored rows that have no probabilities


@dataclass(frozen=True, slots=True)
class Measured:
    """`labels` are those of decisions, in order; `positive` is the one that F1 and its kin count,
    None where there are more than two.
    """

    rows: tuple[Row, ...]
    kind: Kind
    labels: tuple[str, ...]
    positive: str | None

    def of(self, rows: Sequence[Row]) -> "Measured":
        return replace(self, rows=tuple(rows))

    @property
    def scored(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.scored)

    def codes(self, rows: Sequence[Row]) -> Codes:
        """Scores count as the level they are nearest to."""
        truths = [str(level(row.truth)) for row in rows]
        said = [str(level(row.prediction)) for row in rows]
        named = {word for word, row in zip(said, rows, strict=True) if _decided(row)}
        labels = self.labels or tuple(sorted({*truths, *named}))
        place = {label: i for i, label in enumerate(labels)}
        return Codes(
            labels,
            np.array([place.get(word, NO_LABEL) for word in truths], np.int64),
            np.array(
                [
                    place.get(word, NO_LABEL) if _decided(row) else NO_LABEL
                    for word, row in zip(said, rows, strict=True)
                ],
                np.int64,
            ),
            tuple(row.group for row in rows),
        )

    def beliefs(self) -> Beliefs:
        """Of the scored rows that have probabilities."""
        rows = [row for row in self.scored if row.probabilities]
        binary = self.positive is not None and len(self.labels) == 2
        if binary:
            assert self.positive is not None
            p = [(row.probabilities or {}).get(self.positive, 0.0) for row in rows]
            hits = [row.truth == self.positive for row in rows]
        else:
            p = [max((row.probabilities or {}).values()) for row in rows]
            hits = [likeliest(row) == level(row.truth) for row in rows]
        return Beliefs(
            np.array(p, np.float64),
            np.array(hits, np.float64),
            tuple(row.group for row in rows),
            binary,
            len(self.scored) - len(rows),
        )


def likeliest(row: Row) -> str | None:
    """The label with the highest probability; the first of equal ones."""
    found = row.probabilities or {}
    return max(found, key=found.__getitem__, default=None)


def _decided(row: Row) -> bool:
    return row.scored and not row.undecided
