"""What an export's gate measured, as bundle.json records it.

Frozen dataclasses, a part of edgejudge.manifest, whose names are imported from `edgejudge.bundle`.
"""

from dataclasses import dataclass

__all__ = [
    "DecisionsRecord",
    "FidelityRecord",
    "FlipCount",
    "LabelMassRecord",
    "SideRecord",
    "WritingRecord",
]


@dataclass(frozen=True, slots=True)
class LabelMassRecord:
    """Probability that the full head gives to the label rows together."""

    n: int
    mean: float
    minimum: float


@dataclass(frozen=True, slots=True)
class FlipCount:
    """Decisions of one rule or one picture, and how many went which way."""

    name: str
    decisions: int
    unsafe_to_safe: int
    safe_to_unsafe: int


@dataclass(frozen=True, slots=True)
class DecisionsRecord:
    """Bundle against fp32 reference over pictures that no choice of the export has seen.

    Bounds are one-sided, 95 %, exact; `near` are decisions whose reference probability lies within
    0.25 of the threshold. `accepted_flips` is what --accept-flips allowed instead of the limits.
    """

    pictures: int
    decisions: int
    flips: int
    flips_upper: float
    near_decisions: int
    near_flips: int
    near_flips_upper: float
    unsafe_to_safe: int
    safe_to_unsafe: int
    probability_error_99: float
    probability_error_max: float
    probability_error_mean: float
    rules: tuple[FlipCount, ...]
    flipped_pictures: tuple[FlipCount, ...]
    underpowered: bool
    accepted_flips: float | None
    label_mass: LabelMassRecord


@dataclass(frozen=True, slots=True)
class WritingRecord:
    """Decisions whose last token passed the graphs that write text, over keys and values of those
    that judge, against the fp32 reference. `words` counts those where the likeliest word of the
    whole vocabulary is a label, `agree` those of them that say what the label rows say by the
    graphs that judge.
    """

    decisions: int
    flips: int
    flips_upper: float
    probability_error_99: float
    words: int
    agree: int


@dataclass(frozen=True, slots=True)
class SideRecord:
    """Matrices that have exact columns beside integers, of those that could. `error` is the root
    mean square error of label logits with them, `error_without` without them, both computed by the
    reference on `pictures` that the gate does not use; null for random weights.
    """

    matrices: int
    of: int
    pictures: int
    error: float | None
    error_without: float | None


@dataclass(frozen=True, slots=True)
class FidelityRecord:
    """What the gate of the export saw.

    `graph_error` is the largest |runtime - reference| on a label logit, both over the stored
    weights. `hidden_error` is the relative rms error of hidden states at the ends of questions
    against the fp32 weights. `packing_error` is the largest change of a probability by what else
    was asked in the same pass. `writing` and `side` are null where a bundle has none of them.
    Random weights decide nothing: then `decisions` and `writing` are null.
    """

    picture_set: str
    calibration_pictures: int
    graph_error: float
    hidden_error: float
    packing_error: float
    writing: WritingRecord | None
    side: SideRecord | None
    decisions: DecisionsRecord | None
