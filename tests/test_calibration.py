"""The calibration file: maps stay monotone, it comes back as it was, and edits are noticed."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgejudge.calibration import CALIBRATION_SCHEMA, Calibration, signed
from edgejudge.calibration_records import (
    AimRecord,
    CalibratedRule,
    CalibrationRecord,
    EstimateRecord,
    FittedOnRecord,
    GuaranteeRecord,
    MapRecord,
    SideRecord,
    UnfittedRule,
)
from edgejudge.errors import InputError

BUNDLE, POLICY = "b" * 64, "p" * 64
CONDITIONS = (("a gun", "a knife"), ("a dog",))
NONE = MapRecord("none", 1.0, 0.0, ())
slopes = st.floats(0.05, 20)


@st.composite
def steps(draw: Any) -> MapRecord:
    at = sorted(draw(st.sets(st.floats(-14, 14), min_size=1, max_size=6)))
    to = sorted(draw(st.lists(st.floats(0, 1), min_size=len(at), max_size=len(at))))
    return MapRecord("isotonic", 1.0, 0.0, tuple(zip(at, to, strict=True)))


MAPS = st.one_of(
    st.just(NONE),
    st.builds(lambda slope: MapRecord("temperature", slope, 0.0, ()), slopes),
    st.builds(lambda slope, at: MapRecord("platt", slope, at, ()), slopes, st.floats(-20, 20)),
    steps(),
)


def rule(
    made: MapRecord = NONE,
    questions: dict[str, MapRecord] | None = None,
    threshold: float = 0.4,
    uncertain: tuple[float, ...] = (0.3, 0.6),
) -> CalibratedRule:
    figure = EstimateRecord(0.1, 80, 0.05, 0.2)
    return CalibratedRule(
        id="armed_dog",
        conditions=CONDITIONS,
        positives=30,
        negatives=50,
        map=made,
        questions=questions or {},
        threshold=threshold,
        uncertain=uncertain,
        aim=AimRecord("fbeta", 1.0, "expected", True, None, figure, None),
        guarantee=GuaranteeRecord(0.15, 0.1, SideRecord(40, 1, 0.11), None, figure, ("why",)),
        log_likelihood={"none": -0.4, "temperature": None, "platt": None, "isotonic": None},
        ece_before=figure,
        ece_after=figure,
        brier_before=figure,
        brier_after=figure,
    )


def calibration(*rules: CalibratedRule) -> Calibration:
    record = CalibrationRecord(
        schema_version=CALIBRATION_SCHEMA,
        id="",
        bundle="nano",
        bundle_sha256=BUNDLE,
        policy="kitchen",
        policy_version="1",
        policy_sha256=POLICY,
        question=None,
        fitted_on=FittedOnRecord(80, 1, 2),
        rules=rules,
        unfitted=(UnfittedRule("blades", 3, 20, "too few"),),
    )
    return Calibration(signed(record))


@settings(deadline=None)
@given(MAPS, MAPS, st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_maps_never_fall_and_stay_probabilities(
    made: MapRecord, own: MapRecord, probabilities: list[float]
) -> None:
    assert made.problem() is None
    fitted = calibration(rule(made, {"a gun": own})).rule("armed_dog")
    assert fitted is not None
    for question in ("a gun", "a dog"):
        mapped = [fitted.apply(p, question) for p in sorted(probabilities)]
        assert mapped == sorted(mapped)
        assert all(0 <= p <= 1 for p in mapped)


@settings(deadline=None)
@given(MAPS, st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_one_map_for_all_questions_commutes_with_or_and_and(
    made: MapRecord, probabilities: list[float]
) -> None:
    for of in (min, max):
        assert made.apply(of(probabilities)) == of(map(made.apply, probabilities))


@pytest.mark.parametrize("probability", [float("nan"), -0.01, 1.01, float("inf")])
def test_what_is_no_probability_is_refused(probability: float) -> None:
    fitted = calibration(rule()).rule("armed_dog")
    assert fitted is not None
    with pytest.raises(ValueError):
        fitted.apply(probability, "a dog")


def test_known_maps() -> None:
    assert MapRecord("temperature", 0.5, 0.0, ()).apply(0.9) == pytest.approx(0.75)
    assert MapRecord("platt", 1.0, math.log(3), ()).apply(0.5) == pytest.approx(0.75)
    tent = MapRecord("isotonic", 1.0, 0.0, ((-1.0, 0.2), (1.0, 0.6)))
    assert tent.apply(0.5) == pytest.approx(0.4, abs=1e-3)
    assert tent.apply(0.0) == pytest.approx(0.2, abs=1e-3)
    assert tent.apply(1.0) == pytest.approx(0.6, abs=1e-3)
    # Flat steps still tell pictures apart, so that an order never gets lost in a calibration.
    assert tent.apply(0.9) < tent.apply(0.99)


@settings(deadline=None)
@given(MAPS, MAPS, st.floats(0.01, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_the_file_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    made: MapRecord,
    own: MapRecord,
    threshold: float,
    down: float,
    up: float,
) -> None:
    ends = (threshold * down, threshold + (1 - threshold) * up)
    one = calibration(rule(made, {"a gun": own}, threshold, ends))
    file = tmp_path_factory.mktemp("calibration") / "c.json"
    file.write_bytes(one.to_bytes())
    again = Calibration.read(file)
    assert again.record == one.record
    assert again.id == one.id and len(again.id) == 64 and again.id.startswith(again.short_id)
    fitted = again.rule("armed_dog")
    assert fitted is not None and fitted.uncertain == ends and fitted.threshold == threshold
    assert again.rule("blades") is None and again.rule("nobody") is None


def test_the_id_is_of_the_content() -> None:
    one = calibration(rule())
    assert one.id == calibration(rule()).id
    assert one.id != calibration(rule(threshold=0.5)).id


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["rules"][0].update(threshold=0.5),
        lambda value: value["rules"][0]["map"].update(slope=2.0),
        lambda value: value.update(bundle_sha256="c" * 64),
        lambda value: value.update(more=1),
        lambda value: value.pop("unfitted"),
        lambda value: value.update(id="0" * 64),
    ],
)
def test_an_edited_file_is_noticed(tmp_path: Path, change: Any) -> None:
    file = tmp_path / "c.json"
    value = json.loads(calibration(rule()).to_bytes())
    change(value)
    file.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(InputError, match="was edited") as caught:
        Calibration.read(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "no calibration file"),
        (b"{}", "schema version None"),
        (b"[1]", "schema version none"),
        (b'{"schema_version": 99}', "schema version 99"),
        (b'{"schema_version": NaN}', "no calibration file"),
        (b"\xff\xfe", "no calibration file"),
        (b"[" * 100_000, "no calibration file"),
    ],
)
def test_what_is_no_calibration_is_told(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(data)
    with pytest.raises(InputError, match=said):
        Calibration.read(file)


def test_unknown_keys_are_named_even_with_a_right_id(tmp_path: Path) -> None:
    import hashlib

    from edgejudge.strict_json import canonical_json

    value = json.loads(calibration(rule()).to_bytes())
    value |= {"more": 1, "id": ""}
    value["id"] = hashlib.sha256(canonical_json(value)).hexdigest()
    (tmp_path / "c.json").write_bytes(canonical_json(value))
    with pytest.raises(InputError, match="unknown key 'more'"):
        Calibration.read(tmp_path / "c.json")
    with pytest.raises(InputError, match="cannot be read"):
        Calibration.read(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "wrong, said",
    [
        (rule(MapRecord("magic", 1.0, 0.0, ())), "magic"),
        (rule(MapRecord("platt", -1.0, 0.0, ())), "slope"),
        (rule(MapRecord("platt", 1.0, math.inf, ())), "finite"),
        (rule(MapRecord("isotonic", 1.0, 0.0, ())), "points"),
        (rule(MapRecord("isotonic", 1.0, 0.0, ((0.0, 0.5), (1.0, 0.4)))), "do not rise"),
        (rule(MapRecord("isotonic", 1.0, 0.0, ((1.0, 0.5), (1.0, 0.6)))), "do not rise"),
        (rule(questions={"a gun": MapRecord("temperature", 0.0, 0.0, ())}), "slope"),
        (rule(uncertain=(0.5, 0.6)), "not within the interval"),
        (rule(uncertain=(0.3,)), "not within the interval"),
        (rule(threshold=0.0, uncertain=(0.0, 0.1)), "no threshold between"),
    ],
)
def test_records_that_say_what_cannot_be_are_refused(wrong: CalibratedRule, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Calibration(replace(calibration().record, rules=(wrong,)))


def test_a_rule_twice_is_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        calibration(rule(), rule())


def test_it_is_for_one_bundle_policy_and_question() -> None:
    one = calibration(rule())
    conditions = {"armed_dog": CONDITIONS, "new_rule": (("a cat",),)}
    one.check(BUNDLE, "kitchen", conditions)
    one.check(BUNDLE, "kitchen", {})  # the rule was left out since: nothing of it applies
    with pytest.raises(InputError, match="for bundle nano bbbbbbbbbbbb, and this one is cccc"):
        one.check("c" * 64, "kitchen", conditions)
    with pytest.raises(InputError, match="for policy 'kitchen', and this is 'garden'"):
        one.check(BUNDLE, "garden", conditions)
    with pytest.raises(InputError, match="other words"):
        one.check(BUNDLE, "kitchen", conditions, "Do you see {condition}?")
    with pytest.raises(InputError, match="rule 'armed_dog' had other conditions"):
        one.check(BUNDLE, "kitchen", {"armed_dog": (("a cat",),)})


def test_a_record_is_signed_by_all_of_it() -> None:
    record = calibration(rule()).record
    assert signed(replace(record, id="whatever")).id == record.id
    assert signed(replace(record, policy_version="2")).id != record.id
