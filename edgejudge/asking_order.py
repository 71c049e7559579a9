"""Which rules to ask first when not all can be: the most expected information per millisecond.

Takes a plan, what is known before a picture is seen, and a picture's watch; gives rules in order,
and the questions of one pass after another. Knows no engine and no pictures.

The expected information of asking a rule is the entropy of whether it is broken, H(p) = -p log2 p
- (1 - p) log2(1 - p), since its answers are taken to settle it (Lindley, On a Measure of the
Information Provided by an Experiment, 1956). Taking the best ratio of gain to cost first is the
greedy rule for a budgeted knapsack (Dantzig, Discrete-Variable Extremum Problems, 1957).
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from edgejudge.cases import Cases
from edgejudge.plan import Plan, PlannedRule
from edgejudge.time_budget import Watch
from edgejudge.verdict import Note, RuleVerdict

__all__ = [
    "by_information",
    "information",
    "passes",
    "prior_texts",
    "probably_broken",
    "token_nodes",
    "unasked",
]


def prior_texts(plan: Plan) -> list[str]:
    """The conditions whose language prior tells how probable a rule is: of rules for which no
    labels did.
    """
    rules = [rule for rule in plan.rules if rule.calibration is None]
    return [question.text for rule in rules for either in rule.conditions for question in either]


def probably_broken(rule: PlannedRule, priors: Mapping[str, float]) -> float:
    """Before a picture is seen: the share of broken ones among a calibration's labels, else the
    language priors, by maximum of alternatives and minimum of conditions.
    """
    if rule.calibration is not None:
        return rule.calibration.base_rate
    return min(max(priors[question.text] for question in either) for either in rule.conditions)


def information(p: float) -> float:
    """Bits of a yes or no that is yes with probability p."""
    if not 0.0 < p < 1.0:
        return 0.0
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def token_nodes(branches: Sequence[Sequence[int]]) -> list[frozenset[int]]:
    """By branch, the nodes of the tree of all of them that it goes through: a pass computes each
    node once, so that it takes as many tokens as its branches have nodes together.
    """
    known: dict[tuple[int, int], int] = {}
    found = []
    for branch in branches:
        path, node = set(), -1
        for token in branch:
            node = known.setdefault((node, token), len(known))
            path.add(node)
        found.append(frozenset(path))
    return found


def by_information(plan: Plan, priors: Mapping[str, float]) -> tuple[str, ...]:
    """Ids of the rules, each the best of those that are left: bits by tokens that no earlier one
    needs.

    A pass takes a + b * tokens ms whatever is in it, so the best per token is the best per
    millisecond, and the order hinges on no measurement. Rules that the bundle's concepts leave
    undecided whatever it answers tell nothing and come last; equals keep the policy's order.
    """
    nodes = token_nodes(plan.branches)
    needs = {
        rule.id: frozenset().union(
            *(nodes[question.branch] for either in rule.conditions for question in either)
        )
        for rule in plan.rules
    }
    bits = {
        rule.id: information(probably_broken(rule, priors)) if _can_be_decided(rule) else 0.0
        for rule in plan.rules
    }
    order: list[str] = []
    there: frozenset[int] = frozenset()
    while len(order) < len(plan.rules):
        left = [rule.id for rule in plan.rules if rule.id not in order]
        best = max(left, key=lambda rule: _ratio(bits[rule], len(needs[rule] - there)))
        there |= needs[best]
        order.append(best)
    return tuple(order)


def passes(cases: Cases, plan: Plan, order: Sequence[str], watch: Watch) -> Iterator[list[int]]:
    """Branches of one pass after another, which are to be answered in `cases` before the next is
    taken: of as many rules in this order as are predicted to fit what is left of the time.

    An order is not left for a rule that would still fit, so that more time never decides less.
    With `first_broken` passes have 1, 2, 4, ... rules, and end with the one that finds one broken.
    """
    budget = plan.budget
    if budget is None:
        if branches := cases.branches():
            yield branches
        return
    nodes = token_nodes(plan.branches)
    most = 1 if budget.first_broken else len(order)
    while waiting := cases.waiting():
        chosen: set[int] = set()
        tokens: set[int] = set()
        for rule in [each for each in order if each in waiting][:most]:
            more = tokens.union(*(nodes[branch] for branch in waiting[rule]))
            if not watch.fits_pass(len(more)):
                break
            tokens = more
            chosen.update(waiting[rule])
        if not chosen:
            return
        yield sorted(chosen)
        if budget.first_broken and cases.broken():
            return
        most *= 2


def unasked(rules: Sequence[RuleVerdict], plan: Plan, asked: bool) -> tuple[Note, ...]:
    """What a reader of the verdict should know of rules that were not asked for lack of time;
    `asked` is whether anything was.
    """
    budget = plan.budget
    left = sum(
        any(each.test == "not_asked" for part in rule.conditions for each in part.alternatives)
        for rule in rules
    )
    if budget is None or not left:
        return ()
    if not asked:
        message = f"{budget.ms:g} ms were over before anything could be asked"
        return (Note("over_time", message),)
    why = f"within {budget.ms:g} ms"
    if budget.first_broken and any(rule.verdict == "unsafe" for rule in rules):
        why = "after one was found broken"
    return (Note("not_asked", f"{left} of {len(rules)} rules were not asked {why}"),)


def _can_be_decided(rule: PlannedRule) -> bool:
    """Whether answers could make a condition fail, or all of them hold."""
    parts = rule.conditions
    return any(all(question.known for question in either) for either in parts) or all(
        any(question.known for question in either) for either in parts
    )


def _ratio(bits: float, tokens: int) -> float:
    return bits / tokens if tokens else (math.inf if bits else 0.0)
