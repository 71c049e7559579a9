"""Labels of people: which rules a picture breaks, or what it shows, as CSV or JSON lines.

Takes a file and the names of a policy's rules and questions; gives labels 0 or 1 by rule, question
and picture. What is wrong is told with file and line. Knows nothing of judges or pictures.
"""

import csv
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgejudge.errors import InputError
from edgejudge.file_bytes import file_bytes
from edgejudge.printable import brief

__all__ = ["Label", "Labels", "read_labels"]

_MOST_BYTES = 256 << 20
_MOST_NAMES = 12  # in one sentence


@dataclass(frozen=True, slots=True)
class Label:
    """1: the rule is broken, or the question's answer is yes. `line` is where it is written."""

    value: int
    line: int


@dataclass(slots=True)
class Labels:
    """By rule id or question text, then by picture as written. `repeated` rows said nothing new."""

    path: str
    rules: dict[str, dict[str, Label]] = field(default_factory=dict)
    questions: dict[str, dict[str, Label]] = field(default_factory=dict)
    repeated: int = 0

    @property
    def pictures(self) -> list[str]:
        """Each once, in the order of the file."""
        first: dict[str, int] = {}
        for table in (self.rules, self.questions):
            for labels in table.values():
                for picture, label in labels.items():
                    first[picture] = min(label.line, first.get(picture, label.line))
        return sorted(first, key=lambda picture: (first[picture], picture))

    def add(self, kind: str, name: str, picture: str, label: Label) -> None:
        table = (self.rules if kind == "rule" else self.questions).setdefault(name, {})
        known = table.get(picture)
        if known is None:
            table[picture] = label
        elif known.value != label.value:
            raise _wrong(
                self.path,
                label.line,
                f"{kind} '{name}' of '{picture}' is {label.value} here and {known.value} in line "
                f"{known.line}; keep the one that is right",
            )
        else:
            self.repeated += 1


def read_labels(
    path: str | os.PathLike[str], rules: Collection[str], questions: Collection[str]
) -> Labels:
    """CSV with a header or one JSON object a line, with the keys `path`, `label` and `rule` or
    `question`; or `path` and a key per rule or question, where an empty cell is no label.

    Raises InputError "labels" for a file that is missing, empty or malformed, for names that are
    neither rule nor question, for labels that are not 0 or 1, and for two that contradict.
    """
    name = os.fspath(path)
    try:
        data = file_bytes(name, _MOST_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError("labels", f"labels {name} cannot be read: {reason}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _wrong(name, line, "it is not UTF-8; save it as that") from None
    labels = Labels(name)
    rows = _json_rows(name, text) if text.lstrip()[:1] == "{" else _csv_rows(name, text)
    for line, row in rows:
        picture = row.get("path")
        if not isinstance(picture, str) or not picture:
            raise _wrong(name, line, "it names no picture; give its `path`")
        for kind, what, value in _labels_of(name, line, row, rules, questions):
            labels.add(kind, what, picture, Label(_binary(name, line, what, value), line))
    if not labels.rules and not labels.questions:
        raise InputError("labels", f"labels {name} has no label; {_shape()}")
    return labels


def _labels_of(
    name: str,
    line: int,
    row: Mapping[str, Any],
    rules: Collection[str],
    questions: Collection[str],
) -> Iterator[tuple[str, str, Any]]:
    """(kind, name, value) of every label in a row of either layout."""
    if "label" in row and "label" not in rules:
        named = [(kind, row[kind]) for kind in ("rule", "question") if row.get(kind)]
        extra = row.keys() - {"path", "rule", "question", "label"}
        if len(named) != 1 or extra:
            found = f"unknown key {_listed(extra)}" if extra else "not exactly one of them"
            raise _wrong(name, line, f"{found}; a label has a `path`, and a `rule` or `question`")
        cells = [(named[0][0], named[0][1], row["label"])]
    else:
        cells = [
            ("rule" if key in rules or key not in questions else "question", key, value)
            for key, value in row.items()
            if key != "path" and value is not None and value != ""
        ]
    for kind, what, value in cells:
        known = rules if kind == "rule" else questions
        if not isinstance(what, str) or what not in known:
            raise _wrong(
                name,
                line,
                f"'{brief(str(what))}' is no {kind} of the policy, which has {_listed(known)}",
            )
        yield kind, what, value


def _binary(name: str, line: int, what: str, value: Any) -> int:
    text = value.strip() if isinstance(value, str) else value
    if text in ("0", "1"):
        return int(text)
    if isinstance(value, int) and not isinstance(value, bool) and value in (0, 1):
        return value
    raise _wrong(name, line, f"the label of '{what}' is '{brief(str(value))}'; write 0 or 1")


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = text.splitlines(keepends=True)
    separator = "\t" if lines and "\t" in lines[0] and "," not in lines[0] else ","
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] | None = None
    began = 1
    try:
        for cells in reader:
            line, began = began, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                twice = sorted({cell for cell in header if header.count(cell) > 1})
                if "path" not in header or twice or len(header) < 2:
                    problem = f"column {_listed(twice)} is there twice" if twice else _shape()
                    raise _wrong(name, line, problem)
                continue
            if len(cells) != len(header):
                raise _wrong(
                    name, line, f"{len(cells)} cells under a header of {len(header)}; quote commas"
                )
            yield line, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise _wrong(name, began, f"it is no CSV: {error}") from None
    if header is None:
        raise InputError("labels", f"labels {name} is empty; {_shape()}")


def _json_rows(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, each in enumerate(text.splitlines(), 1):
        if not each.strip():
            continue
        try:
            row = json.loads(each)
        except (ValueError, RecursionError) as error:
            raise _wrong(name, line, f"it is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise _wrong(name, line, "it is no JSON object")
        yield line, row


def _shape() -> str:
    return (
        "begin with a header like path,rule,label, or path and a column per rule, or write JSON "
        "objects with these keys"
    )


def _wrong(name: str, line: int, what: str) -> InputError:
    return InputError("labels", f"{name}, line {line}: {what}")


def _listed(names: Iterable[str]) -> str:
    known = sorted(map(str, names))
    more = f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else ""
    return ", ".join(f"'{brief(each)}'" for each in known[:_MOST_NAMES]) + more
