"""A time for each picture: what is asked first, what still fits, and what is never called safe."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgejudge import InputError, Judge, Policy, Verdict
from edgejudge.asking_order import (
    by_information,
    information,
    prior_texts,
    probably_broken,
    token_nodes,
)
from edgejudge.plan import Plan, PlannedRule, Question
from edgejudge.regions import Region
from edgejudge.screening import Screening
from edgejudge.time_budget import Pace, TimeBudget, Watch
from fake_judge import fake_judge, manifest
from test_calibration import calibration
from test_calibration import rule as fitted_rule
from timed_engine import TimedEngine

PICTURE = np.full((16, 16, 3), 200, np.uint8)
PREFIX_MS = 40.0
TEXTS = ("a gun", "a knife", "a gun shop", "fire", "beer", "wine", "a die", "a long list of things")


def rule_yaml(rules: list[list[list[str]]]) -> str:
    lines = ["name: p", "version: 1", "rules:"]
    for place, conditions in enumerate(rules):
        lines.append(f"  - {{id: r{place}, text: t, category: c, conditions: {conditions}}}")
    return "\n".join(lines)


# Several rules of one or two conditions of one to three alternatives; they share questions.
policies = st.lists(
    st.lists(
        st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3, unique=True),
        min_size=1,
        max_size=2,
        unique_by=tuple,
    ),
    min_size=1,
    max_size=6,
)
answers = st.fixed_dictionaries({text: st.floats(0.01, 0.99) for text in TEXTS})


def exact(judge: Judge, engine: TimedEngine) -> None:
    """Predictions are what will be."""
    way: Any = judge._way
    way._pace.line = lambda: (engine.begin_ms, engine.token_ms)


def spent(verdict: Verdict) -> float:
    return sum(verdict.stages_ms.values())


def asked(verdict: Verdict) -> dict[tuple[str, str], float]:
    """(rule, question) -> probability."""
    return {
        (rule.id, each.text): each.probability
        for rule in verdict.rules
        for part in rule.conditions
        for each in part.alternatives
        if each.probability is not None
    }


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Judge, TimedEngine]:
    engine = TimedEngine()
    judge = fake_judge(tmp_path_factory.mktemp("timed"), manifest(), engine)
    exact(judge, engine)
    return judge, engine


@settings(max_examples=60, deadline=None)
@given(policies, answers, st.lists(st.floats(1.0, 120.0), min_size=2, max_size=4))
def test_more_time_decides_more_and_nothing_else(
    timed: tuple[Judge, TimedEngine],
    rules: list[list[list[str]]],
    said: Mapping[str, float],
    budgets: list[float],
) -> None:
    policy = Policy.from_yaml(rule_yaml(rules))
    judge, engine = timed
    engine.answers = dict(said)
    engine.passes.clear()
    plain = judge.screen(PICTURE, policy)
    endless = judge.screen(PICTURE, policy, budget_ms=math.inf)
    assert (endless.rules, endless.notes) == (plain.rules, plain.notes)
    assert engine.passes[0][:2] == engine.passes[1][:2], "the same pass in the same order"
    before: dict[tuple[str, str], float] = {}
    for ms in sorted(budgets):
        engine.passes.clear()
        verdict = judge.screen(PICTURE, policy, budget_ms=ms)
        for _, tokens, begun in engine.passes:
            assert begun + engine.begin_ms + engine.token_ms * tokens <= ms
        now = asked(verdict)
        assert before.keys() <= now.keys() and now.items() <= asked(plain).items()
        before = now
        for rule, full in zip(verdict.rules, plain.rules, strict=True):
            assert rule.verdict in (full.verdict, "uncertain")
        if spent(verdict) > ms:
            assert not now and [note.code for note in verdict.notes] == ["over_time"]
        assert bool(verdict.notes) == (len(now) < len(asked(plain)))
        assert now or verdict.verdict == "uncertain"


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 1.0),
            st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=7,
    )
)
def test_each_rule_is_the_best_of_those_that_are_left(
    rules: list[tuple[float, list[list[int]]]],
) -> None:
    branches = [tuple(ids) for _, some in rules for ids in some]
    planned, priors, at = [], {}, 0
    for place, (prior, some) in enumerate(rules):
        questions = []
        for ids in some:
            questions.append(Question(f"{place} {ids}", at, True))
            priors[f"{place} {ids}"] = prior
            at += 1
        planned.append(PlannedRule(f"r{place}", "t", "c", 0.5, (tuple(questions),)))
    plan = Plan("p", "1", "", 0.05, tuple(planned), tuple(branches), ())
    order = by_information(plan, priors)
    assert sorted(order) == sorted(rule.id for rule in planned)
    prefixes = {
        rule.id: {
            branches[q.branch][: i + 1]
            for q in rule.conditions[0]
            for i in range(len(branches[q.branch]))
        }
        for rule in planned
    }
    bits = {rule.id: information(probably_broken(rule, priors)) for rule in planned}
    there: set[Any] = set()
    for place, rule in enumerate(order):

        def ratio(each: str, there: frozenset[Any] = frozenset(there)) -> float:
            tokens = len(prefixes[each] - there)
            return bits[each] / tokens if tokens else (math.inf if bits[each] else 0.0)

        assert ratio(rule) == max(map(ratio, order[place:]))
        there |= prefixes[rule]


def test_information_is_that_of_a_coin() -> None:
    assert information(0.5) == 1.0 and information(0.0) == information(1.0) == 0.0
    assert information(0.11) == pytest.approx(0.4999, abs=1e-3)
    assert information(0.2) == pytest.approx(information(0.8))


def test_a_pass_has_the_nodes_of_its_branches() -> None:
    nodes = token_nodes([(1, 2, 3), (1, 2, 4), (1, 2), (2, 1)])
    assert [len(each) for each in nodes] == [3, 3, 2, 2]
    assert len(frozenset().union(*nodes)) == 6
    assert nodes[2] < nodes[0] and not nodes[3] & nodes[0]


def plan_of(*rules: PlannedRule, branches: int) -> Plan:
    ids = tuple((place, 9) for place in range(branches))
    return Plan("p", "1", "", 0.05, rules, ids, ())


def test_what_is_known_before_a_picture_is_seen() -> None:
    def rule(name: str, *texts: str, known: bool = True, rate: float | None = None) -> PlannedRule:
        questions = tuple((Question(text, 0, known),) for text in texts)
        fitted: Any = None if rate is None else SimpleNamespace(base_rate=rate)
        return PlannedRule(name, "t", "c", 0.5, questions, calibration=fitted)

    priors = {"a": 0.4, "b": 0.1}
    assert probably_broken(rule("r", "a", "b"), priors) == 0.1
    assert probably_broken(rule("r", "a", "b", rate=0.3), {}) == 0.3
    both = PlannedRule("r", "t", "c", 0.5, ((Question("a", 0, True), Question("b", 1, True)),))
    assert probably_broken(both, priors) == 0.4
    # Equal ones stay in the policy's order; what cannot be decided comes last.
    rules = (rule("lost", "a", known=False), rule("one", "b"), rule("two", "b"), rule("sure", "a"))
    assert by_information(plan_of(*rules, branches=1), priors) == ("sure", "one", "two", "lost")


def test_labels_say_how_often_a_rule_is_broken() -> None:
    """They go before language priors, which know no pictures."""
    fitted = calibration(fitted_rule()).rule("armed_dog")
    assert fitted is not None and fitted.base_rate == 30 / 80
    parts = ((Question("a", 0, True),),)
    rare = PlannedRule("rare", "t", "c", 0.5, parts)
    labelled = replace(rare, id="labelled", calibration=fitted)
    assert prior_texts(plan_of(rare, labelled, branches=1)) == ["a"]
    assert by_information(plan_of(rare, labelled, branches=1), {"a": 0.1})[0] == "labelled"
    assert by_information(plan_of(labelled, rare, branches=1), {"a": 0.5})[0] == "rare"


def span(name: str, ms: float, parent: int | None = None, **counts: int) -> Any:
    return SimpleNamespace(name=name, ms=ms, parent=parent, counts=counts)


def test_a_line_through_the_passes_so_far() -> None:
    pace = Pace()
    assert pace.line() == (16.0, 0.5), "the stated guess"
    pace.learn([span("vision", 30), span("preprocess", 2), span("prefill", 60, tokens=300)])
    assert pace.line() == pytest.approx((6.4, 0.2))
    assert pace.beside_ms(10) == pytest.approx(92 + 8.4)
    pace.learn([span("prefill", 50, tokens=5)])  # the system prompt alone
    assert pace.line() == pytest.approx((6.4, 0.2))
    for tokens in (20, 200) * 15:
        pace.learn([span("score", 9 + 0.7 * tokens, tokens=tokens), span("verdict_head", 1.0)])
    assert pace.pass_ms(20) == pytest.approx(24, rel=0.05)
    assert pace.pass_ms(200) == pytest.approx(150, rel=0.05)
    # It follows a machine that gets slower, and never predicts less for more.
    for _ in range(30):
        pace.learn([span("score", 500, tokens=20)])
    assert pace.pass_ms(20) == pytest.approx(500, rel=0.1)
    assert pace.line()[1] >= 0 and pace.line()[0] >= 0


def test_passes_of_one_size_are_predicted_all_the_same() -> None:
    pace = Pace()
    for _ in range(5):
        pace.learn([span("score", 100, tokens=185)])
    assert pace.pass_ms(185) == pytest.approx(100, rel=0.05)
    a, b = pace.line()
    assert a >= 0 and b > 0


@given(st.lists(st.tuples(st.integers(1, 3000), st.floats(0, 1e5)), min_size=1, max_size=60))
def test_predictions_are_times(passes: list[tuple[int, float]]) -> None:
    pace = Pace()
    for tokens, ms in passes:
        pace.learn([span("score", ms, tokens=tokens)])
    a, b = pace.line()
    assert a >= -1e-6 and b >= 0 and math.isfinite(pace.pass_ms(1000))


def test_reasoning_is_predicted_from_the_last_ones() -> None:
    pace = Pace()
    assert pace.reason_ms(352) == pytest.approx(352 * pace.pass_ms(1))
    pace.learn([span("reason", 800.0)])
    assert pace.reason_ms(352) == 800.0
    pace.learn([span("reason", 1800.0)])
    assert pace.reason_ms(96) == pytest.approx(1100.0)
    assert pace.beside_ms(1) == math.inf, "no picture was put in yet"
    assert Watch(None, pace, None).fits_beside(1)


@pytest.mark.parametrize("ms", [0.0, -1.0, math.nan])
def test_what_is_no_time(tmp_path: Path, ms: float) -> None:
    judge = fake_judge(tmp_path, manifest(), TimedEngine())
    with pytest.raises(InputError, match="milliseconds above 0") as caught:
        judge.screen(PICTURE, "stickers", budget_ms=ms)
    assert caught.value.code == "time_budget"
    with pytest.raises(InputError, match="judged as a whole"):
        judge.plan("llavaguard", budget_ms=50)


ARMS = """\
name: arms
version: 1
rules:
  - {id: long, text: t, category: c, conditions: [[a gun, a knife, a very large bomb]]}
  - {id: short, text: t, category: c, conditions: [a die]}
