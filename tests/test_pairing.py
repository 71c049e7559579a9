"""Two orders made one answer, pairs within a budget, strengths and ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgejudge.answering.pairing import (
    both_orders,
    bradley_terry,
    pairs_within,
    ranks,
    win_probability,
)
from edgejudge.errors import InputError

shares = st.floats(0, 1)


def two(p: float) -> tuple[float, float]:
    return p, 1 - p


def test_a_preference_for_a_place_is_no_winner() -> None:
    """Always 0.9 for what comes first: the orders disagree, and nothing is a tie."""
    both = both_orders(two(0.9), two(0.9), (None, None), 0.02)
    assert both.winner == "inconclusive" and both.a == both.b == 0.5
    assert both.gap == pytest.approx(0.8)
    assert [order.says for order in both.orders] == ["a", "b"]


def test_what_both_orders_say_counts() -> None:
    both = both_orders(two(0.9), two(0.4), (0.5, None), 0.02)
    assert both.winner == "a" and both.a == pytest.approx(0.75) and both.gap == pytest.approx(0.3)
    assert both.orders[1].probability_a == pytest.approx(0.6)
    assert [order.mass for order in both.orders] == [0.5, None]
    assert both_orders(two(0.1), two(0.9), (None, None), 0.02).winner == "b"


def test_a_tie_is_what_both_orders_say() -> None:
    assert both_orders(two(0.51), two(0.49), (None, None), 0.02).winner == "tie"
    assert both_orders(two(0.51), two(0.9), (None, None), 0.02).winner == "inconclusive"
    assert both_orders(two(0.51), two(0.1), (None, None), 0.02).winner == "inconclusive"
    assert both_orders(two(0.51), two(0.49), (None, None), 0.0).winner == "a"
    with pytest.raises(InputError, match="expected 0 to 0.5"):
        both_orders(two(0.5), two(0.5), (None, None), 0.5)


@given(shares, shares, st.floats(0, 0.4))
def test_exchanging_the_two_exchanges_everything(p: float, q: float, epsilon: float) -> None:
    there = both_orders(two(p), two(q), (None, None), epsilon)
    back = both_orders(two(q), two(p), (None, None), epsilon)
    assert (back.a, back.b) == (there.b, there.a)
    other = {"a": "b", "b": "a"}
    assert back.winner == other.get(there.winner, there.winner)
    assert back.gap == pytest.approx(there.gap, abs=1e-12)
    assert there.a + there.b == pytest.approx(1)


@given(st.integers(2, 12))
def test_all_pairs_are_all_pairs_once(count: int) -> None:
    pairs = pairs_within(count, None)
    assert sorted(pairs) == [(i, j) for i in range(count) for j in range(i + 1, count)]


@given(st.integers(2, 12), st.data())
def test_a_budget_of_pairs_connects_everything_evenly(count: int, data: st.DataObject) -> None:
    most = count * (count - 1) // 2
    pairs = pairs_within(count, data.draw(st.integers(count - 1, most)))
    reached = {0}
    for _ in range(count):
        reached |= {j for pair in pairs for i, j in (pair, pair[::-1]) if i in reached}
    assert reached == set(range(count))
    met = [sum(i in pair for pair in pairs) for i in range(count)]
    assert max(met) - min(met) <= 2


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="2 pairs cannot connect 4 pictures; allow at least 3"):
        pairs_within(4, 2)


def test_strengths_solve_the_models_equations() -> None:
    """At the maximum of the likelihood each has as many expected wins as it has wins."""
    rng = np.random.default_rng(5)
    pairs = pairs_within(6, 11)
    wins = rng.uniform(size=len(pairs))
    logs = bradley_terry(6, pairs, wins)
    assert logs.mean() == pytest.approx(0)

    def surplus(shift: float) -> np.ndarray:
        found = np.full(6, 0.5)
        for (i, j), share in zip(pairs, wins, strict=True):
            found[i] += share - win_probability(logs[i], logs[j])
            found[j] += 1 - share - win_probability(logs[j], logs[i])
        return found - 1 / (1 + np.exp(-(logs + shift)))

    # The strength of 1 that everyone has drawn against fixes the scale that the mean hides.
    grid = np.linspace(-3, 3, 6001)
    assert min(np.abs(surplus(shift)).max() for shift in grid) < 1e-3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=10, max_size=10))
def test_of_all_pairs_the_order_is_that_of_mean_wins(wins: list[float]) -> None:
    pairs = pairs_within(5, None)
    logs, means = bradley_terry(5, pairs, wins), np.zeros(5)
    for (i, j), share in zip(pairs, wins, strict=True):
        means[i] += share / 4
        means[j] += (1 - share) / 4
    for i, j in pairs:
        if abs(means[i] - means[j]) > 1e-6:
            assert (logs[i] > logs[j]) == (means[i] > means[j])


def test_who_wins_everything_is_finite_and_first() -> None:
    pairs = pairs_within(3, None)
    better = {(0, 1): 1.0, (0, 2): 1.0, (1, 2): 1.0}
    logs = bradley_terry(3, pairs, [better[pair] for pair in pairs])
    assert np.isfinite(logs).all() and logs[0] > logs[1] > logs[2]


def test_ranks_share_a_place_within_epsilon() -> None:
    assert ranks([0.1, 0.9, 0.89, 0.5], 0.02, False) == [(1, 1), (1, 2), (3, 3), (4, 0)]
    # Groups do not drift: each is within epsilon of its first.
    assert ranks([0.5, 0.49, 0.48, 0.47], 0.025, False) == [(1, 0), (1, 1), (1, 2), (4, 3)]
    assert ranks([0.5, 0.5], 0.0, False) == [(1, 0), (1, 1)]
    near = [0.0, 0.04]  # logarithms: one wins with 0.51
    assert ranks(near, 0.02, True) == [(1, 1), (1, 0)]
    assert ranks(near, 0.005, True) == [(1, 1), (2, 0)]
