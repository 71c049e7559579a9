"""CLUE's decision from numbers, and a plan's questions on their way through its steps."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from edgejudge.cases import Cases, asked_blind
from edgejudge.clue import decide, region_test, token_test
from edgejudge.clue_settings import ClueSettings
from edgejudge.plan import Plan, PlannedRule, Question
from edgejudge.regions import Boxes

PUBLISHED = ClueSettings()
probabilities = st.floats(0, 1)
ORDER = {"fails": 0, "uncertain": 1, "holds": 2}
BOX: Boxes = ((1, 1, 3, 3),)


@pytest.mark.parametrize(
    ("p", "prior", "outcome", "test"),
    [
        (0.27, 0.4, "fails", "language_prior"),  # below 0.7 x 0.4 = 0.28
        (0.29, 0.4, "uncertain", "undecided"),
        (0.87, 0.4, "uncertain", "undecided"),
        (0.89, 0.4, "holds", "score"),  # above 0.8 + 0.2 x 0.4 = 0.88
        (0.0, 0.0, "uncertain", "undecided"),
        (1.0, 1.0, "uncertain", "undecided"),
        (0.69, 1.0, "fails", "language_prior"),
        (0.81, 0.0, "holds", "score"),
    ],
)
def test_the_published_limits(p: float, prior: float, outcome: str, test: str) -> None:
    assert token_test(p, prior, PUBLISHED) == (outcome, test)


@settings(deadline=None)
@given(probabilities, probabilities)
@example(0.0, 0.0)
@example(1.0, 1.0)
def test_the_direct_form_is_the_derived_one(p: float, prior: float) -> None:
    assume(abs(p - 0.7 * prior) > 1e-12 and abs(p - (0.8 + 0.2 * prior)) > 1e-12)
    derived = "fails" if p < 0.7 * prior else "holds" if p > 0.8 + 0.2 * prior else "uncertain"
    assert token_test(p, prior, PUBLISHED)[0] == derived


@settings(deadline=None)
@given(
    probabilities,
    probabilities,
    probabilities,
    st.floats(-1, 0),
    probabilities,
    probabilities,
)
def test_more_probable_is_never_less_decided(
    p: float, q: float, prior: float, reject: float, accept: float, without: float
) -> None:
    other = replace(PUBLISHED, reject=reject, accept=accept)
    low, high = sorted((p, q))
    for removed in (None, without):
        some = [ORDER[decide(each, prior, other, removed)[0]] for each in (low, high)]
        assert some[0] <= some[1]


@settings(deadline=None)
@given(probabilities, probabilities, st.booleans())
def test_reasoning_decides_what_is_left_and_nothing_else(
    p: float, prior: float, rating: bool
) -> None:
    before = token_test(p, prior, PUBLISHED)
    after = decide(p, prior, PUBLISHED, rating=rating)
    if before[0] == "uncertain":
        assert after == ("holds" if rating else "fails", "reasoning")
    else:
        assert after == before


def test_the_region_only_speaks_for_a_condition() -> None:
    assert region_test(0.75, 0.1, PUBLISHED) == ("holds", "region")
    assert region_test(0.7, 0.11, PUBLISHED) == ("uncertain", "undecided")
    assert region_test(0.1, 0.9, PUBLISHED) == ("uncertain", "undecided")
    assert decide(0.75, 0.4, PUBLISHED, without=0.1) == ("holds", "region")
    # A rejected condition stays rejected, whatever its region would say.
    assert decide(0.2, 0.9, PUBLISHED, without=0.0)[1] == "language_prior"
    # The cut-out of a small object is for the prior; the region is removed from the picture.
    assert decide(0.75, 0.4, PUBLISHED, without=0.1, crop=0.2) == ("fails", "language_prior")
    assert decide(0.1, 0.4, PUBLISHED, crop=0.95) == ("holds", "score")
    assert decide(0.75, 0.4, PUBLISHED, without=0.1, crop=0.5) == ("holds", "region")


@pytest.mark.parametrize("bad", [math.nan, -0.01, 1.01, math.inf])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    for call in (
        lambda: token_test(bad, 0.5, PUBLISHED),
        lambda: token_test(0.5, bad, PUBLISHED),
        lambda: region_test(0.5, bad, PUBLISHED),
        lambda: decide(0.5, 0.4, PUBLISHED, without=bad),
    ):
        with pytest.raises(ValueError, match="no probability"):
            call()


# --- a plan's questions -------------------------------------------------------------------------


def plan(*rules: list[list[str]], clue: ClueSettings | None = PUBLISHED) -> Plan:
    """Questions in the order of their texts' first use; one with a ? is unknown."""
    texts: list[str] = []

    def question(text: str) -> Question:
        if text not in texts:
            texts.append(text)
        return Question(text, texts.index(text), not text.endswith("?"))

    made = tuple(
        PlannedRule(
            f"r{index}",
            "t",
            "c",
            0.5,
            tuple(tuple(question(text) for text in either) for either in rule),
            clue=clue,
        )
        for index, rule in enumerate(rules)
    )
    return Plan("p", "1", "", 0.05, made, tuple((i,) for i in range(len(texts))), (), clue=clue)


