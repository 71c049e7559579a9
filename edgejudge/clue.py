"""CLUE's decision of one question from its numbers (arXiv 2501.00192, algorithm 1).

Takes P(yes | picture), P(yes | no picture), perhaps P(yes | picture without the object) and a
policy's constants; gives an outcome and the test that decided it. Knows no pictures, tokens, rules
or text.
"""

from edgejudge.clue_settings import ClueSettings
from edgejudge.verdict import Answered, Test

__all__ = ["decide", "region_test", "token_test"]


def token_test(p: float, prior: float, settings: ClueSettings) -> tuple[Answered, Test]:
    """The debiased score d = p - prior: fails below `reject` * prior, holds above `accept` *
    (1 - prior), undecided between and at either end.

    Raises ValueError for what is no probability.
    """
    for value in (p, prior):
        if not 0.0 <= value <= 1.0:  # also true for NaN, which every comparison would let pass
            raise ValueError(f"{value} is no probability in 0..1")
    debiased = p - prior
    if debiased < settings.reject * prior:
        return "fails", "language_prior"
    if debiased > settings.accept * (1.0 - prior):
        return "holds", "score"
    return "uncertain", "undecided"


def region_test(p: float, without: float, settings: ClueSettings) -> tuple[Answered, Test]:
    """Holds where removing the object's region lowers P(yes) by more than `region`; it never makes
    a condition fail. Raises ValueError for what is no probability.
    """
    for value in (p, without):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{value} is no probability in 0..1")
    return ("holds", "region") if p - without > settings.region else ("uncertain", "undecided")


def decide(
    p: float,
    prior: float,
    settings: ClueSettings,
    without: float | None = None,
    rating: bool | None = None,
    crop: float | None = None,
) -> tuple[Answered, Test]:
    """All tests in the published order. `without` is None where no region is known, `rating` where
    nothing was reasoned about; `crop` takes the place of `p` in the tests of the prior where the
    object is small.
    """
    outcome = token_test(p if crop is None else crop, prior, settings)
    if outcome[0] == "uncertain" and without is not None:
        outcome = region_test(p, without, settings)
    if outcome[0] == "uncertain" and rating is not None:
        outcome = ("holds" if rating else "fails"), "reasoning"
    return outcome
