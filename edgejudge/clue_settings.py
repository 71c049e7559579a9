"""The constants of CLUE's decision, each a setting of a policy, with the published values.

Knows no probabilities, pictures or tokens.
"""

from dataclasses import asdict, dataclass

__all__ = ["ClueSettings"]


@dataclass(frozen=True, slots=True)
class ClueSettings:
    """CLUE (arXiv 2501.00192, algorithm 1). With p0 = P(yes | no image) and d = P(yes) - p0, a
    condition fails where d < `reject` * p0 and holds where d > `accept` * (1 - p0).

    It holds too where removing the region of its object lowers P(yes) by more than `region`. Rules
    whose cosine with the picture is below `relevance` are skipped where the bundle has an encoder
    for that. A region counts from `region_confidence` on, and one smaller than the share
    `small_region` of the picture is looked at by itself. What is left is decided by `reasoning` in
    so many `turns`.
    """

    reject: float = -0.3
    accept: float = 0.8
    region: float = 0.6
    relevance: float = 0.22
    region_confidence: float = 0.05
    small_region: float = 0.01
    reasoning: bool = True
    turns: int = 2

    def to_json(self) -> dict[str, object]:
        return asdict(self)
