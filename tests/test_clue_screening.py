"""Screening by CLUE around an engine that is a table: priors, regions, cut-outs, reasoning."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgejudge.bundle import RelevanceRecord, RelevanceRule
from edgejudge.calibration import CALIBRATION_SCHEMA, Calibration, signed
from edgejudge.calibration_records import (
    AimRecord,
    CalibratedRule,
    CalibrationRecord,
    EstimateRecord,
    FittedOnRecord,
    GuaranteeRecord,
    MapRecord,
)
from edgejudge.clue_settings import ClueSettings
from edgejudge.errors import InputError, ProviderError
from edgejudge.judge import Judge
from edgejudge.policy import Policy
from edgejudge.reasoning import Reasoned
from edgejudge.regions import Region, cut_out, filled, find, is_small, read_regions
from edgejudge.screening import Screening
from edgejudge.verdict import Verdict
from fake_judge import FakeEngine, compiled, fake_judge, manifest

POLICY = """\
name: arms
version: 1
method: clue
rules:
  - {id: guns, text: A gun is shown., category: arms, conditions: [[a gun, a toy gun]]}
  - {id: held, text: A hand holds one., category: arms, conditions: [a hand, a gun]}
"""
PRIOR = 0.4  # of every condition, so that 0.28 to 0.88 is undecided


class RedEngine(FakeEngine):
    """P(yes) of "a gun" by how red the picture is that was prefilled last."""

    def __init__(self, shown: float = 0.75, hidden: float = 0.05) -> None:
        super().__init__({"a hand": 0.95})
        self.shown, self.hidden = shown, hidden
        self.blind: list[int] = []
        self.prefills = 0
        self.cosines = np.zeros(0, np.float32)

    def encode_image(
        self, feeds: Mapping[str, NDArray[Any]], trace: Any = None
    ) -> NDArray[np.float32]:
        red, green, _ = feeds["pixel_values"].mean(axis=(0, 2, 3))
        shown = self.shown if red > green + 0.01 else self.hidden
        return super().encode_image(feeds, trace) + np.float32(shown)

    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> Any:
        if visual is not None:
            self.prefills += 1
            self.answers = {**self.answers, "a gun": float(visual[0, 0])}
        return super().prefill(ids, visual, positions, after)

    def score_blind(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.blind.append(len(prompts))
        row = [0.0, float(np.log(PRIOR / (1 - PRIOR)))]
        return np.array([row] * len(prompts), np.float32)

    def relevance(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.cosines


class Mind:
    """In the place of reasoning: what is said of each condition, and what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **said: bool) -> None:
        self.said = {key.replace("_", " "): value for key, value in said.items()}
        self.asked: list[str] = []
        self.failure: Exception | None = None
        monkeypatch.setattr("edgejudge.screening.reason", self._reason)
        monkeypatch.setattr(Screening, "_open_grammar", lambda _: None)

    def _reason(
        self, engine: Any, prompts: Any, eos: Any, prefix: Any, text: str, turns: int, _: Any
    ) -> Reasoned:
        assert engine.holds(prefix)
        self.asked.append(text)
        self.seen = engine.answers["a gun"]
        if self.failure is not None:
            raise self.failure
        return Reasoned(self.said[text], f"about {text}", "")


@pytest.fixture
def engine() -> RedEngine:
    return RedEngine()


@pytest.fixture
def judge(tmp_path: Path, engine: RedEngine) -> Judge:
    return fake_judge(tmp_path, manifest(), engine)


def picture(side: int = 40, box: tuple[int, int, int, int] = (10, 10, 20, 20)) -> Any:
    """Grey, with a red box [x, y, width, height]."""
    rgb = np.full((side, side, 3), 128, np.uint8)
    x, y, width, height = box
    rgb[y : y + height, x : x + width] = (255, 0, 0)
    return rgb


def decided_by(verdict: Verdict, rule: int = 0) -> list[str]:
    return [condition.test for condition in verdict.rules[rule].conditions]


