"""What a byte of the cache means: a step for each channel of each layer's keys and values.

Takes a checkpoint; runs the reference on calibration pictures. Keys have channels that are always
large (of their biases, and of rotations that turn slowly), so that one step for all would leave the
others none (Hooper et al., KVQuant, 2024, whose keys are quantized by channel before rotation).
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgejudge.export.blocks import KvSteps
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.observe import observe

__all__ = ["kv_steps"]

_ROOM = 1.1  # for what calibration pictures did not show; beyond it a value is clipped
_LEAST = 1e-6  # a channel that was never used


def kv_steps(checkpoint: Checkpoint) -> dict[int, KvSteps]:
    """Layer -> steps [kv_heads, head_dim] of keys and of values."""
    peaks: dict[str, NDArray[np.float32]] = {}

    def watch(name: str, x: Tensor) -> None:
        if name.startswith(("keys ", "values ")):
            found = x.abs().amax((0, 2)).float().numpy()
            peaks[name] = np.maximum(peaks.get(name, np.float32(0)), found)

    observe(checkpoint, watch)

    def step(name: str) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.maximum(peaks[name] * (_ROOM / 127), _LEAST)
        return found.astype(np.float32)

    layers = range(checkpoint.spec.text.layers)
    return {layer: (step(f"keys {layer}"), step(f"values {layer}")) for layer in layers}
