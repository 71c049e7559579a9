"""Block quantization of linear weights, in numpy and deterministic.

Takes float32 rows [N, K]; gives integer blocks with a scale each, and the matrix they mean. Rows do
not know of each other, so a matrix may be done a few rows at a time. The layout is the one of ONNX
Runtime's MatMulNBits. Knows no model and no graph.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_PEAK", "Quantized", "dequantize", "lowest_level", "pack", "quantize"]

LEAST_PEAK = 1e-12  # of a token whose values are rounded: one of zeros has a scale too

# Shares of the plain scale that a search tries: a block whose largest weight is clipped a little
# may spend its few levels better on all others.
_RATIOS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)


@dataclass(frozen=True, slots=True)
class Quantized:
    """Value = (level - 2^(bits - 1)) * scale; a scale may be negative. Four bits are packed in
    twos, others take a byte.
    """

    bits: int
    block: int
    inner: int  # K before it was padded to whole blocks
    levels: NDArray[np.uint8]  # [N, K / block, block or block / 2], low nibble first
    scales: NDArray[np.float32]  # [N, K / block]


def quantize(
    weight: NDArray[np.float32],
    bits: int,
    block: int,
    search: bool = False,
    importance: NDArray[np.float32] | None = None,
    symmetric: bool = False,
) -> Quantized:
    """Rounds each block to the nearest levels of its scale.

    Plain: the scale is max|block| / (2^(bits - 1) - 1), so that no value moves by more than half of
    it. `search` takes, of several smaller ones and of those that reach down to the lowest level,
    the scale with the least squared error; `importance` [K] weighs the error of each column, as by
    the mean square of the activation it meets. `symmetric` leaves the lowest level unused and
    scales positive, for targets that know no others.
    """
    rows, inner = weight.shape
    blocks = -(-inner // block)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :inner] = weight
    padded = padded.reshape(rows, blocks, block)
    zero = 2 ** (bits - 1)
    top = zero - 1
    scales = (np.abs(padded).max(axis=-1) / np.float32(top)).astype(np.float32)
    # A block of zeros has scale 0: any divisor gives level zero. A scale below the normal range
    # would lose its precision, so such a block, far under any weight that matters, becomes zero.
    scales[scales < np.finfo(np.float32).tiny] = 0
    bottom = lowest_level(bits, search, symmetric)
    if search:
        weights = _column_weights(importance, blocks, block)
        scales = _searched(padded, scales, bits, bottom, weights, symmetric)
    levels = _rounded(padded, scales, bottom, top) * (scales[..., None] != 0)
    return Quantized(bits, block, inner, pack(levels, bits), scales)


def pack(levels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Signed whole numbers [N, K / block, block] as they are stored."""
    unsigned: NDArray[np.uint8] = (levels + (1 << bits - 1)).astype(np.uint8)
    if bits != 4:
        return unsigned
    return unsigned[..., 0::2] | np.left_shift(unsigned[..., 1::2], np.uint8(4))


def lowest_level(bits: int, search: bool, symmetric: bool = False) -> int:
    """The smallest number that `quantize` rounds to."""
    zero = 1 << bits - 1
    return -zero if search and not symmetric else 1 - zero


def dequantize(q: Quantized) -> NDArray[np.float32]:
    levels = q.levels
    if q.bits == 4:
        levels = np.stack([levels & 15, levels >> 4], axis=-1).reshape(*levels.shape[:2], q.block)
    zero = np.float32(2 ** (q.bits - 1))
    values: NDArray[np.float32] = (levels.astype(np.float32) - zero) * q.scales[..., None]
    return values.reshape(len(values), -1)[:, : q.inner]


def _rounded(
    padded: NDArray[np.float32], scales: NDArray[np.float32], bottom: int, top: int
) -> NDArray[np.float32]:
    divisor = np.where(scales == 0, np.float32(1), scales).astype(np.float32, copy=False)
    levels = padded / divisor[..., None]
    np.rint(levels, out=levels)
    return np.clip(levels, bottom, top, out=levels)


def _searched(
    padded: NDArray[np.float32],
    plain: NDArray[np.float32],
    bits: int,
    bottom: int,
    weights: NDArray[np.float32] | None,
    symmetric: bool,
) -> NDArray[np.float32]:
    """The best scale of each block."""
    zero = 2 ** (bits - 1)
    top = zero - 1
    # The extreme value of a block may lie on the lowest level, which has no counterpart above.
    flat = np.abs(padded).argmax(axis=-1)[..., None]
    reaching = -np.take_along_axis(padded, flat, -1)[..., 0] / np.float32(zero) * (plain != 0)
    best: NDArray[np.float32] = plain
    error = _error(padded, plain, bottom, top, weights)
    for form in (plain,) if symmetric else (plain, reaching):
        for ratio in _RATIOS:
            scales = form * np.float32(ratio)
            found = _error(padded, scales, bottom, top, weights)
            better = found < error
            best = np.where(better, scales, best).astype(np.float32, copy=False)
            error = np.where(better, found, error).astype(np.float32, copy=False)
    return best


def _error(
    padded: NDArray[np.float32],
    scales: NDArray[np.float32],
    bottom: int,
    top: int,
    weights: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Squared error of each block [N, K / block]."""
    moved = _rounded(padded, scales, bottom, top)
    moved *= scales[..., None]
    moved -= padded
    terms, sum_of = [moved, moved], "nbk,nbk->nb"
    if weights is not None:
        terms, sum_of = [*terms, weights], "nbk,nbk,bk->nb"
    found: NDArray[np.float32] = np.einsum(sum_of, *terms)
    return found


def _column_weights(
    importance: NDArray[np.float32] | None, blocks: int, block: int
) -> NDArray[np.float32] | None:
    if importance is None:
        return None
    padded = np.zeros(blocks * block, np.float32)
    padded[: len(importance)] = importance
    return padded.reshape(blocks, block)
