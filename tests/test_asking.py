"""The judging calls around the engine, which answers as it is told."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgejudge.answering.label_scores import softmax
from edgejudge.answering.rubrics import (
    COMBINATIONS,
    METHODS,
    Checklist,
    Criterion,
    Rubric,
    Tasks,
    keep_groups,
    rubric,
)
from edgejudge.answering.wordings import COMPARE, COUNT_LABELS, counting, fill
from edgejudge.batches import Batches
from edgejudge.errors import InputError, ProviderError
from edgejudge.judge import Judge
from fake_judge import fake_judge, manifest
from label_engine import LabelEngine, Says

Make = Callable[..., tuple[Judge, LabelEngine]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    def judge(says: Says, concepts: tuple[str, ...] = (), **answers: float):  # type: ignore[no-untyped-def]
        engine = LabelEngine(says, **answers)
        folder = tmp_path_factory.mktemp("judge")
        return fake_judge(folder, manifest(concepts=concepts), engine), engine

    return judge


def red(share: float) -> Image.Image:
    return Image.new("RGB", (16, 16), (round(255 * share), 0, 0))


def levels(*logits: float) -> Says:
    return lambda pictures, question, written: {str(i): v for i, v in enumerate(logits)}


# --- ask -----------------------------------------------------------------------------------------


def test_labels_of_one_token_are_read_at_one_place(make: Make) -> None:
    judge, engine = make(levels(0.0, 1.0, 2.0))
    found = judge.ask(red(0.5), "How many?", ("0", "1", "2"))
    wanted = softmax([0, 1, 2])
    assert [each.probability for each in found.labels] == pytest.approx(wanted, abs=1e-6)
    assert found.label == "2" and found.mass == pytest.approx(1, abs=1e-6)
    assert (found.head, found.per_token, found.orders, found.agreeing) == ("lm_head", False, 1, 1)
    assert len(engine.prompts) == 1 and engine.prompts[0][1:] == ("How many?", "")
    assert found.made.questions == 1 and "score" in found.made.stages_ms
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["labels"][2] == {"label": "2", "probability": 0.665241, "spread": 0.0}
    assert document["bundle"]["name"] == "fake" and document["images"][0]["path"] is None
    with pytest.raises(FrozenInstanceError):
        found.label = "1"  # type: ignore[misc]


def test_the_verdict_head_is_read_where_it_has_the_labels(make: Make) -> None:
    judge, engine = make(levels(), **{"Is it?": 0.8})
    found = judge.ask(red(1), "Is it?", ("Yes", "no"))
    assert found.probabilities == pytest.approx({"Yes": 0.8, "no": 0.2}, abs=1e-6)
    assert (found.head, found.mass, engine.passes) == ("verdict_head", None, 0)
    blind = judge.ask(None, "Is it?", ("yes", "no"))
    assert blind.probabilities == pytest.approx({"yes": 0.8, "no": 0.2}, abs=1e-6)
    assert blind.made.images == () and blind.made.prefix_cache == "off"


def test_what_else_the_model_would_say_is_told(make: Make) -> None:
    says = {"0": 0.0, "1": 0.0, "x": math.log(6)}
    judge, _ = make(lambda *_: says)
    found = judge.ask(None, "How many?", ("0", "1"))
    assert found.mass == pytest.approx(0.25, abs=1e-6)
    assert [note.code for note in found.made.notes] == ["low_mass"]
    assert sum(found.probabilities.values()) == pytest.approx(1)


def spelling(*words: tuple[str, float]) -> Says:
    """The words with these probabilities, character by character."""

    def says(pictures: list[float], question: str, written: str) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for word, probability in words:
            if word.startswith(written) and len(word) > len(written):
                following = word[len(written)]
                found[following] = found.get(following, 0.0) + probability
        return {char: math.log(value) for char, value in found.items()}

    return says


def test_labels_of_several_tokens_are_spelled_out(make: Make) -> None:
    judge, engine = make(spelling(("red", 0.6), ("rose", 0.1), (" blue", 0.3)))
    found = judge.ask(red(1), "Which?", ("red", "rose", "blue"), per_token=False)
    wanted = {"red": 0.6, "rose": 0.1, "blue": 0.3}
    assert found.probabilities == pytest.approx(wanted, abs=1e-5)
    assert found.mass == pytest.approx(1, abs=1e-5)
    assert engine.passes == 1, "one tree"
    assert len(engine.prompts) == len(set(p[2] for p in engine.prompts)), "shared beginnings once"
    mean = judge.ask(red(1), "Which?", ("red", "rose", "blue"))
    assert mean.per_token and mean.label == "red"
    # Means of log probabilities: 0.6 over 3 tokens, 0.1 over 4, 0.3 over 5 with its space.
    means = [math.log(0.6) / 3, math.log(0.1) / 4, math.log(0.3) / 5]
    assert [e.probability for e in mean.labels] == pytest.approx(softmax(means), abs=1e-5)


def test_all_labels_of_a_set_are_treated_alike(make: Make) -> None:
    """One label of several tokens: the others are spelled out as well, without another case."""
    judge, engine = make(spelling(("a", 0.5), ("bc", 0.5)))
    found = judge.ask(None, "Which?", ("a", "bc"))
    assert found.per_token
    assert [written for *_, written in engine.prompts] == ["", " ", "b", " b"]


def test_a_label_that_another_begins_with_is_told(make: Make) -> None:
    judge, _ = make(spelling(("red", 0.5), ("redder", 0.5)))
    found = judge.ask(None, "Which?", ("red", "redder"), per_token=False)
    assert [note.code for note in found.made.notes] == ["label_within"]
    assert found.mass == pytest.approx(1, abs=1e-5), "counted once"


BAD_LABELS = [
    (("1",), "1 labels; give 2 to 256"),
    (("1", "1"), "'1' is given twice"),
    (("1", " 2"), "has spaces around it"),
    (("ab", "cd", ""), "is empty"),
]


@pytest.mark.parametrize("labels,message", BAD_LABELS)
def test_labels_that_cannot_be_used(make: Make, labels: tuple[str, ...], message: str) -> None:
    judge, _ = make(levels())
    with pytest.raises(InputError, match=message) as error:
        judge.ask(red(1), "Which?", labels)
    assert error.value.code == "labels"


def test_failures_are_errors_with_a_code(make: Make, tmp_path: Path) -> None:
    judge, engine = make(lambda *_: {"0": math.nan})
    with pytest.raises(ProviderError, match="not numbers"):
        judge.ask(red(1), "How many?", ("0", "1"))
    with pytest.raises(InputError, match=r"no\.png: no such file") as error:
        judge.ask(str(tmp_path / "no.png"), "How many?", ("0", "1"))
    assert error.value.code == "missing"
    with pytest.raises(InputError) as error:
        judge.ask(red(1), "How many?", ("0", "1"), timeout=1e-9)
    assert error.value.code == "timeout"
    engine.says = levels(1.0, 0.0)
    assert judge.ask(red(1), "How many?", ("0", "1")).label == "0", "usable afterwards"


def test_within_a_memory_budget_it_says_so(make: Make) -> None:
    judge, _ = make(levels())
    judge._way = Batches.__new__(Batches)
    with pytest.raises(InputError, match="without a memory budget") as error:
        judge.ask(red(1), "How many?", ("0", "1"))
    assert error.value.code == "memory_budget"


# --- choices -------------------------------------------------------------------------------------

WORTH = {"cat": 2.0, "dog": 1.0, "emu": 0.5, "fox": -1.0}


def choosing(bias: Mapping[str, float]) -> Says:
    """The option by its worth, and by a preference for letters."""

    def says(pictures: list[float], question: str, written: str) -> Mapping[str, float]:
        shown = re.findall(r"([A-Z])\. (\w+)", question)
        return {letter: WORTH[option] + bias.get(letter, 0.0) for letter, option in shown}

    return says


def test_each_option_stands_under_each_letter_once(make: Make) -> None:
    judge, engine = make(choosing({}))
    found = judge.ask(red(1), "What is it?", tuple(WORTH), choices=True)
    wanted = dict(zip(WORTH, softmax(list(WORTH.values())), strict=True))
    assert found.probabilities == pytest.approx(wanted, abs=1e-6)
    assert (found.orders, found.agreeing, found.made.questions) == (4, 4, 4)
    assert max(each.spread for each in found.labels) < 1e-6
    seen = {
        pair
        for _, question, _ in engine.prompts
        for pair in re.findall(r"([A-Z])\. (\w+)", question)
    }
    assert len(seen) == 16 and len(engine.prompts) == 4 and engine.passes == 1


def test_a_preference_for_a_letter_cancels(make: Make) -> None:
    options = ("dog", "fox")
    plain, _ = make(choosing({}))
    biased, _ = make(choosing({"A": 5.0}))
    found = biased.ask(None, "What is it?", options, choices=True)
    assert found.label == "dog" == plain.ask(None, "What is it?", options, choices=True).label
    assert (found.orders, found.agreeing) == (2, 1)
    low, high = (1 / (1 + math.exp(gap)) for gap in (3, -7))
    assert found.probabilities["dog"] == pytest.approx((low + high) / 2, abs=1e-6)
    assert found.labels[0].spread == pytest.approx(high - low, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.permutations(tuple(WORTH)),
    st.dictionaries(st.sampled_from("ABCD"), st.floats(-4, 4)),
    st.booleans(),
)
def test_permuting_options_permutes_the_answer(
    make: Make, order: list[str], bias: dict[str, float], choices: bool
) -> None:
    def says(pictures: list[float], question: str, written: str) -> Mapping[str, float]:
        if choices:
            return choosing(bias)(pictures, question, written)
        return {char: float(ord(char) % 7) for char in "abcdefgotumx"}

    judge, _ = make(says)
    there = judge.ask(None, "What is it?", tuple(WORTH), choices=choices)
    back = judge.ask(None, "What is it?", order, choices=choices)
    assert back.probabilities == pytest.approx(there.probabilities, abs=1e-12)
    assert sum(there.probabilities.values()) == pytest.approx(1, abs=1e-12)
    assert [each.label for each in back.labels] == order


def test_options_and_wordings_that_cannot_be_used(make: Make) -> None:
    judge, _ = make(choosing({}))
    for options in (["cat"], ["cat", "cat"], [str(i) for i in range(27)]):
        with pytest.raises(InputError, match="give 2 to 26 that differ"):
            judge.ask(None, "What?", options, choices=True)
    with pytest.raises(InputError, match=r"must contain \{options\}"):
        judge.ask(None, "What?", ["cat", "dog"], choices=True, wording="{question}")
    with pytest.raises(InputError, match=r"has \{picture\}; it may have \{question\}"):
        judge.ask(None, "What?", ["0", "1"], wording="{question} {picture}")


def test_braces_in_a_value_are_text() -> None:
    assert fill("{a} and {b}", ["a"], a="{b}", b="{a}") == "{b} and {a}"
    assert counting("a {cat}") == "How many times is a {cat} visible?"


# --- score ---------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=5, max_size=5), st.floats(0.1, 100))
def test_a_score_is_the_expectation(make: Make, logits: list[float], temperature: float) -> None:
    judge, engine = make(levels(-50.0, *logits))
    found = judge.score(red(1), "crowded", temperature=temperature)
    # Those of the engine are float32.
    wanted = np.array(softmax(np.float32(logits).tolist(), temperature))
    assert engine.prompts[0][1] == "How crowded is it, from 1 to 5?"
    assert found.value == pytest.approx(float(wanted @ np.arange(1, 6)), abs=1e-5)
    assert found.normalised == pytest.approx((found.value - 1) / 4)
    (task,) = found.tasks
    assert sum(level.probability for level in task.levels) == pytest.approx(1)
    assert 0 <= task.deviation <= 2
    assert 1 <= found.value <= 5 and found.combination is None


def test_the_published_ways_to_score(make: Make) -> None:
    judge, engine = make(levels(1, 2, 3, 4, 5, 6))
    reward = judge.score(red(1), "faithful", "reward")
    assert engine.prompts[-1][1] == "How faithful is it, from 0 to 5?"
    expected = float(np.array(softmax([1, 2, 3, 4, 5, 6])) @ np.arange(6))
    assert reward.normalised == pytest.approx(expected / 5, abs=1e-6)
    count = judge.score(red(1), "a cat", "count")
    assert engine.prompts[-1][1] == "How many times is a cat visible?" == counting("a cat")
    expected = float(np.array(softmax([1, 2, 3, 4, 5])) @ np.arange(5))
    assert count.value == pytest.approx(expected, abs=1e-6)
    assert [level.label for level in count.tasks[0].levels] == list(COUNT_LABELS)

    judge, engine = make(lambda p, q, written: {"h": 3.0, "l": 1.0})
    pair = {"h": 1.0, "l": 0.0}
    quality = Rubric(
        "sharp", "sharpness", tuple(pair), tuple(pair.values()), "Rate the {criterion}.",
        "The {criterion} is ", 100.0,
    )  # fmt: skip
    found = judge.score(red(1), quality)
    assert found.value == pytest.approx(1 / (1 + math.exp(-2 / 100)), abs=1e-6)
    assert engine.prompts[-1][1:] == ("Rate the sharpness.", "The sharpness is ")


def test_rubrics_with_labels_of_their_own(make: Make) -> None:
    judge, engine = make(levels(0, 0, 0))
    own = rubric("full", labels={"0": -1.0, "1": 3.0}, wording="Is it {criterion}: {first}/{last}?")
    assert judge.score(red(1), own).value == pytest.approx(1.0, abs=1e-6)
    assert engine.prompts[-1][1] == "Is it full: 0/1?"
    assert rubric("full", labels=["0", "1", "2"]).values == (1.0, 2.0, 3.0)
    for wrong, message in (
        (lambda: rubric("full", "best"), "'best' is none of rubric, reward, quality, count"),
        (lambda: rubric("full", labels={"0": 1.0, "1": 1.0}), "two different values"),
        (lambda: rubric("full", labels={"0": 1.0, "1": math.nan}), "two different values"),
        (lambda: rubric("full", temperature=0), "temperature must be"),
        (lambda: rubric(" "), "criterion is empty"),
        (lambda: Rubric("x", "x", ("1", "2"), (1.0,)), "2 labels have 1 values"),
        (lambda: Tasks("t", ()), "no rubric was given"),
        (lambda: Tasks("t", (rubric("full"),), "sum"), "'sum' is none of mean, min, product"),
        (lambda: Tasks("t", (rubric("full"),), "viescore"), "viescore needs two groups"),
    ):
        with pytest.raises(InputError, match=message) as error:
            wrong()
        assert error.value.code == "rubric"
    with pytest.raises(ValueError, match="has its own"):
        judge.score(red(1), own, temperature=2.0)


COMBINED = {
    "mean": (0.9 + 0.4 + 0.6) / 3,
    "min": 0.4,
    "product": 0.9 * 0.4 * 0.6,
    "geometric": (0.9 * 0.4 * 0.6) ** (1 / 3),
    "viescore": math.sqrt(0.4 * 0.6),
}


@pytest.mark.parametrize("combination", COMBINED)
def test_tasks_are_packed_and_combined(make: Make, combination: str) -> None:
    worth = {"kept": 0.9, "edited": 0.4, "natural": 0.6}

    def says(pictures: list[float], question: str, written: str) -> Mapping[str, float]:
        share = next(worth[name] for name in worth if name in question)
        return {"0": math.log(1 - share), "5": math.log(share)}

    judge, engine = make(says)
    names = {"kept": "SC", "edited": "SC", "natural": "PQ"}
    rubrics = tuple(Rubric(n, n, ("0", "5"), (0.0, 5.0), group=group) for n, group in names.items())
    found = judge.score([red(1), red(0)], Tasks("edit", rubrics, combination))
    assert found.value == found.normalised == pytest.approx(COMBINED[combination], abs=1e-6)
    assert [task.value for task in found.tasks] == pytest.approx([4.5, 2.0, 3.0], abs=1e-5)
    assert engine.passes == 1 and len(engine.prompts[0][0]) == 2
    assert found.to_json()["combination"] == combination and found.made.questions == 3


def test_groups_of_low_variance_are_dropped() -> None:
    groups = [(0.1, 0.5), (0.5, 0.55), (0.9, 1.0), (0.86, 1.0), (), (0.7,), (0.6, 0.7001)]
    assert keep_groups(groups) == (True, False, False, False, False, False, True)
    assert keep_groups([(0.5, 0.6)]) == (False,), "its deviation is 0.05, which is not above"
    assert keep_groups([(0.5, 0.55)], least_std=0.01, most_mean=0.6) == (True,)


# --- checklist -----------------------------------------------------------------------------------


def test_a_checklist_is_weighed_and_its_doubts_are_named(make: Make) -> None:
    answers = {"a cat": 0.9, "a dog": 0.52, "text": 0.2, "a bat": 0.99}
    judge, engine = make(levels(), ("cat", "dog", "text"), **answers)
    given = Checklist(
        "page",
        (
            Criterion("cat", "a cat", 2.0),
            Criterion("dog", "a dog"),
            Criterion("clean", "text", 4.0, wanted=False),
            Criterion("bat", "a bat"),
        ),
    )
    found = judge.checklist(red(1), given)
    assert [each.outcome for each in found.criteria] == ["met", "uncertain", "met", "uncertain"]
    assert [e.probability for e in found.criteria] == pytest.approx(
        [0.9, 0.52, 0.8, 0.99], abs=1e-6
    )
    assert found.uncertain == ("dog", "bat") and found.criteria[3].known is False
    assert found.score == pytest.approx((1.8 + 0.52 + 3.2 + 0.99) / 8, abs=1e-6)
    assert found.between == (6 / 8, 1.0)
    assert [note.code for note in found.made.notes] == ["unknown_concept"]
    assert engine.asked == [["a cat", "a dog", "text", "a bat"]], "packed"
    assert found.to_json()["uncertain"] == ["dog", "bat"]
    engine.answers["Any a cat?"] = 0.9
    other = Checklist("page", (Criterion("cat", "a cat"),), "Any {criterion}?", band=0.45)
    assert judge.checklist(red(1), other).uncertain == ("cat",)
    for wrong, message in (
        (lambda: Checklist("c", ()), "no criteria"),
        (lambda: Checklist("c", (Criterion("a", "a"), Criterion("a", "b"))), "given twice"),
        (lambda: Checklist("c", (Criterion("a", "a", 0),)), "weight of 'a'"),
        (lambda: Checklist("c", (Criterion("a", "a"),), band=0.5), "band must be"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()


# --- compare and rank ----------------------------------------------------------------------------


def redder(steep: float = 10.0, first: float = 0.0) -> Says:
    """A for the redder picture; `first` is a preference for what comes first."""

    def says(pictures: list[float], question: str, written: str) -> Mapping[str, float]:
        return {"A": steep * (pictures[0] - pictures[-1]) + first, "B": 0.0}

    return says


def test_two_pictures_are_compared_in_both_orders(make: Make) -> None:
    judge, engine = make(redder(first=1.0))
    found = judge.compare(red(0.8), red(0.4), "is redder")
    assert [question for _, question, _ in engine.prompts] == [
        "Which picture is redder, A or B?"
    ] * 2
    assert [pictures for pictures, *_ in engine.prompts] == [
        pytest.approx([0.8, 0.4], abs=0.01),
        pytest.approx([0.4, 0.8], abs=0.01),
    ]
    one, other = found.orders
    assert (one.first, other.first, one.says, other.says) == ("a", "b", "a", "a")
    assert found.winner == "a" and found.gap > 0
    assert found.probability_a == pytest.approx((one.probability_a + other.probability_a) / 2)
    assert found.probability_a + found.probability_b == pytest.approx(1)
    assert found.made.questions == 2 and len(found.made.images) == 2
    assert found.to_json()["orders"][1]["first"] == "b"  # type: ignore[index]
    assert judge.compare(red(0.8), red(0.4), "redder", wording="{criterion}?").winner == "a"
    assert engine.prompts[-1][1] == "redder?"


def test_orders_that_disagree_are_inconclusive(make: Make) -> None:
    judge, _ = make(redder(first=10.0))
    found = judge.compare(red(0.5), red(0.45), "is redder")
    assert found.winner == "inconclusive" and found.gap > 0.9
    assert judge.compare(red(0.5), red(0.5), "is redder").winner == "inconclusive"
    judge, _ = make(redder())
    assert judge.compare(red(0.5), red(0.5), "is redder").winner == "tie"


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(-3, 3))
def test_swapping_mirrors_a_comparison(make: Make, a: float, b: float, first: float) -> None:
    judge, _ = make(redder(3.0, first))
    there, back = (judge.compare(red(x), red(y), "is redder") for x, y in ((a, b), (b, a)))
    assert (there.probability_a, there.probability_b) == (back.probability_b, back.probability_a)
    mirrored = {"a": "b", "b": "a"}
    assert back.winner == mirrored.get(there.winner, there.winner)
    assert back.gap == pytest.approx(there.gap, abs=1e-12)


def test_two_texts_about_a_picture(make: Make) -> None:
    def says(pictures: list[float], question: str, written: str) -> Mapping[str, float]:
        return {"A": 2.0 if question.index("long") < question.index("short") else -1.0, "B": 0.0}

    judge, engine = make(says)
    found = judge.compare_answers(red(1), "Describe {a}.", "a long one", "a short one")
    assert found.winner == "a" and found.criterion == "follows the request better"
    assert engine.passes == 1 and len(engine.prompts) == 2, "both orders over one picture"
    assert "Describe {a}." in engine.prompts[0][1]
    blind = judge.compare_answers(None, "Describe.", "short", "long", wording="{instruction}{a}{b}")
    assert blind.winner == "b" and engine.prompts[-1][0] == []
    with pytest.raises(InputError, match=r"must contain \{b\}"):
        judge.compare_answers(None, "Describe.", "short", "long", wording="{instruction}{a}")


def test_pictures_are_ranked_by_pairs(make: Make) -> None:
    judge, _ = make(redder(8.0, 0.5))
    pictures = [red(share) for share in (0.2, 0.9, 0.5, 0.7)]
    found = judge.rank([*pictures, b"no picture"], "is redder")
    assert [each.index for each in found.ranked] == [1, 3, 2, 0]
    assert [each.rank for each in found.ranked] == [1, 2, 3, 4]
    assert len(found.pairs) == found.possible_pairs == 6 and found.made.questions == 12
    assert found.inconclusive == 0 and found.mean_gap is not None and found.mean_gap > 0
    assert [(one.index, one.error.code) for one in found.unranked] == [(4, "not_an_image")]
    scores = [each.score for each in found.ranked]
    assert sum(scores) == pytest.approx(0, abs=1e-9)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["groups"] == [[1], [3], [2], [0]] and document["inconclusive_pairs"] == 0
    few = judge.rank(pictures, "is redder", pairs=3)
    assert len(few.pairs) == 3 and few.possible_pairs == 6
    assert [each.index for each in few.ranked][0] == 1


def test_equal_pictures_share_a_rank_and_doubts_are_counted(make: Make) -> None:
    judge, _ = make(redder(8.0, 2.0))
    found = judge.rank([red(0.5), red(0.9), red(0.5)], "is redder")
    assert found.groups == ((1,), (0, 2)) and [e.rank for e in found.ranked] == [1, 2, 2]
    assert found.inconclusive == 1
    assert next(p for p in found.pairs if (p.a, p.b) == (0, 2)).winner == "inconclusive"


def test_pictures_are_ranked_by_yes(make: Make) -> None:
    judge, engine = make(levels())

    def score(prefix: object, branches: list[list[int]]) -> np.ndarray:
        engine.answers["red"] = 0.01 + 0.98 * float(engine._shown[-1] or 0)
        return LabelEngine.score(engine, prefix, branches)

    engine.score = score  # type: ignore[method-assign, assignment]
    found = judge.rank([red(0.1), red(0.8), red(0.79)], "red", method="yes", epsilon=0.05)
    assert found.groups == ((1, 2), (0,)) and found.pairs == () and found.mean_gap is None
    assert found.ranked[0].score == pytest.approx(0.01 + 0.98 * 0.8, abs=0.01)


def test_what_cannot_be_ranked(make: Make) -> None:
    judge, _ = make(redder())
    with pytest.raises(InputError, match="1 of 2 pictures can be judged") as error:
        judge.rank([red(0.1), b"no"], "is redder")
    assert error.value.code == "too_few_images"
    with pytest.raises(InputError, match="allow at least 2"):
        judge.rank([red(0.1)] * 3, "is redder", pairs=1)
    with pytest.raises(InputError) as error:
        judge.rank([red(0.1)] * 3, "is redder", timeout=1e-9)
    assert error.value.code == "timeout"


def test_the_guide_names_what_there_is(make: Make) -> None:
    """Every key of every result, every method with its wording, every combination."""
    guide = (Path(__file__).parent.parent / "JUDGING.md").read_text(encoding="utf-8")
    judge, _ = make(redder(), **{"a cat": 0.9})
    pictures = [red(0.1), red(0.9), b"no picture"]
    checklist = Checklist("c", (Criterion("a cat", "a cat"),))
    results = [
        judge.ask(red(1), "Which?", ("a", "b"), wording="{question}"),
        judge.score([red(1), red(0)], "x", "quality"),
        judge.checklist(red(1), checklist),
        judge.compare(red(1), red(0), "is redder"),
        judge.rank(pictures, "is redder"),
    ]

    def keys(value: object) -> set[str]:
        if isinstance(value, list):
            return {key for item in value for key in keys(item)}
        if not isinstance(value, dict):
            return set()
        kept = {key for key in value if key not in ("stages_ms", "placement")}
        return kept | {key for name in kept for key in keys(value[name])}

    for result in results:
        for key in keys(result.to_json()) - {"code", "message", "error"}:
            assert re.search(rf"`[^`]*\b{key}\b[^`]*`", guide), key
    for name in (*METHODS, *COMBINATIONS, "viescore"):
        assert f"`{name}`" in guide
    for method in METHODS:
        asked = rubric("{criterion}", method).question()
        assert asked.text in guide and asked.lead in guide
    assert COMPARE in guide
