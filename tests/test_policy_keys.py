"""The keys of a policy beyond rules and conditions: what is read, refused and hashed."""

from pathlib import Path

import pytest

from edgejudge.clue_settings import ClueSettings
from edgejudge.errors import PolicyError
from edgejudge.moderation_keys import OPENAI_KEYS
from edgejudge.policy import COMPILED, Bodies, Policy, builtin_names, load_policy

GOOD = """\
name: kitchen
version: 1
question: "Can {condition} be seen? Say Yes or No."
method: clue
clue:
  accept: 0.7
  turns: 1
  reasoning: false
rules:
  - id: blades
    text: A blade is shown.
    category: household
    code: K1
    conditions: [a knife]
    objects: [knife, blade]
    maps_to: [openai:violence/graphic, "mlcommons:violent-crimes"]
"""
JSON = """\
name: whole
version: 1
answer: json
rules:
  - id: violence
    text: Violence
    category: harm
    code: O1
    bodies:
      default: Not blood. But sport.
      allowed: All of it.
      sensitive: None of it.
  - id: drugs
    text: Drugs
    category: goods
    code: O2
    bodies: {default: a, allowed: b, sensitive: c}
"""
CODES = """\
name: codes
version: 1
answer: codes
rules:
  - {id: crime, text: Crimes, category: harm, code: S1}
  - {id: hate, text: Hate, category: speech, code: S10}
"""


def problem(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        Policy.from_yaml(text, "kitchen.yaml")
    message = str(caught.value)
    assert message.startswith("kitchen.yaml, line ") and "\n" not in message
    return message


def test_all_keys_are_read() -> None:
    policy = Policy.from_yaml(GOOD)
    (rule,) = policy.rules
    assert policy.question == "Can {condition} be seen? Say Yes or No."
    assert (policy.method, policy.answer) == ("clue", "questions")
    assert policy.clue == ClueSettings(accept=0.7, turns=1, reasoning=False)
    assert (rule.code, rule.objects) == ("K1", ("knife", "blade"))
    assert rule.maps_to == ("openai:violence/graphic", "mlcommons:violent-crimes")
    whole = Policy.from_yaml(JSON)
    assert whole.answer == "json" and whole.rules[0].conditions == ()
    assert whole.rules[1].bodies == Bodies("a", "b", "c")


def test_the_method_clue_has_the_published_constants_unless_told_otherwise() -> None:
    text = GOOD.replace("clue:\n  accept: 0.7\n  turns: 1\n  reasoning: false\n", "")
    assert Policy.from_yaml(text).clue == ClueSettings()
    plain = text.replace("method: clue\n", "")
    assert Policy.from_yaml(plain).clue is None and Policy.from_yaml(plain).method == "thresholds"


@pytest.mark.parametrize(
    ("text", "old", "new", "expected"),
    [
        (GOOD, "{condition}", "it", "line 3: question: needs {condition} once"),
        (GOOD, "Say", "{condition}", "line 3: question: needs {condition} once"),
        (
            GOOD,
            "method: clue",
            "method: magic",
            "line 4: method: 'magic' is none of thresholds, cl",
        ),
        (GOOD, "method: clue", "method: thresholds", "line 6: clue: read by method: clue alone"),
        (GOOD, "accept: 0.7", "accept: 1.1", "line 6: clue.accept: expected a number from 0 to 1"),
        (GOOD, "accept: 0.7", "accept: .nan", "line 6: clue.accept: expected a number from 0 to 1"),
        (GOOD, "accept: 0.7", "reject: 0.3", "line 6: clue.reject: expected a number from -1 to 0"),
        (GOOD, "accept: 0.7", "acept: 0.7", "line 6: clue.acept: unknown key; the keys here are r"),
        (GOOD, "turns: 1", "turns: 1.5", "line 7: clue.turns: expected 1 or 2"),
        (GOOD, "turns: 1", "turns: 3", "line 7: clue.turns: expected a number from 1 to 2"),
        (GOOD, "false", "0", "line 8: clue.reasoning: expected true or false, got '0'"),
        (GOOD, "code: K1", "code: K 1", "line 13: rules[0].code: 'K 1' is no name"),
        (GOOD, "[knife, blade]", "knife", "line 15: rules[0].objects: expected a list, got text"),
        (GOOD, "openai:violence/graphic", "violence", "maps_to[0]: 'violence' is no TAXONOMY:KEY"),
        (GOOD, "openai:violence/graphic", "openai:gore", "'gore' is none of OpenAI's keys: harass"),
        (GOOD, "objects", "bodies", "line 15: rules[0].bodies: unknown key; the keys here are id"),
        (
            JSON,
            "answer: json",
            "answer: xml",
            "line 3: answer: 'xml' is none of questions, json, c",
        ),
        (
            JSON,
            "answer: json",
            "answer: json\nmethod: clue",
            "line 4: method: goes with answer: qu",
        ),
        (JSON, "answer: json", "answer: questions", "line 9: rules[0].bodies: unknown key"),
        (JSON, "code: O2", "code: O1", "line 13: rules[1].code: 'O1' is taken by line 5"),
        (JSON, ", sensitive: c", "", "line 17: rules[1].bodies.sensitive: missing"),
        (JSON, "sensitive: c", "strict: c", "line 17: rules[1].bodies.strict: unknown key"),
        (JSON, "    code: O1\n", "", "line 5: rules[0].code: missing"),
        (JSON, "    code: O1\n", "    code: O1\n    threshold: 0.4\n", "threshold: unknown key"),
        (JSON, "code: O2", "code: O2\n    conditions: [a pill]", "conditions: unknown key"),
        (JSON, "All of it.", "x" * 2001, "line 11: rules[0].bodies.allowed: 2001 characters; at m"),
        (CODES, ", code: S10", "", "line 6: rules[1].code: missing; add it"),
    ],
)
def test_errors_name_file_line_and_key(text: str, old: str, new: str, expected: str) -> None:
    assert old in text
    assert expected in problem(text.replace(old, new, 1))


def test_policies_without_the_new_keys_keep_their_hash() -> None:
    """Compiled policies in bundles are found by it."""
    stickers = load_policy("stickers")
    assert stickers.hash == "6ca4519ef511071c69066b25898f450af0b363928c11b1fa3b4719eeb97b39a4"
    assert set(stickers.to_json()) == {"name", "version", "rules"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Say Yes", "Give Yes"),
        ("accept: 0.7", "accept: 0.71"),
        ("code: K1", "code: K2"),
        ("[knife, blade]", "[knife]"),
        (', "mlcommons:violent-crimes"', ""),
        ("method: clue\nclue:\n  accept: 0.7\n  turns: 1\n  reasoning: false\n", ""),
    ],
)
def test_every_key_counts_for_the_hash(old: str, new: str) -> None:
    assert old in GOOD
    assert Policy.from_yaml(GOOD.replace(old, new)).hash != Policy.from_yaml(GOOD).hash


