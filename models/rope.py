"""Rotary position embedding: token positions -> the cos and sin that a pass rotates by.

Takes positions, one axis or several; gives tables in the float32 arithmetic of training. Computed
outside the graphs, so that one graph serves plain, axial and multimodal positions alike.
"""

import numpy as np
from numpy.typing import NDArray

from edgejudge.models.spec import TextSpec

__all__ = ["Rotation", "axial_rotation", "rotation"]

Rotation = tuple[NDArray[np.float32], NDArray[np.float32]]  # cos, sin [S, head_dim / 2]


def rotation(positions: NDArray[np.int64], text: TextSpec) -> Rotation:
    """positions [S], or [3, S] (time, row, column) under multimodal RoPE.

    `rope_sections` are runs of frequencies; the i-th turns by axis i mod 3 (Qwen2-VL, section 2.1).
    Interleaved, they say how many frequencies an axis has, which take turns: time, row, column,
    time, ...; what is left turns by time (Qwen3-VL Technical Report, 2025).
    """
    sections = text.rope_sections
    if not sections:
        return _waves(_angles(positions, text.rope_theta, text.head_dim))
    axes = positions if positions.ndim == 2 else np.broadcast_to(positions, (3, len(positions)))
    angles = [_angles(axis, text.rope_theta, text.head_dim) for axis in axes]
    if text.rope_interleaved:
        mixed = angles[0].copy()
        for axis in (1, 2):
            own = slice(axis, 3 * sections[axis], 3)
            mixed[:, own] = angles[axis][:, own]
        return _waves(mixed)
    ends = np.cumsum(sections)
    runs = [
        angles[i % 3][:, end - size : end]
        for i, (size, end) in enumerate(zip(sections, ends, strict=True))
    ]
    return _waves(np.concatenate(runs, axis=1))


def axial_rotation(positions: NDArray[np.int64], theta: float, head_dim: int) -> Rotation:
    """positions [2, S], row and column of a patch: half of the frequencies turn by each."""
    angles = [_angles(axis, theta, head_dim // 2) for axis in positions]
    return _waves(np.concatenate(angles, axis=1))


def _angles(positions: NDArray[np.int64], theta: float, dim: int) -> NDArray[np.float32]:
    """[S] -> [S, dim / 2]"""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    inverse = (np.float32(1.0) / np.float32(theta) ** exponents).astype(np.float32)
    out: NDArray[np.float32] = positions.astype(np.float32)[:, None] * inverse[None, :]
    return out


def _waves(angles: NDArray[np.float32]) -> Rotation:
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
