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
    # Side of a learned table of positions that is stretched over a picture's own grid; 0 is none.
    table_side: int = 0
    # Layers whose hidden states the decoder's first layers are given too (DeepStack).
    taps: tuple[int, ...] = ()

    @property
    def grid(self) -> int:
        """Patches along one side of a view."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def width_at(self, layer: int) -> int:
        """Of what this layer is given: hidden states, and beside them what earlier taps hand on."""
        return self.hidden * (1 + sum(tap < layer for tap in self.taps))


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
    rope_interleaved: bool = False  # frequencies take axes in turns, not in runs
    qk_norm: bool = False  # queries and keys are normalised, each head for itself


@dataclass(frozen=True, slots=True)
class ModelSpec:
    family: str
    vision: VisionSpec
    text: TextSpec
    scale_factor: int  # scale_factor^2 patches become one visual token
    line_end: bool = False  # a learned token ends each line of a picture; every view gives it too

    @property
    def view_tokens(self) -> int:
        """Tokens of one square view; 0 where the picture's own grid decides."""
        return (self.vision.grid // self.scale_factor) ** 2

    @property
    def visual_tokens(self) -> int:
        """What the vision graph gives for one square view; 0 as above."""
        return self.view_tokens + self.line_end

    @property
    def lanes(self) -> int:
        """How many of the decoder's first layers are given something of visual tokens."""
        return len(self.vision.taps)

    def width_at(self, layer: int) -> int:
        """Of what the decoder's layer is given, and so, for the first one, of a visual token:
        hidden states, and beside them what is for this layer and those behind it.
        """
        return self.text.hidden * (1 + max(0, self.lanes - layer))

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
_MOST_SIDE = 1024


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
    for place in ("full_layers", "taps"):
        if any(not 0 <= layer < vision.layers for layer in getattr(vision, place)):
            yield f"vision.{place}", f"a layer is not among {vision.layers}"
    if sorted(set(vision.taps)) != list(vision.taps) or len(vision.taps) > text.layers:
        yield "vision.taps", f"{list(vision.taps)} do not rise, or are more than {text.layers}"
    if not 0 <= vision.table_side <= _MOST_SIDE:
        yield "vision.table_side", f"{vision.table_side} is not from 0 to {_MOST_SIDE}"
    if not text.rope_theta > 0:
        yield "text.rope_theta", f"{text.rope_theta} is not above 0"
    if vision.rope_theta < 0:
        yield "vision.rope_theta", f"{vision.rope_theta} is below 0"
    sections = text.rope_sections
    if text.head_dim % 2 or (
        sections and (min(sections) < 0 or 2 * sum(sections) != text.head_dim)
    ):
        yield "text.rope_sections", f"{list(sections)} are not halves of {text.head_dim}"
