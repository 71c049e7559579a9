"""Exact columns beside integers: found where a few channels tower on a few tokens and nowhere else,
computed alike by graph and reference.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import outliers
import tiny
from edgejudge.export import (
    Checkpoint,
    Exact,
    Plan,
    Reference,
    Stored,
    asked_of,
    open_checkpoint,
    prepared,
)
from edgejudge.export.recipe import recipe_named
from edgejudge.export.side_path import Site, sites_of
from edgejudge.fidelity import export_bundle
from families import FAMILIES
from one_layer import NAME, run_layer

torch.set_num_threads(1)
NANO = Path(__file__).parent.parent / "models" / "nano"


def plan_with(columns: tuple[int, ...]) -> Plan:
    plan = Plan(recipe_named("fast"), lambda _: "decoder.first.up_proj")
    return plan.with_exact({NAME: columns})


def layer(folder: Path, matrix: np.ndarray, columns: tuple[int, ...]) -> Any:
    return run_layer(folder, matrix, plan_with(columns))


def test_a_layer_is_what_it_says(tmp_path: Path) -> None:
    """Its exact columns take nothing from the others, however large they are; the weights there are
    not rounded either.
    """
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((40, 96)).astype(np.float32)
    matrix[:, [5, 90]] *= 1000  # would take all levels of a row
    x = rng.standard_normal((1, 30, 96)).astype(np.float32)
    x[0, ::7, 5] *= 1000
    columns = (5, 90)
    found = layer(tmp_path, matrix, columns)(x)
    rest, levels = x.astype(np.float64).copy(), matrix.astype(np.float64).copy()
    rest[..., columns] = levels[:, columns] = 0
    step = np.abs(rest).max(-1, keepdims=True) / 127
    scale = np.abs(levels).max(-1, keepdims=True) / 63
    expected = (np.rint(rest / step) * step) @ (np.rint(levels / scale) * scale).T
    exact = x[..., columns].astype(np.float64) @ matrix[:, columns].T.astype(np.float64)
    assert np.abs(found - expected - exact).max() < 1e-5 * np.abs(exact).max()
    # In float64: products of a million leave float32 no digit for what is looked at here.
    truth = x.astype(np.float64) @ matrix.T.astype(np.float64)
    assert np.abs(found - truth).max() < 1.0
    plain = layer(tmp_path, matrix, ())(x)
    assert np.abs(plain - x @ matrix.T).max() > 100.0


def test_the_reference_keeps_the_same_columns() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((8, 32)).astype(np.float32)
    stored = Stored(tiny.Held({NAME: matrix}), plan_with((3, 4)))
    (rows,) = stored.blocks(NAME)
    assert (rows[:, 3:5] == matrix[:, 3:5]).all() and (rows[:, :3] != matrix[:, :3]).any()
    assert stored.exact_columns(NAME) == (3, 4)


# --- choosing ------------------------------------------------------------------------------------


def seen(x: np.ndarray) -> Site:
    site = Site(["w"], x.shape[-1])
    site.see(torch.from_numpy(x.astype(np.float32)))
    return site


def test_channels_that_tower_together_are_found_together() -> None:
    """Taking one of a pair away gains nothing, so one after another would find none."""
    x = np.random.default_rng(2).standard_normal((500, 256))
    x[::50, [17, 200]] = 400.0
    assert seen(x).columns(2.0) == (17, 200)


def test_where_nothing_towers_nothing_is_kept() -> None:
    x = np.random.default_rng(3).standard_normal((500, 256))
    assert seen(x).columns(2.0) == ()
    x[:, 9] *= 4  # a wide channel takes a little from the others, less than it is worth
    assert seen(x).columns(8.0) == ()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 80),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 79), st.floats(0, 1e4)), max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_more_columns_never_leave_more_error(
    width: int, tokens: int, large: list[tuple[int, float]], seed: int
) -> None:
    x = np.random.default_rng(seed).standard_normal((tokens, width))
    for channel, factor in large:
        x[seed % tokens, channel % width] *= factor
    site = seen(x)
    ranked = site.ranked()
    errors = site.errors(ranked)
    assert (np.diff(errors) <= 1e-9 * errors[:-1]).all()
    assert len(set(ranked)) == len(ranked) <= site.limit < width
    # The same by hand: peaks of what is left.
    usual = np.abs(x)
    left = np.delete(usual, ranked[:1], axis=1).max(1)
    top = np.sort(usual, 1)[:, ::-1]
    rest = np.sqrt(np.square(top[:, site.limit + 1 :]).sum(1) / max(1, width - site.limit - 1))
    expected = np.square(left / np.maximum(rest, 1e-12)).mean()
    assert np.isclose(errors[min(1, len(ranked))], expected, rtol=1e-3)


# --- whole judges --------------------------------------------------------------------------------


def answers(opened: Checkpoint, weights: Any) -> np.ndarray:
    asked = asked_of(opened, outliers.pictures_of(opened, 2))
    reference = Reference(opened.spec, weights, opened.tokens.image, torch.float64)
    return np.concatenate(reference.ask(asked, opened.labels.token_ids))


@pytest.fixture(scope="module")
def trained() -> Checkpoint:
    return open_checkpoint(NANO / "qwen")


def test_outliers_keep_the_function(trained: Checkpoint) -> None:
    truth = answers(trained, Exact(trained.weights))
    for hard in (
        outliers.scaled_channels(trained, 128.0),
        outliers.rotated(trained),
        outliers.massive(trained, 1000.0, range(0, 2)),
    ):
        assert np.abs(answers(hard, Exact(hard.weights)) - truth).max() < 1e-5


def test_massive_activations_need_exact_columns(trained: Checkpoint) -> None:
    """With them the judge is as good as without the outliers; smoothing alone is not enough."""
    truth = answers(trained, Exact(trained.weights))

    def error(opened: Checkpoint, side: bool) -> float:
        changed, plan = prepared(opened, "fast")
        plan = plan if side else plan.with_exact({})
        found = answers(changed, Stored(changed.weights, plan))
        return float(np.sqrt(np.square(found - truth).mean()))

    hard = outliers.massive(trained, 1000.0, range(0, 2))
    easy = error(trained, True)
    assert error(hard, True) < 1.5 * easy
    assert error(hard, False) > 3 * easy


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_carry_columns_too(tmp_path: Path, family: str) -> None:
    """Or their speed would be that of another graph."""
    opened = open_checkpoint(FAMILIES[family].make_checkpoint(tmp_path / family))
    changed, plan = prepared(replace(opened, random_weights=True), "fast")
    names = [n for n, _ in changed.family.weight_names(changed.spec) if plan.integer(n)]
    sites = sites_of(changed, names)
    kept = [site for site in sites if plan.exact_columns(site.names[0])]
    assert len(kept) == int(0.15 * len(sites)) > 1
    for site in kept:
        columns = plan.exact_columns(site.names[0])
        assert len(set(columns)) == len(columns) == site.limit >= 0.003 * site.width
        assert all(0 <= c < site.width for c in columns)
        assert all(plan.exact_columns(name) == columns for name in site.names)


@pytest.mark.parametrize("kind", ["rotated", "massive"])
def test_fast_passes_the_gate_with_outliers(trained: Checkpoint, tmp_path: Path, kind: str) -> None:
    """Bundle and all; the report says what it would have been without exact columns. Where the
    outliers are those of a turned residual stream, rotation leaves none to keep exact.
    """
    make = {
        "rotated": lambda: outliers.rotated(trained),
        "massive": lambda: outliers.massive(trained, 1000.0, range(0, 2)),
    }
    report = export_bundle(make[kind](), tmp_path / "out", "fast").fidelity
    assert report is not None and report.decisions is not None and report.side is not None
    assert report.decisions.flips <= 8 and report.decisions.probability_error_99 <= 0.05
    assert report.decisions.accepted_flips is None
    if kind == "rotated":
        assert report.side.matrices == 0 < report.side.of
        return
    assert 0 < report.side.matrices < report.side.of and report.side.pictures > 0
    assert report.side.error is not None and report.side.error_without is not None
    assert report.side.error_without > 3 * report.side.error
