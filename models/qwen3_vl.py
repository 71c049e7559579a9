"""Qwen3-VL: a vision tower that attends everywhere, DeepStack, a Qwen3 text model.

Takes a checkpoint's config and tokenizer; gives its spec and prompt pieces, and the forward pass
over the op vocabulary, written once for every backend. Knows no backend and no checkpoint reader.
Architecture: Qwen3-VL Technical Report, 2025; DeepStack: Meng et al. 2024, arXiv 2406.04334.
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

FAMILY = "qwen3_vl"
DEFAULT_TEMPLATE = "Is the following visible in this image: {condition}? Answer Yes or No."

_VISION = "model.visual"
_TEXT = "model.language_model"
_STATIC_SLOTS = (256, 1024, 4096)  # patches of pictures of up to 256, 512 and 1024 pixels squared
_TABLE = f"{_VISION}.pos_embed.weight"
_EPS = 1e-6  # of every norm in the tower; the family has no key for it
EMBEDDINGS = f"{_TEXT}.embed_tokens.weight"
HEAD = "lm_head.weight"

V = TypeVar("V")

# --- spec ----------------------------------------------------------------------------------------


def read_spec(config: HfConfig) -> ModelSpec:
    """From config.json as transformers 4 or 5 writes it."""
    config.expect("model_type", FAMILY)
    vision, text = config.section("vision_config"), config.section("text_config")
    tied = any(c.read(bool, "tie_word_embeddings", False) for c in (config, text))
    scale = vision.read(int, "spatial_merge_size", 2)
    spec = ModelSpec(FAMILY, _read_vision(vision), _read_text(text, tied), scale)
    vision.expect("out_hidden_size", spec.text.hidden)
    if spec.lanes > spec.text.layers:
        raise ExportError(
            f"{vision.where}: 'deepstack_visual_indexes' names {spec.lanes} layers, the text model "
            f"has {spec.text.layers} to give them to"
        )
    return spec


def _read_vision(config: HfConfig) -> VisionSpec:
    config.expect("model_type", "qwen3_vl_vision", FAMILY, None)
    config.expect("in_channels", 3, None)
    config.expect("hidden_act", "gelu_pytorch_tanh", None)
    theta = 10_000.0
    if config.value.get("rope_parameters") is not None:
        rope = config.section("rope_parameters")
        rope.expect("rope_type", "axial", "default", None)
        theta = rope.read(float, "rope_theta", theta)
    layers, rows = config.read(int, "depth", 27), config.read(int, "num_position_embeddings", 2304)
    side = round(rows**0.5)
    if side**2 != rows:
        raise ExportError(f"{config.where}: 'num_position_embeddings' is {rows}, expected a square")
    taps = config.value.get("deepstack_visual_indexes", [8, 16, 24])
    if not isinstance(taps, list) or not all(type(i) is int and 0 <= i < layers for i in taps):
        raise ExportError(
            f"{config.where}: 'deepstack_visual_indexes' must be layers of {layers}, got {taps!r}"
        )
    if sorted(set(taps)) != taps:
        raise ExportError(f"{config.where}: 'deepstack_visual_indexes' must rise, got {taps!r}")
    return VisionSpec(
        hidden=config.read(int, "hidden_size", 1152),
        layers=layers,
        heads=config.read(int, "num_heads", 16),
        intermediate=config.read(int, "intermediate_size", 4304),
        image_size=0,
        patch_size=config.read(int, "patch_size", 16),
        eps=_EPS,
        activation="gelu_tanh",
        frames=config.read(int, "temporal_patch_size", 2),
        rope_theta=theta,
        table_side=side,
        taps=tuple(taps),
    )


def _read_text(config: HfConfig, tied: bool) -> TextSpec:
    config.expect("model_type", "qwen3_vl_text", FAMILY, None)
    config.expect("hidden_act", "silu", None)
    config.expect("attention_bias", False, None)
    theta, sections = config.read(float, "rope_theta", 500_000.0), None
    for key in ("rope_parameters", "rope_scaling"):
        if config.value.get(key) is not None:
            rope = config.section(key)
            rope.expect("rope_type", "default", None)
            rope.expect("mrope_interleaved", True, None)
            theta = rope.read(float, "rope_theta", theta)
            sections = rope.value.get("mrope_section")
    heads, head_dim = config.read(int, "num_attention_heads", 32), config.read(int, "head_dim", 128)
    sections = [24, 20, 20] if sections is None else sections
    if not isinstance(sections, list) or len(sections) != 3 or 2 * sum(sections) != head_dim:
        raise ExportError(
            f"{config.where}: 'mrope_section' must be three that add up to {head_dim // 2}, got "
            f"{sections!r}"
        )
    return TextSpec(
        hidden=config.read(int, "hidden_size", 4096),
        layers=config.read(int, "num_hidden_layers", 32),
        heads=heads,
        kv_heads=config.read(int, "num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate=config.read(int, "intermediate_size", 22016),
        vocab=config.read(int, "vocab_size", 151936),
        eps=config.read(float, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        activation="silu",
        tie_word_embeddings=tied,
        max_positions=config.read(int, "max_position_embeddings", 128000),
        rope_sections=tuple(sections),
        rope_interleaved=True,
        qk_norm=True,
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
    inputs: dict[str, tuple[str, tuple[int | str, ...]]] = {}
    if layers.start:
        inputs["hidden"] = ("float32", (1, "N", vis.width_at(layers.start)))
    else:
        inputs["patches"] = ("float32", ("N", 3 * vis.frames * vis.patch_size**2))
        inputs["table_rows"] = ("int64", ("N", 4))
        inputs["table_shares"] = ("float32", ("N", 4))
    inputs["rope_cos"] = inputs["rope_sin"] = ("float32", ("N", vis.head_dim // 2))
    return inputs


def static_vision_inputs(spec: ModelSpec) -> dict[int, dict[str, tuple[int, ...]]]:
    """Slots of a static graph -> name and shape of its inputs, all float32: empty slots stay, and
    `window_mask` is what is added to scores.
    """
    vis = spec.vision
    return {
        slots: {
            "patches": (slots, 3 * vis.frames * vis.patch_size**2),
            "table_spread": (slots, vis.table_side**2),
            "rope_cos": (slots, vis.head_dim // 2),
            "rope_sin": (slots, vis.head_dim // 2),
            "window_mask": (1, slots),
        }
        for slots in _STATIC_SLOTS
    }


def vision(ops: Ops[V], spec: ModelSpec, inputs: dict[str, V], layers: range | None = None) -> V:
    """N patches -> visual tokens [1, T, D * (1 + L)] in the text model's width, each with what L of
    its first layers are given.

    Of a run of `layers` those after the first take what the one before gave: hidden states, and
    those of layers that were tapped.
    """
    vis = spec.vision
    layers = range(vis.layers) if layers is None else layers
    rotation = (inputs["rope_cos"], inputs["rope_sin"])
    taps: list[V] = []
    if layers.start:
        x = inputs["hidden"]
        if count := sum(tap < layers.start for tap in vis.taps):
            x, *taps = ops.split(x, 1 + count, _taps_at(layers.start))
    else:
        stem = f"{_VISION}.patch_embed.proj"
        x = ops.linear(inputs["patches"], f"{stem}.weight", f"{stem}.bias")
        x = ops.add(ops.reshape(x, 1, -1, vis.hidden), ops.blend(_TABLE, inputs))
    for layer in layers:
        at = f"{_VISION}.blocks.{layer}"
        y = ops.layer_norm(x, f"{at}.norm1.weight", f"{at}.norm1.bias", vis.eps)
        q, k, v = ops.split(ops.linear(y, f"{at}.attn.qkv.weight", f"{at}.attn.qkv.bias"), 3)
        q, k = (ops.rope(each, rotation, vis.heads, vis.head_dim) for each in (q, k))
        mask = inputs.get("window_mask")
        y = ops.full_attention(q, k, v, vis.heads, vis.head_dim**-0.5, mask)
        x = ops.add(x, ops.linear(y, f"{at}.attn.proj.weight", f"{at}.attn.proj.bias"))
        y = ops.layer_norm(x, f"{at}.norm2.weight", f"{at}.norm2.bias", vis.eps)
        y = ops.linear(y, f"{at}.mlp.linear_fc1.weight", f"{at}.mlp.linear_fc1.bias")
        y = ops.activation(y, vis.activation)
        y = ops.linear(y, f"{at}.mlp.linear_fc2.weight", f"{at}.mlp.linear_fc2.bias")
        x = ops.add(x, y)
        if layer in vis.taps:
            taps.append(x)
    if layers.stop < vis.layers:
        return ops.join([x, *taps], _taps_at(layers.stop)) if taps else x
    merged = [_merged(ops, spec, x, f"{_VISION}.merger", normed_first=True)]
    for index, tap in enumerate(taps):
        at = f"{_VISION}.deepstack_merger_list.{index}"
        merged.append(_merged(ops, spec, tap, at, normed_first=False))
    return ops.join(merged, f"{_VISION} tokens") if taps else merged[0]


def _taps_at(layer: int) -> str:
    return f"{_VISION}.blocks.{layer} taps"


def _merged(ops: Ops[V], spec: ModelSpec, x: V, stem: str, normed_first: bool) -> V:
    """[1, N, hidden] -> [1, N / merge^2, D]; patches are normed alone, or as a visual token."""
    vis = spec.vision
    norm = (f"{stem}.norm.weight", f"{stem}.norm.bias", vis.eps)
    if normed_first:
        x = ops.layer_norm(x, *norm)
    x = ops.reshape(x, 1, -1, spec.scale_factor**2 * vis.hidden)
    if not normed_first:
        x = ops.layer_norm(x, *norm)
    x = ops.linear(x, f"{stem}.linear_fc1.weight", f"{stem}.linear_fc1.bias")
    x = ops.activation(x, "gelu")
    return ops.linear(x, f"{stem}.linear_fc2.weight", f"{stem}.linear_fc2.bias")


def decoder(
    ops: Ops[V],
    spec: ModelSpec,
    hidden: V,
    rotation: tuple[V, V],
    layers: range,
    rows: V | None = None,
) -> V:
    """hidden [1, S, W] through these layers of the text model; those of `rows` [R] alone, where
    they are given.
    """
    return llama.decoder(ops, spec.text, _TEXT, hidden, rotation, layers, rows, spec.lanes)


def head(ops: Ops[V], spec: ModelSpec, hidden: V, rows: tuple[int, ...] | None = None) -> V:
    """hidden [N, D] before the final norm -> logits [N, vocab], or those of `rows` alone."""
    return llama.head(ops, spec.text, _TEXT, HEAD, hidden, rows)


def group_of(name: str) -> str:
    """The part of the model a weight belongs to, as reports call it."""
    if name in (EMBEDDINGS, HEAD):
        return "embeddings" if name == EMBEDDINGS else "head"
    if name.startswith((f"{_VISION}.merger", f"{_VISION}.deepstack_merger_list")):
        return "connector"
    return "vision" if name.startswith(_VISION) else "decoder"


def weight_names(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight the forward pass asks for, with the shape it must have."""
    vis, text = spec.vision, spec.text
    d, side = vis.hidden, vis.patch_size
    wide = d * spec.scale_factor**2
    yield f"{_VISION}.patch_embed.proj.weight", (d, 3, vis.frames, side, side)
    yield f"{_VISION}.patch_embed.proj.bias", (d,)
    yield _TABLE, (vis.table_side**2, d)
    norms, linears = [(f"{_VISION}.merger.norm", d)], []
    mergers = [f"{_VISION}.merger"]
    for index in range(spec.lanes):
        mergers.append(f"{_VISION}.deepstack_merger_list.{index}")
        norms.append((f"{mergers[-1]}.norm", wide))
    for at in mergers:
        linears += [(f"{at}.linear_fc1", wide, wide), (f"{at}.linear_fc2", text.hidden, wide)]
    for layer in range(vis.layers):
        at = f"{_VISION}.blocks.{layer}"
        norms += [(f"{at}.norm1", d), (f"{at}.norm2", d)]
        linears += [(f"{at}.attn.qkv", 3 * d, d), (f"{at}.attn.proj", d, d)]
        linears += [(f"{at}.mlp.linear_fc1", vis.intermediate, d)]
        linears += [(f"{at}.mlp.linear_fc2", d, vis.intermediate)]
    for name, size in norms:
        yield f"{name}.weight", (size,)
        yield f"{name}.bias", (size,)
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
    """The chat format in ids: `<|im_start|>user` image question, assistant's turn."""
    around = ("<|vision_start|>", "<|vision_end|>")
    return chatml_record(tokenizer, template, "grid", around=around)


def tokens_record(tokenizer: Tokenizer, config: HfConfig) -> TokensRecord:
    return special_tokens(tokenizer, config, image="<|image_pad|>", end="<|im_end|>")
