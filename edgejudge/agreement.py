"""Two judges asked the same: how many of their decisions differ.

Takes two judges, pictures and a policy; gives a tally of every condition's decision, the first
judge's held against the second's. Both may be one bundle on different devices, or two recipes of
one checkpoint. Does not say what is few enough; that is gate's.
"""

from collections.abc import Callable, Iterable
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from edgejudge.errors import InputError
from edgejudge.gate import Tally

if TYPE_CHECKING:
    from edgejudge.judge import Judge
    from edgejudge.policy import Policy
    from edgejudge.verdict import Verdict

__all__ = ["agreement"]


def agreement(
    judge: "Judge",
    reference: "Judge",
    pictures: Iterable[str],
    policy: "str | PathLike[str] | Policy" = "stickers",
    progress: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Raises InputError where either cannot judge a picture: nothing is compared then."""
    tally = Tally()
    for path in pictures:
        progress(path)
        found, wanted = judge.screen(path, policy), reference.screen(path, policy)
        for verdict in (found, wanted):
            if verdict.error is not None:
                raise InputError(verdict.error.code, f"{path}: {verdict.error.message}")
        names, thresholds, ours = _asked(found)
        other_names, _, theirs = _asked(wanted)
        if names != other_names:
            raise InputError("policy", f"{path}: the two judges were asked different questions")
        rules: list[tuple[str, ...]] = [(rule,) for rule, _ in names]
        tally.add(path, rules, np.array(ours), np.array(theirs), np.array(thresholds))
    return tally


def _asked(verdict: "Verdict") -> tuple[list[tuple[str, str]], list[float], list[float]]:
    """Rule and text of each question, the rule's threshold, and the answer."""
    names, thresholds, answers = [], [], []
    for rule in verdict.rules:
        for condition in rule.conditions:
            for question in condition.alternatives:
                if rule.threshold is None or question.probability is None:
                    raise InputError(
                        "policy", "agreement is counted over thresholds; give a policy without clue"
                    )
                names.append((rule.id, question.text))
                thresholds.append(rule.threshold)
                answers.append(question.probability)
    return names, thresholds, answers
