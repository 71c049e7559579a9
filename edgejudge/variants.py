"""One file that may be seen in several ways: which of them counts.

Takes the rules of each variant, decided by itself; gives those of the file. Knows no pictures and
no judge.
"""

from collections.abc import Sequence

from edgejudge.verdict import ConditionVerdict, RuleVerdict

__all__ = ["badness", "worst", "worst_place"]

_RANKS = {"safe": 0, "uncertain": 1, "unsafe": 2}
_NOT_ASKED = -2.0  # below any probability, and any that was debiased


def badness(rule: RuleVerdict) -> tuple[int, float]:
    """How bad a rule's outcome is: the verdict first, then its probability, or its debiased score
    where CLUE decides. Larger is worse.
    """
    return _RANKS[rule.verdict], min(map(_score, rule.conditions), default=_NOT_ASKED)


def worst(variants: Sequence[Sequence[RuleVerdict]]) -> tuple[RuleVerdict, ...]:
    """For each rule the worst of the variants, of equal ones the first. All have the same rules."""
    return tuple(max(rules, key=badness) for rules in zip(*variants, strict=True))


def worst_place(variants: Sequence[Sequence[RuleVerdict]]) -> int:
    """The variant with the worst rule."""
    found = [max(map(badness, rules), default=(0, _NOT_ASKED)) for rules in variants]
    return found.index(max(found))


def _score(condition: ConditionVerdict) -> float:
    """P(yes) less the language prior where there is one, of the alternative that has most."""
    asked = [each for each in condition.alternatives if each.probability is not None]
    scores = [(each.probability or 0.0) - (each.prior or 0.0) for each in asked]
    return max(scores, default=_NOT_ASKED)
