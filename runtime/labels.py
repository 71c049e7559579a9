"""Label logits -> probabilities, and what a relevance encoder compares pictures with.

Takes logits and which of them belong to which label; refuses what is not a number. Knows no engine.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle
from edgejudge.errors import BundleError, ProviderError

__all__ = ["rule_texts", "yes_probabilities"]


def yes_probabilities(
    logits: NDArray[np.float32], labels: Mapping[str, Sequence[int]]
) -> NDArray[np.float64]:
    """[B, R] -> P(yes) / (P(yes) + P(no)) [B], a label's variants joined by log-sum-exp.

    Raises ProviderError where a logit is not a number: nothing may be concluded from such a run.
    """
    if not np.isfinite(logits).all():
        raise ProviderError(
            "the graphs gave label logits that are not numbers; "
            "check the bundle with `edgejudge screen --verify`, or export it again"
        )
    wide = logits.astype(np.float64)
    yes, no = (np.logaddexp.reduce(wide[:, list(labels[name])], axis=1) for name in ("yes", "no"))
    out: NDArray[np.float64] = 1.0 / (1.0 + np.exp(no - yes))
    return out


def rule_texts(bundle: Bundle) -> NDArray[np.float32]:
    """Unit vectors [rules, width] of a relevance encoder's rules. Raises BundleError for a bundle
    without one.
    """
    record = bundle.manifest.relevance
    if record is None:
        raise BundleError(
            f"{bundle.path}: has no relevance encoder; add one with `edgejudge add-relevance`"
        )
    shape = (len(record.rules), record.width)
    return np.memmap(bundle.file(record.texts), "<f4", "r", shape=shape)
