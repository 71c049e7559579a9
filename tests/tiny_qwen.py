"""Tiny random Qwen2.5-VL checkpoints, saved by transformers as ordinary Hugging Face folders.

Drawn like those of tiny.py: at std 0.2, with noise in norms and biases, so that a wrong number
shows.
"""

import json
from pathlib import Path
from typing import Any

import torch

import tiny

# The chat format of the family, from the checkpoint that was trained on it.
_TRAINED = Path(__file__).parent.parent / "models" / "nano" / "qwen"
SPECIALS = tuple(
    token["content"]
    for token in json.loads((_TRAINED / "tokenizer.json").read_bytes())["added_tokens"]
)
CHAT_TEMPLATE = json.loads((_TRAINED / "tokenizer_config.json").read_bytes())["chat_template"]
IMAGE = SPECIALS.index("<|image_pad|>")
PATCH = 4
PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "size": {"shortest_edge": 16 * 16, "longest_edge": 120 * 120},
    "patch_size": PATCH,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def make_model(*, kv_heads: int = 2, tied: bool = False, seed: int = 0, faint: bool = False) -> Any:
    """A Qwen2_5_VLForConditionalGeneration in evaluation mode, float32. Windows are 4 x 4 visual
    tokens; the middle one of three vision layers looks beyond them.

    `faint` shrinks what enters both residual streams, until the eps of a norm shows in the logits.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "vocab_size": tiny.VOCABULARY,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 130000.0,
                "mrope_section": [2, 3, 3],
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
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
            if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
                weight.add_(1.0)
            if faint and "embed" in name:
                weight.mul_(0.01)
    return model


def hub_name(name: str) -> str:
    """A module's name in memory -> in a checkpoint."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def make_checkpoint(folder: Path, *, dtype: str = "float32", **model: Any) -> Path:
    """A whole checkpoint folder; `model` are the arguments of `make_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(**model).to(getattr(torch, dtype)).save_pretrained(folder)
    tiny.make_tokenizer(folder / "tokenizer.json", SPECIALS)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    config = {"chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
