"""What an adapter is: a way of asking a judge, from an example to what was said of it.

Records and checks that all adapters share. Knows no call of a judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgejudge.errors import InputError
from edgejudge.evaluation.examples import DataSet, Example
from edgejudge.evaluation.rows import Exceptional
from edgejudge.images import ImageInput

__all__ = ["Adapter", "Judged", "Said", "expect_answers", "expect_images"]


@dataclass(frozen=True, slots=True)
class Said:
    """One decision, or why there is none."""

    prediction: Any
    why: str | None = None
    probabilities: dict[str, float] | None = None
    orders: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What was said of each target of an example, and what it took."""

    said: dict[str, Said]
    cost: dict[str, float] | None = None
    stages_ms: dict[str, float] | None = None


class Adapter(Protocol):
    """`data` is the data set as this adapter understands it, `gives` the fields of its rows,
    `sha256` that of the policy and `calibration` the id of what decides, where there is one.
    """

    data: DataSet
    gives: frozenset[str]
    sha256: str | None
    calibration: str | None

    def judge(self, example: Example, images: Sequence[ImageInput]) -> Judged: ...
    def exceptions(
        self, example: Example, images: Sequence[ImageInput]
    ) -> tuple[Exceptional, ...]: ...


def expect_images(data: DataSet, least: int, most: int, name: str) -> None:
    for each in data.examples:
        if not least <= len(each.images) <= most:
            expected = f"{least}" if least == most else f"{least} to {most}"
            raise InputError(
                "data", f"{each.id} has {len(each.images)} pictures; {name} takes {expected}"
            )


def expect_answers(data: DataSet, least: int, most: int, name: str) -> None:
    for each in data.examples:
        if each.answers and not least <= len(each.answers) <= most:
            expected = f"{least}" if least == most else f"{least} to {most}"
            raise InputError(
                "data", f"{each.id} has {len(each.answers)} answers; {name} takes {expected}"
            )