"""


def test_a_picture_that_takes_too_long_by_itself(tmp_path: Path) -> None:
    engine = TimedEngine({"a gun": 0.99})
    judge = fake_judge(tmp_path, manifest(), engine)
    late = judge.screen(PICTURE, Policy.from_yaml(ARMS), budget_ms=35.0)
    assert late.verdict == "uncertain" and spent(late) == PREFIX_MS
    assert [note.code for note in late.notes] == ["over_time"] and engine.passes == []
    tests = [part.test for rule in late.rules for part in rule.conditions]
    assert tests == ["not_asked", "not_asked"] and "tokens" not in late.stages_used
    # After encoding nothing is prefilled that could not be used.
    assert judge.screen(PICTURE, Policy.from_yaml(ARMS), budget_ms=30.0).image_prefixes == 0
    # Priors are once for a policy, and no picture pays for them.
    assert engine.clock.ms >= 1000
    assert judge.screen(PICTURE, Policy.from_yaml(ARMS), budget_ms=500.0).verdict == "unsafe"


def test_the_cheap_rule_comes_first(tmp_path: Path) -> None:
    engine = TimedEngine({"a gun": 0.99})
    judge = fake_judge(tmp_path, manifest(), engine)
    exact(judge, engine)
    policy = Policy.from_yaml(ARMS)
    verdict = judge.screen(PICTURE, policy, budget_ms=PREFIX_MS + 4 + 0.5 * 6)
    assert engine.asked == [["a die"]]
    assert [rule.verdict for rule in verdict.rules] == ["uncertain", "safe"]
    assert verdict.verdict == "uncertain"
    (note,) = verdict.notes
    assert (note.code, note.message) == ("not_asked", "1 of 2 rules were not asked within 47 ms")
    # In another order nothing fits, since an order is not left.
    plan = judge.plan(policy)
    other = replace(plan, budget=TimeBudget(47.0, order=("long", "short")))
    assert [rule.verdict for rule in judge.screen(PICTURE, other).rules] == ["uncertain"] * 2


def test_the_first_broken_rule_may_end_it(tmp_path: Path) -> None:
    rules = [[[text]] for text in ("a die", "fire", "beer", "wine", "a gun", "a knife", "a dog")]
    policy = Policy.from_yaml(rule_yaml(rules))
    engine = TimedEngine({"wine": 0.99, "a knife": 0.99})
    judge = fake_judge(tmp_path, manifest(), engine)
    full = judge.screen(PICTURE, policy, budget_ms=1e9)
    assert [rule.id for rule in full.broken] == ["r3", "r5"], "all, unless it is asked for"
    engine.asked.clear()
    verdict = judge.screen(PICTURE, policy, first_broken=True)
    assert [len(texts) for texts in engine.asked] == [1, 2], "passes double"
    assert [rule.id for rule in verdict.broken] == ["r3"] and verdict.verdict == "unsafe"
    assert verdict.notes[0].message == "4 of 7 rules were not asked after one was found broken"
    engine.answers, engine.asked = {}, []
    calm = judge.screen(PICTURE, policy, first_broken=True)
    assert calm.verdict == "safe" and [len(texts) for texts in engine.asked] == [1, 2, 4]


CLUE = """\
name: arms
version: 1
method: clue
rules:
  - {id: guns, text: t, category: c, conditions: [a gun]}
