"""A picture and changed copies of it, judged together: what they say on average, and how far apart.

Takes the answers of each, by branch of a plan; gives mean answers, and rules that say how stable
they are. Knows no pictures and no engine.

P(yes) of each question is averaged as a probability, not as a logit. The mean is then the answer
for a copy drawn by chance, and a copy moves it by at most 1 / N, however sure of itself it is; in
logits a single 0.9999 would outweigh eight times 0.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum
from statistics import pstdev

from edgejudge.cases import Cases
from edgejudge.copies import MOST_COPIES
from edgejudge.errors import InputError
from edgejudge.plan import Plan
from edgejudge.verdict import Note, RuleVerdict, Stability

__all__ = ["Answers", "mean_answers", "stably", "steadied"]

Answers = Mapping[int, float]  # P(yes) by branch


def stably(plan: Plan, copies: int) -> Plan:
    """The plan with so many changed copies; 0 leaves it as it is. Raises InputError "stable" for
    what cannot be.
    """
    if not copies:
        return plan
    if not 1 <= copies <= MOST_COPIES:
        raise InputError(
            "stable", f"{copies} copies; a picture is judged with 1 to {MOST_COPIES} of them"
        )
    if plan.whole is not None:
        raise InputError(
            "stable", f"policy '{plan.policy}' is judged as a whole, which has no average"
        )
    if plan.budget is not None:
        raise InputError("stable", "copies take their time; give a time budget or them, not both")
    return replace(plan, stable=copies)


def mean_answers(each: Sequence[Answers]) -> dict[int, float]:
    return {branch: fsum(one[branch] for one in each) / len(each) for branch in each[0]}


def steadied(
    rules: Sequence[RuleVerdict],
    plan: Plan,
    priors: Mapping[str, float],
    each: Mapping[str, Answers],
) -> tuple[tuple[RuleVerdict, ...], tuple[Note, ...]]:
    """The rules that the mean decided, with their stability over `each` picture's own answers, and
    notes on those that some break and others do not.

    A picture by itself is decided by its answers alone, without regions and reasoning.
    """
    alone = {name: _alone(plan, priors, answers) for name, answers in each.items()}
    made, notes = [], []
    for place, rule in enumerate(rules):
        own = {name: found[place] for name, found in alone.items()}
        known = [one.probability for one in own.values() if one.probability is not None]
        if rule.probability is None or len(known) < len(own):  # the gate skipped it
            made.append(rule)
            continue
        broken, kept = (
            tuple(name for name, one in own.items() if one.verdict == verdict)
            for verdict in ("unsafe", "safe")
        )
        stability = Stability(len(own), min(known), max(known), pstdev(known), broken, kept)
        made.append(replace(rule, stability=stability))
        if broken and (kept or rule.verdict == "safe"):
            message = (
                f"{rule.id} is {min(known):.2f} to {max(known):.2f} over the picture and its "
                f"copies, broken in {', '.join(broken)} alone"
            )
            notes.append(Note("unstable", message, doubtful=rule.verdict == "safe"))
    return tuple(made), tuple(notes)


def _alone(plan: Plan, priors: Mapping[str, float], answers: Answers) -> tuple[RuleVerdict, ...]:
    cases = Cases.of(plan, priors, lambda *_: ((), False))
    cases.answer(answers)
    return cases.verdicts()
