"""Tables of any common form as lines: CSV, JSON, JSON lines, Parquet.

Takes a file; gives its lines as dicts with the place they come from, and typed values out of them.
Knows no columns. Every error names the file, the line and the column.
"""

import csv
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgejudge.errors import InputError
from edgejudge.evaluation.extra import needed

__all__ = ["FORMS", "NO_WORDS", "YES_WORDS", "Line", "Table", "read_table"]

FORMS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
YES_WORDS, NO_WORDS = ("1", "true", "yes", "unsafe"), ("0", "false", "no", "safe")


@dataclass(frozen=True, slots=True)
class Line:
    """One line; `where` is what errors call it."""

    where: str
    values: Mapping[str, Any]

    def fail(self, problem: str) -> InputError:
        return InputError("data", f"{self.where}: {problem}")

    def has(self, column: str | None) -> bool:
        """Whether there is something in it: no None, NaN or blank text."""
        value = self.values.get(column) if column is not None else None
        if isinstance(value, float) and math.isnan(value):
            return False
        return value is not None and not (isinstance(value, str) and not value.strip())

    def text(self, column: str) -> str:
        """As written; whole numbers of Parquet and JSON without a point."""
        if not self.has(column):
            known = ", ".join(map(str, self.values)) or "none"
            raise self.fail(f"'{column}' is missing or empty; the columns here are {known}")
        value = self.values[column]
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        if not isinstance(value, str | int | float):
            raise self.fail(f"'{column}' is a {type(value).__name__}; expected text or a number")
        return str(value).strip()

    def number(self, column: str) -> float:
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.fail(f"'{column}' is {text!r}; expected a number")
        return value

    def probability(self, column: str) -> float:
        value = self.number(column)
        if not 0 <= value <= 1:
            raise self.fail(f"'{column}' is {value:g}; expected a probability from 0 to 1")
        return value

    def yes(self, column: str) -> bool:
        text = self.text(column).lower()
        if text not in YES_WORDS + NO_WORDS:
            raise self.fail(
                f"'{column}' is {text!r}; expected one of {', '.join(NO_WORDS + YES_WORDS)}"
            )
        return text in YES_WORDS

    def several(self, column: str) -> list[Any]:
        """A list; in CSV written as JSON, or with ';' in between."""
        if not self.has(column):
            raise self.fail(f"'{column}' is missing or empty; expected a list")
        value = self.values[column]
        if isinstance(value, str):
            return self._json(column, value) if value.lstrip()[0] == "[" else value.split(";")
        if not isinstance(value, list | tuple):
            raise self.fail(f"'{column}' is a {type(value).__name__}; expected a list")
        return list(value)

    def pairs(self, column: str) -> dict[str, Any]:
        """A mapping; in CSV written as JSON."""
        value = self.values.get(column)
        if isinstance(value, str):
            value = self._json(column, value)
        if not isinstance(value, dict):
            raise self.fail(f"'{column}' is a {type(value).__name__}; expected a mapping")
        return value

    def _json(self, column: str, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise self.fail(f"'{column}' is no JSON ({error})") from error


@dataclass(frozen=True, slots=True)
class Table:
    path: Path
    lines: tuple[Line, ...]
    sha256: str


def read_table(path: Path) -> Table:
    """Raises InputError "data" for a file that is missing, of another form, malformed or empty."""
    if path.suffix.lower() not in FORMS:
        raise InputError("data", f"{path} is none of {', '.join(FORMS)}; give a table of these")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError("data", f"{path} cannot be read: {error.strerror}") from error
    if path.suffix.lower() == ".parquet":
        lines = _parquet(path)
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise InputError("data", f"{path}, line {line}: not UTF-8; save it as UTF-8") from error
        if path.suffix.lower() in (".csv", ".tsv"):
            lines = _csv(path, text, "\t" if path.suffix.lower() == ".tsv" else ",")
        else:
            lines = _json_lines(path, text)
    if not lines:
        raise InputError("data", f"{path} has no rows; expected at least one")
    return Table(path, tuple(lines), hashlib.sha256(data).hexdigest())


def _csv(path: Path, text: str, delimiter: str) -> list[Line]:
    rows = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
    made: list[Line] = []
    try:
        head = [name.strip() for name in next(rows, [])]
        twice = {name for name in head if head.count(name) > 1}
        if twice:
            raise InputError("data", f"{path}, line 1: column {min(twice)!r} is there twice")
        for cells in rows:
            where = f"{path}, line {rows.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(head):
                raise InputError(
                    "data", f"{where}: {len(cells)} cells under {len(head)} columns; quote commas"
                )
            made.append(Line(where, dict(zip(head, cells, strict=True))))
    except csv.Error as error:
        raise InputError("data", f"{path}, line {rows.line_num}: no CSV ({error})") from error
    return made


def _json_lines(path: Path, text: str) -> list[Line]:
    """A JSON array of objects, or an object per line."""
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InputError("data", f"{path}: not JSON ({error})") from error
        lines = [(f"{path}, entry {i}", value) for i, value in enumerate(values, 1)]
    else:
        lines = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    lines.append((f"{path}, line {number}", json.loads(line)))
                except ValueError as error:
                    problem = f"{path}, line {number}: not JSON ({error})"
                    raise InputError("data", problem) from error
    for where, value in lines:
        if not isinstance(value, dict):
            raise InputError("data", f"{where}: expected an object, got {type(value).__name__}")
    return [Line(where, value) for where, value in lines]


def _parquet(path: Path) -> list[Line]:
    parquet, errors = needed("pyarrow.parquet"), needed("pyarrow.lib")
    try:
        rows = parquet.read_table(path).to_pylist()
    except errors.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError("data", f"{path} is no Parquet file: {reason}") from error
    return [Line(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]