def cases(
    made: Plan, *answers: float, prior: float = 0.4, boxes: dict[str, Boxes] | None = None
) -> Cases:
    found = boxes or {}
    texts = asked_blind(made)
    some = Cases.of(
        made, dict.fromkeys(texts, prior), lambda _, q, __: (found.get(q.text, ()), False)
    )
    some.answer(dict(enumerate(answers)))
    return some


def outcomes(some: Cases) -> list[str]:
    return [rule.verdict for rule in some.verdicts()]


def test_and_or_and_what_is_worth_asking() -> None:
    grey = 0.5
    # Of a rule with a failed condition nothing more is asked, nor of a condition that holds.
    some = cases(plan([["a"], ["b"]], [["c", "d"]], [["e"]]), 0.1, grey, 0.95, grey, grey)
    assert outcomes(some) == ["safe", "unsafe", "uncertain"]
    first = some.to_reason()
    assert first is not None and first.question.text == "e"
    first.reasoned, first.rating = True, True
    assert outcomes(some) == ["safe", "unsafe", "unsafe"] and some.to_reason() is None
    (condition,) = some.verdicts()[2].conditions
    assert (condition.test, condition.outcome) == ("reasoning", "holds")
    assert condition.deciding.prior == 0.4


def test_alternatives_are_asked_one_by_one() -> None:
    some = cases(plan([["a", "b"], ["c"]]), 0.5, 0.6, 0.5)
    seen = []
    while (case := some.to_reason()) is not None:
        seen.append(case.question.text)
        case.reasoned, case.rating = True, case.question.text == "b"
    # `a` fails, `b` holds, and c fails: the rule is not broken.
    assert seen == ["a", "b", "c"] and outcomes(some) == ["safe"]
    (either, _) = some.verdicts()[0].conditions
    assert (either.outcome, either.deciding.text, either.test) == ("holds", "b", "reasoning")


def test_what_reasoning_could_not_say_stays_open() -> None:
    some = cases(plan([["a"]]), 0.5)
    case = some.to_reason()
    assert case is not None
    case.reasoned = True
    assert outcomes(some) == ["uncertain"] and some.to_reason() is None
    assert some.verdicts()[0].conditions[0].test == "undecided"
    off = cases(plan([["a"]], clue=replace(PUBLISHED, reasoning=False)), 0.5)
    assert off.to_reason() is None and outcomes(off) == ["uncertain"]


def test_an_unknown_concept_is_never_asked_further() -> None:
    some = cases(plan([["a?"]], [["a?", "b"]], [["a?"], ["b"]]), 0.99, 0.95)
    assert outcomes(some) == ["uncertain", "unsafe", "uncertain"]
    assert some.to_reason() is None and some.regions() == {}
    assert asked_blind(some.plan) == ["b", "b"]
    unknown = some.verdicts()[0].conditions[0]
    assert (unknown.test, unknown.probability) == ("unknown_concept", 0.99)


