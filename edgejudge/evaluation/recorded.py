"""Outputs that a judge gave earlier, as rows: no model is asked.

Takes a data set, and the file of outputs or the table that has them beside the truths; gives rows.
Knows the rows of `edgejudge screen --out`, and generic tables with stated columns. An example that
has no output, or one that says nothing, is unscored.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgejudge.errors import InputError
from edgejudge.evaluation.examples import DataSet, Example, named
from edgejudge.evaluation.loaders_judge import LETTERS
from edgejudge.evaluation.matching import NO_OUTPUT, make_row, matched
from edgejudge.evaluation.recorded_screens import as_screened, screened
from edgejudge.evaluation.rows import UNDECIDED, Exceptional, Row, Seen
from edgejudge.evaluation.tables import Line, read_table

__all__ = ["Outputs", "recorded_rows"]

_MARKS = re.compile(r"[\s\[\],>]+")


@dataclass(frozen=True, slots=True)
class Outputs:
    """`rows` has one for each example and target of `data`, whose truths are written as the outputs
    write them. `bundle` is what screened, if one bundle did; `sha256` is of the file.
    """

    data: DataSet
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    bundle: Mapping[str, Any] | None = None
    sha256: str | None = None


def recorded_rows(
    data: DataSet, outputs: Path | None, columns: Mapping[str, str], positive: str | None
) -> Outputs:
    """What was said of every example.

    Without `outputs` they stand in the data set's own lines. Raises InputError "data" where there
    are none, and for values that no judge can have meant, such as a probability of 1.2.
    """
    reading = _Reading(data, columns, positive)
    if outputs is None:
        lines = [(e, aim, e.lines.get(aim)) for e in data.examples for aim in e.truths]
        if not any(line is not None and reading.has(line) for _, _, line in lines):
            raise InputError(
                "data",
                f"no column '{reading.column('prediction')}' with anything in it; name the column "
                "of what the judge said in scenario.columns, or its file in inferencer.outputs",
            )
        rows = tuple(reading.row(e, aim, [line] if line else []) for e, aim, line in lines)
        return Outputs(data, rows)
    table = read_table(outputs)
    found, strangers = matched(data, table.lines, columns)
    if all("verdict" in line.values and "rules" in line.values for line in table.lines):
        data = as_screened(data)
        rows, bundle = screened(data, found)
        return Outputs(data, rows, _notes(strangers, outputs), bundle, table.sha256)
    rows = tuple(
        reading.row(e, aim, reading.of_target(found.get(e.id, []), aim))
        for e in data.examples
        for aim in e.truths
    )
    return Outputs(data, rows, _notes(strangers, outputs), None, table.sha256)


class _Reading:
    """Typed values out of generic outputs."""

    def __init__(self, data: DataSet, columns: Mapping[str, str], positive: str | None) -> None:
        self.kind, self.labels, self.positive = data.kind, data.labels, positive
        self._columns = columns

    def column(self, name: str) -> str:
        return self._columns.get(name, name)

    def has(self, line: Line) -> bool:
        return line.has(self.column("prediction")) or line.has(self.column("unscored"))

    def of_target(self, lines: Sequence[Line], aim: str) -> list[Line]:
        target = self.column("target")
        return [line for line in lines if (line.text(target) if line.has(target) else "") == aim]

    def row(self, example: Example, aim: str, lines: Sequence[Line]) -> Row:
        """Several lines are answers to the same thing: the first is the one that counts."""
        if not lines:
            return make_row(example, aim, self.kind, None, NO_OUTPUT)
        first = lines[0]
        prediction, why = self._said(first)
        repeats: tuple[Any, ...] | None = None
        if len(lines) > 1:
            repeats = tuple(self._said(line)[0] for line in lines)
        elif first.has(self.column("repeats")):
            repeats = tuple(self._value(v)[0] for v in first.several(self.column("repeats")))
        orders: tuple[Any, ...] | None = None
        if first.has(self.column("orders")):
            orders = tuple(self._value(v)[0] for v in first.several(self.column("orders")))
        return make_row(
            example,
            aim,
            self.kind,
            prediction,
            why,
            probabilities=self._probabilities(first) if why is None else None,
            orders=orders,
            repeats=repeats,
            perturbed=self._perturbed(first),
            exceptions=self._exceptions(first),
            cost=self._numbers(first, "cost"),
            stages_ms=self._stages(first),
        )

    def _said(self, line: Line) -> tuple[Any, str | None]:
        column, reason = self.column("prediction"), self.column("unscored")
        if line.has(reason):
            return None, line.text(reason)
        if not line.has(column):
            return None, "no prediction: the output is empty"
        value = line.values[column]
        return self._value(value if isinstance(value, list) else line.text(column))

    def _value(self, value: Any) -> tuple[Any, str | None]:
        """As a prediction of this kind, or why it is none."""
        if value is None:
            return None, "no prediction: the output is empty"
        text = "".join(map(str, value)) if isinstance(value, list) else str(value).strip()
        if text.lower() in UNDECIDED:
            return text.lower(), None
        unreadable = f"unreadable: {text[:40]!r} is no {self.kind}"
        if self.kind == "label":
            return text, None
        bare = _MARKS.sub("", text).upper()
        if self.kind == "score":
            try:
                number = float(bare)
            except ValueError:
                return None, unreadable
            return (number, None) if abs(number) < float("inf") else (None, unreadable)
        bare = "C" if self.kind == "pair" and bare == "TIE" else bare
        fits = bare in ("A", "B", "C") if self.kind == "pair" else set(bare) <= set(LETTERS)
        return (bare, None) if bare and fits else (None, unreadable)

    def _perturbed(self, line: Line) -> dict[str, Seen] | None:
        """By name of the perturbation: a prediction, or an object with one and probabilities."""
        column = self.column("perturbed")
        if not line.has(column):
            return None
        made = {}
        for name, value in line.pairs(column).items():
            beliefs = None
            if isinstance(value, dict):
                beliefs = self._probabilities(Line(line.where, value))
                value = value.get("prediction")
            made[str(name)] = Seen(self._value(value)[0], beliefs)
        return made

    def _exceptions(self, line: Line) -> tuple[Exceptional, ...] | None:
        """Objects with a change, the verdict expected under it, and the one given."""
        column = self.column("exceptions")
        if not line.has(column):
            return None
        made = []
        for value in line.several(column):
            if not isinstance(value, dict):
                raise line.fail(f"'{column}' has {value!r}; expected objects")
            each = Line(line.where, value)
            said = each.text("prediction") if each.has("prediction") else None
            made.append(Exceptional(each.text("change"), each.text("expected"), said))
        return tuple(made)

    def _numbers(self, line: Line, name: str) -> dict[str, float] | None:
        column = self.column(name)
        if not line.has(column):
            return None
        values = Line(line.where, line.pairs(column))
        return {str(key): values.number(key) for key in values.values}

    def _stages(self, line: Line) -> dict[str, float] | None:
        ms = self.column("milliseconds")
        return {"all": line.number(ms)} if line.has(ms) else self._numbers(line, "stages_ms")

    def _probabilities(self, line: Line) -> dict[str, float] | None:
        one, several = self.column("probability"), self.column("probabilities")
        if line.has(several):
            pairs = line.pairs(several)
            values = Line(line.where, pairs)
            return {str(label): values.probability(label) for label in pairs}
        if not line.has(one):
            return None
        p = line.probability(one)
        others = [label for label in self.labels if label != self.positive]
        if self.positive is None or len(others) != 1:
            raise line.fail(
                f"'{one}' is one number, and there are {len(self.labels)} labels; give the column "
                "'probabilities' with a number for each"
            )
        return {others[0]: 1 - p, self.positive: p}


def _notes(strangers: Sequence[str], outputs: Path) -> tuple[str, ...]:
    if not strangers:
        return ()
    return (f"{len(strangers)} outputs of {outputs.name} are of no example: {named(strangers)}",)
