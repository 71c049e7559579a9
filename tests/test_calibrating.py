"""Fitting, thresholds and the undecided interval, on invented data whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from edgejudge.calibrating.fitting import (
    LEAST_OF_A_CLASS,
    apply_map,
    choose,
    deal,
    fit,
    log_likelihood,
    methods_for,
)
from edgejudge.calibrating.rules import Aimed, RuleLabels, calibrate_rule
from edgejudge.calibrating.thresholds import (
    Aim,
    choose_threshold,
    find_interval,
    fixed_sequence,
    needed_without_errors,
)
from edgejudge.calibration_records import CalibratedRule, MapRecord, UnfittedRule
from edgejudge.errors import InputError

Floats = NDArray[np.float64]
ALPHA, DELTA = 0.15, 0.1


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)), np.float64)


def drawn(
    random: np.random.Generator, n: int, slope: float = 1.0, shift: float = 0.0
) -> tuple[Floats, Floats]:
    """Probabilities that are off by a slope and a shift of their logit, and labels."""
    x = random.normal(-0.5, 2.0, n)
    return sigmoid(slope * x + shift), (random.random(n) < sigmoid(x)).astype(float)


def names(n: int) -> list[str]:
    return [f"{i}.png" for i in range(n)]


def rule_of(p: Floats, y: Floats) -> RuleLabels:
    answers = tuple({"a gun": each} for each in p.tolist())
    labels = tuple(int(each) for each in y)
    return RuleLabels("weapons", (("a gun",),), tuple(names(len(p))), answers, labels, {})


# --- maps ---------------------------------------------------------------------------------------


def test_each_method_finds_the_distortion_it_can_express() -> None:
    p, y = drawn(np.random.default_rng(0), 8000, slope=3.0)
    assert fit("temperature", p, y).slope == pytest.approx(1 / 3, rel=0.05)
    p, y = drawn(np.random.default_rng(1), 8000, slope=2.0, shift=3.0)
    platt = fit("platt", p, y)
    assert (platt.slope, platt.intercept) == (
        pytest.approx(0.5, rel=0.06),
        pytest.approx(-1.5, abs=0.12),
    )
    # Of steps it is known what they are: the share of label 1 around a probability.
    steps = fit("isotonic", p, y)
    at = np.array([0.2, 0.5, 0.9, 0.99])
    truth = sigmoid((np.log(at / (1 - at)) - 3) / 2)
    assert apply_map(steps, at) == pytest.approx(truth, abs=0.06)


def test_a_threshold_that_parts_the_labels_keeps_parameters_finite() -> None:
    p = np.concatenate([np.full(20, 0.1), np.full(20, 0.9)])
    y = np.repeat([0.0, 1.0], 20)
    for method in ("temperature", "platt", "isotonic"):
        made = fit(method, p, y)
        assert made.problem() is None
        low, high = apply_map(made, np.array([0.1, 0.9]))
        assert 0.01 < low < 0.1 and 0.9 < high < 0.99, method
    # The most that 20 of 20 can mean by Platt's targets is 21/22.
    assert apply_map(fit("platt", p, y), np.array([0.9]))[0] == pytest.approx(21 / 22, abs=1e-3)


def test_a_judge_worse_than_chance_is_not_turned_round() -> None:
    random = np.random.default_rng(2)
    p = random.random(400)
    y = (random.random(400) > p).astype(float)
    for method in ("temperature", "platt", "isotonic"):
        made = fit(method, p, y)
        assert made.problem() is None
        mapped = apply_map(made, np.linspace(0.05, 0.95, 50))
        assert (np.diff(mapped) >= 0).all()
        assert np.ptp(mapped) < 0.2  # it says next to nothing, which is the truth


@given(st.integers(2, 6), st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 4))
@settings(deadline=None)
def test_no_picture_straddles_folds(folds: int, seed: int, pictures: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    groups = [f"{i}" for i in range(pictures) for _ in range(rows)]
    labels = (random.random(pictures * rows) < 0.3).astype(float)
    fold = deal(labels, groups, folds, seed)
    for picture in set(groups):
        assert len({f for f, g in zip(fold, groups, strict=True) if g == picture}) == 1
    assert set(fold) <= set(range(folds))
    positive = [max(y for y, g in zip(labels, groups, strict=True) if g == p) for p in set(groups)]
    if sum(positive) >= folds:
        assert all(labels[fold == each].any() for each in range(folds))


def test_the_method_is_chosen_by_pictures_it_has_not_seen() -> None:
    p, y = drawn(np.random.default_rng(3), 600, slope=4.0)
    assert choose(p, y, names(600), methods_for(y)).map.method in ("temperature", "platt")
    p, y = drawn(np.random.default_rng(4), 600, slope=1.5, shift=4.0)
    assert choose(p, y, names(600), methods_for(y)).map.method == "platt"
    # A judge whose middle means nothing: no sigmoid follows that.
    random = np.random.default_rng(5)
    p = random.random(3000)
    truth = np.select([p < 0.2, p < 0.8], [0.02, 0.5], 0.98)
    y = (random.random(3000) < truth).astype(float)
    choice = choose(p, y, names(3000), methods_for(y))
    assert choice.map.method == "isotonic"
    best = choice.log_likelihood["isotonic"]
    assert best is not None
    for value in choice.log_likelihood.values():
        assert value is not None and value <= best
    # Nothing to gain: the probabilities are left as they are.
    p, y = drawn(np.random.default_rng(6), 200)
    worth = choose(p, y, names(200), methods_for(y)).log_likelihood
    assert worth["none"] is not None and worth["isotonic"] is not None
    assert worth["isotonic"] < worth["none"]


def test_steps_pay_for_their_certainty() -> None:
    p, y = drawn(np.random.default_rng(7), 120)
    made = fit("isotonic", p, y)
    assert all(1 / 122 <= each <= 121 / 122 for _, each in made.points)
    assert math.isfinite(log_likelihood(apply_map(made, p), 1 - y))


def test_methods_need_their_labels() -> None:
    def of(positives: int, negatives: int) -> tuple[str, ...]:
        return methods_for(np.repeat([1.0, 0.0], [positives, negatives]))

    assert of(9, 500) == of(500, 9) == ()
    assert of(10, 500) == ("none", "temperature")
    assert of(20, 20) == ("none", "temperature", "platt")
    assert of(50, 50) == ("none", "temperature", "platt", "isotonic")


# --- thresholds ---------------------------------------------------------------------------------


def test_aims_are_read() -> None:
    assert Aim.parse("precision=0.95") == Aim("precision", 0.95, True)
    assert Aim.parse("recall=.9", bound=False) == Aim("recall", 0.9, False)
    assert [str(Aim.parse(text)) for text in ("f1", "f2", "f0.5", "recall=0.9")] == [
        "f1",
        "f2",
        "f0.5",
        "recall=0.9",
    ]
    for text in ("", "precision", "precision=1", "recall=0", "recall=1.5", "f0", "f11", "accuracy"):
        with pytest.raises(InputError, match="precision=0.95"):
            Aim.parse(text)


def precision_recall(threshold: float, s: Floats, y: Floats) -> tuple[float, float]:
    flagged = s >= threshold
    return float(y[flagged].mean()), float(y[flagged].sum() / y.sum())


def test_thresholds_by_point_estimate_are_the_cheapest_that_meet_the_aim() -> None:
    s, y = drawn(np.random.default_rng(8), 500)
    cuts = np.unique(s)
    made = choose_threshold(Aim("precision", 0.8, False), s, y, DELTA)
    assert made.met and made.by == "point estimate"
    assert precision_recall(made.value, s, y)[0] >= 0.8
    assert all(precision_recall(c, s, y)[0] < 0.8 for c in cuts[cuts < made.value])
    made = choose_threshold(Aim("recall", 0.8, False), s, y, DELTA)
    assert precision_recall(made.value, s, y)[1] >= 0.8
    # The first cut above it flags the same pictures.
    assert all(precision_recall(c, s, y)[1] < 0.8 for c in cuts[cuts > made.value][1:])


def test_the_best_f_beta_is_the_one_that_calibrated_scores_let_expect() -> None:
    s, y = drawn(np.random.default_rng(8), 500)
    made = choose_threshold(Aim("fbeta", 2.0), s, y, DELTA)
    assert made.by == "expected"

    def expected(cut: float) -> float:
        flagged = s >= cut
        return 5 * s[flagged].sum() / (4 * s.sum() + flagged.sum())

    assert all(expected(cut) <= expected(made.value) + 1e-12 for cut in np.unique(s))
    assert choose_threshold(Aim("fbeta", 2.0), s, 1 - y, DELTA) == made  # labels are in the map


def test_the_expected_f_beta_is_better_on_new_pictures_than_the_best_on_the_labels() -> None:
    """With few labels, which a map was fitted to as well."""
    random, won, lost = np.random.default_rng(21), 0.0, 0.0
    grid = (np.arange(4000) + 0.5) / 4000
    truth = grid**4  # a fifth is broken

    def f1(flagged: NDArray[np.bool_]) -> float:
        return float(2 * truth[flagged].sum() / (truth.sum() + flagged.sum()))

    for _ in range(60):
        at = random.integers(0, 4000, 150)
        y = (random.random(150) < truth[at]).astype(float)
        raw = sigmoid(2 * np.log(truth / (1 - truth)) + 1)
        made = fit("platt", raw[at], y)
        s, everywhere = apply_map(made, raw[at]), apply_map(made, raw)
        cut = choose_threshold(Aim("fbeta", 1.0), s, y, DELTA).value
        tried = [(2 * y[s >= c].sum() / (y.sum() + (s >= c).sum()), c) for c in np.unique(s)]
        won += f1(everywhere >= cut) / 60
        lost += f1(everywhere >= max(tried)[1]) / 60
    assert won > lost + 0.005


def test_lower_bounds_cost_something_and_are_said_to_be_out_of_reach() -> None:
    s, y = drawn(np.random.default_rng(9), 500)
    for kind, target in (("precision", 0.8), ("recall", 0.8)):
        bound = choose_threshold(Aim(kind, target), s, y, DELTA)
        point = choose_threshold(Aim(kind, target, False), s, y, DELTA)
        assert bound.by == "lower bound" and bound.met
        assert (bound.value > point.value) == (kind == "precision")
    few = slice(0, 40)
    for aim in (Aim("precision", 0.95), Aim("recall", 0.99)):
        made = choose_threshold(aim, s[few], y[few], DELTA)
        assert made.by == "point estimate" and made.missing is not None
        assert " more" in made.missing
        assert choose_threshold(replace(aim, bound=False), s[few], y[few], DELTA).missing is None
    # Without a miss, 0.99^n has to fall below delta.
    assert f"{math.ceil(math.log(DELTA) / math.log(0.99))} are the least" in made.missing
    # A judge by which nothing is precise.
    random = np.random.default_rng(10)
    s, y = random.random(200), np.zeros(200)
    y[::10] = 1
    assert not choose_threshold(Aim("precision", 0.95), s, y, DELTA).met


@pytest.mark.parametrize("aim", [Aim("precision", 0.85), Aim("recall", 0.85)])
def test_a_lower_bound_holds_on_new_pictures(aim: Aim) -> None:
    """s is P(label 1) itself, spread evenly: above t the precision is (1 + t) / 2, and recall is
    1 - t^2.
    """
    random = np.random.default_rng(11)
    missed = {True: 0, False: 0}
    repeats = 300
    for _ in range(repeats):
        s = random.random(300)
        y = (random.random(300) < s).astype(float)
        for bound in missed:
            made = choose_threshold(Aim(aim.kind, aim.target, bound), s, y, DELTA)
            t = made.value
            truth = (1 + t) / 2 if aim.kind == "precision" else 1 - t * t
            if (made.by == "lower bound") == bound:  # else it was out of reach, and says so
                missed[bound] += truth < aim.target
    assert missed[True] <= binom.ppf(0.99, repeats, DELTA)
    assert missed[False] > 0.3 * repeats  # what the point estimate is worth


# --- the undecided interval ---------------------------------------------------------------------


def wrongs(low: float, high: float) -> tuple[float, float]:
    """True shares of wrong decisions where s is P(label 1), spread evenly over 0..1."""
    return (1 - high) / 2, low / 2


def by_eye(s: Floats, y: Floats, threshold: float) -> tuple[float, float]:
    """The interval that somebody without a bound would choose: the widest decisions whose share of
    errors was at most alpha.
    """
    s, y = s[order := np.argsort(s)], y[order]
    wrong_above = np.cumsum((1 - y)[::-1])[::-1] / np.arange(len(s), 0, -1)
    wrong_below = np.cumsum(y) / np.arange(1, len(s) + 1)
    high = s[(s >= threshold) & (wrong_above <= ALPHA)]
    low = s[(s <= threshold) & (wrong_below <= ALPHA)]
    return low.max(initial=0.0), high.min(initial=1.0)


def test_the_bound_holds_as_often_as_promised_and_looking_at_errors_does_not() -> None:
    random = np.random.default_rng(12)
    repeats, broken_promises, by_eye_broken, unbounded = 400, 0, 0, 0
    decided = []
    for _ in range(repeats):
        s = random.random(500)
        y = (random.random(500) < s).astype(float)
        found = find_interval(s, y, 0.5, ALPHA, DELTA, 0.05)
        over, under = wrongs(found.low, found.high)
        broken_promises += (found.broken is not None and over > ALPHA) or (
            found.not_broken is not None and under > ALPHA
        )
        unbounded += (found.broken is None) + (found.not_broken is None)
        if found.broken is not None and found.not_broken is not None:
            decided.append(1 - (found.high - found.low))
        over, under = wrongs(*by_eye(s, y, 0.5))
        by_eye_broken += over > ALPHA or under > ALPHA
    # One that breaks it with probability delta exactly would pass this 99 times of 100.
    limit = binom.ppf(0.99, repeats, DELTA)
    assert broken_promises <= limit
    assert by_eye_broken > 3 * limit
    # It is no promise by promising or deciding little: 0.6 is the most that could be decided.
    assert unbounded < 0.4 * 2 * repeats
    assert np.mean(decided) > 0.25


def test_the_bound_holds_with_a_calibration_fitted_to_the_same_pictures() -> None:
    random = np.random.default_rng(13)
    grid = (np.arange(1000) + 0.5) / 1000
    raw_grid = sigmoid(3 * np.log(grid / (1 - grid)) + 1)
    repeats, broken_promises = 150, 0
    for _ in range(repeats):
        truth = random.random(200)
        y = (random.random(200) < truth).astype(float)
        raw = sigmoid(3 * np.log(truth / (1 - truth)) + 1)
        made = fit("platt", raw, y)
        s, on_grid = apply_map(made, raw), apply_map(made, raw_grid)
        threshold = choose_threshold(Aim("fbeta", 1.0), s, y, DELTA).value
        found = find_interval(s, y, threshold, ALPHA, DELTA, 0.05)
        above, below = on_grid >= found.high, on_grid <= found.low
        broken_promises += (found.broken is not None and (1 - grid[above]).mean() > ALPHA) or (
            found.not_broken is not None and grid[below].mean() > ALPHA
        )
    assert broken_promises <= binom.ppf(0.99, repeats, DELTA)


def test_a_judge_that_is_surest_where_it_errs_gets_no_bound() -> None:
    random = np.random.default_rng(14)
    s = random.random(600)
    y = (s > 0.5).astype(float)
    y[s > 0.95] = 0  # however right the rest is, what comes first is wrong
    found = find_interval(s, y, 0.5, ALPHA, DELTA, 0.05)
    assert found.broken is None and found.not_broken is not None
    assert found.high == 0.55  # as without a calibration
    assert "surest" in found.missing[0]


def test_the_interval_holds_the_threshold_and_the_bounds_are_exact() -> None:
    s, y = drawn(np.random.default_rng(15), 500)
    found = find_interval(s, y, 0.45, ALPHA, DELTA, 0.05)
    assert found.low <= 0.45 <= found.high
    assert found.broken is not None and found.not_broken is not None and not found.missing
    for side, wrong in (
        (found.broken, 1 - y[s >= found.high]),
        (found.not_broken, y[s <= found.low]),
    ):
        assert (side.n, side.errors) == (len(wrong), wrong.sum())
        assert side.bound <= ALPHA and side.n >= 30
        assert binom.cdf(side.errors, side.n, side.bound) == pytest.approx(DELTA / 2)


def test_perfect_judges_need_so_many_pictures() -> None:
    assert needed_without_errors(0.15, 0.1) == 15
    assert needed_without_errors(0.05, 0.05) == 59
    for alpha in (0.01, 0.05, 0.15, 0.5):
        n = needed_without_errors(alpha, 0.1)
        assert (1 - alpha) ** n <= 0.1 < (1 - alpha) ** (n - 1)
    perfect = np.linspace(1, 0.6, 80)
    assert fixed_sequence(perfect[:58], np.zeros(58), 0.05, 0.05, 0.0) is None
    assert fixed_sequence(perfect[:59], np.zeros(59), 0.05, 0.05, 0.0) is not None
    assert fixed_sequence(perfect[:29], np.zeros(29), 0.5, 0.1, 0.0) is None  # 30 are the least


def test_it_says_how_many_more_labels_it_takes() -> None:
    s = np.concatenate([np.linspace(0.9, 1, 20), np.linspace(0, 0.1, 300)])
    y = np.repeat([1.0, 0.0], [20, 300])
    (line,) = find_interval(s, y, 0.5, ALPHA, DELTA, 0.05).missing
    assert "30 of them would bound it by 0.15: 10 more, about 160 more labels" in line
    # With errors among them, by their share: 2 of 20 in 15 % at confidence 95 %.
    y[[3, 12]] = 0
    (line,) = find_interval(s, y, 0.5, ALPHA, DELTA, 0.05).missing
    wanted = int(line.split("stays, ")[1].split()[0])
    errors = math.ceil(wanted * 2 / 20)
    assert binom.cdf(errors, wanted, ALPHA) <= DELTA / 2
    # And where it errs more often than is allowed, no number of labels would do.
    y[:4] = 0
    (line,) = find_interval(s, y, 0.5, ALPHA, DELTA, 0.05).missing
    assert "better judge" in line


@given(st.integers(0, 10**6), st.integers(60, 300), st.floats(0.05, 0.4), st.floats(0.02, 0.3))
@settings(deadline=None, max_examples=50)
def test_a_monotone_map_moves_the_ends_and_decides_the_same(
    seed: int, n: int, alpha: float, delta: float
) -> None:
    random = np.random.default_rng(seed)
    s = np.round(random.random(n), 2)  # with ties
    y = (random.random(n) < s).astype(float)
    mapped = s**3 / 2 + s / 4
    one = find_interval(s, y, 0.501, alpha, delta, 0.0)
    other = find_interval(mapped, y, 0.501**3 / 2 + 0.501 / 4, alpha, delta, 0.0)
    assert ((s >= one.high) == (mapped >= other.high)).all()
    assert ((s <= one.low) == (mapped <= other.low)).all()


# --- a rule ---------------------------------------------------------------------------------------


def test_a_rule_is_fitted_and_says_what_it_is_worth() -> None:
    p, y = drawn(np.random.default_rng(16), 500, slope=3.0, shift=1.0)
    made = calibrate_rule(rule_of(p, y), Aimed(Aim("fbeta", 1.0)))
    assert isinstance(made, CalibratedRule)
    assert made.map.method in ("platt", "isotonic")
    assert (made.positives, made.negatives) == (int(y.sum()), 500 - int(y.sum()))
    assert made.ece_after.value < 0.6 * made.ece_before.value
    assert made.brier_after.value < made.brier_before.value
    assert made.ece_after.n == made.brier_before.n == 500
    assert made.aim.precision is not None and made.aim.recall is not None
    assert made.aim.recall.n == made.positives
    low, high = made.aim.precision.low, made.aim.precision.high
    assert low is not None and high is not None and low < made.aim.precision.value < high
    decided = [
        each >= made.uncertain[1] or each <= made.uncertain[0] for each in apply_map(made.map, p)
    ]
    assert made.guarantee.coverage.value == np.mean(decided)
    assert calibrate_rule(rule_of(p, y), Aimed(Aim("fbeta", 1.0))) == made  # nothing by chance


def test_errors_after_calibration_are_not_those_of_the_fit() -> None:
    """Labels without any relation: what is fitted to them must not look better for it."""
    random = np.random.default_rng(17)
    p, y = random.random(200), (random.random(200) < 0.5).astype(float)
    made = calibrate_rule(rule_of(p, y), Aimed(Aim("fbeta", 1.0)))
    assert isinstance(made, CalibratedRule)
    assert made.brier_after.value > 0.245  # 0.25 is all that can be said; in-sample is below


def test_few_labels_say_how_many_more() -> None:
    p, y = np.linspace(0, 1, 40), np.repeat([0.0, 1.0], [33, 7])
    made = calibrate_rule(rule_of(p, y), Aimed(Aim("fbeta", 1.0)))
    assert isinstance(made, UnfittedRule)
    assert (made.positives, made.negatives) == (7, 33)
    assert "label 3 more that break it" in made.why and "that do not" not in made.why[-20:]
    assert LEAST_OF_A_CLASS["none"] == 10


def test_questions_with_labels_are_fitted_by_other_pictures_than_the_rule() -> None:
    """Two alternatives, of which one is far too sure of itself."""
    random = np.random.default_rng(18)
    n = 1200
    x = random.normal(-1.5, 2.0, (n, 2))
    shown = random.random((n, 2)) < sigmoid(x)
    said = np.stack([sigmoid(x[:, 0]), sigmoid(2 * x[:, 1] + 4)], axis=1)
    keys = tuple(names(n))
    rule = RuleLabels(
        "weapons",
        (("a gun", "a toy"),),
        keys,
        tuple({"a gun": g, "a toy": t} for g, t in said.tolist()),
        tuple(int(each) for each in shown.any(axis=1)),
        {
            "a gun": dict(zip(keys, map(int, shown[:, 0]), strict=True)),
            "a toy": dict(zip(keys, map(int, shown[:, 1]), strict=True)),
        },
    )
    plain = calibrate_rule(rule, Aimed(Aim("fbeta", 1.0)))
    fitted = calibrate_rule(rule, Aimed(Aim("fbeta", 1.0), per_question=True))
    assert isinstance(plain, CalibratedRule) and isinstance(fitted, CalibratedRule)
    assert plain.questions == {} and plain.positives + plain.negatives == n
    toy = fitted.questions["a toy"]
    assert (toy.slope, toy.intercept) == (
        pytest.approx(0.5, rel=0.2),
        pytest.approx(-2.0, abs=0.5),
    )
    assert fitted.questions.get("a gun", MapRecord("none", 1.0, 0.0, ())).slope == pytest.approx(
        1.0, rel=0.2
    )
    assert 0.4 * n < fitted.positives + fitted.negatives < 0.6 * n
    assert fitted.brier_after.value < plain.brier_after.value - 0.01


def test_what_is_asked_for_must_be_between_0_and_1() -> None:
    for alpha, delta in ((0.0, 0.1), (0.1, 1.0), (float("nan"), 0.1)):
        with pytest.raises(InputError, match="between 0 and 1"):
            Aimed(Aim("fbeta", 1.0), alpha, delta)
