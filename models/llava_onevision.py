"""LLaVA-OneVision: a SigLIP vision tower without its last norm, crops laid out in lines, Qwen2.

Takes a checkpoint's config and tokenizer; gives its spec and prompt pieces, and the forward pass
over the op vocabulary, written once for every backend. Knows no backend and no checkpoint reader.
Architecture: Li et al. 2024, arXiv 2408.03326.

A picture is seen as a whole, and again in crops whose tokens make lines, each ended by a learned
token (models/anyres.py). The vision graph gives that token in front of every view's own; lines are
packed outside it. Of several pictures in one prompt each keeps its crops here, as each has when
transformers is not told how many belong together; its processor shows several as wholes alone.
"""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from edgejudge.bundle import PromptRecord, TokensRecord
from edgejudge.models import llama, siglip
from edgejudge.models.anyres import AnyResSpec, read_anyres_spec
from edgejudge.models.chatml import LEAD_IN, chatml_record
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.ops import Ops
from edgejudge.models.siglip import static_vision_inputs, vision_inputs
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

FAMILY = "llava_onevision"
DEFAULT_TEMPLATE = "Is the following visible in this image: {condition}? Answer Yes or No."

# As transformers 5 saves them; older versions have `vision_tower.vision_model`.
_VISION = "vision_tower"
_TEXT = "language_model.model"
_PROJECTOR = "multi_modal_projector"
_LINE_END = "image_newline"
EMBEDDINGS = f"{_TEXT}.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
_IMAGE = "<image>"

V = TypeVar("V")

# --- spec ----------------------------------------------------------------------------------------


def read_spec(config: HfConfig) -> ModelSpec:
    """From config.json as transformers 4 or 5 writes it; absent keys have the defaults it gives."""
    config.expect("model_type", FAMILY)
    config.expect("projector_hidden_act", "gelu", None)
    config.expect("multimodal_projector_bias", True, None)
    config.expect("vision_feature_layer", -1, None)
    config.expect("vision_feature_select_strategy", "full", None)
    text = config.section("text_config")
    tied = any(c.read(bool, "tie_word_embeddings", False) for c in (config, text))
    vision = _read_vision(config.section("vision_config"))
    return ModelSpec(FAMILY, vision, _read_text(text, tied), 1, line_end=True)


def _read_vision(config: HfConfig) -> VisionSpec:
    config.expect("model_type", "siglip_vision_model", None)
    config.expect("num_channels", 3, None)
    config.expect("hidden_act", "gelu_pytorch_tanh", None)
    config.expect("vision_use_head", False)
    return VisionSpec(
        hidden=config.read(int, "hidden_size", 768),
        layers=config.read(int, "num_hidden_layers", 12),
        heads=config.read(int, "num_attention_heads", 12),
        intermediate=config.read(int, "intermediate_size", 3072),
        image_size=config.read(int, "image_size", 224),
        patch_size=config.read(int, "patch_size", 16),
        eps=config.read(float, "layer_norm_eps", 1e-6),
        activation="gelu_tanh",
    )


def _read_text(config: HfConfig, tied: bool) -> TextSpec:
    config.expect("model_type", "qwen2", None)
    config.expect("hidden_act", "silu", None)
    config.expect("use_sliding_window", False, None)
    config.expect("rope_scaling", None)
    theta = config.read(float, "rope_theta", 10_000.0)
    if config.value.get("rope_parameters") is not None:
        rope = config.section("rope_parameters")
        rope.expect("rope_type", "default", None)
        rope.expect("partial_rotary_factor", 1.0, None)
        theta = rope.read(float, "rope_theta", theta)
    hidden = config.read(int, "hidden_size", 4096)
    heads = config.read(int, "num_attention_heads", 32)
    return TextSpec(
        hidden=hidden,
        layers=config.read(int, "num_hidden_layers", 32),
        heads=heads,
        kv_heads=config.read(int, "num_key_value_heads", heads),
        head_dim=config.read(int, "head_dim", hidden // heads),
        intermediate=config.read(int, "intermediate_size", 22016),
        vocab=config.read(int, "vocab_size", 151936),
        eps=config.read(float, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        activation="silu",
        tie_word_embeddings=tied,
        max_positions=config.read(int, "max_position_embeddings", 32768),
        qkv_bias=True,
    )


def read_image_spec(config: HfConfig, spec: ModelSpec, model: HfConfig) -> AnyResSpec:
    return read_anyres_spec(config, model, spec.vision.image_size, spec.vision.grid)


# --- forward pass --------------------------------------------------------------------------------


def vision(ops: Ops[V], spec: ModelSpec, inputs: dict[str, V], layers: range | None = None) -> V:
    """pixel_values [V, 3, S, S] -> [V, 1 + n, D] in the text model's width: the token that ends a
    line, and each view's visual tokens.

    Of a run of `layers` those after the first take the hidden states that the one before gave.
    """
    tower = spec.vision
    layers = range(tower.layers) if layers is None else layers
    if layers.start:
        x = inputs["hidden"]
    else:
        rows = np.arange(tower.grid**2)
        x = siglip.patches(ops, tower, _VISION, inputs["pixel_values"], rows)
    x = siglip.encoder(ops, tower, _VISION, x, layers)
    if layers.stop < tower.layers:
        return x
    for index in (1, 2):
        if index == 2:
            x = ops.activation(x, "gelu")
        at = f"{_PROJECTOR}.linear_{index}"
        x = ops.linear(x, f"{at}.weight", f"{at}.bias")
    return ops.prepend(x, _LINE_END)


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
    if name == _LINE_END or name.startswith(_PROJECTOR):
        return "connector"
    return "vision" if name.startswith(_VISION) else "decoder"


def weight_names(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight of a checkpoint, with the shape it must have. The forward pass asks for all but
    those of the norm behind the tower, which the family passes by.
    """
    vis, text = spec.vision, spec.text
    yield from siglip.weight_names(vis, _VISION)
    for index, inner in ((1, vis.hidden), (2, text.hidden)):
        yield f"{_PROJECTOR}.linear_{index}.weight", (text.hidden, inner)
        yield f"{_PROJECTOR}.linear_{index}.bias", (text.hidden,)
    yield _LINE_END, (text.hidden,)
    yield from llama.weight_names(text, _TEXT)
    yield EMBEDDINGS, (text.vocab, text.hidden)
    yield HEAD, (text.vocab, text.hidden)


# --- prompt --------------------------------------------------------------------------------------


def prompt_record(
    tokenizer: Tokenizer, spec: ModelSpec, image: AnyResSpec, template: str
) -> PromptRecord:
    """The chat format in ids: `<|im_start|>user `, image, line break, question, the other turn."""
    return chatml_record(
        tokenizer,
        template,
        "lines",
        visual_tokens=spec.view_tokens,
        after_role=" ",
        after_turn="",
        behind_picture="\n",
        before_text="\n",
    )


def tokens_record(tokenizer: Tokenizer, config: HfConfig) -> TokensRecord:
    """Raises ExportError where config.json means another image token than the tokenizer."""
    config.expect("image_token_index", tokenizer.special(_IMAGE), None)
    return special_tokens(tokenizer, config, image=_IMAGE, end="<|im_end|>")
