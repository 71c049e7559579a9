"""The calibration set of a checkpoint (EXPORTING.md): pictures, and what is on each of them.

Takes its folder; gives a data set of a policy's rules, or of questions. Reads no picture.
"""

from collections.abc import Sequence
from typing import Any

from edgejudge.errors import InputError
from edgejudge.evaluation.examples import SAFE_UNSAFE, DataSet, Example
from edgejudge.evaluation.scenario import Scenario
from edgejudge.evaluation.tables import Line, read_table
from edgejudge.policy import load_policy

__all__ = ["load_calibration_set"]

_FILE = "questions.json"
_NO_YES = ("no", "yes")


def load_calibration_set(scenario: Scenario) -> DataSet:
    """With a `question` an example for each picture and condition, whose truth is no or yes; else
    one for each picture, with the rules of `policy` that its conditions decide.
    """
    table = read_table(scenario.path / _FILE)
    rules = load_policy(scenario.policy).rules if scenario.question is None else ()
    examples = []
    for line in table.lines:
        image, shown = line.text("image"), _shown(line)
        path = scenario.path / image
        if scenario.question is not None:
            for text, there in shown.items():
                question = scenario.question.replace("{condition}", text)
                truths: dict[str, Any] = {"": _NO_YES[there]}
                examples.append(Example(f"{image} {text}", image, (path,), truths, question))
        else:
            truths = {
                rule.id: SAFE_UNSAFE[broken]
                for rule in rules
                if (broken := _broken(rule.conditions, shown)) is not None
            }
            if truths:
                examples.append(Example(image, image, (path,), truths))
    if not examples:
        raise InputError(
            "data",
            f"{table.path} does not ask what any rule of policy '{scenario.policy}' depends on",
        )
    labels = SAFE_UNSAFE if scenario.question is None else _NO_YES
    return DataSet(tuple(examples), "label", labels, table.sha256)


def _shown(line: Line) -> dict[str, bool]:
    """Condition -> whether it holds; those of which nothing is known are left out."""
    found = {}
    for value in line.several("conditions"):
        if not isinstance(value, dict):
            raise line.fail("'conditions' has something else than objects with text and label")
        each = Line(line.where, value)
        if each.has("label"):
            found[each.text("text")] = each.yes("label")
    return found


def _broken(conditions: Sequence[Sequence[str]], shown: dict[str, bool]) -> bool | None:
    """AND over conditions of OR over alternatives; None where what is known does not decide it."""
    held: list[bool | None] = []
    for alternatives in conditions:
        known = [shown.get(text) for text in alternatives]
        held.append(True if True in known else None if None in known else False)
    return False if False in held else None if None in held or not held else True
