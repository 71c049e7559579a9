"""What a model is, in numbers: the records every backend and the runtime read.

Takes nothing; gives frozen records with `to_json` and `from_json`. Knows no weight names, no
checkpoint formats and no engine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from edgejudge.bundle import from_json, to_json
from edgejudge.errors import BundleError

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
        """Raises BundleError, by the name of the field, for numbers that no model has."""
        spec = from_json(cls, value, "spec")
        for place, problem in _problems(spec):
            raise BundleError(f"spec.{place}: {problem}; export the bundle again")
        return spec


_MOST = 1 << 24  # of any size here
_MOST_LAYERS = 1024


def _problems(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    vision, text, scale = spec.vision, spec.text, spec.scale_factor
    sizes = {
        "scale_factor": scale,
        **{f"vision.{n}": getattr(vision, n) for n in ("hidden", "heads", "intermediate")},
        **{f"vision.{n}": getattr(vision, n) for n in ("layers", "patch_size", "frames")},
        **{f"text.{n}": getattr(text, n) for n in ("hidden", "layers", "heads", "kv_heads")},
        **{f"text.{n}": getattr(text, n) for n in ("head_dim", "intermediate", "vocab")},
        "text.max_positions": text.max_positions,
    }
    for place, size in sizes.items():
        most = _MOST_LAYERS if place.endswith("layers") else _MOST
        if not 0 < size <= most:
            yield place, f"{size} is not above 0 and up to {most}"
    if vision.hidden % vision.heads:
        yield "vision.heads", f"{vision.heads} do not divide {vision.hidden}"
    if text.heads % text.kv_heads:
        yield "text.kv_heads", f"{text.kv_heads} do not divide {text.heads}"
    unit = vision.patch_size * scale
    if not 0 <= vision.image_size <= _MOST or vision.grid % scale:
        yield "vision.image_size", f"{vision.image_size} is no side of whole visual tokens"
    if not 0 <= vision.window <= _MOST or vision.window % unit:
        yield "vision.window", f"{vision.window} is not 0 or a multiple of {unit}"
    if any(not 0 <= layer < vision.layers for layer in vision.full_layers):
        yield "vision.full_layers", f"a layer is not among {vision.layers}"
    if not text.rope_theta > 0:
        yield "text.rope_theta", f"{text.rope_theta} is not above 0"
    if vision.rope_theta < 0:
        yield "vision.rope_theta", f"{vision.rope_theta} is below 0"
    sections = text.rope_sections
    if text.head_dim % 2 or (
        sections and (min(sections) < 0 or 2 * sum(sections) != text.head_dim)
    ):
        yield "text.rope_sections", f"{list(sections)} are not halves of {text.head_dim}"
