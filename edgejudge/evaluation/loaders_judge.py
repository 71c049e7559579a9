"""The files of MLLM-as-a-Judge (arXiv 2402.04788), and multiple choices: examples out of them.

Takes a table; gives a data set. The files differ in where pictures lie, in whether a human score is
a number or text, and in how a tie or an order is written. Answers may be in any language.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from edgejudge.evaluation.examples import DataSet, Example, Pictures, unique
from edgejudge.evaluation.rows import Kind
from edgejudge.evaluation.scenario import Scenario
from edgejudge.evaluation.tables import Line, Table, read_table

__all__ = ["LETTERS", "load_batches", "load_choices", "load_pairs", "load_scores"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LEVELS = (1.0, 5.0)
_MARKS = re.compile(r"[\s\[\],>]+")  # of orders written as [[C]], [[D]] or C > D


def load_scores(scenario: Scenario) -> DataSet:
    """One answer a line and a human score from 1 to 5."""

    def read(line: Line) -> tuple[Any, tuple[str, ...]]:
        value = line.number("human")
        if not _LEVELS[0] <= value <= _LEVELS[1]:
            raise line.fail(f"'human' is {value:g}; expected a score from 1 to 5")
        return value, (str(line.values.get("answer", "")),)

    return _load(scenario, "score", "score_id", read)


def load_pairs(scenario: Scenario) -> DataSet:
    """Two answers a line and which one a human takes: A, B, or C for a tie."""

    def read(line: Line) -> tuple[Any, tuple[str, ...]]:
        truth = _MARKS.sub("", line.text("human_answer")).upper()
        truth = "C" if truth == "TIE" else truth
        if truth not in ("A", "B", "C"):
            raise line.fail(f"'human_answer' is {truth!r}; expected A, B, or C for a tie")
        return truth, (_answer(line, "answer1"), _answer(line, "answer2"))

    return _load(scenario, "pair", "pair_id", read)


def load_batches(scenario: Scenario) -> DataSet:
    """Several answers a line and the order a human puts them in, as letters with the best first."""

    def read(line: Line) -> tuple[Any, tuple[str, ...]]:
        answers = [_text(line, each) for each in line.several("answers")]
        written = line.values.get("human_answer")
        text = "".join(map(str, written)) if isinstance(written, list) else str(written or "")
        truth, letters = _MARKS.sub("", text).upper(), LETTERS[: len(answers)]
        if sorted(truth) != sorted(letters):
            raise line.fail(
                f"'human_answer' is {text!r}; expected each of {', '.join(letters)} once"
            )
        return truth, tuple(answers)

    return _load(scenario, "order", "batch_id", read)


def _load(
    scenario: Scenario,
    kind: Kind,
    key: str,
    read: Callable[[Line], tuple[Any, tuple[str, ...]]],
) -> DataSet:
    table = read_table(scenario.path)
    pictures = Pictures(scenario.images or scenario.path.parent)
    names = unique([line.text(key if line.has(key) else "id") for line in table.lines])
    examples = []
    for name, line in zip(names, table.lines, strict=True):
        truth, answers = read(line)
        image = line.text("image_path")
        examples.append(
            Example(
                id=name,
                # All answers about one picture are drawn again together.
                group=image,
                images=(pictures.path(image),),
                truths={"": truth},
                text=line.text("instruction") if line.has("instruction") else "",
                answers=answers,
                lines={"": line},
            )
        )
    labels = ("A", "B", "C") if kind == "pair" else ()
    return DataSet(tuple(examples), kind, labels, table.sha256)


def _answer(line: Line, key: str) -> str:
    return _text(line, line.values.get(key))


def _text(line: Line, value: Any) -> str:
    """An answer is an object with its text, or text alone."""
    found = value.get("answer") if isinstance(value, dict) else value
    if not isinstance(found, str):
        raise line.fail("an answer has no text; expected {'name': ..., 'answer': TEXT}")
    return found


def load_choices(scenario: Scenario) -> DataSet:
    """A question, its options, and the right one: its letter, its place from 0, or its words.

    Options are a list, a mapping from letters, or columns A, B, C and so on.
    """
    table = read_table(scenario.path)
    pictures = Pictures(scenario.images or scenario.path.parent)
    image, group = scenario.column("image"), scenario.column("group")
    if not any(line.has(image) for line in table.lines) and "image" not in scenario.columns:
        image = "image_path"
    examples, most = [], 0
    for name, line in zip(_names(table, scenario), table.lines, strict=True):
        options = _options(line, scenario.column("options"))
        most = max(most, len(options))
        written = line.text(image)
        examples.append(
            Example(
                id=name,
                group=line.text(group) if line.has(group) else written,
                images=(pictures.path(written),),
                truths={"": _right(line, scenario.column("answer"), options)},
                text=line.text(scenario.column("question")),
                options=options,
                lines={"": line},
            )
        )
    return DataSet(tuple(examples), "label", tuple(LETTERS[:most]), table.sha256)


def _names(table: Table, scenario: Scenario) -> list[str]:
    column = scenario.column("id")
    return unique(
        [line.text(column) if line.has(column) else f"{i}" for i, line in enumerate(table.lines)]
    )


def _options(line: Line, column: str) -> tuple[str, ...]:
    value = line.values.get(column)
    found: Sequence[Any]
    if isinstance(value, dict) or (isinstance(value, str) and value.lstrip().startswith("{")):
        pairs = line.pairs(column)
        letters = LETTERS[: len(pairs)]
        if sorted(pairs) != list(letters):
            raise line.fail(f"'{column}' has the keys {', '.join(pairs)}; expected {letters}")
        found = [pairs[letter] for letter in letters]
    elif line.has(column):
        found = line.several(column)
    else:
        found = [line.text(letter) for letter in LETTERS if line.has(letter)]
    options = tuple(str(option).strip() for option in found)
    if not 2 <= len(options) <= len(LETTERS) or not all(options):
        raise line.fail(f"{len(options)} options; expected 2 to {len(LETTERS)}, none of them empty")
    return options


def _right(line: Line, column: str, options: tuple[str, ...]) -> str:
    """Its letter."""
    text = line.text(column)
    letters = LETTERS[: len(options)]
    letter = re.sub(r"[\s\[\]().:]", "", text).upper()
    if len(letter) == 1 and letter in letters:
        return letter
    if text.isdecimal() and int(text) < len(options):
        return letters[int(text)]
    if options.count(text) == 1:
        return letters[options.index(text)]
    raise line.fail(
        f"'{column}' is {text!r}; expected a letter of {', '.join(letters)}, a place from 0, or "
        "the words of one option"
    )
