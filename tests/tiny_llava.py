"""Tiny random LLaVA-OneVision checkpoints, saved by transformers as ordinary Hugging Face folders.

Drawn like those of tiny.py: at std 0.2, with noise in norms and biases, so that a wrong number
shows. Views have a rest that no patch covers, and lines are shrunk beyond three views' tokens.
"""

import json
from pathlib import Path
from typing import Any

import torch

import tiny
from edgejudge.models import llava_onevision
from edgejudge.models.anyres import AnyResSpec
from edgejudge.models.hf_config import HfConfig

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
IMAGE = SPECIALS.index("<image>")
VIEW, PATCH = 18, 4


def sizes_of(view: int) -> list[list[int]]:
    """Canvases of up to four by four views."""
    return [[view * down, view * across] for down in range(1, 5) for across in range(1, 5)]


SIZES = sizes_of(VIEW)
PROCESSOR = {
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "do_pad": True,
    "image_grid_pinpoints": SIZES,
    "size": {"height": VIEW, "width": VIEW},
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
# As the family's checkpoints write it for turns of text and pictures, videos left out. What an
# assistant has said stands behind a blank that is not before what it is to say.
CHAT_TEMPLATE = """{% for message in messages %}
{{- '<|im_start|>' + message['role'] + ' ' -}}
{%- for part in message['content'] | selectattr('type', 'equalto', 'image') -%}
{{- '<image>' -}}
{%- endfor -%}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}
{%- if message['role'] != 'assistant' -%}
{{- '\\n' + part['text'] -}}
{%- else -%}
{%- generation -%}
{{- '\\n' + part['text'] -}}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""


def make_model(
    *,
    kv_heads: int = 2,
    tied: bool = False,
    seed: int = 0,
    faint: bool = False,
    most: int = 3,
    text_layers: int = 3,
    view: int = VIEW,
) -> Any:
    """A LlavaOnevisionForConditionalGeneration in evaluation mode, float32.

    `faint` shrinks what enters both residual streams, until the eps of a norm shows in the logits.
    """
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": view,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "vocab_size": tiny.VOCABULARY,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 130000.0},
            "tie_word_embeddings": tied,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        image_token_index=IMAGE,
        video_token_index=IMAGE + 1,
        image_grid_pinpoints=sizes_of(view),
        vision_aspect_ratio=f"anyres_max_{most}",
        tie_word_embeddings=tied,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1.0)
            if faint and "embed" in name:
                weight.mul_(0.01)
    return model


def make_checkpoint(
    folder: Path, *, dtype: str = "float32", card: dict[str, Any] | None = None, **model: Any
) -> Path:
    """A whole checkpoint folder; `model` are the arguments of `make_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(**model).to(getattr(torch, dtype)).save_pretrained(folder)
    tiny.make_tokenizer(folder / "tokenizer.json", SPECIALS)
    view = model.get("view", VIEW)
    sized = {"image_grid_pinpoints": sizes_of(view), "size": {"height": view, "width": view}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **sized}))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    if card is not None:
        (folder / "judge.json").write_text(json.dumps(card))
    return folder


def make_spec(config: HfConfig, **processor: Any) -> AnyResSpec:
    """How pictures are prepared for a checkpoint with this config.json; `processor` is what its
    processor's config has otherwise.
    """
    found = HfConfig({**PROCESSOR, **processor}, "preprocessor_config.json")
    return llava_onevision.read_image_spec(found, llava_onevision.read_spec(config), config)
