"""How far stored weights move what a judge says, by the reference.

Takes a checkpoint, weights and pictures; gives probabilities, and the Kullback-Leibler divergence
of two sets of them. Questions are packed: this is for choosing, not for the gate. Knows no recipe.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgejudge.export.calibration import CalibrationPicture
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.compile import asked_of, yes_probability
from edgejudge.export.reference import Reference
from edgejudge.export.stored import Weights

__all__ = ["answers", "divergence", "expected_divergence"]

_LEAST = 1e-12  # of a probability, so that its logarithm is a number


def answers(
    checkpoint: Checkpoint, weights: Weights, pictures: Sequence[CalibrationPicture]
) -> NDArray[np.float64]:
    """P(yes) of every condition of every picture, one after another."""
    image = checkpoint.tokens.image
    reference = Reference(checkpoint.spec, weights, image, packed=True)
    logits = reference.ask(asked_of(checkpoint, pictures), checkpoint.labels.token_ids)
    return yes_probability(np.concatenate(logits), checkpoint.labels.labels)


def divergence(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Mean over decisions, in nats, of what is lost by saying `found` where `wanted` is true."""
    p, q = (np.clip(each, _LEAST, 1 - _LEAST) for each in (wanted, found))
    return float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))


def expected_divergence(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """To second order, and as if logits moved alike wherever they lie. Few decisions are near their
    threshold, and the divergence hangs on those alone; how far logits move is seen on all.
    """
    p, q = (np.clip(each, _LEAST, 1 - _LEAST) for each in (wanted, found))
    moved = np.log(p / (1 - p)) - np.log(q / (1 - q))
    return float(np.mean(p * (1 - p)) * np.mean(np.square(moved)) / 2)
