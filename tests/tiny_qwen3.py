"""Tiny random Qwen3-VL checkpoints, saved by transformers as ordinary Hugging Face folders.

Drawn like those of tiny.py: at std 0.2, with noise in norms and biases, so that a wrong number
shows.
"""

import json
from pathlib import Path
from typing import Any

import torch

import tiny
import tiny_qwen

SPECIALS, IMAGE, PATCH = tiny_qwen.SPECIALS, tiny_qwen.IMAGE, tiny_qwen.PATCH
PROCESSOR = {
    **tiny_qwen.PROCESSOR,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
# As the family's template writes it for turns of text and pictures, without tools and videos.
CHAT_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- else -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
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
    taps: tuple[int, ...] = (0, 2),
    text_layers: int = 3,
    table_side: int = 6,
) -> Any:
    """A Qwen3VLForConditionalGeneration in evaluation mode, float32. Two of four vision layers are
    tapped for the first two of three text layers; heads are wider than the hidden states' share.

    `faint` shrinks what enters both residual streams, until the eps of a norm shows in the logits.
    """
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": table_side**2,
            "deepstack_visual_indexes": list(taps),
        },
        text_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "head_dim": 32,
            "vocab_size": tiny.VOCABULARY,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 130000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": tied,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=3,
        vision_end_token_id=4,
        tie_word_embeddings=tied,
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1.0)
            if faint and "embed" in name:
                weight.mul_(0.01)
    return model


def hub_name(name: str) -> str:
    """A module's name in memory -> in a checkpoint."""
    return name


def make_checkpoint(folder: Path, *, dtype: str = "float32", **model: Any) -> Path:
    """A whole checkpoint folder; `model` are the arguments of `make_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(**model).to(getattr(torch, dtype)).save_pretrained(folder)
    tiny.make_tokenizer(folder / "tokenizer.json", SPECIALS)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder
