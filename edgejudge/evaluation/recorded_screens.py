"""Verdicts of `edgejudge screen` as rows: one for the picture, or one for each rule.

Takes the JSON of verdicts; gives rows. The target "" is the picture, the others are rules' ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgejudge.errors import InputError
from edgejudge.evaluation.examples import SAFE_UNSAFE, DataSet, Example
from edgejudge.evaluation.matching import NO_OUTPUT, make_row
from edgejudge.evaluation.rows import Row, Seen
from edgejudge.evaluation.tables import NO_WORDS, YES_WORDS, Line

__all__ = ["as_screened", "screen_answer", "screen_cost", "screened"]

_COSTS = ("image_prefixes", "reasoning_calls")
_WORDS = {**dict.fromkeys(YES_WORDS, "unsafe"), **dict.fromkeys(NO_WORDS, "safe")}


def as_screened(data: DataSet) -> DataSet:
    """Truths as a screening has them: safe or unsafe, also where they are written as 0 and 1."""
    if data.kind != "label":
        raise InputError(
            "data", f"a screening decides labels, and this scenario is of kind {data.kind}"
        )

    def word(example: Example, truth: Any) -> str:
        if str(truth).lower() not in _WORDS:
            raise InputError(
                "data",
                f"the truth of {example.id} is '{truth}'; a screening is told one of "
                f"{', '.join(_WORDS)}",
            )
        return _WORDS[str(truth).lower()]

    examples = tuple(
        replace(each, truths={aim: word(each, truth) for aim, truth in each.truths.items()})
        for each in data.examples
    )
    return replace(data, examples=examples, labels=SAFE_UNSAFE)


def screened(
    data: DataSet, found: Mapping[str, Sequence[Line]]
) -> tuple[tuple[Row, ...], Mapping[str, Any] | None]:
    """A row per example and target, from its verdict, and the bundle if all are of one."""
    rows = []
    bundles: dict[str, Mapping[str, Any]] = {}
    for example in data.examples:
        line = next(iter(found.get(example.id, [])), None)
        for aim in example.truths:
            if line is None:
                rows.append(make_row(example, aim, data.kind, None, NO_OUTPUT))
            else:
                rows.append(_row(example, aim, line.values, line.where))
                bundle = line.values.get("bundle")
                if isinstance(bundle, Mapping):
                    bundles[str(bundle.get("sha256"))] = bundle
    return tuple(rows), next(iter(bundles.values())) if len(bundles) == 1 else None


def _row(example: Example, aim: str, verdict: Mapping[str, Any], where: str) -> Row:
    """One decision of a screening, from the verdict's JSON."""
    seen, why = screen_answer(aim, verdict, where)
    stages = verdict.get("stages_ms") or None
    if stages and isinstance(second := verdict.get("escalated"), dict):
        stages = {**stages, "second bundle": sum(second["stages_ms"].values())}
    return make_row(
        example,
        aim,
        "label",
        seen.prediction,
        why,
        probabilities=seen.probabilities,
        cost=screen_cost(verdict),
        stages_ms={str(k): float(v) for k, v in stages.items()} if stages else None,
    )


def screen_answer(aim: str, verdict: Mapping[str, Any], where: str) -> tuple[Seen, str | None]:
    """What a verdict says of a rule, or of the picture for "": its word and P(unsafe), or why it
    says nothing. A picture is as unsafe as its most probable rule.
    """
    if verdict.get("verdict") is None:
        error = verdict.get("error") or {}
        return Seen(None, None), f"{error.get('code', 'failed')}: {error.get('message', '')}"
    rules = {rule["id"]: rule for rule in verdict["rules"]}
    if aim and aim not in rules:
        raise InputError(
            "data", f"{where}: there is no rule '{aim}'; the rules are {', '.join(rules)}"
        )
    said = rules[aim] if aim else verdict
    numbers = [rule.get("probability") for rule in ([rules[aim]] if aim else rules.values())]
    known = [float(p) for p in numbers if p is not None]
    if not all(0 <= p <= 1 for p in known):
        raise InputError("data", f"{where}: a probability is not from 0 to 1")
    p = max(known, default=None)
    beliefs = None if p is None else {"safe": 1 - p, "unsafe": p}
    return Seen(str(said["verdict"]), beliefs), None


def screen_cost(verdict: Mapping[str, Any]) -> dict[str, float] | None:
    """What a verdict says that it took; None where it says nothing."""
    found = {key: verdict[key] for key in _COSTS if isinstance(verdict.get(key), int | float)}
    return {key: float(value) for key, value in found.items()} or None
