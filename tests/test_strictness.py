"""Strictness: what may not be broken any more, what is broken sooner, and what stays as it was."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.clue_settings import ClueSettings
from edgejudge.decision import decide_rule
from edgejudge.errors import InputError
from edgejudge.policy import Policy, Strictness, builtin_names, load_policy
from edgejudge.strictness import sensitive_clue, sensitive_threshold
from edgejudge.verdict import AlternativeVerdict

ORDER = {"safe": 0, "uncertain": 1, "unsafe": 2}
inside = st.floats(0, 1, exclude_min=True, exclude_max=True)


def test_a_quarter_of_the_odds() -> None:
    assert sensitive_threshold(0.5) == pytest.approx(0.2)
    assert sensitive_threshold(0.9) == pytest.approx(0.9 / 0.1 / 4 / (1 + 0.9 / 0.1 / 4))


@given(inside, inside)
def test_a_sensitive_threshold_is_one_and_lower(one: float, other: float) -> None:
    assert 0 < sensitive_threshold(one) <= one
    low, high = sorted((one, other))
    assert sensitive_threshold(low) <= sensitive_threshold(high)


@given(inside, st.floats(0, 0.5), st.floats(0, 1))
def test_sensitive_never_makes_a_rule_safer(
    threshold: float, band: float, probability: float
) -> None:
    def outcome(at: float) -> str:
        question = AlternativeVerdict("a knife", probability, True)
        return decide_rule("r", "t", "c", at, band, [[question]]).verdict

    assert ORDER[outcome(sensitive_threshold(threshold))] >= ORDER[outcome(threshold)]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-1, 0), st.floats(0, 1))
def test_sensitive_clue_accepts_all_that_was_accepted(
    prior: float, probability: float, reject: float, accept: float
) -> None:
    usual = ClueSettings(reject=reject, accept=accept)
    strict = sensitive_clue(usual)
    difference = probability - prior

    def rejected(s: ClueSettings) -> bool:
        return difference < s.reject * prior

    def accepted(s: ClueSettings) -> bool:
        return difference > s.accept * (1 - prior)

    assert -1 <= strict.reject <= usual.reject and 0 <= strict.accept <= usual.accept
    assert accepted(strict) or not accepted(usual)
    assert rejected(usual) or not rejected(strict)
    assert strict.region < usual.region and strict.relevance == usual.relevance


def test_a_rules_own_id_goes_before_its_category() -> None:
    policy = load_policy("stickers").with_strictness({"violence": "sensitive", "gore": "default"})
    strict = {rule.id for rule in policy.rules if rule.strictness == "sensitive"}
    assert strict == {"weapons", "fire_explosives"}


def test_allowed_rules_are_taken_out_and_come_back_to_their_place() -> None:
    policy = load_policy("llavaguard")
    changed = policy.with_strictness({"violence": "allowed", "animals": "allowed"})
    assert {rule.id for _, rule in changed.allowed} == {"violence", "animals"}
    assert [rule.id for rule in changed.all_rules] == [rule.id for rule in policy.rules]
    assert not {"violence", "animals"} & {rule.id for rule in changed.rules}
    assert changed.hash != policy.hash
    back = changed.with_strictness({"violence": "default", "animals": "default"})
    assert back == policy and back.hash == policy.hash


@given(st.data())
def test_any_choice_keeps_every_rule_once_and_is_undone(data: st.DataObject) -> None:
    policy = load_policy(data.draw(st.sampled_from(builtin_names())))
    values = [v for v in get_args(Strictness) if (policy.answer, v) != ("codes", "sensitive")]
    ids = [rule.id for rule in policy.rules]
    wanted = data.draw(st.dictionaries(st.sampled_from(ids), st.sampled_from(values)))
    if [*wanted.values()].count("allowed") == len(ids):
        return
    changed = policy.with_strictness(wanted)
    assert [rule.id for rule in changed.all_rules] == ids
    for rule in changed.all_rules:
        assert rule.strictness == wanted.get(rule.id, "default")
    undone = changed.with_strictness(dict.fromkeys(ids, "default"))
    assert undone == policy and undone.hash == policy.hash


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        (
            "stickers",
            {"violense": "allowed"},
            r"no category or rule 'violense'; its categories are ",
        ),
        (
            "stickers",
            {"violence": "strict"},
            r"'violence' is 'strict', which is none of allowed, d",
        ),
        (
            "llamaguard",
            {"hate": "sensitive"},
            r"rule 'hate' of policy 'llamaguard' has no sensitiv",
        ),
        (
            "shieldgemma",
            {"dangerous": "allowed", "sexual": "allowed", "violence": "allowed"},
            r"every rule of policy 'shieldgemma' would be allowed, so nothing would be judged",
        ),
    ],
)
def test_what_cannot_be_wanted(name: str, wanted: dict[str, str], expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        load_policy(name).with_strictness(wanted)
    assert caught.value.code == "strictness" and "\n" not in str(caught.value)


def test_the_known_ones_are_listed() -> None:
    with pytest.raises(InputError, match="dangerous, sexual, violence, its rules dangerous, sexua"):
        load_policy("shieldgemma").with_strictness({"nudity": "allowed"})


def test_strictness_is_no_key_of_a_policy_file() -> None:
    text = "name: x\nversion: 1\nrules:\n  - {id: a, text: t, category: c, conditions: [a cat]}\n"
    with pytest.raises(Exception, match="strictness: unknown key"):
        Policy.from_yaml(text.replace("id: a", "id: a, strictness: allowed"))
