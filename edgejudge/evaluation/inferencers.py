"""How a judge is asked beside screening: questions, scores, comparisons, rankings.

Takes a judge, a recipe and a data set; gives adapters that all answer in one form. Knows the calls
of a Judge and nothing of graphs. What an example's pictures or text make impossible is said of that
example; what no example could be asked is an error before anything runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgejudge.answering import wordings
from edgejudge.errors import InputError, ProviderError
from edgejudge.evaluation.adapter_screen import Screen
from edgejudge.evaluation.adapters import Adapter, Judged, Said, expect_answers, expect_images
from edgejudge.evaluation.examples import DataSet, Example, named
from edgejudge.evaluation.recipe import Recipe
from edgejudge.evaluation.rows import Exceptional, Kind, level
from edgejudge.images import ImageInput

if TYPE_CHECKING:
    from edgejudge.answering.answers import Provenance, Score
    from edgejudge.judge import Judge

__all__ = ["adapter_for"]

ANSWER = (
    "Here is a request, and an answer to it.\n"
    "[Request]\n{instruction}\n[Answer]\n{answer}\n[End of answer]\n"
    "How {criterion} is the answer, from {first} to {last}?"
)


def adapter_for(recipe: Recipe, judge: "Judge", data: DataSet) -> Adapter:
    """Raises InputError for data that this inferencer cannot be asked about."""
    made: Adapter = _ADAPTERS[recipe.inferencer.name](recipe, judge, data)
    return made


class _Other(ABC):
    """What the inferencers beside screening share: one target, and no policy."""

    kind: Kind
    gives = frozenset({"probabilities", "cost", "stages_ms"})
    sha256: str | None = None
    calibration: str | None = None

    def __init__(self, recipe: Recipe, judge: "Judge", data: DataSet) -> None:
        self.instruction, self.name = recipe.instruction, recipe.inferencer.name
        self._judge = judge
        if data.kind != self.kind:
            raise InputError(
                "recipe",
                f"{recipe.path}: {self.name} answers with kind {self.kind}, and the scenario's "
                f"truths are of kind {data.kind}; choose another inferencer or loader",
            )
        targets = sorted({t for each in data.examples for t in each.truths} - {""})
        if targets:
            raise InputError(
                "data", f"{self.name} gives one answer, and the data has targets {named(targets)}"
            )
        self.data = data

    def judge(self, example: Example, images: Sequence[ImageInput]) -> Judged:
        try:
            said, made = self.ask(example, images)
        except (InputError, ProviderError) as error:
            code = error.code if isinstance(error, InputError) else "engine_failed"
            return Judged({"": Said(None, f"{code}: {error}")})
        cost = {"questions": float(sum(each.questions for each in made))}
        stages: dict[str, float] = {}
        for each in made:
            for stage, ms in each.stages_ms.items():
                stages[stage] = stages.get(stage, 0.0) + ms
        return Judged({"": said}, cost, stages)

    @abstractmethod
    def ask(
        self, example: Example, images: Sequence[ImageInput]
    ) -> "tuple[Said, list[Provenance]]":
        """What is said of one example, and how each answer came about."""

    def exceptions(self, example: Example, images: Sequence[ImageInput]) -> tuple[Exceptional, ...]:
        return ()

    def need(self, value: str | None, what: str) -> str:
        if value is None:
            raise InputError("recipe", f"{self.name} needs {what}; add it to the recipe")
        return value


class _Ask(_Other):
    kind: Kind = "label"

    def __init__(self, recipe: Recipe, judge: "Judge", data: DataSet) -> None:
        super().__init__(recipe, judge, data)
        if not all(each.text for each in data.examples):
            self.need(self.instruction.question, "instruction.question")
        if self.instruction.labels and not any(each.options for each in data.examples):
            self.data = replace(data, labels=self.instruction.labels)
        strangers = {e.truths[""] for e in data.examples} - set(self.data.labels)
        if strangers:
            raise InputError(
                "data",
                f"the truth {named(sorted(strangers))} is none of the labels "
                f"{', '.join(self.data.labels)}",
            )

    def ask(
        self, example: Example, images: Sequence[ImageInput]
    ) -> "tuple[Said, list[Provenance]]":
        question = self.instruction.question or example.text
        options = example.options or self.data.labels
        answer = self._judge.ask(
            list(images),
            question,
            options,
            choices=bool(example.options),
            wording=self.instruction.wording,
        )
        names = self.data.labels if example.options else options
        found = {name: each.probability for name, each in zip(names, answer.labels, strict=False)}
        place = [each.label for each in answer.labels].index(answer.label)
        return Said(names[place], None, found), [answer.made]


class _Score(_Other):
    kind: Kind = "score"

    def __init__(self, recipe: Recipe, judge: "Judge", data: DataSet) -> None:
        from edgejudge.answering.rubric_files import read_rubric
        from edgejudge.answering.rubrics import Rubric, Tasks, rubric

        super().__init__(recipe, judge, data)
        given = self.instruction
        made: Rubric | Tasks
        if given.rubric is not None:
            made = read_rubric(given.rubric)
        else:
            criterion = self.need(given.criterion, "instruction.criterion or instruction.rubric")
            about_answers = any(each.answers for each in data.examples)
            wording = None if about_answers else given.wording
            made = rubric(criterion, given.method or "rubric", wording=wording)
        self._rubric = made
        if isinstance(made, Tasks):
            self.gives = self.gives - {"probabilities"}

    def ask(
        self, example: Example, images: Sequence[ImageInput]
    ) -> "tuple[Said, list[Provenance]]":
        from edgejudge.answering.rubrics import Rubric

        found = self._rubric
        if example.answers:
            if isinstance(found, Rubric):
                found = self._about(found, example)
            else:
                rubrics = tuple(self._about(each, example) for each in found.rubrics)
                found = replace(found, rubrics=rubrics)
        score = self._judge.score(list(images), found)
        return Said(score.value, None, _levels(score)), [score.made]

    def _about(self, rubric: Any, example: Example) -> Any:
        """The same rubric, asked of an answer. What the answer says is text, braces too."""
        text = wordings.fill(
            self.instruction.wording or ANSWER,
            ["answer"],
            instruction=example.text,
            answer=example.answers[0],
            criterion=rubric.criterion,
            first=rubric.labels[0],
            last=rubric.labels[-1],
        )
        return replace(rubric, criterion=text, wording="{criterion}", lead="")


class _Compare(_Other):
    kind: Kind = "pair"
    gives = _Other.gives | {"orders"}

    def __init__(self, recipe: Recipe, judge: "Judge", data: DataSet) -> None:
        super().__init__(recipe, judge, data)
        pictures = replace(data, examples=tuple(e for e in data.examples if not e.answers))
        if pictures.examples:
            self.need(self.instruction.criterion, "instruction.criterion")
            expect_images(pictures, 2, 2, self.name)
        expect_answers(data, 2, 2, self.name)

    def ask(
        self, example: Example, images: Sequence[ImageInput]
    ) -> "tuple[Said, list[Provenance]]":
        given = self.instruction
        if example.answers:
            found = _compared(self._judge, example, images, (0, 1), given)
        else:
            found = self._judge.compare(
                images[0], images[1], given.criterion or "", wording=given.wording
            )
        said = Said(
            _LETTERS[found.winner],
            None,
            {"A": found.probability_a, "B": found.probability_b},
            tuple(_LETTERS[order.says] for order in found.orders),
        )
        return said, [found.made]


class _Rank(_Other):
    kind: Kind = "order"
    gives = _Other.gives - {"probabilities"}

    def __init__(self, recipe: Recipe, judge: "Judge", data: DataSet) -> None:
        super().__init__(recipe, judge, data)
        pictures = replace(data, examples=tuple(e for e in data.examples if not e.answers))
        if pictures.examples:
            self.need(self.instruction.criterion, "instruction.criterion")
            expect_images(pictures, 2, 26, self.name)
        expect_answers(data, 2, 26, self.name)
        method = self.instruction.method or "pairs"
        if method not in ("pairs", "yes") or (method == "yes" and not pictures.examples):
            raise InputError(
                "recipe", f"{recipe.path}: rank has the methods pairs, and yes for pictures"
            )
        self._method: Any = method

    def ask(
        self, example: Example, images: Sequence[ImageInput]
    ) -> "tuple[Said, list[Provenance]]":
        from edgejudge.answering.pairing import bradley_terry, pairs_within

        given = self.instruction
        if not example.answers:
            found = self._judge.rank(
                images, given.criterion or "", method=self._method, wording=given.wording
            )
            if found.unranked:
                lost = found.unranked[0]
                raise InputError(lost.error.code, f"picture {lost.index}: {lost.error.message}")
            return Said(_letters([each.index for each in found.ranked])), [found.made]
        pairs = pairs_within(len(example.answers), None)
        compared = [_compared(self._judge, example, images, pair, given) for pair in pairs]
        wins = [each.probability_a for each in compared]
        strengths = bradley_terry(len(example.answers), pairs, wins).tolist()
        order = sorted(range(len(strengths)), key=lambda i: (-strengths[i], i))
        return Said(_letters(order)), [each.made for each in compared]


_ADAPTERS: dict[str, Any] = {
    "screen": Screen,
    "ask": _Ask,
    "score": _Score,
    "compare": _Compare,
    "rank": _Rank,
}
_LETTERS = {"a": "A", "b": "B", "tie": "C", "inconclusive": "inconclusive"}


def _compared(
    judge: "Judge",
    example: Example,
    images: Sequence[ImageInput],
    pair: tuple[int, int],
    given: Any,
) -> Any:
    first, second = (example.answers[i] for i in pair)
    criterion = {} if given.criterion is None else {"criterion": given.criterion}
    return judge.compare_answers(
        list(images), example.text, first, second, wording=given.wording, **criterion
    )


def _letters(order: Sequence[int]) -> str:
    return "".join(chr(ord("A") + index) for index in order)


def _levels(score: "Score") -> dict[str, float] | None:
    """P(level) of one rubric, by what the levels are worth."""
    if len(score.tasks) != 1:
        return None
    found: dict[str, float] = {}
    for each in score.tasks[0].levels:
        key = level(each.value)
        found[key] = found.get(key, 0.0) + each.probability
    return found
