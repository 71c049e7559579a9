"""From answered questions to a verdict: the band, OR and AND, unknown concepts, doubtful inputs.

Takes P(yes) per question, or questions that CLUE decided; gives rule and picture outcomes.
Three-valued throughout: what is not clearly above or below its threshold is `uncertain`, and so is
what the bundle never claimed to know and what was not asked. Knows nothing of images, tokens or
engines.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from edgejudge.verdict import (
    AlternativeVerdict,
    Answered,
    ConditionVerdict,
    Note,
    Outcome,
    RuleVerdict,
)

__all__ = ["by_threshold", "conclude", "decide_picture", "decide_rule", "uncertain_between"]


def uncertain_between(threshold: float, band: float) -> tuple[float, float]:
    """The open interval around `threshold` in which nothing is decided.

    A band wider than half of the way to 0 or to 1 is cut there: otherwise a low threshold could
    never be passed safely, and a high one never be broken.
    """
    if not 0.0 < threshold < 1.0 or not 0.0 <= band < 1.0:
        raise ValueError(f"threshold {threshold} and band {band} must lie between 0 and 1")
    return max(threshold - band, threshold / 2), min(threshold + band, (1 + threshold) / 2)


def decide_rule(
    rule_id: str,
    text: str,
    category: str,
    threshold: float,
    band: float,
    conditions: Sequence[Sequence[AlternativeVerdict]],
) -> RuleVerdict:
    """One rule from its answered questions, [condition][alternative], by a threshold."""
    between = uncertain_between(threshold, band)
    decided = [[by_threshold(each, between) for each in either] for either in conditions]
    return conclude(rule_id, text, category, decided, threshold, between)


def by_threshold(question: AlternativeVerdict, between: tuple[float, float]) -> AlternativeVerdict:
    """The question, decided by where its probability lies; `conclude` refuses one that is none."""
    if not question.known:
        return replace(question, outcome="uncertain", test="unknown_concept")
    if question.probability is None:
        return replace(question, outcome="uncertain", test="not_asked")
    low, high = between
    outcome: Answered = "holds" if question.probability >= high else "fails"
    if low < question.probability < high:
        outcome = "uncertain"
    return replace(question, outcome=outcome, test="threshold")


def conclude(
    rule_id: str,
    text: str,
    category: str,
    conditions: Sequence[Sequence[AlternativeVerdict]],
    threshold: float | None,
    between: tuple[float, float] | None,
    relevance: float | None = None,
) -> RuleVerdict:
    """One rule from its decided questions, [condition][alternative]. Raises ValueError for a
    probability that is none.
    """
    if not conditions:
        raise ValueError(f"rule '{rule_id}' has no conditions, so nothing was asked")
    judged = tuple(_condition(alternatives) for alternatives in conditions)
    outcomes = [condition.outcome for condition in judged]
    verdict: Outcome = "uncertain"
    if "fails" in outcomes:
        verdict = "safe"
    elif all(outcome == "holds" for outcome in outcomes):
        verdict = "unsafe"
    raw = [_largest(each.raw_probability for each in either) for either in conditions]
    return RuleVerdict(
        id=rule_id,
        text=text,
        category=category,
        verdict=verdict,
        probability=_smallest(condition.probability for condition in judged),
        threshold=threshold,
        uncertain_between=between,
        conditions=judged,
        raw_probability=_smallest(raw),
        relevance=relevance,
    )


def decide_picture(rules: Iterable[RuleVerdict], notes: Iterable[Note]) -> Outcome:
    """`unsafe` if any rule is broken, else `uncertain` if anything is in doubt, else `safe`."""
    outcomes = {rule.verdict for rule in rules}
    if "unsafe" in outcomes:
        return "unsafe"
    if "uncertain" in outcomes or any(note.doubtful for note in notes):
        return "uncertain"
    return "safe"


def _condition(alternatives: Sequence[AlternativeVerdict]) -> ConditionVerdict:
    for each in alternatives:
        p = each.probability
        if p is not None and not 0.0 <= p <= 1.0:  # NaN too, which comparisons would let pass
            raise ValueError(f"'{each.text}' has probability {p}, not one in 0..1")
    outcomes = [alternative.outcome for alternative in alternatives]
    outcome: Answered = "uncertain"
    if "holds" in outcomes:
        outcome = "holds"
    elif all(each == "fails" for each in outcomes):
        outcome = "fails"
    # Of those that could have decided so, the one that speaks for it most.
    places = [place for place, each in enumerate(outcomes) if each == outcome]
    return ConditionVerdict(
        outcome=outcome,
        probability=_largest(alternative.probability for alternative in alternatives),
        alternatives=tuple(alternatives),
        decided_by=max(places, key=lambda place: alternatives[place].probability or 0.0),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _smallest(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
