"""Tiny random InternVL3 checkpoints, saved by transformers as ordinary Hugging Face folders.

Drawn like those of tiny.py: at std 0.2, with noise in norms and biases, so that a wrong number
shows.
"""

import json
from pathlib import Path
from typing import Any

import torch

import tiny

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
)
IMAGE = SPECIALS.index("<IMG_CONTEXT>")
VIEW, PATCH = 32, 8
PROCESSOR = {
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "crop_to_patches": False,  # as released checkpoints say, whose processor asks for tiles
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "size": {"height": VIEW, "width": VIEW},
    "min_patches": 1,
    "max_patches": 6,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
# As the family's template writes it for turns of text and pictures, without videos.
CHAT_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{{- '<IMG_CONTEXT>\\n' -}}
{%- else -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""


def make_model(*, kv_heads: int = 2, tied: bool = False, seed: int = 0, faint: bool = False) -> Any:
    """An InternVLForConditionalGeneration in evaluation mode, float32: views of 4 x 4 patches and
    so of four visual tokens.

    `faint` shrinks what enters both residual streams, until the eps of a norm shows in the logits.
    """
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [VIEW, VIEW],
            "patch_size": [PATCH, PATCH],
            "attention_bias": True,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "vocab_size": tiny.VOCABULARY,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 130000.0},
            "tie_word_embeddings": tied,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        image_token_id=IMAGE,
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    model = InternVLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
            if ("norm" in name and name.endswith("weight")) or "lambda" in name:
                weight.add_(1.0)
            if faint and ("embed" in name or "lambda" in name):
                weight.mul_(0.01)
    return model


def make_checkpoint(folder: Path, *, dtype: str = "float32", **model: Any) -> Path:
    """A whole checkpoint folder; `model` are the arguments of `make_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(**model).to(getattr(torch, dtype)).save_pretrained(folder)
    tiny.make_tokenizer(folder / "tokenizer.json", SPECIALS)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder
