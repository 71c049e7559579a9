"""The changes of copies.py that an evaluation may ask for, as PIL pictures."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.copies import CHANGES, changed

__all__ = ["PERTURBED", "perturbed"]

PERTURBED = {name: CHANGES[name] for name in ("resize", "recompress", "flip")}


def perturbed(rgb: NDArray[np.uint8], name: str) -> Image.Image:
    """Pixels [H, W, 3] under the perturbation of this name."""
    return changed(rgb, name)
