"""CLUE over the judge that ships: regions, reasoning and what they leave behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgejudge import InputError, Judge, Policy
from edgejudge.plan import with_clue
from edgejudge.regions import Region, filled, find
from edgejudge.turns import Stop

SAMPLES = Path(__file__).parent.parent / "models" / "nano" / "samples"
# `accept: 1` leaves to the later steps what the score would decide.
POLICY = Policy.from_yaml("""\
name: lab
version: 1
method: clue
clue: {accept: 1}
rules:
  - {id: signs, text: t, category: c, conditions: [a biohazard sign]}
  - {id: drugs, text: t, category: c, conditions: [a syringe]}
  - {id: arms, text: t, category: c, conditions: [a gun]}
""")
REGIONS = (
    Region("a biohazard sign", (0, 370, 430, 445)),
    Region("a syringe", (490, 380, 490, 475)),
    Region("a gun", (0, 0, 200, 200)),
)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(threads=1)


@pytest.fixture(scope="module")
def lab() -> NDArray[np.uint8]:
    return np.asarray(Image.open(SAMPLES / "lab.jpg").convert("RGB"))


def test_a_region_is_judged_as_the_picture_without_it(judge: Judge, lab: NDArray[np.uint8]) -> None:
    plan = judge.plan(POLICY, reasoning=False)
    assert plan.clue is not None
    verdict = judge.screen(lab, plan, regions=REGIONS)
    assert [rule.verdict for rule in verdict.rules] == ["unsafe", "unsafe", "safe"]
    assert [rule.conditions[0].test for rule in verdict.rules[:2]] == ["region", "region"]
    assert verdict.rules[2].conditions[0].test == "language_prior"
    assert verdict.image_prefixes == 3 and verdict.stages_used == ("tokens", "region")
    fresh = Judge.load(threads=1, prefix_cache_bytes=0)
    for place, rule in enumerate(verdict.rules[:2]):
        boxes = find(REGIONS, (REGIONS[place].label,), plan.clue, lab.shape)
        alone = fresh.screen(filled(lab, boxes), plan).rules[place].probability
        assert rule.conditions[0].deciding.without_region == pytest.approx(alone, abs=1e-5)
    # A second time all three are in the cache, and the verdict is the same.
    again = judge.screen(lab, plan, regions=REGIONS)
    assert again.rules == verdict.rules and again.image_prefixes == 0


def test_a_clear_case_does_not_hinge_on_the_colour(judge: Judge, lab: NDArray[np.uint8]) -> None:
    plan = judge.plan(POLICY, reasoning=False)
    assert plan.clue is not None
    shown = judge.screen(lab, plan)
    for place in range(2):
        boxes = find(REGIONS, (REGIONS[place].label,), plan.clue, lab.shape)
        whole = shown.rules[place].probability
        for colour in (None, (0, 0, 0), (127, 127, 127)):
            without = judge.screen(filled(lab, boxes, colour), plan).rules[place].probability
            assert whole is not None and without is not None
            assert whole - without > plan.clue.region, (place, colour)


def test_the_token_test_is_that_of_thresholds(judge: Judge) -> None:
    """Packed numbers do not depend on the method, and clear cases not on how they are decided."""
    paths = sorted(SAMPLES.glob("*.jpg"))[:3]
    clue = judge.screen(paths, judge.plan("stickers", method="clue", reasoning=False))
    plain = judge.screen(paths, "stickers")
    priors = judge.language_priors("stickers")
    for one, other in zip(clue, plain, strict=True):
        for mine, theirs in zip(one.rules, other.rules, strict=True):
            assert mine.probability == theirs.probability
            assert {mine.verdict, theirs.verdict} != {"safe", "unsafe"}
            for condition in mine.conditions:
                assert all(q.prior == priors[q.text] for q in condition.alternatives)


@pytest.mark.parametrize("turns", [1, 2])
def test_reasoning_always_gives_an_answer(judge: Judge, lab: NDArray[np.uint8], turns: int) -> None:
    pytest.importorskip("llguidance")
    plan = judge.plan(POLICY)
    assert plan.clue is not None
    plan = with_clue(plan, replace(plan.clue, turns=turns))
    verdict = judge.screen(lab, plan)
    assert verdict.verdict in ("safe", "unsafe") and verdict.reasoning_calls == 2
    for rule in verdict.rules[:2]:
        deciding = rule.conditions[0].deciding
        assert deciding.test == "reasoning" and isinstance(deciding.rationale, str)
    assert verdict.stages_used == ("tokens", "reasoning") and verdict.stages_ms["reason"] > 0
    assert judge.screen(lab, plan).rules == verdict.rules, "greedy"


class _Ends(Stop):
    """Over after so many checks."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise InputError("timeout", "over")


def test_time_may_end_while_it_reasons(judge: Judge, lab: NDArray[np.uint8]) -> None:
    pytest.importorskip("llguidance")
    plan, way = judge.plan(POLICY), judge._way
    whole = judge.screen(lab, plan)
    for checks in (4, 12, 40):
        made = way.prepare(lab, Stop())  # type: ignore[union-attr]
        verdict = way.finish(made, plan, _Ends(checks), judge._turns)  # type: ignore[union-attr]
        assert verdict.verdict is None and verdict.error is not None
        assert verdict.error.code == "timeout" and verdict.rules == ()
    assert judge.screen(lab, plan).rules == whole.rules


def test_what_does_not_reason_loads_no_head(lab: NDArray[np.uint8]) -> None:
    judge = Judge.load(threads=1)
    judge.screen(lab, judge.plan("stickers", method="clue", reasoning=False))
    assert "lm_head" not in judge.engine.held_stages  # type: ignore[union-attr]