def test_what_a_bundle_cannot_carry_is_refused_before_an_export() -> None:
    for name in COMPILED:
        assert load_policy(name).record().name == name
    with pytest.raises(PolicyError, match="'llavaguard' is judged as a whole, so it cannot be com"):
        load_policy("llavaguard").record()
    with pytest.raises(PolicyError, match="'shieldgemma' asks its own question, so it cannot be"):
        load_policy("shieldgemma").record()


def test_the_built_in_policies_are_what_the_guide_says() -> None:
    guide = (Path(__file__).parent.parent / "POLICIES.md").read_text(encoding="utf-8")
    for name in builtin_names():
        policy = load_policy(name)
        row = next(line for line in guide.splitlines() if line.startswith(f"| [`{name}`]"))
        _, _, rules, answer, *_ = (cell.strip() for cell in row.split("|"))
        assert (int(rules), answer) == (len(policy.rules), policy.answer), row
        for rule in policy.rules:
            for key in rule.maps_to:
                taxonomy, _, value = key.partition(":")
                assert taxonomy in ("openai", "mlcommons")
                assert taxonomy != "openai" or value in OPENAI_KEYS
    codes = [rule.code for rule in load_policy("llavaguard").rules]
    assert codes == [f"O{number}" for number in range(1, 10)]
    codes = [rule.code for rule in load_policy("llamaguard").rules]
    assert codes == [f"S{number}" for number in range(1, 15)]
    assert {rule.id for rule in load_policy("shieldgemma").rules} == {
        "dangerous",
        "sexual",
        "violence",
    }
    hazards = {f"mlcommons:{rule.id}" for rule in load_policy("mlcommons").rules}
    assert hazards <= {key for rule in load_policy("llamaguard").rules for key in rule.maps_to}
