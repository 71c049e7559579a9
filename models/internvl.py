"""InternVL3: an InternViT tower, a pixel shuffle, a projector of two layers, a Qwen2 text model.

Takes a checkpoint's config and tokenizer; gives its spec and prompt pieces, and the forward pass
over the op vocabulary, written once for every backend. Knows no backend and no checkpoint reader.
Checkpoints are those whose names end in -hf. Architecture: Zhu et al., InternVL3, 2025, arXiv
2504.10479.
"""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from edgejudge.bundle import PromptRecord, TokensRecord
from edgejudge.errors import ExportError
from edgejudge.models import llama
from edgejudge.models.chatml import LEAD_IN, chatml_record
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.mosaic import MosaicSpec, read_mosaic_spec
from edgejudge.models.ops import Ops
from edgejudge.models.siglip import static_vision_inputs
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

FAMILY = "internvl"
DEFAULT_TEMPLATE = "Is the following visible in this image: {condition}? Answer Yes or No."

_VISION = "vision_tower"
_TEXT = "language_model.model"
_PROJECTOR = "multi_modal_projector"
_PROJECTOR_EPS = 1e-5  # of its norm; the family has no key for it, and the tower's is another
_SCALE = 2  # so many patches a side become one visual token
EMBEDDINGS = f"{_TEXT}.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"

V = TypeVar("V")

# --- spec ----------------------------------------------------------------------------------------


def read_spec(config: HfConfig) -> ModelSpec:
    """From config.json as transformers 4 or 5 writes it."""
    config.expect("model_type", FAMILY)
    config.expect("downsample_ratio", 1 / _SCALE, None)
    config.expect("projector_hidden_act", "gelu", None)
    config.expect("vision_feature_layer", -1, None)
    config.expect("vision_feature_select_strategy", "default", None)
    text = config.section("text_config")
    # Version 4 looked into text_config alone, and checkpoints of its time have no key of their own.
    tied = config.read(bool, "tie_word_embeddings", text.read(bool, "tie_word_embeddings", False))
    spec = ModelSpec(
        FAMILY, _read_vision(config.section("vision_config")), _read_text(text, tied), _SCALE
    )
    if spec.vision.grid % _SCALE:
        raise ExportError(
            f"{config.where}: a grid of {spec.vision.grid} patches cannot be halved, as "
            "'downsample_ratio' wants it"
        )
    config.expect("image_seq_length", spec.view_tokens, None)
    return spec


def _read_vision(config: HfConfig) -> VisionSpec:
    config.expect("model_type", "internvl_vision", None)
    config.expect("num_channels", 3, None)
    config.expect("hidden_act", "gelu", None)
    config.expect("norm_type", "layer_norm", None)
    config.expect("attention_bias", True)  # absent would mean none
    config.expect("use_qk_norm", False, None)
    config.expect("use_mask_token", False, None)
    config.expect("use_absolute_position_embeddings", True, None)
    config.expect("use_mean_pooling", True, None)  # else a norm follows the last layer
    return VisionSpec(
        hidden=config.read(int, "hidden_size", 1024),
        layers=config.read(int, "num_hidden_layers", 24),
        heads=config.read(int, "num_attention_heads", 16),
        intermediate=config.read(int, "intermediate_size", 4096),
        image_size=_side(config, "image_size", 448),
        patch_size=_side(config, "patch_size", 14),
        eps=config.read(float, "layer_norm_eps", 1e-6),
        activation="gelu",
    )


def _side(config: HfConfig, key: str, default: int) -> int:
    """Of a square, which stands there as one number or as two equal ones."""
    value = config.value.get(key, default)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        (value, _) = value
    if type(value) is not int:
        raise ExportError(f"{config.where}: {key!r} must be the side of a square, got {value!r}")
    return value


