"""Which columns of each weight matter: the mean square of the activations they meet.

Takes a checkpoint with a calibration set; gives a lookup for quantization's search. The error of a
layer's output is, to first order, the error of its weights times this (the diagonal of the Hessian
that OPTQ uses, Frantar et al. 2023). Knows no recipe.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgejudge.export.calibration import read_calibration, split_pictures
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.compile import asked_of
from edgejudge.export.reference import Reference
from edgejudge.export.stored import Exact

__all__ = ["column_importance"]

_STEPS_PER_OCTAVE = 4


class _Moments:
    """Sums of squares of everything that each weight was multiplied with."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def __call__(self, name: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        total = rows.square().sum(0, dtype=torch.float64)
        self.sums[name] = self.sums.get(name, 0) + total
        self.counts[name] = self.counts.get(name, 0) + len(rows)


def column_importance(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """Weight name -> [K]; empty without a calibration set large enough to spare pictures.

    Rounded to quarters of an octave, so that another machine's arithmetic chooses the same scales.
    """
    folder = checkpoint.calibration_folder
    pictures = [] if folder is None else split_pictures(read_calibration(folder)).calibration
    if not pictures:
        return {}
    moments = _Moments()
    reference = Reference(
        checkpoint.spec, Exact(checkpoint.weights), checkpoint.tokens.image, observe=moments
    )
    reference.ask(asked_of(checkpoint, pictures), checkpoint.labels.token_ids)
    return {
        name: _rounded(total.numpy() / moments.counts[name]) for name, total in moments.sums.items()
    }


def _rounded(mean: NDArray[np.float64]) -> NDArray[np.float32]:
    steps = np.rint(np.log2(np.maximum(mean, 1e-12)) * _STEPS_PER_OCTAVE) / _STEPS_PER_OCTAVE
    rounded: NDArray[np.float32] = np.exp2(steps).astype(np.float32)
    return rounded
