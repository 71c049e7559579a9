"""From labels and probabilities to a calibration, rule by rule.

Takes what a judge said of pictures and what people say of them; gives a calibration. The method is
chosen by pictures it has not seen, and so are the figures that say what it is worth. Needs the
extra `eval`. Knows no files and runs no judge.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Manifest
from edgejudge.calibrating.fitting import (
    FOLDS,
    LEAST_OF_A_CLASS,
    Floats,
    apply_map,
    choose,
    deal,
    methods_for,
)
from edgejudge.calibrating.thresholds import Aim, Side, choose_threshold, find_interval
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
from edgejudge.evaluation.calibration_metrics import (
    Figure,
    Resampling,
    brier,
    clopper_pearson,
    equal_mass_ece,
)
from edgejudge.plan import Plan

__all__ = ["Aimed", "RuleLabels", "calibrate", "calibrate_rule"]

_REPEATS = 500  # of the bootstrap; its ends are shown with two digits
_PER_QUESTION = ("none", "temperature", "platt")  # steps would be fitted to steps


@dataclass(frozen=True, slots=True)
class Aimed:
    """What is wanted: the threshold's aim, and the share `alpha` of wrong decisions that confidence
    1 - `delta` is asked for. `per_question` fits questions with labels of their own before the
    rule.
    """

    aim: Aim
    alpha: float = 0.15
    delta: float = 0.1
    per_question: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or not 0 < self.delta < 1:
            raise InputError(
                "aim", f"alpha {self.alpha} and delta {self.delta} must lie between 0 and 1"
            )


@dataclass(frozen=True, slots=True)
class RuleLabels:
    """One rule's pictures, each once: keys that no two share, P(yes) by question, and whether it
    breaks the rule. `questions` has labels of single questions, by text and key.
    """

    id: str
    conditions: tuple[tuple[str, ...], ...]
    pictures: tuple[str, ...]
    answers: tuple[Mapping[str, float], ...]
    labels: tuple[int, ...]
    questions: Mapping[str, Mapping[str, int]]


def calibrate(
    rules: Sequence[RuleLabels],
    manifest: Manifest,
    plan: Plan,
    fitted_on: FittedOnRecord,
    aimed: Aimed,
) -> Calibration:
    """The calibration of a bundle and a policy, given as its plan; rules keep the order they come
    in. Raises InputError "few_labels" where no rule has enough.
    """
    made = [calibrate_rule(rule, aimed, manifest.band) for rule in rules]
    fitted = tuple(rule for rule in made if isinstance(rule, CalibratedRule))
    unfitted = tuple(rule for rule in made if isinstance(rule, UnfittedRule))
    if not fitted:
        why = "; ".join(f"{rule.id}: {rule.why}" for rule in unfitted)
        raise InputError("few_labels", f"too few labels for any rule: {why or 'there are none'}")
    record = CalibrationRecord(
        schema_version=CALIBRATION_SCHEMA,
        id="",
        bundle=manifest.name,
        bundle_sha256=manifest.sha256,
        policy=plan.policy,
        policy_version=plan.version,
        policy_sha256=plan.sha256,
        question=plan.question,
        fitted_on=fitted_on,
        rules=fitted,
        unfitted=unfitted,
    )
    return Calibration(signed(record))


def calibrate_rule(
    rule: RuleLabels, aimed: Aimed, band: float = 0.05
) -> CalibratedRule | UnfittedRule:
    """One rule's record; one without a map where there are too few labels. A side of the interval
    that gets no promise ends where `band` would have it end without a calibration.

    With labels per question, half of the pictures that have such labels fit the questions and
    nothing else: the order of the other pictures is then not of their own making, which the bound
    of the interval rests on.
    """
    every = np.array(rule.labels, np.float64)
    maps, rest = _fit_questions(rule) if aimed.per_question else ({}, np.arange(len(every)))
    keys = [rule.pictures[place] for place in rest]
    labels = every[rest]
    methods = methods_for(labels)
    positives, negatives = int(labels.sum()), int(len(labels) - labels.sum())
    if not methods:
        return UnfittedRule(rule.id, positives, negatives, _too_few(positives, negatives))
    before = np.array([_score(rule.conditions, rule.answers[i], {}) for i in rest], np.float64)
    asked = np.array([_score(rule.conditions, rule.answers[i], maps) for i in rest], np.float64)
    choice = choose(asked, labels, keys, methods)
    scores = apply_map(choice.map, asked)
    threshold = choose_threshold(aimed.aim, scores, labels, aimed.delta)
    interval = find_interval(scores, labels, threshold.value, aimed.alpha, aimed.delta, band)
    after, flagged = _held_out(asked, labels, keys, methods, aimed)
    decided = int(((scores >= interval.high) | (scores <= interval.low)).sum())
    again = Resampling(keys, _REPEATS)
    return CalibratedRule(
        id=rule.id,
        conditions=rule.conditions,
        positives=positives,
        negatives=negatives,
        map=choice.map,
        questions=maps,
        threshold=threshold.value,
        uncertain=(interval.low, interval.high),
        aim=AimRecord(
            aimed.aim.kind,
            aimed.aim.target,
            threshold.by,
            threshold.met,
            threshold.missing,
            _share(int((flagged & (labels == 1)).sum()), int(flagged.sum())),
            _share(int((flagged & (labels == 1)).sum()), positives),
        ),
        guarantee=GuaranteeRecord(
            aimed.alpha,
            aimed.delta,
            _side(interval.broken),
            _side(interval.not_broken),
            _estimate(decided, len(labels)),
            interval.missing,
        ),
        log_likelihood=choice.log_likelihood,
        ece_before=_figure(equal_mass_ece(before, labels, resampling=again)),
        ece_after=_figure(equal_mass_ece(after, labels, resampling=again)),
        brier_before=_figure(brier(before, labels, again)),
        brier_after=_figure(brier(after, labels, again)),
    )


def _held_out(
    probabilities: Floats,
    labels: Floats,
    keys: Sequence[str],
    methods: Sequence[str],
    aimed: Aimed,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Each picture's calibrated probability, and whether it is flagged, with everything chosen and
    fitted without its fold: the method, the map and the threshold.
    """
    fold = deal(labels, keys, FOLDS)
    after = np.empty_like(probabilities)
    flagged = np.zeros(len(labels), bool)
    for each in range(FOLDS):
        seen, unseen = fold != each, fold == each
        names = [key for key, one in zip(keys, seen, strict=True) if one]
        made = choose(probabilities[seen], labels[seen], names, methods).map
        threshold = choose_threshold(
            aimed.aim, apply_map(made, probabilities[seen]), labels[seen], aimed.delta
        )
        after[unseen] = apply_map(made, probabilities[unseen])
        flagged[unseen] = after[unseen] >= threshold.value
    return after, flagged