def _read_text(config: HfConfig, tied: bool) -> TextSpec:
    config.expect("model_type", "qwen2", None)
    config.expect("hidden_act", "silu", None)
    config.expect("use_sliding_window", False, None)
    theta = config.read(float, "rope_theta", 10_000.0)
    for key in ("rope_parameters", "rope_scaling"):
        if config.value.get(key) is not None:
            rope = config.section(key)
            # Dynamic scaling begins behind max_position_embeddings, where no prompt comes.
            rope.expect("rope_type", "default", "dynamic", None)
            rope.expect("type", "default", "dynamic", None)
            rope.expect("partial_rotary_factor", 1.0, None)
            theta = rope.read(float, "rope_theta", theta)
    hidden = config.read(int, "hidden_size", 4096)
    heads = config.read(int, "num_attention_heads", 32)
    return TextSpec(
        hidden=hidden,
        layers=config.read(int, "num_hidden_layers", 32),
        heads=heads,
        kv_heads=config.read(int, "num_key_value_heads", 32),
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


def read_image_spec(config: HfConfig, spec: ModelSpec, model: HfConfig) -> MosaicSpec:
    """From the processor's config. Raises ExportError for views of another size than the
    tower's.
    """
    image = read_mosaic_spec(config)
    if image.view != spec.vision.image_size:
        raise ExportError(
            f"{config.where}: preprocessing makes views of {image.view} pixels, config.json means "
            f"{spec.vision.image_size}"
        )
    return image


# --- forward pass --------------------------------------------------------------------------------


def vision_inputs(
    spec: ModelSpec, layers: range | None = None
) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    """Name -> element type and shape of what `vision` takes. V views do not meet one another."""
    tower = spec.vision
    if layers is not None and layers.start:
        return {"hidden": ("float32", ("V", 1 + tower.grid**2, tower.hidden))}
    return {"pixel_values": ("float32", ("V", 3, tower.image_size, tower.image_size))}


def vision(ops: Ops[V], spec: ModelSpec, inputs: dict[str, V], layers: range | None = None) -> V:
    """pixel_values [V, 3, S, S] -> visual tokens [V, n, D] in the text model's width.

    Of a run of `layers` those after the first take the hidden states that the one before gave.
    """
    tower = spec.vision
    layers = range(tower.layers) if layers is None else layers
    x = inputs["hidden"] if layers.start else _patches(ops, spec, inputs["pixel_values"])
    for layer in layers:
        at = f"{_VISION}.encoder.layer.{layer}"
        norm = f"{at}.layernorm_before"
        y = ops.layer_norm(x, f"{norm}.weight", f"{norm}.bias", tower.eps)
        q, k, v = (_linear(ops, y, f"{at}.attention.{n}_proj") for n in "qkv")
        y = ops.full_attention(q, k, v, tower.heads, tower.head_dim**-0.5)
        y = _linear(ops, y, f"{at}.attention.projection_layer")
        x = ops.add(x, ops.scale(y, f"{at}.lambda_1"))
        norm = f"{at}.layernorm_after"
        y = ops.layer_norm(x, f"{norm}.weight", f"{norm}.bias", tower.eps)
        y = ops.activation(_linear(ops, y, f"{at}.mlp.fc1"), tower.activation)
        x = ops.add(x, ops.scale(_linear(ops, y, f"{at}.mlp.fc2"), f"{at}.lambda_2"))
    if layers.stop < tower.layers:
        return x
    x = ops.pixel_shuffle(ops.skip(x, 1), tower.grid, spec.scale_factor)
    norm = f"{_PROJECTOR}.layer_norm"
    x = ops.layer_norm(x, f"{norm}.weight", f"{norm}.bias", _PROJECTOR_EPS)
    x = ops.activation(_linear(ops, x, f"{_PROJECTOR}.linear_1"), "gelu")
    return _linear(ops, x, f"{_PROJECTOR}.linear_2")


def _patches(ops: Ops[V], spec: ModelSpec, pixels: V) -> V:
    """[V, 3, S, S] -> what the first layer takes [V, 1 + grid * grid, hidden]: a class token stands
    before the patches and has a position too.
    """
    tower, stem = spec.vision, f"{_VISION}.embeddings"
    x = ops.patchify(pixels, tower.image_size, tower.patch_size)
    x = ops.prepend(_linear(ops, x, f"{stem}.patch_embeddings.projection"), f"{stem}.cls_token")
    places = np.arange(1 + tower.grid**2, dtype=np.int64)
    return ops.add(x, ops.table(f"{stem}.position_embeddings", places))


def _linear(ops: Ops[V], x: V, name: str) -> V:
    return ops.linear(x, f"{name}.weight", f"{name}.bias")


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
    if name.startswith(_PROJECTOR):
        return "connector"
    return "vision" if name.startswith(_VISION) else "decoder"


def weight_names(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight the forward pass asks for, with the shape it must have."""
    vis, text = spec.vision, spec.text
    d, stem, patch = vis.hidden, f"{_VISION}.embeddings", f"{_VISION}.embeddings.patch_embeddings"
    yield f"{stem}.cls_token", (1, 1, d)
    yield f"{stem}.position_embeddings", (1, 1 + vis.grid**2, d)
    yield f"{patch}.projection.weight", (d, 3, vis.patch_size, vis.patch_size)
    yield f"{patch}.projection.bias", (d,)
    wide = d * spec.scale_factor**2
    norms = [(f"{_PROJECTOR}.layer_norm", wide)]
    linears = [
        (f"{_PROJECTOR}.linear_1", text.hidden, wide),
        (f"{_PROJECTOR}.linear_2", text.hidden, text.hidden),
    ]
    for layer in range(vis.layers):
        at = f"{_VISION}.encoder.layer.{layer}"
        yield f"{at}.lambda_1", (d,)
        yield f"{at}.lambda_2", (d,)
        norms += [(f"{at}.layernorm_{n}", d) for n in ("before", "after")]
        linears += [(f"{at}.attention.{n}_proj", d, d) for n in "qkv"]
        linears += [
            (f"{at}.attention.projection_layer", d, d),
            (f"{at}.mlp.fc1", vis.intermediate, d),
            (f"{at}.mlp.fc2", d, vis.intermediate),
        ]
    for name, width in norms:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)
    for name, out, inner in linears:
        yield f"{name}.weight", (out, inner)
        yield f"{name}.bias", (out,)
    yield from llama.weight_names(text, _TEXT)
    yield EMBEDDINGS, (text.vocab, text.hidden)
    yield HEAD, (text.vocab, text.hidden)


# --- prompt --------------------------------------------------------------------------------------


def prompt_record(
    tokenizer: Tokenizer, spec: ModelSpec, image: MosaicSpec, template: str
) -> PromptRecord:
    """The chat format in ids: `<|im_start|>user` `<img>` image tokens `</img>` question, then the
    assistant's turn. All views of a picture stand between the same two tokens, and a line ends
    behind them.
    """
    return chatml_record(
        tokenizer,
        template,
        "tiles",
        visual_tokens=spec.view_tokens,
        around=("<img>", "</img>"),
        between_pictures="\n",
        behind_picture="\n",
    )


def tokens_record(tokenizer: Tokenizer, config: HfConfig) -> TokensRecord:
    return special_tokens(tokenizer, config, image="<IMG_CONTEXT>", end="<|im_end|>")
