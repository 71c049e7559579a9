"""The records that `compare`, `compare_answers` and `rank` return: frozen, plain JSON on request.

Knows the shape of an answer and nothing of how it was reached.
"""

from dataclasses import dataclass
from typing import Any, Literal

from edgejudge.answering.answers import PictureName, Provenance, rounded
from edgejudge.verdict import InputFailure

__all__ = ["Comparison", "Order", "Pair", "Ranked", "Ranking", "Unranked", "Winner"]

Winner = Literal["a", "b", "tie", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Order:
    """One of the two orders: which came `first`, P(a is the better) in it, and what it says."""

    first: Literal["a", "b"]
    probability_a: float
    says: Literal["a", "b", "tie"]
    mass: float | None

    def to_json(self) -> dict[str, object]:
        return {
            "first": self.first,
            "probability_a": rounded(self.probability_a),
            "says": self.says,
            "label_mass": rounded(self.mass),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two pictures, or two texts, against each other. Probabilities are the means over both orders,
    `gap` how far P(a) is apart between them. Orders that say different things are `inconclusive`,
    which is no `tie`: a tie is what both orders say, within `epsilon` of one half.
    """

    criterion: str
    winner: Winner
    probability_a: float
    probability_b: float
    gap: float
    epsilon: float
    orders: tuple[Order, Order]
    made: Provenance

    def to_json(self) -> dict[str, object]:
        return {
            "criterion": self.criterion,
            "winner": self.winner,
            "probability_a": rounded(self.probability_a),
            "probability_b": rounded(self.probability_b),
            "gap": rounded(self.gap),
            "epsilon": self.epsilon,
            "orders": [order.to_json() for order in self.orders],
            **self.made.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison of a ranking, by the pictures' places in the list that was given."""

    a: int
    b: int
    probability_a: float
    gap: float
    winner: Winner

    def to_json(self) -> dict[str, object]:
        return {
            "a": self.a,
            "b": self.b,
            "probability_a": rounded(self.probability_a),
            "gap": rounded(self.gap),
            "winner": self.winner,
        }


@dataclass(frozen=True, slots=True)
class Ranked:
    """`rank` counts from 1; equal ranks are ties, and the next one is as much larger. `index` is
    the picture's place in the list that was given. `score` is P(yes), or the logarithm of a
    strength.
    """

    rank: int
    index: int
    image: PictureName
    score: float

    def to_json(self) -> dict[str, object]:
        return {
            "rank": self.rank,
            "index": self.index,
            **self.image.to_json(),
            "score": rounded(self.score),
        }


@dataclass(frozen=True, slots=True)
class Unranked:
    """A picture that could not be judged, and why."""

    index: int
    path: str | None
    error: InputFailure

    def to_json(self) -> dict[str, object]:
        return {"index": self.index, "path": self.path, "error": self.error.to_json()}


@dataclass(frozen=True, slots=True)
class Ranking:
    """Best first. `pairs` are those that were compared, of `possible_pairs`; none by P(yes)."""

    criterion: str
    method: Literal["pairs", "yes"]
    ranked: tuple[Ranked, ...]
    unranked: tuple[Unranked, ...]
    epsilon: float
    pairs: tuple[Pair, ...]
    possible_pairs: int
    made: Provenance

    @property
    def inconclusive(self) -> int:
        """Pairs whose two orders say different things."""
        return sum(pair.winner == "inconclusive" for pair in self.pairs)

    @property
    def mean_gap(self) -> float | None:
        """Of the order gaps of all pairs."""
        return sum(pair.gap for pair in self.pairs) / len(self.pairs) if self.pairs else None

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Indices by rank, best first; more than one in a group is a tie."""
        ranks = dict.fromkeys(each.rank for each in self.ranked)
        return tuple(tuple(e.index for e in self.ranked if e.rank == rank) for rank in ranks)

    def to_json(self) -> dict[str, object]:
        made: dict[str, Any] = self.made.to_json()
        del made["images"]  # each stands where it is ranked
        return {
            "criterion": self.criterion,
            "method": self.method,
            "ranked": [each.to_json() for each in self.ranked],
            "unranked": [each.to_json() for each in self.unranked],
            "groups": [list(group) for group in self.groups],
            "epsilon": self.epsilon,
            "pairs": [pair.to_json() for pair in self.pairs],
            "compared_pairs": len(self.pairs),
            "possible_pairs": self.possible_pairs,
            "inconclusive_pairs": self.inconclusive,
            "mean_gap": rounded(self.mean_gap),
            **made,
        }