def test_questions_may_come_in_portions() -> None:
    made = plan([["a", "b"]], [["c"]], [["a"], ["c"]])
    some = cases(made)
    assert some.branches() == [0, 1, 2] and outcomes(some) == ["uncertain"] * 3
    assert some.verdicts()[0].probability is None
    assert some.verdicts()[0].conditions[0].test == "not_asked"
    some.answer({2: 0.1})
    assert some.branches() == [0, 1] and outcomes(some) == ["uncertain", "safe", "safe"]
    some.answer({0: 0.95})
    assert outcomes(some) == ["unsafe", "safe", "safe"]
    assert some.verdicts()[0].probability == 0.95  # of those that were asked
    some.answer({1: 0.99})
    assert some.branches() == [] and outcomes(some) == outcomes(cases(made, 0.95, 0.99, 0.1))
    by_thresholds = cases(plan([["a", "b"]], [["c"]], clue=None))
    by_thresholds.answer({2: 0.1})
    assert outcomes(by_thresholds) == ["uncertain", "safe"]


def test_a_region_is_removed_once_and_only_where_it_may_decide() -> None:
    other: Boxes = ((5, 5, 8, 8),)
    boxes = {"a": BOX, "b": BOX, "c": other, "d": other}
    some = cases(plan([["a"], ["b"]], [["c"]], [["d"]]), 0.75, 0.8, 0.1, 0.99, boxes=boxes)
    assert some.regions() == {BOX: [0, 1]}
    some.answer_without(BOX, {0: 0.05, 1: 0.5})
    assert some.regions() == {}
    first, second = some.verdicts()[0].conditions
    assert (first.outcome, first.test) == ("holds", "region")
    assert (second.outcome, second.deciding.without_region) == ("uncertain", 0.5)
    case = some.to_reason()
    assert case is not None and case.question.text == "b"


def test_a_small_object_is_judged_by_its_cut_out() -> None:
    made = plan([["a"]])
    some = Cases.of(made, {"a": 0.4}, lambda *_: (BOX, True))
    some.answer({0: 0.05})
    assert some.cut_outs() == {BOX: [0]} and outcomes(some) == ["uncertain"]
    some.answer_cut_out(BOX, {0: 0.95})
    assert some.cut_outs() == {} and outcomes(some) == ["unsafe"]
    assert some.verdicts()[0].probability == 0.95


def test_skipped_rules_are_safe_and_were_asked_nothing() -> None:
    made = plan([["a"]], [["b"]])
    rules = (replace(made.rules[0], gate=1), made.rules[1])
    some = Cases.of(replace(made, rules=rules), {"a": 0.4, "b": 0.4}, lambda *_: ((), False))
    some.skip({0: 0.9, 1: 0.1}, 0.22)
    assert some.branches() == [1]
    skipped = some.verdicts()[0]
    assert (skipped.verdict, skipped.probability, skipped.relevance) == ("safe", None, 0.1)
    assert skipped.conditions[0].test == "relevance"
    assert skipped.to_json()["probability"] is None
    some.skip({0: 0.9, 1: 0.22}, 0.22)
    assert some.branches() == [0, 1]


@settings(deadline=None)
@given(
    st.lists(probabilities, min_size=4, max_size=4),
    probabilities,
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_reasoning_about_everything_decides_every_rule_as_each_alone(
    answers: list[float], prior: float, ratings: list[bool]
) -> None:
    """What was left out as settled would not have changed a verdict."""
    made = plan([["a", "b"], ["c"]], [["d"], ["a"]])
    some = cases(made, *answers, prior=prior)
    while (case := some.to_reason()) is not None:
        for each in some.same(case):
            each.reasoned, each.rating = True, ratings[each.question.branch]
    holds = [
        decide(p, prior, PUBLISHED, rating=rating)[0] == "holds"
        for p, rating in zip(answers, ratings, strict=True)
    ]
    broken = [(holds[0] or holds[1]) and holds[2], holds[3] and holds[0]]
    assert outcomes(some) == ["unsafe" if each else "safe" for each in broken]
