"""Weights of the `npu` target: signed levels of eight or four bits, each output with a scale.

Takes a checkpoint's weights and a plan; adds matrices [K, N] to a graph, stored once for all graphs
that share them. Knows no activation.
"""

import numpy as np
from numpy.typing import NDArray

from edgejudge.export.blocks import Plan
from edgejudge.export.ledger import Ledger
from edgejudge.export.onnx_graph import OnnxGraph
from edgejudge.export.store import WeightStore
from edgejudge.export.weights import Source, matrix_shape

__all__ = ["LEAST", "NpuWeights"]

LEAST = 1e-6  # of a range: what was always zero has one too


class NpuWeights(OnnxGraph):
    def __init__(
        self, name: str, weights: Source, plan: Plan, store: WeightStore, ledger: Ledger
    ) -> None:
        super().__init__(name, store)
        self._weights, self._plan, self._ledger = weights, plan, ledger

    def _plain(self, name: str) -> NDArray[np.float32]:
        value = self._weights(name)
        self._ledger.plain(f"{name}", value.nbytes)
        return value

    def _matrix(
        self,
        weight: str,
        bits: int,
        apart: tuple[int, ...] = (),
        over: NDArray[np.float32] | None = None,
    ) -> str:
        """[K, N] in signed levels, each output with a scale of its own; zero for channels that pass
        beside it, and each output `over` so much [N].
        """
        key, file = f"{weight}.n{bits}", f"weights.n{bits}.bin"
        if over is not None:
            key += ".rest"
        shape = matrix_shape(self._weights, weight)
        if self._store.get(key) is None:
            self._store_matrix(weight, bits, key, file, apart, over)
        return self._by_output(key, file, shape, bits)

    def _by_output(self, key: str, file: str, shape: tuple[int, int], bits: int) -> str:
        """Stored levels [K, N] of a matrix [N, K], with their scales. Zero points are there though
        they are zero: without them ONNX Runtime's QNN provider reads levels of four bits as others,
        and its CPU provider cannot make signed bytes unsigned. Nor can it twice with the same ones.
        """
        zeros = np.zeros(shape[0] if bits == 8 else -(-shape[0] // 2), np.int8)
        inputs = [
            self._weight(key, file, _never, shape[::-1] if bits == 4 else None),
            self._weight(f"{key}.scales", file, _never),
            self._weight(
                f"{key}.zeros",
                file,
                lambda: zeros if bits == 8 else zeros.view(np.uint8),
                (shape[0],) if bits == 4 else None,
            ),
        ]
        return self._node("DequantizeLinear", inputs, axis=1)

    def _store_matrix(
        self,
        weight: str,
        bits: int,
        key: str,
        file: str,
        apart: tuple[int, ...],
        over: NDArray[np.float32] | None,
    ) -> None:
        parts = list(self._plan.quantized(self._weights, weight))
        rows, inner = matrix_shape(self._weights, weight)
        levels = np.concatenate([p.q.levels.reshape(len(p.q.levels), -1) for p in parts])
        if bits == 4:
            levels = np.stack([levels & 15, levels >> 4], axis=-1).reshape(rows, -1)
        levels = levels[:, :inner]  # rows of an odd length were padded
        signed = (levels.astype(np.int16) - (1 << bits - 1)).astype(np.int8).T
        scales = np.concatenate([p.q.scales[:, 0] for p in parts])
        # Levels of a negative scale, which a search may choose, are turned around instead.
        flipped = np.where(scales < 0, -1, 1).astype(np.int8)
        signed = np.clip(signed * flipped, 1 - (1 << bits - 1), (1 << bits - 1) - 1).astype(np.int8)
        signed[list(apart)] = 0
        if bits == 4:
            flat = signed.reshape(-1).astype(np.uint8) & 15
            if flat.size % 2:
                flat = np.append(flat, np.uint8(0))
            signed = flat[0::2] | (flat[1::2] << 4)
        self._store.put(key, file, np.ascontiguousarray(signed))
        # A row of zeros has no scale; any does no harm.
        safe = np.where(scales == 0, np.float32(1), np.abs(scales)).astype(np.float32)
        self._store.put(f"{key}.scales", file, safe if over is None else safe / over)
        error, square = sum(p.error for p in parts), sum(p.square for p in parts)
        nbytes = signed.size + 4 * rows
        self._ledger.quantized(weight, bits, 0, nbytes, error, square)

    def _rows(self, weight: str, columns: tuple[int, ...]) -> str:
        """What a matrix does with these channels [C, N], in signed bytes."""
        key, file = f"{weight}.n8.apart", "weights.n8.bin"
        if self._store.get(key) is None:
            rows, inner = matrix_shape(self._weights, weight)
            block = self._weights(weight).reshape(rows, inner)[:, list(columns)]
            scales = np.maximum(np.abs(block).max(axis=1) / 127, np.float32(LEAST)).astype("f4")
            levels = np.rint(block / scales[:, None]).astype(np.int8)
            self._store.put(key, file, np.ascontiguousarray(levels.T))
            self._store.put(f"{key}.scales", file, scales)
        shape = (matrix_shape(self._weights, weight)[0], len(columns))
        return self._by_output(key, file, shape, 8)


def _never() -> NDArray[np.generic]:
    raise AssertionError("a quantized weight is stored before it is used")
