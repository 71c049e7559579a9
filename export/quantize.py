"""Block quantization of linear weights, in numpy and deterministic.

Takes a float32 matrix [N, K]; gives integer blocks with a scale each, and the matrix they mean.
The layout is the one of ONNX Runtime's MatMulNBits. Knows no model and no graph.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Quantized", "dequantize", "quantize"]


@dataclass(frozen=True, slots=True)
class Quantized:
    """Symmetric: value = (level - 2^(bits - 1)) * scale."""

    bits: int
    block: int
    inner: int  # K before it was padded to whole blocks
    levels: NDArray[np.uint8]  # [N, K / block, block * bits / 8], low nibble first
    scales: NDArray[np.float32]  # [N, K / block]


def quantize(weight: NDArray[np.float32], bits: int, block: int) -> Quantized:
    """Error of each value is at most half its block's scale, max|block| / (2^(bits - 1) - 1)."""
    rows, inner = weight.shape
    blocks = -(-inner // block)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :inner] = weight
    padded = padded.reshape(rows, blocks, block)
    top, zero = 2 ** (bits - 1) - 1, 2 ** (bits - 1)
    scales = (np.abs(padded).max(axis=-1) / np.float32(top)).astype(np.float32)
    # A block of zeros has scale 0: any divisor gives level zero. A scale below the normal range
    # would lose its precision, so such a block, far under any weight that matters, becomes zero.
    scales[scales < np.finfo(np.float32).tiny] = 0
    divisor = np.where(scales == 0, np.float32(1), scales)
    levels = np.clip(np.rint(padded / divisor[..., None]), -top, top) * (scales[..., None] > 0)
    unsigned = (levels + zero).astype(np.uint8)
    if bits == 4:
        unsigned = unsigned[..., 0::2] | (unsigned[..., 1::2] << 4)
    return Quantized(bits, block, inner, unsigned, scales)


def dequantize(q: Quantized) -> NDArray[np.float32]:
    levels = q.levels
    if q.bits == 4:
        levels = np.stack([levels & 15, levels >> 4], axis=-1).reshape(*levels.shape[:2], q.block)
    zero = np.float32(2 ** (q.bits - 1))
    values: NDArray[np.float32] = (levels.astype(np.float32) - zero) * q.scales[..., None]
    return values.reshape(len(values), -1)[:, : q.inner]
