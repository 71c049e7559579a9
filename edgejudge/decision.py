"""From probabilities to a verdict: the band, OR and AND, unknown concepts, doubtful inputs.

Takes P(yes) per question; gives rule and picture outcomes. Three-valued throughout: what is not
clearly above or below its threshold is `uncertain`, and so is what the bundle never claimed to
know. Knows nothing of images, tokens or engines.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from edgejudge.verdict import AlternativeVerdict, ConditionVerdict, Note, Outcome, RuleVerdict

__all__ = ["decide_picture", "decide_rule", "uncertain_between"]


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
    """One rule from its answered questions, [condition][alternative]."""
    interval = uncertain_between(threshold, band)
    judged = tuple(_decide_condition(alternatives, interval) for alternatives in conditions)
    outcomes = [condition.outcome for condition in judged]
    verdict: Outcome = "uncertain"
    if "fails" in outcomes:
        verdict = "safe"
    elif all(outcome == "holds" for outcome in outcomes):
        verdict = "unsafe"
    return RuleVerdict(
        id=rule_id,
        text=text,
        category=category,
        verdict=verdict,
        probability=min(condition.probability for condition in judged),
        threshold=threshold,
        uncertain_between=interval,
        conditions=judged,
    )


def decide_picture(rules: Iterable[RuleVerdict], notes: Iterable[Note]) -> Outcome:
    """`unsafe` if any rule is broken, else `uncertain` if anything is in doubt, else `safe`."""
    outcomes = {rule.verdict for rule in rules}
    if "unsafe" in outcomes:
        return "unsafe"
    if "uncertain" in outcomes or any(note.doubtful for note in notes):
        return "uncertain"
    return "safe"


def _decide_condition(
    alternatives: Sequence[AlternativeVerdict], interval: tuple[float, float]
) -> ConditionVerdict:
    outcomes = [_decide_question(alternative, interval) for alternative in alternatives]
    outcome: Literal["holds", "fails", "uncertain"] = "uncertain"
    if "holds" in outcomes:
        outcome = "holds"
    elif all(each == "fails" for each in outcomes):
        outcome = "fails"
    return ConditionVerdict(
        outcome=outcome,
        probability=max(alternative.probability for alternative in alternatives),
        alternatives=tuple(alternatives),
    )


def _decide_question(
    alternative: AlternativeVerdict, interval: tuple[float, float]
) -> Literal["holds", "fails", "uncertain"]:
    low, high = interval
    probability = alternative.probability
    if not 0.0 <= probability <= 1.0:  # also true for NaN, which every comparison would let pass
        raise ValueError(f"'{alternative.text}' has probability {probability}, not one in 0..1")
    if not alternative.known or low < probability < high:
        return "uncertain"
    return "holds" if probability >= high else "fails"
