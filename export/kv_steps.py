"""What a level of the cache means: a step for each channel of each layer's keys and values.

Takes a checkpoint; runs the reference on calibration pictures. Keys have channels that are always
large (of their biases, and of rotations that turn slowly), so that one step for all would leave the
others none (Hooper et al., KVQuant, 2024, whose keys are quantized by channel before rotation).
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgejudge.errors import ExportError
from edgejudge.export.blocks import KvSteps
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.observe import observe

__all__ = ["check_kv", "kv_steps"]

_BITS = {"int8": 8, "int4": 4}
# By bits, for what calibration pictures did not show; beyond it a value is clipped. Sixteen levels
# can spare less. To clip what was seen, for smaller steps, costs more than it gives.
_ROOM = {8: 1.1, 4: 1.05}
_LEAST = 1e-6  # a channel that was never used
_CHANNELS = 8  # of a head: attention over integers takes multiples of so many


def check_kv(kv: str, checkpoint: Checkpoint) -> None:
    """Raises ExportError for a cache that is not known, or that these heads do not go into."""
    if kv == "float32":
        return
    if kv not in _BITS:
        known = ", ".join(("float32", *_BITS))
        raise ExportError(f"keys and values cannot be kept in {kv!r}; known: {known}")
    wide = checkpoint.spec.text.head_dim
    if wide % _CHANNELS:
        raise ExportError(
            f"{checkpoint.folder / 'config.json'}: heads of {wide} channels, but keys and values "
            f"in {kv} need a multiple of {_CHANNELS}; leave out --kv {kv}"
        )


def kv_steps(checkpoint: Checkpoint, kv: str) -> dict[int, KvSteps]:
    """By layer, for a cache of this type."""
    bits = _BITS[kv]
    lowest: dict[str, NDArray[np.float32]] = {}
    highest: dict[str, NDArray[np.float32]] = {}

    def watch(name: str, x: Tensor) -> None:
        if name.startswith(("keys ", "values ")):
            low, high = (end.float().numpy() for end in (x.amin((0, 2)), x.amax((0, 2))))
            lowest[name] = np.minimum(lowest.get(name, low), low)
            highest[name] = np.maximum(highest.get(name, high), high)

    observe(checkpoint, watch)

    def step(name: str) -> NDArray[np.float32]:
        return _step(lowest[name], highest[name], bits)

    layers = range(checkpoint.spec.text.layers)
    return {
        layer: KvSteps(step(f"keys {layer}"), step(f"values {layer}"), bits) for layer in layers
    }


def _step(low: NDArray[np.float32], high: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """The smallest that holds these ends. There is a level more below zero than above, so where a
    channel reaches further up its step is negative: of four bits that is a level in eight.
    """
    most = 1 << (bits - 1)
    upright = np.maximum(high / (most - 1), -low / most)
    turned = np.maximum(high / most, -low / (most - 1))
    size = np.maximum(np.minimum(upright, turned) * _ROOM[bits], _LEAST)
    return np.where(upright <= turned, size, -size).astype(np.float32)
