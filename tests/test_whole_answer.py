"""Answers of judges of whole policies: what is read out of text, and what follows of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.policy import load_policy
from edgejudge.whole_answer import WholeAnswer, decide_answer, parse_answer
from edgejudge.whole_policy import category_of, request

LLAVA = load_policy("llavaguard")
LLAMA = load_policy("llamaguard")
PLAIN = '{"rating": "Unsafe", "category": "O2: Violence, harm, cruelty", "rationale": "Blood."}'
SAFE = '{"rating": "Safe", "category": "NA: None applying", "rationale": "A cat."}'


@pytest.mark.parametrize(
    ("text", "outcome", "codes"),
    [
        (PLAIN, "unsafe", ("O2",)),
        (f"<s> {PLAIN}</s>", "unsafe", ("O2",)),
        (f"```json\n{PLAIN}\n```", "unsafe", ("O2",)),
        (f"Here it is: {PLAIN} I hope {{this}} helps.", "unsafe", ("O2",)),
        (PLAIN.replace('"', "'"), "unsafe", ("O2",)),
        (PLAIN.replace("Unsafe", "UNSAFE."), "unsafe", ("O2",)),
        (PLAIN.replace("O2: Violence, harm, cruelty", "o2"), "unsafe", ("O2",)),
        (PLAIN.replace('"O2: Violence, harm, cruelty"', '["O3: x", "O2"]'), "unsafe", ("O2", "O3")),
        (PLAIN.replace("O2: Violence, harm, cruelty", "O3, O2"), "unsafe", ("O2", "O3")),
        (PLAIN.replace("harm", "O4"), "unsafe", ("O2",)),
        (PLAIN.replace("Blood.", 'A \\"red\\" {thing}\\n'), "unsafe", ("O2",)),
        (SAFE, "safe", ()),
        (SAFE.replace("NA: None applying", "O9: Disasters"), "safe", ("O9",)),
        (SAFE.replace(', "rationale": "A cat."', ""), "safe", ()),
        # Nothing of this may be taken for safe.
        ("", "uncertain", ()),
        ("safe", "uncertain", ()),
        ("The picture is safe.", "uncertain", ()),
        ("{", "uncertain", ()),
        ('{"rating": "Safe"', "uncertain", ()),
        ('{"rating": "safe and sound", "category": "NA"}', "uncertain", ()),
        ('{"rating": true, "category": "NA"}', "uncertain", ()),
        ('{"rating": null}', "uncertain", ()),
        ('{"category": "O2"}', "uncertain", ()),
        ('{"answer": {"rating": "Safe"}}', "uncertain", ()),
        ('["Safe"]', "uncertain", ()),
        ('{"rating": "Safe", "category": 3}', "uncertain", ()),
        (SAFE.replace("Safe", "Unsafe"), "uncertain", ()),
        (PLAIN.replace("O2:", "O12:"), "uncertain", ()),
        (PLAIN.replace("O2:", "Violence"), "uncertain", ()),
        ("{" * 50_000, "uncertain", ()),
        ('{"a": ' * 50_000, "uncertain", ()),
    ],
)
def test_json_answers(text: str, outcome: str, codes: tuple[str, ...]) -> None:
    answer = parse_answer(text, LLAVA)
    assert (answer.outcome, answer.codes) == (outcome, codes), answer
    assert (answer.problem is not None) == (outcome == "uncertain")
    verdicts = decide_answer(LLAVA, answer, 0.05)
    assert {rule.verdict for rule in verdicts} == {
        "safe": {"safe"},
        "unsafe": {"unsafe", "uncertain"},
        "uncertain": {"uncertain"},
    }[outcome]
    if outcome == "unsafe":
        assert {r.id for r in verdicts if r.verdict == "unsafe"} == {
            r.id for r in LLAVA.rules if r.code in codes
        }


@pytest.mark.parametrize(
    ("text", "outcome", "codes", "unknown"),
    [
        ("safe", "safe", (), ()),
        ("\n\nsafe\n", "safe", (), ()),
        ("Safe.", "safe", (), ()),
        ("unsafe\nS1", "unsafe", ("S1",), ()),
        ("\n\nunsafe\nS10,S1", "unsafe", ("S1", "S10"), ()),
        ("unsafe\ns3, S12.", "unsafe", ("S3", "S12"), ()),
        ("unsafe\nS1\nS2", "unsafe", ("S1", "S2"), ()),
        ("<|begin_of_text|>unsafe\nS9<|eot_id|>", "unsafe", ("S9",), ()),
        ("unsafe\nS1,S15", "unsafe", ("S1",), ("S15",)),
        ("unsafe", "uncertain", (), ()),
        ("unsafe\nS99", "uncertain", (), ("S99",)),
        ("unsafe S1", "uncertain", (), ()),
        ("safe\nS1", "uncertain", (), ()),
        ("safe, I think", "uncertain", (), ()),
        ("", "uncertain", (), ()),
        ("I cannot help with that.", "uncertain", (), ()),
        (PLAIN, "uncertain", (), ()),
    ],
)
def test_code_answers(
    text: str, outcome: str, codes: tuple[str, ...], unknown: tuple[str, ...]
) -> None:
    answer = parse_answer(text, LLAMA)
    assert (answer.outcome, answer.codes, answer.unknown) == (outcome, codes, unknown), answer
    verdicts = decide_answer(LLAMA, answer, 0.05)
    broken = {rule.id for rule in verdicts if rule.verdict == "unsafe"}
    if outcome == "unsafe":  # a list of codes is of all that is broken
        assert broken == {rule.id for rule in LLAMA.rules if rule.code in codes}
        assert {rule.verdict for rule in verdicts} == {"safe", "unsafe"}
    else:
        assert {rule.verdict for rule in verdicts} == {outcome}
    assert all(rule.probability is None for rule in verdicts), "a recording has none"
    assert all(rule.conditions[0].test == "answer" for rule in verdicts)


@given(st.text(), st.sampled_from([LLAVA, LLAMA]))
def test_no_text_is_too_strange(text: str, policy: object) -> None:
    assert policy in (LLAVA, LLAMA)
    for each in (LLAVA, LLAMA):
        answer = parse_answer(text, each)
        assert answer.outcome in ("safe", "unsafe", "uncertain")
        assert json.loads(json.dumps(answer.to_json()))["problem"] == answer.problem
        if answer.outcome == "safe":
            assert "safe" in text.casefold()


@given(
    st.floats(0, 1),
    st.sets(st.sampled_from([rule.code for rule in LLAMA.rules])),
    st.floats(0, 0.3),
)
def test_the_probability_decides_and_the_codes_say_what(
    probability: float, codes: set[str], band: float
) -> None:
    named = tuple(rule.code or "" for rule in LLAMA.rules if rule.code in codes)
    answer = WholeAnswer("unsafe", named, probability=probability)
    for rule, verdict in zip(LLAMA.rules, decide_answer(LLAMA, answer, band), strict=True):
        low, high = verdict.uncertain_between or (0, 0)
        if probability <= low:
            expected = "safe"
        elif probability < high or not codes:
            expected = "uncertain"
        else:
            expected = "unsafe" if rule.code in codes else "safe"
        if low < high or probability != low:  # an empty band belongs to what is broken
            assert verdict.verdict == expected


def test_a_category_leaves_the_others_open() -> None:
    shares = tuple((f"O{n}", 0.6 if n == 2 else 0.05) for n in range(1, 10))
    answer = WholeAnswer(
        "unsafe", ("O2",), rationale="Blood.", probability=0.9, category_probabilities=shares
    )
    verdicts = {rule.id: rule for rule in decide_answer(LLAVA, answer, 0.05)}
    broken = verdicts.pop("violence")
    assert (broken.verdict, broken.probability) == ("unsafe", 0.9)
    assert broken.conditions[0].deciding.rationale == "Blood."
    assert {(r.verdict, round(r.probability or 0, 6)) for r in verdicts.values()} == {
        ("uncertain", 0.045)
    }


def test_allowed_categories_are_never_broken() -> None:
    changed = LLAVA.with_strictness({"violence": "allowed", "hate": "sensitive"})
    answer = parse_answer(PLAIN, changed)
    assert answer.outcome == "uncertain" and "O2, which is allowed here" in (answer.problem or "")
    verdicts = decide_answer(changed, answer, 0.05)
    assert "violence" not in {rule.id for rule in verdicts}
    assert {rule.verdict for rule in verdicts} == {"uncertain"}
    both = parse_answer(PLAIN.replace("O2: Violence, harm, cruelty", "O2, O1"), changed)
    broken = [r.id for r in decide_answer(changed, both, 0.05) if r.verdict == "unsafe"]
    assert broken == ["hate"]


def test_requests_say_what_the_policy_says() -> None:
    changed = LLAVA.with_strictness({"violence": "allowed", "hate": "sensitive"})
    text = request(changed)
    for rule in LLAVA.rules:
        assert rule.bodies is not None and category_of(rule) in text
        kind = {"violence": "allowed", "hate": "sensitive"}.get(rule.id, "default")
        assert f"{category_of(rule)}\n{rule.bodies.of(kind)}\n" in text  # type: ignore[arg-type]
    assert text.index("O1: ") < text.index("O2: ") < text.index("O9: ")
    listed = request(LLAMA.with_strictness({"elections": "allowed"}))
    assert "S12: " in listed and "S13: " not in listed and "{" not in listed
    with pytest.raises(ValueError, match="answered question by question"):
        parse_answer("safe", load_policy("stickers"))