def _fit_questions(rule: RuleLabels) -> tuple[dict[str, MapRecord], NDArray[np.int64]]:
    """Maps of questions with labels enough in one half of the pictures, and the places of the
    pictures for all the rest.
    """
    texts = list(dict.fromkeys(text for either in rule.conditions for text in either))
    labelled = {key for text in texts for key in rule.questions.get(text, {})}
    # By their names, so that a picture stays in its half when others are added.
    half = {
        key for key in labelled if hashlib.sha256(f"{rule.id} {key}".encode()).digest()[0] % 2 == 0
    }
    maps: dict[str, MapRecord] = {}
    tried = False
    for text in texts:
        own = rule.questions.get(text, {})
        places = [i for i, key in enumerate(rule.pictures) if key in half and key in own]
        keys = [rule.pictures[i] for i in places]
        labels = np.array([own[key] for key in keys], np.float64)
        methods = [each for each in methods_for(labels) if each in _PER_QUESTION]
        if not methods:
            continue
        tried = True
        said = np.array([rule.answers[i][text] for i in places], np.float64)
        made = choose(said, labels, keys, methods).map
        if made.method != "none":
            maps[text] = made
    places = [i for i, key in enumerate(rule.pictures) if not tried or key not in half]
    return maps, np.array(places, np.int64)


def _score(
    conditions: Sequence[Sequence[str]], answers: Mapping[str, float], maps: Mapping[str, MapRecord]
) -> float:
    """A rule's probability: the minimum over conditions of the maximum over alternatives."""
    return min(
        max(maps[text].apply(answers[text]) if text in maps else answers[text] for text in either)
        for either in conditions
    )


def _too_few(positives: int, negatives: int) -> str:
    least = LEAST_OF_A_CLASS["none"]
    lacking = [
        f"{least - count} more {word}"
        for count, word in ((positives, "that break it"), (negatives, "that do not"))
        if count < least
    ]
    return (
        f"{positives} pictures that break it and {negatives} that do not, and {least} of each are "
        f"the least to fit anything by: label {' and '.join(lacking)}"
    )


def _share(k: int, n: int) -> EstimateRecord | None:
    return None if n == 0 else _estimate(k, n)


def _estimate(k: int, n: int) -> EstimateRecord:
    return EstimateRecord(k / n, n, *clopper_pearson(k, n))


def _figure(figure: Figure) -> EstimateRecord:
    return EstimateRecord(figure.value, figure.n, figure.low, figure.high)


def _side(side: Side | None) -> SideRecord | None:
    return None if side is None else SideRecord(side.n, side.errors, side.bound)
