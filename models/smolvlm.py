"""SmolVLM: a SigLIP vision tower, a pixel shuffle, a Llama text model.

Takes a checkpoint's config and tokenizer; gives its spec and prompt pieces, and the forward pass
over the op vocabulary, written once for every backend. Knows no backend and no checkpoint reader.
"""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import PromptRecord, TokensRecord
from edgejudge.errors import ExportError
from edgejudge.models import llama, siglip
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.ops import Ops
from edgejudge.models.siglip import static_vision_inputs, vision_inputs
from edgejudge.models.spec import ModelSpec, TextSpec, VisionSpec
from edgejudge.models.tiles import TileSpec, read_tile_spec
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
    "position_rows",
    "prompt_record",
    "read_image_spec",
    "read_spec",
    "tokens_record",
    "vision",
    "static_vision_inputs",
    "vision_inputs",
    "weight_names",
]

FAMILY = "smolvlm"
DEFAULT_TEMPLATE = "Is the following visible in this image: {condition}? Answer Yes or No."
LEAD_IN = "\nAssistant:"  # the text that an answer follows

_VISION = "model.vision_model"
_TEXT = "model.text_model"
_CONNECTOR = "model.connector.modality_projection.proj.weight"
EMBEDDINGS = f"{_TEXT}.embed_tokens.weight"
HEAD = "lm_head.weight"
_HF_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu"}

V = TypeVar("V")

# --- spec ----------------------------------------------------------------------------------------


def read_spec(config: HfConfig) -> ModelSpec:
    """From config.json as transformers 4 or 5 writes it; absent keys have the defaults it gives."""
    config.expect("model_type", FAMILY)
    spec = ModelSpec(
        FAMILY,
        _read_vision(config.section("vision_config")),
        _read_text(config.section("text_config"), config.read(bool, "tie_word_embeddings", False)),
        config.read(int, "scale_factor", 2),
    )
    if spec.vision.grid % spec.scale_factor:
        raise ExportError(
            f"{config.where}: 'scale_factor' {spec.scale_factor} does not divide the grid of "
            f"{spec.vision.grid} patches"
        )
    return spec


def _read_vision(config: HfConfig) -> VisionSpec:
    config.expect("model_type", "smolvlm_vision", None)
    config.expect("num_channels", 3, None)
    config.expect("hidden_act", *_HF_ACTIVATIONS, None)
    return VisionSpec(
        hidden=config.read(int, "hidden_size", 1152),
        layers=config.read(int, "num_hidden_layers", 12),
        heads=config.read(int, "num_attention_heads", 16),
        intermediate=config.read(int, "intermediate_size", 3072),
        image_size=config.read(int, "image_size", 224),
        patch_size=config.read(int, "patch_size", 32),
        eps=config.read(float, "layer_norm_eps", 1e-6),
        activation=_HF_ACTIVATIONS[config.read(str, "hidden_act", "gelu_pytorch_tanh")],
    )


def _read_text(config: HfConfig, tied: bool) -> TextSpec:
    config.expect("model_type", "llama")
    config.expect("hidden_act", *_HF_ACTIVATIONS, None)
    # Not all of these are keys of transformers, which would ignore them: the family's makers
    # write them, and True would mean another architecture.
    unlike_llama = ("attention_bias", "mlp_bias", "qk_layer_norms", "rope_interleaved")
    for key in (*unlike_llama, "use_resampler"):
        config.expect(key, False, None)
    config.expect("pretraining_tp", 1, None)
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
        intermediate=config.read(int, "intermediate_size", 11008),
        vocab=config.read(int, "vocab_size", 32000),
        eps=config.read(float, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        activation=_HF_ACTIVATIONS[config.read(str, "hidden_act", "silu")],
        tie_word_embeddings=tied,
        max_positions=config.read(int, "max_position_embeddings", 2048),
    )


def read_image_spec(config: HfConfig, spec: ModelSpec, model: HfConfig) -> TileSpec:
    """From the processor's config; `model` is the checkpoint's own. Raises ExportError for views of
    another size than the tower's.
    """
    image = read_tile_spec(config)
    if image.view != spec.vision.image_size:
        raise ExportError(
            f"{config.where}: preprocessing makes views of {image.view} pixels, config.json means "
            f"{spec.vision.image_size}"
        )
    return image


# --- forward pass --------------------------------------------------------------------------------


