"""One judged thing, as it is recorded: what was true, what the judge said, and what it cost.

Takes and gives plain JSON values, one row per line. Knows no judge, data set or metric. A row
without a prediction is unscored and says why; it stays a row, so that no figure loses it.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from edgejudge.errors import BundleError, InputError
from edgejudge.strict_json import from_json, to_json

__all__ = [
    "KINDS",
    "UNDECIDED",
    "Exceptional",
    "Kind",
    "Row",
    "Seen",
    "level",
    "line",
    "read_rows",
]

# label: one of a few words. score: a number. pair: A, B, or C for a tie. order: letters, best
# first.
Kind = Literal["label", "score", "pair", "order"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What a judge says when it does not decide: an answer, and never one that is true.
UNDECIDED = ("uncertain", "inconclusive")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the judge said of a picture that was changed in a way that should not matter."""

    prediction: Any
    probabilities: dict[str, float] | None


@dataclass(frozen=True, slots=True)
class Exceptional:
    """What it said under a policy that was relaxed or tightened, as in "violence: allowed"."""

    change: str
    expected: str
    prediction: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """One decision about one example.

    `example` names what was judged in one go, `target` which of its decisions this is (a rule's id;
    empty where there is one), `group` what is drawn again together for intervals: the picture,
    unless the data set says otherwise. `truth` and `prediction` are words, or numbers for scores.
    `orders` are the winners with either answer first, `repeats` the answers to the same thing asked
    again, None where one of them is missing. `cost` and `stages_ms` are of the whole example.
    """

    example: str
    target: str
    group: str
    kind: str
    truth: Any
    prediction: Any
    unscored: str | None
    probabilities: dict[str, float] | None = None
    orders: tuple[Any, ...] | None = None
    repeats: tuple[Any, ...] | None = None
    perturbed: dict[str, Seen] | None = None
    exceptions: tuple[Exceptional, ...] | None = None
    cost: dict[str, float] | None = None
    stages_ms: dict[str, float] | None = None
    path: str | None = None

    @property
    def scored(self) -> bool:
        return self.unscored is None

    @property
    def undecided(self) -> bool:
        return self.prediction in UNDECIDED

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = to_json(self)
        return value


_KEYS = {f.name: None for f in fields(Row)}


def level(value: Any) -> Any:
    """A score as the level it is nearest to, halves up; words as they are."""
    return str(math.floor(value + 0.5)) if isinstance(value, float) else value


def line(rows: Sequence[Row]) -> str:
    """The rows of one example, each on a line."""
    return "".join(json.dumps(row.to_json(), allow_nan=False) + "\n" for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Rows as `line` wrote them. A last line without its end was cut off, and is left out.

    Raises InputError "rows" for anything else that is no row.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("rows", f"{path} cannot be read: {error}") from error
    return list(_rows(text.split("\n")[:-1], os.fspath(path)))


def _rows(lines: Iterable[str], source: str) -> Iterable[Row]:
    for number, text in enumerate(lines, 1):
        where = f"{source}, line {number}"
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InputError("rows", f"{where}: not JSON ({error})") from error
        try:
            row = from_json(Row, _KEYS | value if isinstance(value, dict) else value, where)
        except BundleError as error:
            raise InputError("rows", str(error)) from error
        if row.kind not in KINDS or (row.prediction is None) != (row.unscored is not None):
            raise InputError(
                "rows",
                f"{where}: expected one of the kinds {', '.join(KINDS)}, and either a prediction "
                "or the reason why there is none",
            )
        yield row
