"""Labels and probabilities of the same pictures, put together rule by rule.

Takes labels as people wrote them and rows as a judge gave them; gives what calibrating takes, which
pictures could not be judged, and which have no label yet. Knows nothing of how anything is fitted,
and reads no picture but to see whether it changed.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgejudge.calibrating.label_file import Label, Labels
from edgejudge.calibrating.recorded import Recorded
from edgejudge.calibrating.rules import RuleLabels
from edgejudge.errors import InputError

__all__ = ["Joined", "Lookup", "all_there", "check_classes", "failures", "join"]

_MOST_NAMED = 5

_Conditions = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """`rules` are those with a label; `not_judged` is path -> why; `repeated` labels said nothing
    new. `unlabelled` are, by rule, judged pictures without a label for it.
    """

    rules: tuple[RuleLabels, ...]
    pictures: int
    not_judged: Mapping[str, str]
    repeated: int
    unlabelled: Mapping[str, tuple[Recorded, ...]]


class Lookup:
    """Rows by picture, however the path of one was written and wherever it lies by now."""

    def __init__(self, rows: Iterable[Recorded], root: str) -> None:
        self._root = root
        self._by_path: dict[str, Recorded] = {}
        self._by_content: dict[str, Recorded] = {}
        self._contents: dict[str, str | None] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Recorded) -> None:
        for name in {os.path.normpath(row.path), os.path.abspath(row.path)}:
            self._by_path[name] = row
        if row.sha256 is not None:
            self._by_content[row.sha256] = row

    def file(self, picture: str) -> str:
        """Where a picture of the labels lies."""
        return os.path.normpath(os.path.join(self._root, picture))

    def row(self, picture: str) -> Recorded | None:
        """That of the file as it is now, or else, where that is gone, of its path."""
        file = self.file(picture)
        content = self._content(file)
        if content is not None and content in self._by_content:
            return self._by_content[content]
        for name in (file, os.path.abspath(file), os.path.normpath(picture)):
            row = self._by_path.get(name)
            if row is not None and (content is None or row.sha256 is None):
                return row
        return None

    def _content(self, file: str) -> str | None:
        if file not in self._contents:
            self._contents[file] = None
            if os.path.isfile(file):
                with open(file, "rb") as stream:
                    self._contents[file] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._contents[file]

    @property
    def rows(self) -> list[Recorded]:
        return list({id(row): row for row in self._by_path.values()}.values())


def all_there(files: Sequence[str], option: str) -> None:
    """Raises InputError for pictures that are missing; `option` is what would name their folder."""
    if lost := [file for file in files if not os.path.isfile(file)]:
        raise InputError(
            "missing",
            f"{len(lost)} of {len(files)} pictures are missing: {_first(lost)}; put them there, "
            f"give their folder as {option}, or take them out of the labels",
        )


def failures(joined: Joined) -> str | None:
    """A warning of labelled pictures that count for nothing, if there are any."""
    if not joined.not_judged:
        return None
    named = _first([f"{path} ({why})" for path, why in joined.not_judged.items()])
    return (
        f"warning: {len(joined.not_judged)} labelled pictures could not be judged and count for "
        f"nothing: {named}"
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (" and more" if len(names) > _MOST_NAMED else "")


def check_classes(labels: Labels, rules: Mapping[str, _Conditions]) -> None:
    """Raises InputError "one_class" for rules all of whose labels are the same, before anything is
    judged. Labels of a rule's questions may imply others, so such rules are left alone.
    """
    alike = []
    for rule, table in labels.rules.items():
        values = {label.value for label in table.values()}
        if len(values) == 1 and not any(
            text in labels.questions for either in rules[rule] for text in either
        ):
            alike.append(f"rule '{rule}' has {len(table)} labels, all {values.pop()}")
    if alike:
        raise InputError(
            "one_class",
            f"{labels.path}: {'; '.join(alike)}: nothing can be told apart by one kind; label "
            "pictures of the other kind, or take these labels out",
        )


def join(labels: Labels, found: Lookup, rules: Mapping[str, _Conditions]) -> Joined:
    """A picture whose content is there under two names counts once. A rule without a label of its
    own takes the one that its questions' labels imply. Raises InputError for labels of one content
    that contradict, naming both.
    """
    not_judged: dict[str, str] = {}
    keys: dict[str, str] = {}  # label path -> key of the content
    rows: dict[str, Recorded] = {}
    for picture in labels.pictures:
        row = found.row(picture)
        assert row is not None, picture
        if row.failure is not None:
            not_judged[picture] = row.failure
            continue
        keys[picture] = row.sha256 or picture
        rows[keys[picture]] = row
    repeated = labels.repeated
    questions: dict[str, dict[str, int]] = {}
    for text, table in labels.questions.items():
        questions[text], again = _by_content(labels, "question", text, table, keys)
        repeated += again
    made = []
    unlabelled = {}
    for rule, conditions in rules.items():
        own, again = _by_content(labels, "rule", rule, labels.rules.get(rule, {}), keys)
        repeated += again
        for key in rows:
            if key not in own and (implied := _implied(conditions, questions, key)) is not None:
                own[key] = implied
        if not own:
            continue
        made.append(
            RuleLabels(
                rule,
                conditions,
                tuple(own),
                tuple(rows[key].answers for key in own),
                tuple(own.values()),
                questions,
            )
        )
        unlabelled[rule] = tuple(
            row for row in found.rows if row.failure is None and (row.sha256 or row.path) not in own
        )
    return Joined(tuple(made), len(rows), not_judged, repeated, unlabelled)


def _by_content(
    labels: Labels, kind: str, name: str, table: Mapping[str, Label], keys: Mapping[str, str]
) -> tuple[dict[str, int], int]:
    """Labels by content, and how many were there twice."""
    found: dict[str, tuple[int, str, int]] = {}
    repeated = 0
    for picture, label in table.items():
        if picture not in keys:
            continue
        known = found.setdefault(keys[picture], (label.value, picture, label.line))
        if known[0] != label.value:
            raise InputError(
                "labels",
                f"{labels.path}, line {label.line}: {kind} '{name}' of '{picture}' is "
                f"{label.value}, and of '{known[1]}', the same picture, it is {known[0]} in line "
                f"{known[2]}; keep the one that is right",
            )
        repeated += known[1] != picture
    return {key: value for key, (value, _, _) in found.items()}, repeated


def _implied(
    conditions: _Conditions, questions: Mapping[str, Mapping[str, int]], key: str
) -> int | None:
    """Whether labels of questions say that the rule is broken, or not, or neither."""
    known: list[int | None] = []
    for either in conditions:
        said: Sequence[int | None] = [questions.get(text, {}).get(key) for text in either]
        known.append(1 if 1 in said else 0 if None not in said else None)
    return 0 if 0 in known else 1 if None not in known else None