"""


def test_further_steps_run_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TimedEngine({"a gun": 0.5})
    judge = fake_judge(tmp_path, manifest(), engine)
    calls: list[str] = []

    def reason(*given: Any) -> Any:
        calls.append(given[4])
        engine.clock.ms += 200
        return SimpleNamespace(holds=True, rationale="because", steps="")

    monkeypatch.setattr("edgejudge.screening.reason", reason)
    monkeypatch.setattr(Screening, "_open_grammar", lambda _: None)
    policy = Policy.from_yaml(CLUE)
    there = [Region("a gun", (0, 0, 8, 8))]
    free = judge.screen(PICTURE, policy, regions=there)
    assert free.stages_used == ("tokens", "region", "reasoning") and free.verdict == "unsafe"
    # By now it is known what each step takes: 40 to put a picture in, 200 to reason.
    took = spent(free)
    none = judge.screen(PICTURE, policy, regions=there, budget_ms=60.0)
    assert none.stages_used == ("tokens",) and none.verdict == "uncertain"
    assert [note.code for note in none.notes] == ["not_reasoned"]
    assert "no time left" in none.notes[0].message and calls == ["a gun"]
    some = judge.screen(PICTURE, policy, regions=there, budget_ms=150.0)
    assert some.stages_used == ("tokens", "region") and some.verdict == "uncertain"
    enough = judge.screen(PICTURE, policy, regions=there, budget_ms=took + 50)
    assert enough.rules == free.rules and spent(enough) <= took + 50


def test_nano_asks_less_in_less_time() -> None:
    judge = Judge.load(threads=1)
    photo = Path(__file__).parent.parent / "models" / "nano" / "samples" / "chat.jpg"
    plain = judge.screen(photo)
    assert judge.screen(photo, budget_ms=math.inf).rules == plain.rules, "bit for bit"
    # The tokens that are predicted are those that run.
    plan = judge.plan("stickers")
    way: Any = judge._way
    (last, *_) = way._pace._passes
    assert last[1] == len(frozenset().union(*token_nodes(plan.branches)))
    late = judge.screen(photo, budget_ms=1e-3)
    assert late.verdict == "uncertain" and late.notes[-1].code == "over_time"
    way._pace.line = lambda: (0.0, 1e6)  # so that no pass of more than 20 tokens fits
    short = judge.screen(photo, budget_ms=2e7)
    some = asked(short)
    assert 0 < len(some) < len(asked(plain))
    for key, probability in some.items():
        assert probability == pytest.approx(asked(plain)[key], abs=1e-5)
    assert all(
        rule.verdict in (full.verdict, "uncertain")
        for rule, full in zip(short.rules, plain.rules, strict=True)
    )
