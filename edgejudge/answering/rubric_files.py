"""Rubrics and checklists as small YAML or JSON files, read strictly.

Takes a path; gives a `Rubric`, `Tasks` or `Checklist`, or a `PolicyError` that names the file, the
line and the key. Knows what the keys mean, and no judge.
"""

from collections.abc import Callable
from os import PathLike, fspath
from typing import TypeVar

import yaml

from edgejudge.answering.rubrics import (
    COMBINATIONS,
    METHODS,
    Checklist,
    Criterion,
    Rubric,
    Tasks,
    rubric,
)
from edgejudge.errors import InputError, PolicyError
from edgejudge.file_bytes import file_bytes
from edgejudge.policy_nodes import Reader, compose

__all__ = ["read_checklist", "read_rubric"]

_MAX_BYTES = 1 << 20
_MOST = 256  # rubrics of one file, labels of one rubric, criteria of one checklist
_LARGEST = 1e9
_RUBRIC_KEYS = ("method", "labels", "wording", "lead", "temperature")

T = TypeVar("T")


def read_rubric(path: str | PathLike[str]) -> Rubric | Tasks:
    """A file with `tasks` is Tasks, another one is a Rubric."""
    name = fspath(path)
    reader, root = _open(name, ("name", "criterion"))
    if not isinstance(root, yaml.MappingNode) or all(k.value != "tasks" for k, _ in root.value):
        return _rubric(reader, root, "")
    fields = reader.mapping(root, "", ("name", "tasks"), ("combination",))
    combination = "mean"
    if "combination" in fields:
        known = (*COMBINATIONS, "viescore")
        combination = reader.choice(fields["combination"], "combination", known)
    rubrics = tuple(
        _rubric(reader, node, where)
        for node, where in reader.items(fields["tasks"], "tasks", _MOST)
    )
    title = reader.name(fields["name"], "name")
    return _made(reader, root, "", lambda: Tasks(title, rubrics, combination))


def read_checklist(path: str | PathLike[str]) -> Checklist:
    reader, root = _open(fspath(path), ("name", "criteria"))
    fields = reader.mapping(root, "", ("name", "criteria"), ("wording", "band"))
    title = reader.name(fields["name"], "name")
    wording = _template(reader, fields, "", "wording")
    band = reader.number(fields["band"], "band", 0, 0.5) if "band" in fields else None
    criteria = tuple(
        _criterion(reader, node, where)
        for node, where in reader.items(fields["criteria"], "criteria", _MOST)
    )
    return _made(reader, root, "", lambda: Checklist(title, criteria, wording, band))


def _open(name: str, keys: tuple[str, ...]) -> tuple[Reader, yaml.Node]:
    try:
        data = file_bytes(name, _MAX_BYTES)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise PolicyError(f"{name}: cannot be read ({reason}); give a YAML or JSON file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(f"{name}, line {line}: not UTF-8; save it as UTF-8") from None
    if not text.strip():
        raise PolicyError(f"{name}, line 1: the file is empty; it needs {' and '.join(keys)}")
    return Reader(name), compose(text, name, keys)


def _rubric(reader: Reader, node: yaml.Node, where: str) -> Rubric:
    dot = f"{where}." if where else ""
    # A rubric by itself has a name, one of several tasks has a group.
    optional = ("name", *_RUBRIC_KEYS, *(("group",) if where else ()))
    fields = reader.mapping(node, where, ("criterion",), optional)
    criterion = reader.text(fields["criterion"], f"{dot}criterion")
    method = "rubric"
    if "method" in fields:
        method = reader.choice(fields["method"], f"{dot}method", tuple(METHODS))
    labels = None
    if "labels" in fields:
        labels = _labels(reader, fields["labels"], f"{dot}labels")
    temperature = 1.0
    if "temperature" in fields:
        temperature = reader.number(fields["temperature"], f"{dot}temperature", 1e-3, _LARGEST)
    wording = _template(reader, fields, dot, "wording")
    lead = _template(reader, fields, dot, "lead")
    name = reader.text(fields["name"], f"{dot}name") if "name" in fields else criterion
    group = reader.name(fields["group"], f"{dot}group") if "group" in fields else None

    def make() -> Rubric:
        base = rubric(criterion, method, labels=labels, wording=wording, temperature=temperature)
        given = base.lead if lead is None else lead
        made = Rubric(
            name, criterion, base.labels, base.values, base.wording, given, temperature, group
        )
        made.question()  # a wording that cannot be filled is told now
        return made

    return _made(reader, node, where, make)


def _labels(reader: Reader, node: yaml.Node, where: str) -> dict[str, float]:
    """A list in rising order, or a mapping from label to value."""
    found: dict[str, float] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            label = reader.version(key, where)  # a number or text, as written
            if label in found:
                raise reader.fail(key, f"{where}.{label}", "given twice; keep one")
            found[label] = reader.number(value, f"{where}.{label}", -_LARGEST, _LARGEST)
        return found
    for place, (item, spot) in enumerate(reader.items(node, where, _MOST), 1):
        label = reader.version(item, spot)
        if label in found:
            raise reader.fail(item, spot, f"'{label}' is given twice; keep one")
        found[label] = float(place)
    return found


def _criterion(reader: Reader, node: yaml.Node, where: str) -> Criterion:
    if isinstance(node, yaml.ScalarNode):
        text = reader.text(node, where)
        return Criterion(text, text)
    fields = reader.mapping(node, where, ("text",), ("id", "weight", "wanted"))
    text = reader.text(fields["text"], f"{where}.text")
    weight = 1.0
    if "weight" in fields:
        weight = reader.number(fields["weight"], f"{where}.weight", 1e-6, _LARGEST)
    return Criterion(
        reader.name(fields["id"], f"{where}.id") if "id" in fields else text,
        text,
        weight,
        reader.yes_no(fields["wanted"], f"{where}.wanted") if "wanted" in fields else True,
    )


def _template(reader: Reader, fields: dict[str, yaml.Node], dot: str, name: str) -> str | None:
    """Text with its line breaks, where the key is given."""
    if name not in fields:
        return None
    reader.text(fields[name], f"{dot}{name}")  # it is text at all
    return str(fields[name].value).strip()


def _made(reader: Reader, node: yaml.Node, where: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except InputError as error:
        raise reader.fail(node, where, str(error)) from None
