"""Pairs and ranks: two orders made one answer, which pairs to compare, and ranks out of them.

Takes probabilities; gives winners, strengths and ranks. Knows no engine and no pictures.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgejudge.answering.comparisons import Order, Winner
from edgejudge.errors import InputError

__all__ = ["Both", "both_orders", "bradley_terry", "pairs_within", "ranks", "win_probability"]

_ROUNDS = 10_000
_CLOSE = 1e-10


class Both(NamedTuple):
    """`a` and `b` are probabilities of being the better, `gap` is that of P(a) between orders."""

    winner: Winner
    a: float
    b: float
    gap: float
    orders: tuple[Order, Order]


def both_orders(
    first: Sequence[float],
    second: Sequence[float],
    masses: tuple[float | None, float | None],
    epsilon: float,
) -> Both:
    """`first` are P("A") and P("B") with a shown as A, `second` the same with b shown as A.

    P(a) is the mean over the orders, so that a preference for a place cancels. Exchanging a and b
    exchanges the results to the last bit.
    """
    if not 0 <= epsilon < 0.5:
        raise InputError("epsilon", f"epsilon is {epsilon}, expected 0 to 0.5")
    orders = (
        Order("a", first[0], _says(first[0], first[1], epsilon), masses[0]),
        Order("b", second[1], _says(second[1], second[0], epsilon), masses[1]),
    )
    a, b = (first[0] + second[1]) / 2, (first[1] + second[0]) / 2
    says = {order.says for order in orders}
    winner: Winner = says.pop() if len(says) == 1 else "inconclusive"
    return Both(winner, a, b, abs(first[0] - second[1]), orders)


def _says(a: float, b: float, epsilon: float) -> Literal["a", "b", "tie"]:
    if abs(a - b) <= 2 * epsilon:  # the two add up to 1: both are within epsilon of a half
        return "tie"
    return "a" if a > b else "b"


def pairs_within(count: int, budget: int | None) -> list[tuple[int, int]]:
    """At most `budget` of all pairs of `count` things, None for all of them.

    Neighbours come first, then those two places apart, and so on, around a circle: everything is
    compared about equally often, and through others with all. Raises InputError for a budget that
    leaves something without comparison.
    """
    pairs = []
    for distance in range(1, count // 2 + 1):
        for start in range(count):
            other = (start + distance) % count
            pair = (min(start, other), max(start, other))
            # Half way around, each pair is met from both its ends.
            if not (2 * distance == count and start >= distance):
                pairs.append(pair)
    if budget is None:
        return pairs
    if budget < count - 1:
        raise InputError(
            "pairs", f"{budget} pairs cannot connect {count} pictures; allow at least {count - 1}"
        )
    return pairs[:budget]


def bradley_terry(
    count: int, pairs: Sequence[tuple[int, int]], wins: Sequence[float]
) -> NDArray[np.float64]:
    """Logarithms of strengths [count], with mean 0; `wins` are P(first of the pair is better).

    The model of Bradley and Terry (1952), in which i beats j with s_i / (s_i + s_j), fitted by the
    MM iteration of Hunter (2004, "MM algorithms for generalized Bradley-Terry models") to
    fractional wins. Everyone has drawn once against a strength of 1 besides, so that who wins all
    comparisons has a finite strength too.
    """
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    share = np.asarray(wins, np.float64)
    won = np.full(count, 0.5)
    np.add.at(won, first, share)
    np.add.at(won, second, 1 - share)
    strength = np.ones(count)
    for _ in range(_ROUNDS):
        met = 1 / (1 + strength)  # the draw
        rate = 1 / (strength[first] + strength[second])
        np.add.at(met, first, rate)
        np.add.at(met, second, rate)
        found = won / met
        moved = float(np.abs(np.log(found / strength)).max())
        strength = found
        if moved < _CLOSE:
            break
    logs = np.log(strength)
    centred: NDArray[np.float64] = logs - logs.mean()
    return centred


def win_probability(better: float, worse: float) -> float:
    """Of two logarithms of strengths."""
    return float(1 / (1 + np.exp(worse - better)))


def ranks(scores: Sequence[float], epsilon: float, strengths: bool) -> list[tuple[int, int]]:
    """(rank, index), best first. Those within `epsilon` of the first of their group share a rank:
    of its score, or of the chance that it wins from one half, where scores are `strengths`.
    """
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    found: list[tuple[int, int]] = []
    for place, index in enumerate(order, 1):
        rank = place
        if found:
            best = scores[order[found[-1][0] - 1]]
            apart = best - scores[index]
            if strengths:
                apart = win_probability(best, scores[index]) - 0.5
            if apart <= epsilon:
                rank = found[-1][0]
        found.append((rank, index))
    return found
