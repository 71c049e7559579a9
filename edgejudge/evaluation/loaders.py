"""The loaders by name, and the two that are of no particular data set: tables and folders.

Takes what a recipe says of its data; gives a data set. Reads no picture.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgejudge.errors import InputError
from edgejudge.evaluation.examples import (
    SAFE_UNSAFE,
    DataSet,
    Example,
    Pictures,
    subset,
)
from edgejudge.evaluation.loaders_judge import (
    LETTERS,
    load_batches,
    load_choices,
    load_pairs,
    load_scores,
)
from edgejudge.evaluation.loaders_questions import load_calibration_set
from edgejudge.evaluation.rows import Kind
from edgejudge.evaluation.scenario import Scenario
from edgejudge.evaluation.tables import Line, read_table

__all__ = ["LOADERS", "load"]


def load(scenario: Scenario) -> DataSet:
    """Raises InputError "data" for a file or folder that is not as its loader expects."""
    data = LOADERS[scenario.loader](scenario)
    return data if scenario.subset is None else subset(data, scenario.subset, scenario.seed)


def load_table(scenario: Scenario) -> DataSet:
    """A line per example, or per target of one, with stated columns."""
    table, kind = read_table(scenario.path), scenario.kind
    pictures = Pictures(scenario.images or scenario.path.parent)
    label, target = scenario.column("label"), scenario.column("target")
    made: dict[str, Example] = {}
    first: dict[str, str] = {}
    for number, line in enumerate(table.lines):
        written = _images(line, scenario)
        name = _name(line, scenario, written, number)
        aim = line.text(target) if line.has(target) and not scenario.rules else ""
        truths: dict[str, Any]
        if scenario.rules:
            truths = {
                rule: SAFE_UNSAFE[line.yes(rule)] for rule in scenario.rules if line.has(rule)
            }
            _expect_columns(line, scenario.rules)
        else:
            truths = {aim: _truth(line, label, kind)}
        if name in made and (scenario.rules or aim in made[name].truths):
            raise line.fail(
                f"'{name}' is there already ({first[name]}); give each example an id of its own, "
                "or each of its lines a target"
            )
        first.setdefault(name, line.where)
        made[name] = _joined(made.get(name), line, scenario, pictures, name, truths)
    labels = SAFE_UNSAFE if scenario.rules else _labels(kind, made)
    examples = tuple(each for each in made.values() if each.truths)
    if not examples:
        raise InputError("data", f"{scenario.path}: no line says what is true of any rule")
    without = len(made) - len(examples)
    notes = (f"{without} lines say nothing of any rule and are left out",) if without else ()
    return DataSet(examples, kind, labels, table.sha256, notes)


def _joined(
    before: Example | None,
    line: Line,
    scenario: Scenario,
    pictures: Pictures,
    name: str,
    truths: dict[str, Any],
) -> Example:
    written = _images(line, scenario)
    group, text, answers = map(scenario.column, ("group", "text", "answers"))
    default = written[0] if written else name
    lines = {aim: line for aim in truths}
    if before is not None:
        truths, lines = before.truths | truths, before.lines | lines
    return Example(
        id=name,
        group=line.text(group) if line.has(group) else default,
        images=tuple(pictures.path(each) for each in written),
        truths=truths,
        text=line.text(text) if line.has(text) else "",
        answers=tuple(map(str, line.several(answers))) if line.has(answers) else (),
        lines=lines,
    )


def _images(line: Line, scenario: Scenario) -> tuple[str, ...]:
    one, several = scenario.column("image"), scenario.column("images")
    if line.has(several):
        return tuple(str(each).strip() for each in line.several(several))
    return (line.text(one),) if line.has(one) else ()


def _name(line: Line, scenario: Scenario, written: tuple[str, ...], number: int) -> str:
    column = scenario.column("id")
    if line.has(column):
        return line.text(column)
    return ";".join(written) or f"line {number + 1}"


def _truth(line: Line, column: str, kind: Kind) -> Any:
    if kind == "score":
        return line.number(column)
    text = line.text(column)
    if kind == "pair":
        text = {"TIE": "C"}.get(text.upper(), text.upper())
        if text not in ("A", "B", "C"):
            raise line.fail(f"'{column}' is {text!r}; expected A, B, or C for a tie")
    if kind == "order":
        text = text.upper()
        if sorted(text) != list(LETTERS[: len(text)]):
            raise line.fail(f"'{column}' is {text!r}; expected letters from A on, each once")
    return text


def _expect_columns(line: Line, rules: tuple[str, ...]) -> None:
    absent = [rule for rule in rules if rule not in line.values]
    if absent:
        known = ", ".join(map(str, line.values))
        raise line.fail(f"there is no column '{absent[0]}'; the columns here are {known}")


def _labels(kind: Kind, made: dict[str, Example]) -> tuple[str, ...]:
    if kind == "pair":
        return ("A", "B", "C")
    if kind != "label":
        return ()
    return tuple(sorted({truth for each in made.values() for truth in each.truths.values()}))


def load_folders(scenario: Scenario) -> DataSet:
    """A folder per class, whose name is the label; with `unsafe` folders, safe and unsafe."""
    root = scenario.path
    try:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError as error:
        raise InputError("data", f"{root} cannot be read: {error.strerror}") from error
    strangers = [name for name in scenario.unsafe if name not in classes]
    if len(classes) < 2 or strangers:
        found = ", ".join(classes) or "none"
        what = f"no folder '{strangers[0]}'" if strangers else "fewer than two folders"
        raise InputError("data", f"{root} has {what}; expected one per class, and found {found}")
    examples = []
    for name in classes:
        truth = SAFE_UNSAFE[name in scenario.unsafe] if scenario.unsafe else name
        files = sorted(p for p in Path(root, name).rglob("*") if p.is_file())
        for path in files:
            written = path.relative_to(root).as_posix()
            examples.append(Example(written, written, (path,), {"": truth}))
    if not examples:
        raise InputError("data", f"{root} has no files in its folders; expected pictures")
    names = "\n".join(f"{each.id}\t{each.truths['']}" for each in examples)
    labels = SAFE_UNSAFE if scenario.unsafe else tuple(classes)
    digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
    return DataSet(tuple(examples), "label", labels, digest)


LOADERS: dict[str, Callable[[Scenario], DataSet]] = {
    "table": load_table,
    "folders": load_folders,
    "calibration_set": load_calibration_set,
    "multiple_choice": load_choices,
    "mllm_judge_score": load_scores,
    "mllm_judge_pair": load_pairs,
    "mllm_judge_batch": load_batches,
}
