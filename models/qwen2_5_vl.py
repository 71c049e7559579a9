"""Qwen2.5-VL: a windowed vision tower with axial RoPE, a patch merger, a Qwen2 text model.

Takes a checkpoint's config and tokenizer; gives its spec and prompt pieces, and the forward pass
over the op vocabulary, written once for every backend. Knows no backend and no checkpoint reader.
QwenGuard is of this family. Architecture: Bai et al., Qwen2.5-VL Technical Report, 2025.
"""

from collections.abc import Iterator
from typing import TypeVar

from edgejudge.bundle import PromptRecord, TokensRecord
from edgejudge.errors import ExportError
from edgejudge.models import llama
from edgejudge.models.chatml import LEAD_IN, chatml_record
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.ops import Ops
from edgejudge.models.patches import PatchSpec, read_patch_spec
from edgejudge.models.spec import ModelSpec, TextSpec, VisionSpec
from edgejudge.models.tokenizer import Tokenizer, special_tokens

__all__ = [
    "DEFAULT_TEMPLATE",
    "EMBEDDINGS",
    "FAMILY",
    "HEAD",
    "LEAD_IN",
    "decoder",
    "group_of",
    "head",
    "prompt_record",
    "read_image_spec",
    "read_spec",
    "tokens_record",
    "vision",
    "static_vision_inputs",
    "vision_inputs",
    "weight_names",
]

FAMILY = "qwen2_5_vl"
DEFAULT_TEMPLATE = "Is the following visible in this image: {condition}? Answer Yes or No."

_VISION = "visual"
_TEXT = "model"
_STATIC_WINDOWS = (4, 16, 64)  # of pictures of up to 224 x 224, 448 x 448 and 896 x 896 pixels
_MERGER = f"{_VISION}.merger"
_SYSTEM = "You are a helpful assistant."
_EPS = 1e-6  # of every norm in the tower; the family has no key for it
EMBEDDINGS = f"{_TEXT}.embed_tokens.weight"
HEAD = "lm_head.weight"

V = TypeVar("V")

# --- spec ----------------------------------------------------------------------------------------


def read_spec(config: HfConfig) -> ModelSpec:
    """From config.json as transformers 4 (text keys at the top) or 5 writes it."""
    config.expect("model_type", FAMILY)
    vision = config.section("vision_config")
    text = config.section("text_config") if "text_config" in config.value else config
    spec = ModelSpec(
        FAMILY,
        _read_vision(vision),
        # Before version 5 the key stood in text_config too; either one ties.
        _read_text(text, any(c.read(bool, "tie_word_embeddings", False) for c in (config, text))),
        vision.read(int, "spatial_merge_size", 2),
    )
    vision.expect("out_hidden_size", spec.text.hidden)
    unit = spec.vision.patch_size * spec.scale_factor
    if spec.vision.window % unit:
        raise ExportError(
            f"{vision.where}: 'window_size' {spec.vision.window} is no multiple of the {unit} "
            "pixels of a visual token"
        )
    return spec


def _read_vision(config: HfConfig) -> VisionSpec:
    config.expect("model_type", "qwen2_5_vl_vision", FAMILY, None)
    for key in ("in_channels", "in_chans"):
        config.expect(key, 3, None)
    config.expect("hidden_act", "silu", None)
    theta = 10_000.0
    if config.value.get("rope_parameters") is not None:
        rope = config.section("rope_parameters")
        rope.expect("rope_type", "axial", "default", None)
        theta = rope.read(float, "rope_theta", theta)
    layers = config.read(int, "depth", 32)
    full = config.value.get("fullatt_block_indexes", [7, 15, 23, 31])
    if not isinstance(full, list) or not all(isinstance(i, int) for i in full):
        raise ExportError(f"{config.where}: 'fullatt_block_indexes' must be integers, got {full!r}")
    return VisionSpec(
        hidden=config.read(int, "hidden_size", 3584),
        layers=layers,
        heads=config.read(int, "num_heads", 16),
        intermediate=config.read(int, "intermediate_size", 3420),
        image_size=0,
        patch_size=config.read(int, "patch_size", config.read(int, "spatial_patch_size", 14)),
        eps=_EPS,
        activation="silu",
        frames=config.read(int, "temporal_patch_size", 2),
        window=config.read(int, "window_size", 112),
        full_layers=tuple(i for i in full if i < layers),
        rope_theta=theta,
    )