def position_rows(grid: int) -> NDArray[np.int64]:
    """Rows of the position table for the patches of a full view, in float32 as the family does.

    Not always 0, 1, 2, ...: on some grids (19, 25, 29, ...) a rounded fraction falls in the bucket
    before, and the reference computes with that.
    """
    fractions = np.arange(grid, dtype=np.float32) * (np.float32(1.0) / np.float32(grid))
    fractions = np.minimum(fractions, np.float32(1.0 - 1e-6))
    bucket = np.searchsorted(_boundaries(grid), fractions, side="right")
    rows: NDArray[np.int64] = (bucket[:, None] * grid + bucket[None, :]).reshape(-1)
    return rows.astype(np.int64)


def _boundaries(grid: int) -> NDArray[np.float32]:
    """torch.arange(1 / grid, 1, 1 / grid) as torch rounds it, whatever machine exports.

    Its loop takes two blocks of eight at a time, each counted from a start rounded to float32; the
    rest is counted one by one in float64. The last bit decides some buckets.
    """
    step = 1 / grid
    index = np.arange(int(np.ceil((1.0 - step) / step)))
    start = index // 8 * 8
    blocks = (step + start * step).astype(np.float32) + (index - start) * step  # in float64
    blocked = index < len(index) // 16 * 16
    return np.where(blocked, blocks, step + index * step).astype(np.float32)


def vision(ops: Ops[V], spec: ModelSpec, inputs: dict[str, V], layers: range | None = None) -> V:
    """pixel_values [V, 3, S, S] -> visual tokens [V, n, D] in the text model's width.

    Of a run of `layers` those after the first take the hidden states that the one before gave.
    """
    tower, grid = spec.vision, spec.vision.grid
    layers = range(tower.layers) if layers is None else layers
    if layers.start:
        x = inputs["hidden"]
    else:
        rows = position_rows(tower.grid)
        x = siglip.patches(ops, tower, _VISION, inputs["pixel_values"], rows)
    x = siglip.encoder(ops, tower, _VISION, x, layers)
    if layers.stop < tower.layers:
        return x
    post = f"{_VISION}.post_layernorm"
    x = ops.layer_norm(x, f"{post}.weight", f"{post}.bias", tower.eps)
    return ops.linear(ops.pixel_shuffle(x, grid, spec.scale_factor), _CONNECTOR)


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
    if name == _CONNECTOR:
        return "connector"
    return "vision" if name.startswith(_VISION) else "decoder"


def weight_names(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight the forward pass asks for, with the shape it must have."""
    vis, text = spec.vision, spec.text
    yield from siglip.weight_names(vis, _VISION)
    yield _CONNECTOR, (text.hidden, vis.hidden * spec.scale_factor**2)
    yield from llama.weight_names(text, _TEXT)
    yield EMBEDDINGS, (text.vocab, text.hidden)
    yield HEAD, (text.vocab, text.hidden)


# --- prompt --------------------------------------------------------------------------------------


def prompt_record(
    tokenizer: Tokenizer, spec: ModelSpec, image: TileSpec, template: str
) -> PromptRecord:
    """The chat format in ids: `<|im_start|>User:` image question `<end_of_utterance>` LEAD_IN."""
    start = tokenizer.special("<|im_start|>")
    fence = tokenizer.special("<fake_token_around_image>")
    grid = range(1, image.max_grid + 1)
    return PromptRecord(
        question_template=template,
        layout="tiles",
        image_open=(),
        image_break=(),
        head=(start, *tokenizer.encode("User:")),
        tile_open=tuple(
            tuple((fence, tokenizer.special(f"<row_{row}_col_{col}>")) for col in grid)
            for row in grid
        ),
        row_break=tuple(tokenizer.encode("\n")),
        # The last row's own break and the one before the global view: one text, maybe one token.
        last_break=tuple(tokenizer.encode("\n\n")),
        view_open=(fence, tokenizer.special("<global-img>")),
        view_close=(fence,),
        visual_tokens=spec.view_tokens,
        text_open="",
        tail=(tokenizer.special("<end_of_utterance>"), *tokenizer.encode(LEAD_IN)),
        blind_head=(start,),
        blind_text="User: ",
        next_turn=(tokenizer.special("<end_of_utterance>"),),
        next_text="\nUser: ",
    )


def tokens_record(tokenizer: Tokenizer, config: HfConfig) -> TokensRecord:
    return special_tokens(tokenizer, config, image="<image>", end="<end_of_utterance>")
