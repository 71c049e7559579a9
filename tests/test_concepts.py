"""What a specialist claims to know: wordings of concepts, and patterns with concepts in them."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgejudge.bundle import ConceptRecord
from edgejudge.errors import ExportError
from edgejudge.export import open_checkpoint
from edgejudge.models.concepts import known_names, knows, pattern_problem
from edgejudge.policy import Policy
from fake_judge import FakeEngine, fake_judge, manifest
from tiny import make_card, make_checkpoint

NAMES = known_names(
    [
        ConceptRecord("knife", ("a kitchen blade",), "w"),
        ConceptRecord("gun", (), "w"),
        ConceptRecord("gun left of a knife", (), "w"),
    ]
)
PATTERNS = ("more than one {a}", "exactly one {a}", "{a} left of {b}", "{b} bigger than {a}")


@pytest.mark.parametrize(
    ("condition", "known"),
    [
        ("a knife", True),
        ("The  Kitchen Blade.", True),
        ("more than one knife", True),
        ("More than one kitchen blade.", True),
        ("exactly one the gun", True),
        ("a gun left of the knife", True),
        ("gun left of a knife left of a gun", True),  # a concept may hold a pattern's words
        ("a gun left of a dog", False),
        ("more than one dog", False),
        ("more than one", False),
        ("more than one knives", False),
        ("left of", False),
        ("a gun right of a knife", False),
        ("not more than one knife", False),
    ],
)
def test_patterns_stand_for_known_wordings(condition: str, known: bool) -> None:
    assert knows(NAMES, condition, PATTERNS) == known
    assert knows(None, condition), "a generalist knows everything"
    if "one" in condition or "gun left" not in condition:
        assert knows(NAMES, condition) == (condition in ("a knife", "The  Kitchen Blade."))


@settings(deadline=None)
@given(st.text(), st.text(), st.sampled_from(PATTERNS))
def test_what_no_concept_fills_is_unknown(a: str, b: str, pattern: str) -> None:
    filled = pattern.replace("{a}", f"{a} zebra").replace("{b}", f"{b} zebra")
    assert not knows(NAMES, filled, PATTERNS)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("more than one {a}", None),
        ("{b} left of {a}", None),
        ("one thing", "places none"),
        ("{b} alone", r"places \{b\}"),
        ("{c} and {a}", r"\{c\}, \{a\}"),
        ("{A} twice", r"\{A\}"),
        ("{a} and {a}", "twice"),
        ("{a}{b}", "no text between"),
        ("{a} {b}", "no text between"),
        (" {a} ", "no text"),
        ("{a} in {", "a brace that is none"),
        ("{} and {a}", r"\{\}, \{a\}"),
    ],
)
def test_patterns_are_checked(pattern: str, problem: str | None) -> None:
    found = pattern_problem(pattern)
    assert (found is None) == (problem is None)
    assert problem is None or re.search(problem, str(found)), found


def test_a_card_may_have_patterns(tmp_path: Path) -> None:
    card = make_card()
    opened = open_checkpoint(make_checkpoint(tmp_path / "without", card=card))
    assert opened.card.patterns == ()
    card = make_card(patterns=["more than one {a}"])
    opened = open_checkpoint(make_checkpoint(tmp_path / "with", card=card))
    assert opened.card.patterns == ("more than one {a}",)
    for wrong in (["one {x}"], ["nothing"], [3], "one {a}"):
        folder = make_checkpoint(tmp_path / "wrong", card=make_card(patterns=wrong))
        with pytest.raises(ExportError, match="pattern"):
            open_checkpoint(folder)


def test_a_specialist_is_asked_for_patterns(tmp_path: Path) -> None:
    made = manifest(concepts=("knife", "gun"), patterns=("{a} left of {b}",))
    judge = fake_judge(tmp_path, made, FakeEngine())
    policy = Policy.from_yaml(
        "name: p\nversion: 1\nrules:\n  - {id: r, text: t, category: c, "
        "conditions: [[a knife left of a gun, a knife left of a dog]]}\n"
    )
    (rule,) = judge.plan(policy).rules
    assert [question.known for question in rule.conditions[0]] == [True, False]