def _read_text(config: HfConfig, tied: bool) -> TextSpec:
    config.expect("model_type", "qwen2_5_vl_text", FAMILY, None)
    config.expect("hidden_act", "silu", None)
    config.expect("use_sliding_window", False, None)
    theta, sections = config.read(float, "rope_theta", 1_000_000.0), None
    for key, name in (("rope_parameters", "rope_type"), ("rope_scaling", "type")):
        if config.value.get(key) is not None:
            rope = config.section(key)
            rope.expect(name, "default", "mrope")
            theta = rope.read(float, "rope_theta", theta)
            sections = rope.value.get("mrope_section", [16, 24, 24])
    hidden = config.read(int, "hidden_size", 8192)
    heads = config.read(int, "num_attention_heads", 80)
    head_dim = config.read(int, "head_dim", hidden // heads)
    if not isinstance(sections, list) or 2 * sum(sections) != head_dim:
        raise ExportError(
            f"{config.where}: 'mrope_section' must add up to {head_dim // 2}, got {sections!r}"
        )
    return TextSpec(
        hidden=hidden,
        layers=config.read(int, "num_hidden_layers", 80),
        heads=heads,
        kv_heads=config.read(int, "num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate=config.read(int, "intermediate_size", 29568),
        vocab=config.read(int, "vocab_size", 152064),
        eps=config.read(float, "rms_norm_eps", 1e-5),
        rope_theta=theta,
        activation="silu",
        tie_word_embeddings=tied,
        max_positions=config.read(int, "max_position_embeddings", 32768),
        qkv_bias=True,
        rope_sections=tuple(sections),
    )


def read_image_spec(config: HfConfig, spec: ModelSpec, model: HfConfig) -> PatchSpec:
    return read_patch_spec(config, spec)


# --- forward pass --------------------------------------------------------------------------------


def vision_inputs(
    spec: ModelSpec, layers: range | None = None
) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    """Name -> element type and shape of what `vision` takes; models/patches.py says what each
    is.
    """
    vis = spec.vision
    layers = range(vis.layers) if layers is None else layers
    window = (vis.window // vis.patch_size) ** 2
    inputs: dict[str, tuple[str, tuple[int | str, ...]]] = {}
    if layers.start:
        inputs["hidden"] = ("float32", (1, "N", vis.hidden))
    else:
        inputs["patches"] = ("float32", ("N", 3 * vis.frames * vis.patch_size**2))
    inputs["rope_cos"] = inputs["rope_sin"] = ("float32", ("N", vis.head_dim // 2))
    if not set(layers) <= set(vis.full_layers):
        inputs["window_mask"] = ("int32", ("W", window))
    if set(layers) & set(vis.full_layers):
        inputs |= {"slots": ("int64", ("P",)), "places": ("int64", ("N",))}
    if layers.stop == vis.layers:
        inputs["tokens"] = ("int64", ("T",))
    return inputs


def static_vision_inputs(spec: ModelSpec) -> dict[int, dict[str, tuple[int, ...]]]:
    """Slots of a static graph -> name and shape of its inputs, all float32: empty slots stay, and
    `window_mask` is what is added to scores.
    """
    vis = spec.vision
    window = (vis.window // vis.patch_size) ** 2
    sizes = (window * windows for windows in _STATIC_WINDOWS)
    return {
        slots: {
            "patches": (slots, 3 * vis.frames * vis.patch_size**2),
            "rope_cos": (slots, vis.head_dim // 2),
            "rope_sin": (slots, vis.head_dim // 2),
            "window_mask": (slots // window, window),
        }
        for slots in sizes
    }


def vision(ops: Ops[V], spec: ModelSpec, inputs: dict[str, V], layers: range | None = None) -> V:
    """N slots in windows -> visual tokens [1, T, D] in the text model's width.

    Of a run of `layers` those after the first take the hidden states that the one before gave.
    """
    vis, group = spec.vision, spec.scale_factor**2
    layers = range(vis.layers) if layers is None else layers
    rotation = (inputs["rope_cos"], inputs["rope_sin"])
    if layers.start:
        x = inputs["hidden"]
    else:
        x = ops.linear(inputs["patches"], f"{_VISION}.patch_embed.proj.weight")
        x = ops.reshape(x, 1, -1, vis.hidden)
    for layer in layers:
        at = f"{_VISION}.blocks.{layer}"
        y = ops.rms_norm(x, f"{at}.norm1.weight", vis.eps)
        qkv = ops.linear(y, f"{at}.attn.qkv.weight", f"{at}.attn.qkv.bias")
        q, k, v = ops.split(qkv, 3)
        q, k = (ops.rope(each, rotation, vis.heads, vis.head_dim) for each in (q, k))
        attend = _everywhere if layer in vis.full_layers else _in_windows
        y = attend(ops, vis, (q, k, v), inputs)
        x = ops.add(x, ops.linear(y, f"{at}.attn.proj.weight", f"{at}.attn.proj.bias"))
        y = ops.rms_norm(x, f"{at}.norm2.weight", vis.eps)
        gate, up = (
            ops.linear(y, f"{at}.mlp.{n}_proj.weight", f"{at}.mlp.{n}_proj.bias")
            for n in ("gate", "up")
        )
        y = ops.mul(ops.activation(gate, vis.activation), up)
        x = ops.add(x, ops.linear(y, f"{at}.mlp.down_proj.weight", f"{at}.mlp.down_proj.bias"))
    if layers.stop < vis.layers:
        return x
    x = ops.rms_norm(x, f"{_MERGER}.ln_q.weight", vis.eps)
    x = ops.reshape(x, 1, -1, group * vis.hidden)
    if "tokens" in inputs:  # static graphs give empty ones too
        x = ops.take(x, inputs["tokens"])
    x = ops.linear(x, f"{_MERGER}.mlp.0.weight", f"{_MERGER}.mlp.0.bias")
    x = ops.activation(x, "gelu")
    return ops.linear(x, f"{_MERGER}.mlp.2.weight", f"{_MERGER}.mlp.2.bias")


def _in_windows(ops: Ops[V], vis: VisionSpec, qkv: tuple[V, V, V], inputs: dict[str, V]) -> V:
    """Each patch sees the filled slots of its window."""
    size = (vis.window // vis.patch_size) ** 2
    q, k, v = (ops.reshape(each, -1, size, vis.hidden) for each in qkv)
    mask = inputs["window_mask"]
    y = ops.full_attention(q, k, v, vis.heads, vis.head_dim**-0.5, mask)
    return ops.reshape(y, 1, -1, vis.hidden)


def _everywhere(ops: Ops[V], vis: VisionSpec, qkv: tuple[V, V, V], inputs: dict[str, V]) -> V:
    """Each patch sees the whole picture; empty slots are left out, which is cheaper than a mask,
    where the graph is not static.
    """
    if "slots" not in inputs:
        mask = ops.reshape(inputs["window_mask"], 1, -1)
        return ops.full_attention(*qkv, vis.heads, vis.head_dim**-0.5, mask)
    q, k, v = (ops.take(each, inputs["slots"]) for each in qkv)
    y = ops.full_attention(q, k, v, vis.heads, vis.head_dim**-0.5)
    return ops.take(y, inputs["places"])


def decoder(
    ops: Ops[V],
    spec: ModelSpec,
    hidden: V,
    rotation: tuple[V, V],
    layers: range,
    rows: V | None = None,
) -> V:
    """hidden [1, S, D] through these layers of the text model; those of `rows` [R] alone, where
    they are given.
    """
    return llama.decoder(ops, spec.text, _TEXT, hidden, rotation, layers, rows)


def head(ops: Ops[V], spec: ModelSpec, hidden: V, rows: tuple[int, ...] | None = None) -> V:
    """hidden [N, D] before the final norm -> logits [N, vocab], or those of `rows` alone."""
    return llama.head(ops, spec.text, _TEXT, HEAD, hidden, rows)


def group_of(name: str) -> str:
    """The part of the model a weight belongs to, as reports call it."""
    if name in (EMBEDDINGS, HEAD):
        return "embeddings" if name == EMBEDDINGS else "head"
    if name.startswith(_MERGER):
        return "connector"
    return "vision" if name.startswith(_VISION) else "decoder"


def weight_names(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight the forward pass asks for, with the shape it must have."""
    vis, text = spec.vision, spec.text
    d, side = vis.hidden, vis.patch_size
    yield f"{_VISION}.patch_embed.proj.weight", (d, 3, vis.frames, side, side)
    wide = d * spec.scale_factor**2
    linears = [(f"{_MERGER}.mlp.0", wide, wide), (f"{_MERGER}.mlp.2", text.hidden, wide)]
    norms = [f"{_MERGER}.ln_q"]
    for layer in range(vis.layers):
        at = f"{_VISION}.blocks.{layer}"
        norms += [f"{at}.norm1", f"{at}.norm2"]
        linears += [(f"{at}.attn.qkv", 3 * d, d), (f"{at}.attn.proj", d, d)]
        linears += [(f"{at}.mlp.{n}_proj", vis.intermediate, d) for n in ("gate", "up")]
        linears += [(f"{at}.mlp.down_proj", d, vis.intermediate)]
    for name in norms:
        yield f"{name}.weight", (d,)
    for name, out, inner in linears:
        yield f"{name}.weight", (out, inner)
        yield f"{name}.bias", (out,)
    yield from llama.weight_names(text, _TEXT)
    yield EMBEDDINGS, (text.vocab, text.hidden)
    yield HEAD, (text.vocab, text.hidden)


# --- prompt --------------------------------------------------------------------------------------


def prompt_record(
    tokenizer: Tokenizer, spec: ModelSpec, image: PatchSpec, template: str
) -> PromptRecord:
    """The chat format in ids: system turn, `<|im_start|>user` image question, assistant's turn."""
    around = ("<|vision_start|>", "<|vision_end|>")
    return chatml_record(tokenizer, template, "grid", around=around, system=_SYSTEM)


def tokens_record(tokenizer: Tokenizer, config: HfConfig) -> TokensRecord:
    return special_tokens(tokenizer, config, image="<|image_pad|>", end="<|im_end|>")
