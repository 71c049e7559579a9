"""Screening as a recipe asks for it: a picture against a policy, and against changed ones.

Takes a judge, a recipe and a data set; gives an adapter. Targets are rules, or "" for the picture.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgejudge.errors import InputError
from edgejudge.evaluation.adapters import Judged, Said, expect_images
from edgejudge.evaluation.examples import DataSet, Example, named
from edgejudge.evaluation.recipe import Change, Recipe
from edgejudge.evaluation.recorded_screens import as_screened, screen_answer, screen_cost
from edgejudge.evaluation.rows import Exceptional
from edgejudge.evaluation.tables import NO_WORDS, YES_WORDS
from edgejudge.images import ImageInput
from edgejudge.policy import load_policy

if TYPE_CHECKING:
    from edgejudge.judge import Judge
    from edgejudge.plan import Plan

__all__ = ["Screen"]


class Screen:
    """An Adapter; `calibration` is the id of the one that decides, if one does."""

    def __init__(self, recipe: Recipe, judge: "Judge", data: DataSet) -> None:
        how, name = recipe.inferencer, recipe.instruction.policy
        self.data = as_screened(data)
        expect_images(self.data, 1, 1, "screen")
        self._judge = judge
        self._plan = self._planned(recipe, {})
        self.sha256: str | None = self._plan.sha256
        self.calibration = self._plan.calibration
        self._tokens = sum(map(len, self._plan.branches))
        self.gives = frozenset({"cost", "stages_ms"})
        if self._plan.whole is None:  # an answer for the whole policy has no probabilities
            self.gives |= {"probabilities"}
        rules = [rule.id for rule in load_policy(name).rules]
        strangers = sorted({t for each in data.examples for t in each.truths} - {"", *rules})
        if strangers:
            raise InputError(
                "data",
                f"policy '{self._plan.policy}' has no rule {named(strangers)}; its rules are "
                f"{', '.join(rules)}",
            )
        # With the rules that are still judged under each.
        self._changes: list[tuple[Change, Plan, frozenset[str]]] = []
        for change in how.exceptions:
            if change.column is None and change.strictness != "allowed":
                raise InputError(
                    "recipe",
                    f"{recipe.path}: what is right under '{change.title}' does not follow from the "
                    "rules' truths; name the column that says so as its label",
                )
            strictness = {change.name: change.strictness}
            judged = load_policy(name).with_strictness(strictness).rules
            plan = self._planned(recipe, strictness)
            self._changes.append((change, plan, frozenset(rule.id for rule in judged)))
        if self._changes:
            self.gives |= {"exceptions"}

    def _planned(self, recipe: Recipe, strictness: dict[str, str]) -> "Plan":
        how = recipe.inferencer
        return self._judge.plan(
            recipe.instruction.policy,
            strictness=strictness or None,
            method=how.method,
            reasoning=how.reasoning,
            relevance_gate=how.relevance_gate,
        )

    def judge(self, example: Example, images: Sequence[ImageInput]) -> Judged:
        verdict = self._judge.screen(images[0], self._plan)
        value = verdict.to_json()
        said = {}
        for target in example.truths:
            seen, why = screen_answer(target, value, example.id)
            said[target] = Said(seen.prediction, why, seen.probabilities)
        cost = screen_cost(value) or {}
        if self._tokens:
            cost["question_tokens"] = float(self._tokens)
        return Judged(said, cost or None, dict(verdict.stages_ms) or None)

    def exceptions(self, example: Example, images: Sequence[ImageInput]) -> tuple[Exceptional, ...]:
        """Of the whole picture, where another verdict is right under the changed policy."""
        broken = {target for target, truth in example.truths.items() if truth == "unsafe"}
        rules = broken - {""}
        made = []
        for change, plan, judged in self._changes:
            if change.column is not None:
                expected = _stated(example, change.column)
            else:  # nothing follows where only the picture is known to be unsafe
                expected = "safe" if rules and not rules & judged else None
            if expected is None or expected == ("unsafe" if broken else "safe"):
                continue
            verdict = self._judge.screen(images[0], plan)
            made.append(Exceptional(change.title, expected, verdict.verdict))
        return tuple(made)


def _stated(example: Example, column: str) -> str | None:
    line = next(iter(example.lines.values()), None)
    if line is None or not line.has(column):
        return None
    text = line.text(column).lower()
    if text not in YES_WORDS + NO_WORDS:
        raise line.fail(f"'{column}' is {text!r}; expected safe or unsafe")
    return "unsafe" if text in YES_WORDS else "safe"
