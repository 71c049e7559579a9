"""Rounding that knows which errors of a matrix make up for one another.

Takes rows of a matrix with the scales of their blocks, and the Hessian of what the matrix is
multiplied with; gives levels whose output is nearer to the matrix's own than each weight's nearest
level is. Knows no model.

What is made small is |A (w - q)|^2 for each row w, where A^T A = X^T X is the Hessian. A is upper
triangular, so columns are rounded from the last to the first, each to the level nearest to where
the errors of those after it leave it. That gives the levels of OPTQ (Frantar et al. 2023, arXiv
2210.17323) for columns in the opposite order, without the inverse of the Hessian (Chen et al. 2025,
arXiv 2507.18553, section 3).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgejudge.errors import ExportError
from edgejudge.export.quantize import Quantized, pack

__all__ = ["Curvature", "curvature_of", "reround"]

_DAMPENING = 0.01  # of the mean of the diagonal
_COLUMNS = 64  # rounded before their errors are taken to all columns to come
_ROWS = 1024  # of a matrix, worked on together

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Curvature:
    """`factor` [K, K] is lower triangular, the transpose of A, for columns in the order `order`:
    what meets the largest activations is rounded first, while many columns are left to make up for
    it.
    """

    factor: Floats
    order: NDArray[np.int64]  # [K]


def curvature_of(hessian: Floats) -> Curvature:
    """Of X^T X [K, K], in its own precision. Where that is too little for what calibration saw, a
    larger share of the diagonal is added.
    """
    diagonal = hessian.diagonal()
    if not np.isfinite(diagonal).all():
        raise ExportError(
            "what a matrix is multiplied with on calibration pictures is not finite; a norm, a "
            "bias or an embedding of the checkpoint is damaged"
        )
    order = np.argsort(diagonal, kind="stable")
    ordered = hessian[np.ix_(order, order)]
    mean = float(diagonal.mean()) or 1.0  # a matrix that met only zeros
    share = _DAMPENING
    while True:
        ordered[np.diag_indices_from(ordered)] = diagonal[order] + share * mean
        # torch's, which holds one matrix more; numpy's holds several.
        root, failed = torch.linalg.cholesky_ex(torch.from_numpy(ordered))
        if not failed:
            return Curvature(root.numpy(), order)
        share *= 10


def reround(
    weight: NDArray[np.float32],
    scales: NDArray[np.float32],
    bits: int,
    block: int,
    lowest: int,
    found: Curvature,
) -> Quantized:
    """`weight` [N, K] in blocks with these scales [N, K / block]; no level is below `lowest`."""
    rows, inner = weight.shape
    levels = np.zeros((rows, scales.shape[1] * block), np.int16)
    for first in range(0, rows, _ROWS):
        some = slice(first, first + _ROWS)
        ends = lowest, 2 ** (bits - 1) - 1
        levels[some, :inner] = _levels(weight[some], scales[some], block, ends, found)
    packed = pack(levels.reshape(*scales.shape, block), bits)
    return Quantized(bits, block, inner, packed, scales)


def _levels(
    weight: NDArray[np.float32],
    scales: NDArray[np.float32],
    block: int,
    ends: tuple[int, int],
    found: Curvature,
) -> NDArray[np.int16]:
    """[N, K]; inside, columns come first and in the order of the curvature."""
    dtype, order, factor = found.factor.dtype, found.order, found.factor
    wanted = weight.T[order].astype(dtype)  # [K, N]
    steps = scales.T.astype(dtype)  # [blocks, N]
    inner = len(wanted)
    moved = np.zeros_like(wanted)
    levels = np.empty((inner, len(weight)), np.int16)
    for last in range(inner, 0, -_COLUMNS):
        first = max(0, last - _COLUMNS)
        pull = factor[last:, first:last].T @ moved[last:]  # [columns, N]
        for column in range(last - 1, first - 1, -1):
            row, step = column - first, steps[order[column] // block]
            centre = wanted[column] + pull[row] / factor[column, column]
            # A block of zeros has no step, and stays.
            level = np.divide(centre, step, out=np.zeros_like(centre), where=step != 0)
            level = np.clip(np.rint(level), *ends)
            moved[column] = wanted[column] - level * step
            pull[:row] += factor[column, first:column, None] * moved[column]
            levels[order[column]] = level
    return levels.T
