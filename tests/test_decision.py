"""Decisions: three-valued logic, the band, and that doubt is never called safe."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.decision import decide_picture, decide_rule, uncertain_between
from edgejudge.verdict import AlternativeVerdict, Note, RuleVerdict

probabilities = st.floats(0, 1)
thresholds = st.floats(0.001, 0.999)
bands = st.floats(0, 0.999)
questions = st.builds(AlternativeVerdict, st.just("a thing"), probabilities, st.booleans())
conditions = st.lists(st.lists(questions, min_size=1, max_size=4), min_size=1, max_size=4)


def rule(
    *conditions: list[float], threshold: float = 0.5, band: float = 0.05, known: bool = True
) -> RuleVerdict:
    answered = [[AlternativeVerdict("x", p, known) for p in each] for each in conditions]
    return decide_rule("id", "text", "category", threshold, band, answered)


@pytest.mark.parametrize(
    ("probability", "verdict"),
    [(0.0, "safe"), (0.44, "safe"), (0.46, "uncertain"), (0.54, "uncertain"), (0.56, "unsafe")],
)
def test_the_band(probability: float, verdict: str) -> None:
    assert rule([probability]).verdict == verdict


def test_alternatives_are_or_and_conditions_are_and() -> None:
    assert rule([0.1, 0.9]).verdict == "unsafe"
    assert rule([0.9], [0.1]).verdict == "safe"
    assert rule([0.9], [0.5]).verdict == "uncertain"
    assert rule([0.1], [0.5]).verdict == "safe"
    both = rule([0.2, 0.8], [0.7, 0.6])
    assert both.probability == 0.7
    assert [condition.probability for condition in both.conditions] == [0.8, 0.7]


def test_an_unknown_concept_decides_nothing_by_itself() -> None:
    assert rule([0.99], known=False).verdict == "uncertain"
    assert rule([0.01], known=False).verdict == "uncertain"


def test_a_band_never_swallows_one_side() -> None:
    assert uncertain_between(0.02, 0.05) == (0.01, pytest.approx(0.07))
    assert uncertain_between(0.98, 0.05) == (pytest.approx(0.93), 0.99)
    assert rule([0.0], threshold=0.02).verdict == "safe"
    assert rule([1.0], threshold=0.98).verdict == "unsafe"
    assert rule([0.5], threshold=0.5, band=0.0).verdict == "unsafe"


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1, math.inf])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not one in 0..1"):
        rule([bad])


@given(conditions, thresholds, bands)
def test_outcomes_agree_with_the_probabilities(
    answered: list[list[AlternativeVerdict]], threshold: float, band: float
) -> None:
    low, high = uncertain_between(threshold, band)
    assert 0 < low <= threshold <= high < 1
    verdict = decide_rule("id", "text", "category", threshold, band, answered)
    assert verdict.probability == min(max(q.probability for q in each) for each in answered)
    if all(q.known for each in answered for q in each):
        expected = "uncertain" if low < verdict.probability < high else None
        expected = expected or ("unsafe" if verdict.probability >= high else "safe")
        assert verdict.verdict == expected


@given(conditions, thresholds, bands)
def test_what_is_not_known_could_have_been_anything(
    answered: list[list[AlternativeVerdict]], threshold: float, band: float
) -> None:
    """A decided rule stays decided whatever the unknown questions had been answered."""
    verdict = decide_rule("id", "text", "category", threshold, band, answered).verdict
    for guess in (0.0, 1.0):
        filled = [
            [q if q.known else AlternativeVerdict(q.text, guess, True) for q in each]
            for each in answered
        ]
        if verdict != "uncertain":
            again = decide_rule("id", "text", "category", threshold, band, filled)
            assert again.verdict == verdict


@given(st.lists(st.sampled_from(["safe", "unsafe", "uncertain"]), max_size=5), st.booleans())
def test_pictures(outcomes: list[str], doubtful: bool) -> None:
    known = {"safe": rule([0.0]), "unsafe": rule([1.0]), "uncertain": rule([0.5])}
    notes = [Note("animated", "only the first frame is judged", doubtful)]
    picture = decide_picture([known[outcome] for outcome in outcomes], notes)
    if "unsafe" in outcomes:
        assert picture == "unsafe"
    elif "uncertain" in outcomes or doubtful:
        assert picture == "uncertain"
    else:
        assert picture == "safe"
