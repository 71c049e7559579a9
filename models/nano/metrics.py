"""Area under the ROC curve, as training and evaluation both print it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def auroc(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Area under the ROC curve by ranks, ties averaged; nan without both classes."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if not len(positive) or not len(negative):
        return float("nan")
    values, inverse, counts = np.unique(
        np.concatenate([positive, negative]), return_inverse=True, return_counts=True
    )
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse[: len(positive)]].mean() - (len(positive) + 1) / 2) / len(negative))
