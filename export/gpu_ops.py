"""The op vocabulary for the `gpu` target: floats of 32 or 16 bits, fused or plain attention.

Takes what OnnxOps takes, and in which floats to compute; weights in blocks are those of the `cpu`
target. In 16 bits norms are scaled by each token's largest value, so that residuals of ten thousand
do not overflow when they are squared. Knows no family and no provider.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.export.onnx_ops import OnnxOps
from edgejudge.export.plain_attention import PlainAttention

__all__ = ["FusedGpuOps", "PlainGpuOps"]

_HALF_FILE = "weights.f16.bin"
_HALF = 2  # accuracy_level of MatMulNBits: activations as float16
_LEAST_PEAK = 2.0**-13  # of a token in 16 bits: its square and eps over it are still numbers there
_LEAST_ROOT = 2.0**-13  # of a mean square: less than that of any which is not zero there
_HIDDEN = -3e4  # added to a score that must not count; 16 bits hold it, and exp() of it is 0


class FusedGpuOps(OnnxOps):
    """With ONNX Runtime's fused attention. `dtype` is float32 or float16."""

    def __init__(self, *given: Any, dtype: str) -> None:
        super().__init__(*given)
        self._half = dtype == "float16"

    def _exact(self, key: str, make: Callable[[], NDArray[np.float32]]) -> str:
        if not self._half:
            return super()._exact(key, make)

        def halves() -> NDArray[np.float16]:
            with np.errstate(over="ignore"):  # the store refuses what became infinite
                return make().astype(np.float16)

        return self._weight(f"{key}.f16", _HALF_FILE, halves)

    def _scales(self, key: str, file: str) -> str:
        if not self._half:
            return super()._scales(key, file)
        return self._exact(key, lambda: self._store.read(key))

    def _accuracy(self, weight: str) -> int:
        return _HALF if self._half else super()._accuracy(weight)

    def _number(self, value: float) -> str:
        kind = np.float16 if self._half else np.float32
        return self._inline(f"number_{value:.9g}", kind(value))

    # --- norms ---

    def rms_norm(self, x: str, weight: str, eps: float) -> str:
        if not self._half:
            return super().rms_norm(x, weight, eps)
        return self.mul(self._over_rms(x, self._peak(x), eps), self._float(weight))

    def layer_norm(self, x: str, weight: str, bias: str, eps: float) -> str:
        if not self._half:
            return super().layer_norm(x, weight, bias, eps)
        peak = self._peak(x)
        small = self._node("Div", [x, peak])
        mean = self._node("ReduceMean", [small, self._constant([-1])])
        apart = self._node("Sub", [small, mean])
        scaled = self.mul(self._divided(apart, peak, eps), self._float(weight))
        return self.add(scaled, self._float(bias))

    def _peak(self, x: str) -> str:
        """Each token's largest magnitude [..., 1], and a little more: a token of zeros has one too.
        Added, since not every provider has the larger of two half floats.
        """
        largest = self._node("ReduceMax", [self._node("Abs", [x]), self._constant([-1])])
        return self.add(largest, self._number(_LEAST_PEAK))

    def _over_rms(self, x: str, peak: str, eps: float) -> str:
        return self._divided(self._node("Div", [x, peak]), peak, eps)

    def _divided(self, small: str, peak: str, eps: float) -> str:
        """By the root mean square that it had before it was divided by `peak`, which makes of eps
        the square of its root over the peak.
        """
        mean = self._node("ReduceMean", [self.mul(small, small), self._constant([-1])])
        floor = self._node("Div", [self._number(eps**0.5), peak])
        root = self._node("Sqrt", [self.add(mean, self.mul(floor, floor))])
        # Where a large token's values are all the same, both squares vanish in 16 bits. Clipped:
        # the larger of two half floats is nothing that WebGPU has a kernel for.
        return self._node("Div", [small, self._node("Clip", [root, self._number(_LEAST_ROOT)])])

    def activation(self, x: str, kind: str) -> str:
        # x times the sigmoid of x: every provider has these two.
        if kind == "silu":
            return self.mul(x, self._node("Sigmoid", [x]))
        return super().activation(x, kind)


class PlainGpuOps(PlainAttention, FusedGpuOps):
    """With attention in elementary operators."""

    def _move(self, op: str, x: str | list[str], more: tuple[str, ...] = (), **how: Any) -> str:
        return self._node(op, [*(x if isinstance(x, list) else [x]), *more], **how)

    def _scaled(self, x: str, factor: float) -> str:
        return self.mul(x, self._number(factor))

    def _scores(self, q: str, k: str, key: str) -> str:
        return self._node("MatMul", [q, k])

    def _masked(self, scores: str, mask: str) -> str:
        return self.add(scores, mask)

    def _softmax(self, scores: str) -> str:
        return self._node("Softmax", [scores], axis=-1)

    def _averaged(self, shares: str, v: str) -> str:
        return self._node("MatMul", [shares, v])

    def _cached(self, x: str, name: str, layer: int) -> str:
        new = self._node("Identity", [x], output=f"new_{name}_{layer}")
        return self._node("Concat", [f"past_{name}_{layer}", new], axis=2)

    def _ready(self, x: str) -> str:
        return x

    def _hiding(self, mask: str) -> str:
        seen = self._node("Unsqueeze", [mask, self._constant([1, 2])])
        zero = self._inline("unseen", np.int32(0))
        hidden, shown = self._number(_HIDDEN), self._number(0.0)
        return self._node("Where", [self._node("Equal", [seen, zero]), hidden, shown])

    def _next(self, what: str) -> str:
        return what
