"""What a model is, in numbers: the records every backend and the runtime read.

Takes nothing; gives frozen records with `to_json` and `from_json`. Knows no weight names, no
checkpoint formats and no engine.
"""

from dataclasses import dataclass
from typing import Any, Self

from edgejudge.bundle import from_json, to_json

__all__ = ["ModelSpec", "TextSpec", "VisionSpec"]


@dataclass(frozen=True, slots=True)
class VisionSpec:
    hidden: int
    layers: int
    heads: int
    intermediate: int
    image_size: int  # side of one square view in pixels; 0 where pictures keep their own grid
    patch_size: int
    eps: float
    activation: str
    frames: int = 1  # a still picture enters as so many equal frames
    window: int = 0  # side of an attention window in pixels; 0 is no windows
    full_layers: tuple[int, ...] = ()  # layers that look beyond their window
    rope_theta: float = 0.0  # of axial rotary positions; 0 is none

    @property
    def grid(self) -> int:
        """Patches along one side of a view."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class TextSpec:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    rope_theta: float
    activation: str
    tie_word_embeddings: bool
    max_positions: int
    qkv_bias: bool = False
    rope_sections: tuple[int, ...] = ()  # of multimodal RoPE; none is one position a token


@dataclass(frozen=True, slots=True)
class ModelSpec:
    family: str
    vision: VisionSpec
    text: TextSpec
    scale_factor: int  # scale_factor^2 patches become one visual token

    @property
    def visual_tokens(self) -> int:
        """Tokens of one square view; 0 where the picture's own grid decides."""
        return (self.vision.grid // self.scale_factor) ** 2

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = to_json(self)
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return from_json(cls, value, "spec")
