"""Policies: what is read, what is refused and how the refusal reads."""

from pathlib import Path

import pytest

from edgejudge.errors import PolicyError
from edgejudge.policy import (
    MAX_POLICY_BYTES,
    Policy,
    builtin_bytes,
    builtin_names,
    load_policy,
    source_sha256,
)

GOOD = """\
name: kitchen
version: 1.10
rules:
  - id: blades
    text: A blade is shown.
    category: household
    conditions:
      - [a knife, an axe]
      - a  cat
    threshold: 0.4
    near_misses: [a key]
"""


def problem(text: str | bytes) -> str:
    with pytest.raises(PolicyError) as caught:
        Policy.from_yaml(text, "kitchen.yaml")
    message = str(caught.value)
    assert message.startswith("kitchen.yaml") and "\n" not in message
    return message


def test_a_policy_is_read_as_written() -> None:
    policy = Policy.from_yaml(GOOD)
    (rule,) = policy.rules
    assert (policy.name, policy.version) == ("kitchen", "1.10")
    assert rule.conditions == (("a knife", "an axe"), ("a cat",))
    assert (rule.threshold, rule.near_misses) == (0.4, ("a key",))
    assert policy.to_json()["rules"] == [rule.to_json()]


def test_the_hash_follows_content_and_not_layout() -> None:
    policy = Policy.from_yaml(GOOD)
    quoted = GOOD.replace("kitchen", "'kitchen'").replace("a  cat", '"a cat" # a comment')
    assert Policy.from_yaml(quoted).hash == policy.hash
    assert Policy.from_yaml(quoted) == policy
    for old, new in [("0.4", "0.5"), ("an axe", "an ax"), ("1.10", "1.11"), ("[a key]", "[]")]:
        assert Policy.from_yaml(GOOD.replace(old, new)).hash != policy.hash


def test_the_source_hash_follows_bytes_but_not_line_endings() -> None:
    windows = GOOD.replace("\n", "\r\n").encode()
    assert source_sha256(windows) == source_sha256(GOOD.encode())
    assert source_sha256(GOOD.encode() + b"#") != source_sha256(GOOD.encode())
    record = Policy.from_yaml(windows).record()
    assert record.source_sha256 == source_sha256(GOOD.encode())
    assert record.rules[0].conditions == (("a knife", "an axe"), ("a cat",))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: kitchen\n", "", "line 1: name: missing"),
        ("version", "verison", "line 2: verison: unknown key; the keys here are name, version"),
        ("category: household", "kind: x", "line 6: rules[0].kind: unknown key"),
        ("    text: A blade is shown.\n", "", "line 4: rules[0].text: missing"),
        ("A blade is shown.", "yes", "line 5: rules[0].text: expected text, got a yes/no value"),
        ("0.4", "1.0", "line 10: rules[0].threshold: expected a number between 0 and 1"),
        ("0.4", "high", "line 10: rules[0].threshold: expected a number between 0 and 1"),
        ("0.4", ".nan", "line 10: rules[0].threshold: expected a number between 0 and 1"),
        ("[a knife, an axe]", "[]", "line 8: rules[0].conditions[0]: the list is empty"),
        ("[a knife, an axe]", "[a, [b]]", "line 8: rules[0].conditions[0][1]: expected text"),
        ("[a knife, an axe]", "{a: b}", "line 8: rules[0].conditions[0]: expected text"),
        ("[a knife, an axe]", "''", "line 8: rules[0].conditions[0]: the text is empty"),
        ("[a knife, an axe]", "[a, 1]", "rules[0].conditions[0][1]: expected text, got a number"),
        ("[a knife, an axe]", '"a\\u200bb"', "line 8: rules[0].conditions[0]: contains characters"),
        ("[a knife, an axe]", "x" * 501, "line 8: rules[0].conditions[0]: 501 characters"),
        ("kitchen", "../kitchen", "line 1: name: '../kitchen' is no name"),
        ("id: blades", "id: a b", "line 4: rules[0].id: 'a b' is no name"),
        ("version: 1.10", "version: [1]", "line 2: version: expected a number or text"),
        ("    threshold: 0.4\n", "    id: again\n", "line 10: rules[0].id: given twice"),
        ("[a key]", "a key", "line 11: rules[0].near_misses: expected a list, got text"),
        ("[a knife, an axe]", "&x [a]", None),
        ("[a knife, an axe]", "[a", "line 10: not valid YAML"),
        ("a  cat", "!!python/name:os.system x", "line 9: rules[0].conditions[1]: expected text"),
    ],
)
def test_errors_name_file_line_and_key(old: str, new: str, expected: str | None) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if expected is None:
        Policy.from_yaml(text)  # an anchor that nothing refers to is harmless
    else:
        assert expected in problem(text)


def test_two_rules_need_two_ids() -> None:
    rule = GOOD[GOOD.index("  - id") :]
    assert "line 12: rules[1].id: 'blades' is taken by line 4" in problem(GOOD + rule)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1: the file is empty"),
        ("- a", "line 1: expected a mapping, got a list"),
        ("a: &x [1]\nb: *x", "line 2: not valid YAML: anchors and aliases are not supported"),
        ("[" * 20_000, "nested too deeply"),
        ("name: \0", "not valid YAML"),
        (b"name: \xff", "line 1: not UTF-8"),
        ("name: x\n---\nname: y", "line 2: not valid YAML"),
        ("#" * (MAX_POLICY_BYTES + 1), "larger than"),
        ("name: x\nversion: 1\nrules: []", "line 3: rules: the list is empty"),
    ],
)
def test_what_is_no_policy(text: str | bytes, expected: str) -> None:
    assert expected in problem(text)


def test_built_in_policies() -> None:
    assert "stickers" in builtin_names()
    for name in builtin_names():
        policy = load_policy(name)
        assert policy.name == name
    stickers = load_policy("stickers")
    assert [rule.id for rule in stickers.rules] == [
        "weapons",
        "fire_explosives",
        "alcohol",
        "tobacco",
        "drugs",
        "gambling",
        "gore",
        "hate_gestures",
        "adult_sign",
        "hazard_signs",
    ]
    for rule in stickers.rules:
        asked = {text for alternatives in rule.conditions for text in alternatives}
        assert rule.near_misses and not asked & set(rule.near_misses)
    assert builtin_bytes("../../pyproject") is None


def test_a_policy_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert load_policy(path) == load_policy(str(path)) == Policy.from_yaml(GOOD)
    path.write_text("name: x")
    with pytest.raises(PolicyError, match=r"mine\.yaml, line 1: version: missing"):
        load_policy(path)
    with pytest.raises(PolicyError, match=r"'nope' not found: give a built-in name \(.*stickers"):
        load_policy("nope")
