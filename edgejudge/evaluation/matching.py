"""Which output belongs to which example, and the row of the two.

Takes examples and lines of outputs; gives them together. Knows no columns but those that name
things.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgejudge.errors import InputError
from edgejudge.evaluation.examples import DataSet, Example, named
from edgejudge.evaluation.rows import Kind, Row
from edgejudge.evaluation.tables import Line

__all__ = ["NO_OUTPUT", "make_row", "matched"]

NO_OUTPUT = "no output: there is none for this example"

_KEYS = ("id", "image", "path")


def matched(
    data: DataSet, lines: Sequence[Line], columns: Mapping[str, str]
) -> tuple[dict[str, list[Line]], list[str]]:
    """Lines by example id, and the names of those that belong to none. They are matched by id, else
    by the picture's path, else by its name where no other example and no other output has that.
    """
    by_name: dict[str, str] = {}
    for example in data.examples:
        for path in example.images:
            for key in (str(path), str(path.resolve())):
                by_name.setdefault(key, example.id)
    names = [path.name for example in data.examples for path in example.images]
    once = {name for name, count in Counter(names).items() if count == 1}
    for example in data.examples:
        for path in example.images:
            if path.name in once:
                by_name.setdefault(path.name, example.id)
    ids = {example.id for example in data.examples}
    named_by = [_name(line, columns) for line in lines]
    outputs = Counter(Path(name).name for name in dict.fromkeys(named_by))
    found: dict[str, list[Line]] = {}
    strangers = []
    for line, name in zip(lines, named_by, strict=True):
        owner: str | None = name
        if name not in ids:
            owner = by_name.get(name) or by_name.get(str(Path(name).resolve()))
            if owner is None and outputs[Path(name).name] == 1:
                owner = by_name.get(Path(name).name)
        if owner is None:
            strangers.append(name)
        else:
            found.setdefault(owner, []).append(line)
    if not found:
        raise InputError(
            "data", f"none of {len(lines)} outputs is of an example: {named(strangers)}"
        )
    return found, strangers


def _name(line: Line, columns: Mapping[str, str]) -> str:
    for column in (columns.get(key, key) for key in _KEYS):
        if line.has(column):
            return line.text(column)
    raise line.fail(f"nothing says what it is of; expected a column of {', '.join(_KEYS)}")


def make_row(
    example: Example, aim: str, kind: Kind, prediction: Any, why: str | None, **fields: Any
) -> Row:
    return Row(
        example=example.id,
        target=aim,
        group=example.group,
        kind=kind,
        truth=example.truths[aim],
        prediction=prediction,
        unscored=why,
        path=str(example.images[0]) if example.images else None,
        **fields,
    )
