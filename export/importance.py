"""Which columns of each weight matter: the mean square of the activations they meet.

Takes a checkpoint with a calibration set; gives a lookup for quantization's search. The error of a
layer's output is, to first order, the error of its weights times this (the diagonal of the Hessian
that OPTQ uses, Frantar et al. 2023). Knows no recipe.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.observe import calibration_pictures, observe

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
    if not calibration_pictures(checkpoint):
        return {}
    moments = _Moments()
    observe(checkpoint, moments, packed=True)
    return {
        name: _rounded(total.numpy() / moments.counts[name]) for name, total in moments.sums.items()
    }


def _rounded(mean: NDArray[np.float64]) -> NDArray[np.float32]:
    steps = np.rint(np.log2(np.maximum(mean, 1e-12)) * _STEPS_PER_OCTAVE) / _STEPS_PER_OCTAVE
    rounded: NDArray[np.float32] = np.exp2(steps).astype(np.float32)
    return rounded
