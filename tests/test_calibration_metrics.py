"""Calibration errors, the Brier score and exact intervals: against definitions and simulations."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from edgejudge.errors import ProviderError
from edgejudge.evaluation.calibration_metrics import (
    Resampling,
    binomial_upper,
    binomial_uppers,
    bootstrap,
    brier,
    brier_skill,
    checked,
    clopper_pearson,
    equal_mass_bins,
    equal_mass_ece,
    max_calibration_error,
)
from edgejudge.evaluation.extra import require

ROWS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=60).map(
    lambda rows: ([p for p, _ in rows], [y for _, y in rows])
)


def test_ece_of_known_bins() -> None:
    probabilities = [0.1, 0.2, 0.8, 0.9]
    labels = [0, 1, 1, 1]
    # Two bins: |0.15 - 0.5| and |0.85 - 1|, of equal weight.
    assert equal_mass_ece(probabilities, labels, bins=2).value == pytest.approx(0.25)
    assert max_calibration_error(probabilities, labels, bins=2).value == pytest.approx(0.35)
    assert equal_mass_ece(probabilities, labels, bins=2).n == 4
    first, second = equal_mass_bins(probabilities, labels, bins=2)
    assert (first.low, first.high, first.n, first.share) == (0.1, 0.2, 2, 0.5)
    assert (second.probability, second.share) == (pytest.approx(0.85), 1.0)


@settings(deadline=None)
@given(ROWS, st.integers(1, 20), st.randoms())
def test_ece_is_that_of_its_bins_in_any_order(
    rows: tuple[list[float], list[int]], bins: int, random: object
) -> None:
    probabilities, labels = rows
    value = equal_mass_ece(probabilities, labels, bins).value
    parts = equal_mass_bins(probabilities, labels, bins)
    assert sum(part.n for part in parts) == len(labels)
    gaps = [abs(part.probability - part.share) for part in parts]
    weighted = sum(gap * part.n for gap, part in zip(gaps, parts, strict=True)) / len(labels)
    assert value == pytest.approx(weighted, abs=1e-9)
    assert max_calibration_error(probabilities, labels, bins).value == pytest.approx(
        max(gaps), abs=1e-9
    )
    together = list(zip(probabilities, labels, strict=True))
    random.shuffle(together)  # type: ignore[attr-defined]
    again = equal_mass_ece([p for p, _ in together], [y for _, y in together], bins).value
    assert again == pytest.approx(value, abs=1e-9)


def test_ece_sees_over_confidence_and_little_else() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 6000)
    honest = 1 / (1 + np.exp(-logits))
    labels = random.random(6000) < honest
    loud = 1 / (1 + np.exp(-3 * logits))
    quiet, shouting = equal_mass_ece(honest, labels), equal_mass_ece(loud, labels)
    assert quiet.value < 0.03 < 0.08 < shouting.value


def test_noise_alone_makes_an_ece() -> None:
    random = np.random.default_rng(1)
    found = []
    for _ in range(200):
        p = random.random(300)
        found.append(equal_mass_ece(p, random.random(300) < p).value)
    assert np.mean(found) == pytest.approx(0.31 * np.sqrt(15 / 300), rel=0.1)


def test_brier_and_its_skill() -> None:
    assert brier([0.5, 0.5], [0, 1]).value == 0.25
    assert brier_skill([0.5, 0.5], [0, 1]).value == 0
    assert brier_skill([0.0, 1.0], [0, 1]).value == 1
    assert brier_skill([1.0, 0.0], [0, 1]).value == -3
    assert np.isnan(brier_skill([0.2, 0.3], [1, 1]).value)


@pytest.mark.parametrize(
    "probabilities, labels",
    [([0.5, float("nan")], [0, 1]), ([1.1], [1]), ([0.5], [2]), ([0.5, 0.5], [1]), ([], [])],
)
def test_what_is_no_probability_or_label_is_refused(
    probabilities: list[float], labels: list[int]
) -> None:
    with pytest.raises(ValueError):
        checked(probabilities, labels)


def test_intervals_hold_the_estimate_and_follow_the_pictures() -> None:
    random = np.random.default_rng(2)
    p = random.random(200)
    y = (random.random(200) < p).astype(int)
    single = brier(p, y, Resampling(repeats=300))
    assert single.low is not None and single.high is not None
    assert single.low < single.value < single.high and single.confidence == 0.95
    assert single.to_json()["interval"] == [single.low, single.high]
    # Each row eight times over is no more to know, as long as it is known which belong together.
    groups = np.tile(np.arange(200), 8)
    grouped = brier(np.tile(p, 8), np.tile(y, 8), Resampling(groups, repeats=300))
    naive = brier(np.tile(p, 8), np.tile(y, 8), Resampling(repeats=300))
    assert grouped.low is not None and grouped.high is not None
    assert naive.low is not None and naive.high is not None
    assert grouped.high - grouped.low == pytest.approx(single.high - single.low, rel=0.2)
    assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)
    ece = equal_mass_ece(p, y, resampling=Resampling(repeats=300))
    assert ece.low is not None and ece.high is not None
    assert 0 <= ece.low <= ece.value <= ece.high <= 1


def test_the_bootstrap_covers_what_it_promises() -> None:
    random = np.random.default_rng(3)
    truth, hits = 1 / 6, 0  # mean Brier score of honest probabilities, spread evenly
    for _ in range(100):
        p = random.random(150)
        figure = brier(p, random.random(150) < p, Resampling(repeats=200))
        assert figure.low is not None and figure.high is not None
        hits += figure.low <= truth <= figure.high
    assert hits >= 88


def test_one_group_has_no_interval() -> None:
    assert brier([0.1, 0.2], [0, 1], Resampling(["a", "a"])).low is None
    values = np.array([1.0, 2.0, 3.0])
    assert bootstrap(lambda row: float("nan"), (values,), Resampling(repeats=10)) is None
    with pytest.raises(ValueError):
        bootstrap(lambda row: 0.0, (values,), Resampling(["a"]))


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from([0.8, 0.95, 0.99]))
def test_clopper_pearson_by_its_definition(k: int, n: int, confidence: float) -> None:
    k = min(k, n)
    low, high = clopper_pearson(k, n, confidence)
    tail = (1 - confidence) / 2
    assert 0 <= low <= k / n <= high <= 1
    if k:
        assert binom.sf(k - 1, n, low) == pytest.approx(tail, rel=1e-6)
    if k < n:
        assert binom.cdf(k, n, high) == pytest.approx(tail, rel=1e-6)


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from([0.05, 0.1, 0.3]))
def test_the_upper_bound_by_its_definition(errors: int, n: int, delta: float) -> None:
    errors = min(errors, n)
    bound = binomial_upper(errors, n, delta)
    if errors == n:
        assert bound == 1
    else:
        assert binom.cdf(errors, n, bound) == pytest.approx(delta, rel=1e-6)
    assert binomial_uppers(np.array([errors]), np.array([n]), delta)[0] == bound


def test_a_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ProviderError, match=r"package scipy; .*pip install 'edgejudge\[eval\]'"):
        clopper_pearson(1, 2)
    require("scipy", "json")
    with pytest.raises(ProviderError, match="package no_such_package"):
        require("json", "no_such_package")


def test_no_counts_bound_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert binomial_upper(0, 0, 0.1) == 1.0
    for k, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            clopper_pearson(k, n)
        with pytest.raises(ValueError):
            binomial_upper(k, n, 0.1)