def test_the_prior_decides_before_anything_else(
    judge: Judge, engine: RedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mind = Mind(monkeypatch)
    policy = Policy.from_yaml(POLICY)
    engine.shown = 0.95
    verdict = judge.screen(picture(), policy)
    assert verdict.verdict == "unsafe" and [rule.id for rule in verdict.broken] == ["guns", "held"]
    assert decided_by(verdict) == ["score"] and decided_by(verdict, 1) == ["score", "score"]
    assert verdict.rules[0].threshold is None and verdict.rules[0].uncertain_between is None
    gun, toy = verdict.rules[0].conditions[0].alternatives
    assert (gun.outcome, toy.outcome, toy.test) == ("holds", "fails", "language_prior")
    assert gun.prior == pytest.approx(PRIOR) and verdict.method == "clue"
    calm = judge.screen(picture(box=(0, 0, 0, 0)), policy)
    assert calm.verdict == "safe" and decided_by(calm) == ["language_prior"]
    assert mind.asked == [] and verdict.reasoning_calls == 0
    assert engine.blind == [3], "once for the judge, whatever the number of pictures"
    assert (verdict.image_prefixes, verdict.stages_used) == (1, ("tokens",))


def test_priors_of_a_compiled_policy_are_not_computed(tmp_path: Path, engine: RedEngine) -> None:
    policy = Policy.from_yaml(POLICY)
    record = compiled(policy.record())
    judge = fake_judge(tmp_path, manifest((record,)), engine)
    plan = judge.plan(policy)
    assert plan.clue == ClueSettings()
    judge.screen(picture(), judge.plan(policy, reasoning=False))
    assert engine.blind == []
    # Compiled ones have a prior of 0.1: below 0.07 a condition fails, above 0.82 it holds.
    engine.shown = 0.85
    assert judge.screen(picture(), policy).verdict == "unsafe"


def test_reasoning_decides_what_is_left(
    judge: Judge, engine: RedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mind = Mind(monkeypatch, a_gun=True)
    verdict = judge.screen(picture(), Policy.from_yaml(POLICY))
    assert verdict.verdict == "unsafe" and mind.asked == ["a gun"], "once for both rules"
    assert decided_by(verdict) == ["reasoning"] and decided_by(verdict, 1) == ["score", "reasoning"]
    assert verdict.rules[1].conditions[1].deciding.rationale == "about a gun"
    assert verdict.rules[0].probability == pytest.approx(0.75)
    assert (verdict.reasoning_calls, verdict.stages_used) == (1, ("tokens", "reasoning"))
    assert "reason" in verdict.stages_ms
    row = verdict.to_json()["rules"]
    assert isinstance(row, list) and row[0]["conditions"][0]["rationale"] == "about a gun"
    mind.said["a gun"] = False
    assert judge.screen(picture(), Policy.from_yaml(POLICY)).verdict == "safe"


def test_without_reasoning_the_grey_zone_is_uncertain(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    mind = Mind(monkeypatch)
    verdict = judge.screen(picture(), judge.plan(Policy.from_yaml(POLICY), reasoning=False))
    assert verdict.verdict == "uncertain" and decided_by(verdict) == ["undecided"]
    assert verdict.notes == () and mind.asked == []
    mind.failure = InputError("too_long", "no room")
    verdict = judge.screen(picture(), Policy.from_yaml(POLICY))
    assert verdict.verdict == "uncertain"
    assert [note.code for note in verdict.notes] == ["not_reasoned"]
    for failure in (InputError("timeout", "over"), ProviderError("no numbers")):
        mind.failure = failure
        verdict = judge.screen(picture(), Policy.from_yaml(POLICY))
        assert verdict.verdict is None and verdict.error is not None, "never safe"

    def missing(_: Screening) -> None:
        raise ProviderError("install edgejudge[text]")

    monkeypatch.setattr(Screening, "_open_grammar", missing)
    verdict = judge.screen(picture(), Policy.from_yaml(POLICY))
    assert verdict.verdict == "uncertain" and "edgejudge[text]" in verdict.notes[0].message


def test_an_object_whose_removal_tells_is_there(
    judge: Judge, engine: RedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mind = Mind(monkeypatch, a_gun=False)
    policy = Policy.from_yaml(POLICY)
    there = Region("Gun", (10, 10, 20, 20))
    verdict = judge.screen(picture(), policy, regions=[there])
    assert verdict.verdict == "unsafe" and mind.asked == []
    assert decided_by(verdict) == ["region"]
    deciding = verdict.rules[0].conditions[0].deciding
    assert deciding.without_region == pytest.approx(0.05)
    assert (verdict.image_prefixes, engine.prefills) == (2, 2), "one more for both rules"
    assert verdict.stages_used == ("tokens", "region") and "region" in verdict.stages_ms
    # Somewhere else nothing is proven, so it is reasoned about, over the picture itself.
    aside = judge.screen(picture(), policy, regions=[Region("a gun", (0, 0, 9, 9))])
    assert aside.verdict == "safe" and mind.asked == ["a gun"]
    assert mind.seen == pytest.approx(0.75)
    assert aside.rules[0].conditions[0].deciding.without_region == pytest.approx(0.75)
    for ignored in (
        Region("a gun", (10, 10, 20, 20), 0.05),  # not above the confidence
        Region("a dog", (10, 10, 20, 20)),
    ):
        engine.prefills = 0
        judge.screen(picture(), policy, regions=[ignored])
        assert engine.prefills == 1
    # What tokens decide is not asked of a second picture.
    engine.shown, engine.prefills = 0.95, 0
    judge.screen(picture(), policy, regions=[there])
    assert engine.prefills == 1


def test_a_rules_objects_name_regions_too(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    Mind(monkeypatch)
    text = POLICY.replace("conditions: [[", "objects: [a pistol], conditions: [[")
    text = text.split("  - {id: held")[0]
    verdict = judge.screen(
        picture(), Policy.from_yaml(text), regions=[Region("pistol", (10, 10, 20, 20))]
    )
    assert verdict.verdict == "unsafe" and decided_by(verdict) == ["region"]


def test_a_small_object_is_looked_at_by_itself(
    judge: Judge, engine: RedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mind = Mind(monkeypatch, a_gun=True)
    policy = Policy.from_yaml(POLICY)
    rgb = picture(200, (50, 60, 10, 10))  # 0.25 %: the whole is not red enough
    assert judge.screen(rgb, policy).verdict == "safe"
    engine.shown = 0.95
    verdict = judge.screen(rgb, policy, regions=[Region("a gun", (50, 60, 10, 10))])
    assert verdict.verdict == "unsafe" and decided_by(verdict) == ["score"]
    assert verdict.rules[0].probability == pytest.approx(0.95)
    assert verdict.image_prefixes == 2
    engine.shown = 0.6  # grey: the cut-out is what reasoning sees
    verdict = judge.screen(rgb, policy, regions=[Region("a gun", (50, 60, 10, 10))])
    assert decided_by(verdict) == ["reasoning"] and mind.seen == pytest.approx(0.6)


class Proposer:
    def __init__(self, *regions: Region) -> None:
        self.regions = regions
        self.labels: list[str] = []

    def propose(self, rgb: NDArray[np.uint8], labels: Sequence[str]) -> Sequence[Region]:
        assert rgb.shape == (40, 40, 3)
        self.labels = list(labels)
        return self.regions


def test_a_proposer_is_asked_where_the_caller_says_nothing(
    tmp_path: Path, engine: RedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mind(monkeypatch, a_gun=False)
    bundle = fake_judge(tmp_path, manifest(), engine).bundle
    proposer = Proposer(Region("a gun", (10, 10, 20, 20), 0.06))
    judge = Judge(bundle, engine, proposer=proposer)
    policy = Policy.from_yaml(POLICY)
    verdict = judge.screen(picture(), policy)
    assert decided_by(verdict) == ["region"] and "regions" in verdict.stages_ms
    assert proposer.labels == ["a gun", "a toy gun", "a hand"]
    proposer.labels = []
    judge.screen(picture(), policy, regions=[Region("a dog", (0, 0, 9, 9))])
    judge.screen(picture(), judge.plan(policy, method="thresholds"))
    assert proposer.labels == []
    proposer.regions = (Region("a gun", (99, 0, 5, 5)),)
    outside = judge.screen(picture(), policy)
    assert outside.error is not None and outside.error.code == "regions"
    assert "lies outside a picture of 40 x 40" in outside.error.message


def test_numbers_do_not_depend_on_the_method(
    judge: Judge, engine: RedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mind(monkeypatch, a_gun=True)
    policy = Policy.from_yaml(POLICY)
    one = judge.screen(picture(), policy)
    other = judge.screen(picture(), judge.plan(policy, method="thresholds"))
    assert engine.asked[0] == engine.asked[1] == ["a gun", "a toy gun", "a hand"]
    for mine, theirs in zip(one.rules, other.rules, strict=True):
        assert mine.probability == theirs.probability
    assert (other.method, decided_by(other)) == ("thresholds", ["threshold"])
    assert other.rules[0].threshold == 0.5


def test_what_does_not_go_together_is_refused(judge: Judge, tmp_path: Path) -> None:
    plain = Policy.from_yaml(POLICY.replace("method: clue\n", ""))
    policy = Policy.from_yaml(POLICY)
    region = Region("a gun", (0, 0, 4, 4))
    with pytest.raises(InputError, match="no method 'vote'"):
        judge.plan(policy, method="vote")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without reasoning"):
        judge.plan(plain, reasoning=True)
    with pytest.raises(InputError, match="no relevance encoder"):
        judge.plan(policy, relevance_gate=True)
    with pytest.raises(InputError, match="decided by thresholds"):
        judge.screen(picture(), plain, regions=[region])
    with pytest.raises(InputError, match="mapping of their paths"):
        judge.screen([picture()], policy, regions=[region])
    other = fake_judge(tmp_path, manifest(band=0.1), RedEngine())
    with pytest.raises(InputError, match="another bundle"):
        judge.screen(picture(), other.plan(policy))
    assert judge.plan(plain, method="clue").clue == ClueSettings()
    assert judge.plan(judge.plan(policy)).clue == ClueSettings()


# --- the gate -------------------------------------------------------------------------------------


def gated_judge(folder: Path, engine: RedEngine) -> Judge:
    policy = Policy.from_yaml(POLICY)
    preprocessing = {
        "side": 8,
        "whole": True,
        "resample": "BICUBIC",
        "rescale": 1 / 255,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    made = manifest((compiled(policy.record()),))
    rules = tuple(RelevanceRule("arms", rule.id) for rule in policy.rules)
    record = RelevanceRecord("clip", preprocessing, "relevance.bin", 4, rules)
    return fake_judge(folder, replace(made, relevance=record), engine)


def test_the_gate_skips_rules_that_are_not_about_the_picture(
    tmp_path: Path, engine: RedEngine
) -> None:
    judge = gated_judge(tmp_path, engine)
    engine.shown = 0.95
    policy = Policy.from_yaml(POLICY)
    plan = judge.plan(policy, relevance_gate=True)
    engine.cosines = np.array([0.21, 0.23], np.float32)
    verdict = judge.screen(picture(), plan)
    assert engine.asked == [["a gun", "a hand"]]
    assert [rule.verdict for rule in verdict.rules] == ["safe", "unsafe"]
    assert decided_by(verdict) == ["relevance"] and verdict.rules[0].probability is None
    assert verdict.rules[1].relevance == pytest.approx(0.23)
    assert verdict.stages_used == ("relevance", "tokens")
    # Nothing is left: the picture is not even put into the engine.
    engine.cosines, engine.prefills = np.array([0.1, 0.1], np.float32), 0
    verdict = judge.screen(picture(), plan)
    assert verdict.verdict == "safe" and engine.prefills == 0
    assert (verdict.image_prefixes, verdict.stages_used) == (0, ("relevance",))
    assert "vision" not in verdict.stages_ms
    engine.cosines = np.array([np.nan, 0.1], np.float32)
    assert judge.screen(picture(), plan).verdict is None
    # A rule that was reworded is not the encoder's any more.
    reworded = Policy.from_yaml(POLICY.replace("A gun is shown.", "A pistol is shown."))
    gates = [rule.gate for rule in judge.plan(reworded, relevance_gate=True).rules]
    assert gates == [None, 1]
    with pytest.raises(InputError, match="knows no rule of policy 'other'"):
        judge.plan(Policy.from_yaml(POLICY.replace("arms\nv", "other\nv")), relevance_gate=True)


# --- calibration ----------------------------------------------------------------------------------


def fitted(judge: Judge, *rules: tuple[str, float, tuple[float, float]]) -> Calibration:
    """Temperature 2 for each rule, with its threshold and interval."""
    none = EstimateRecord(0.1, 40, None, None)
    policy = Policy.from_yaml(POLICY)
    conditions = {rule.id: rule.conditions for rule in policy.rules}
    record = CalibrationRecord(
        CALIBRATION_SCHEMA,
        "",
        "fake",
        judge.bundle.fingerprint,
        "arms",
        "1",
        policy.hash,
        None,
        FittedOnRecord(40, 0, 0),
        tuple(
            CalibratedRule(
                name,
                conditions[name],
                20,
                20,
                MapRecord("temperature", 0.5, 0.0, ()),
                {},
                threshold,
                between,
                AimRecord("fbeta", 1.0, "point estimate", True, None, None, None),
                GuaranteeRecord(0.1, 0.1, None, None, none, ("few labels",)),
                {"none": -0.5},
                none,
                none,
                none,
                none,
            )
            for name, threshold, between in rules
        ),
        (),
    )
    return Calibration(signed(record))


def test_a_calibrated_rule_is_decided_by_its_threshold(
    judge: Judge, engine: RedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mind = Mind(monkeypatch, a_gun=False)
    calibration = fitted(judge, ("guns", 0.6, (0.55, 0.62)))
    file = tmp_path / "calibration.json"
    file.write_bytes(calibration.to_bytes())
    other = Judge(judge.bundle, engine, calibration=Calibration.read(file))
    policy = Policy.from_yaml(POLICY)
    verdict = other.screen(picture(), policy)
    guns, held = verdict.rules
    mapped = 1 / (1 + np.exp(-0.5 * np.log(0.75 / 0.25)))  # 0.634
    assert guns.probability == pytest.approx(mapped) and guns.verdict == "unsafe"
    assert guns.raw_probability == pytest.approx(0.75)
    assert (guns.threshold, guns.uncertain_between) == (0.6, (0.55, 0.62))
    assert guns.conditions[0].test == "threshold"
    assert held.verdict == "safe" and held.raw_probability is None and mind.asked == ["a gun"]
    assert verdict.calibration == calibration.id
    assert verdict.to_json()["calibration"] == calibration.id
    engine.shown = 0.65  # 0.577: inside the interval
    assert other.screen(picture(), policy).rules[0].verdict == "uncertain"
    with pytest.raises(InputError, match="fitted for policy 'arms'"):
        other.screen(picture(), Policy.from_yaml(POLICY.replace("arms\nv", "other\nv")))
    with pytest.raises(InputError, match="rule 'guns' had other conditions"):
        other.screen(picture(), Policy.from_yaml(POLICY.replace("a toy gun", "a bow")))


# --- regions --------------------------------------------------------------------------------------


def test_boxes() -> None:
    settings = ClueSettings()
    regions = [
        Region("gun", (1.5, 2.5, 3, 3), 0.5),
        Region("a gun", (20, 2, 100, 3), 0.5),
        Region("a gun", (0, 0, 5, 5), 0.4),
    ]
    boxes = find(regions, ("A gun.",), settings, (30, 40, 3))
    assert boxes == ((1, 2, 5, 6), (20, 2, 40, 5)), "the most confident, both of them, cut"
    assert find(regions, ("a bow", "gun"), settings, (30, 40, 3)) == boxes
    assert find(regions, ("a bow",), settings, (30, 40, 3)) == ()
    assert not is_small(boxes, (400, 400, 3), settings), "two boxes have no cut-out"
    assert is_small(((0, 0, 3, 3),), (30, 40, 3), settings)
    assert not is_small(((0, 0, 4, 3),), (30, 40, 3), settings)
    rgb = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
    out = filled(rgb, boxes)
    outside = np.ones((30, 40), bool)
    outside[2:6, 1:5] = outside[2:5, 20:40] = False
    assert (out[outside] == rgb[outside]).all() and out is not rgb
    assert (out[~outside] == np.round(rgb[outside].mean(axis=0))).all()
    whole = ((0, 0, 40, 30),)
    assert (filled(rgb, whole) == np.round(rgb.mean(axis=(0, 1)))).all()
    assert (filled(rgb, boxes, (7, 8, 9))[3, 3] == (7, 8, 9)).all()
    assert (cut_out(rgb, boxes) == rgb[2:6, 1:5]).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid JSON"),
        ("[]", "expected an object of picture paths"),
        ('{"a.png": {}}', "a.png: expected a list"),
        ('{"a.png": [{"box": [0, 0, 1, 1]}]}', r"a.png\[0\]: expected an object with label"),
        ('{"a.png": [{"label": "x", "box": [0, 0, 1, 1], "score": 1}]}', "unknown key 'score'"),
        ('{"a.png": [{"label": "x", "box": [0, 0, 1]}]}', "expected four numbers"),
        ('{"a.png": [{"label": "x", "box": [0, 0, 0, 1]}]}', "above 0"),
        ('{"a.png": [{"label": "x", "box": ["0", 0, 1, 1]}]}', "are numbers"),
        ('{"a.png": [{"label": "x", "box": [0, 0, 1, NaN]}]}', "expected four numbers"),
        ('{"a.png": [{"label": "x", "box": [0, 0, 1, 1], "confidence": 2}]}', "0 to 1"),
        ('{"a.png": [{"label": 3, "box": [0, 0, 1, 1]}]}', "label is text"),
    ],
)
def test_a_bad_file_of_regions_is_told_by_its_place(
    content: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "regions.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_regions(file)


def test_a_file_of_regions(tmp_path: Path) -> None:
    file = tmp_path / "regions.json"
    file.write_text(json.dumps({"a.png": [{"label": "a gun", "box": [0, 1, 2.5, 3]}]}))
    assert read_regions(file) == {"a.png": (Region("a gun", (0, 1, 2.5, 3), 1.0),)}
    with pytest.raises(InputError, match="cannot be read"):
        read_regions(tmp_path / "no.json")
