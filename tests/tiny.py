"""Tiny random SmolVLM checkpoints, saved by transformers as ordinary Hugging Face folders.

At default initialisation a tiny model is blind: a wrong activation moves its logits by 1e-6. So
weights are drawn at std 0.2, with noise in norms and biases.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
)
CHAT_TEMPLATE = """<|im_start|>{% for message in messages -%}
{{ message['role'] | capitalize }}{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}
{%- for part in message['content'] -%}
{{ '<image>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{{ '<end_of_utterance>\\n' }}
{%- endfor -%}
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
VOCABULARY = 448  # a multiple of 16
_CORPUS = [
    "User: Is a knife visible?\nAssistant: Yes",
    "User: Is beer visible?\nAssistant: No",
    "Is the following visible in this image: a dog? Answer Yes or No.\n\nyes no Yes No",
    " yes no, the knife of a cat is visible in the image",
]


class Held:
    """Arrays in memory as a source of weights."""

    def __init__(self, arrays: dict[str, NDArray[np.float32]]) -> None:
        self.arrays = arrays

    @property
    def parameters(self) -> int:
        return sum(a.size for a in self.arrays.values())

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def rows(self, name: str, index: slice | Sequence[int]) -> NDArray[np.float32]:
        return self.arrays[name][index if isinstance(index, slice) else list(index)]

    def __call__(self, name: str) -> NDArray[np.float32]:
        return self.arrays[name]


def make_tokenizer(path: Path, specials: tuple[str, ...] = SPECIALS) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 8, trainer)
    tokenizer.save(str(path))
    return tokenizer


def make_model(
    *,
    image_size: int = 24,
    patch_size: int = 4,
    scale_factor: int = 3,
    kv_heads: int = 2,
    tied: bool = False,
    vision_hidden: int = 32,
    vision_layers: int = 2,
    text_layers: int = 3,
    text_hidden: int = 64,
    text_intermediate: int = 96,
    seed: int = 0,
    faint: bool = False,
    image_token_id: int = SPECIALS.index("<image>"),
) -> Any:
    """A SmolVLMForConditionalGeneration in evaluation mode, float32.

    `faint` shrinks what enters both residual streams, until the eps of a norm shows in the logits.
    """
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        vision_config={
            "hidden_size": vision_hidden,
            "intermediate_size": 80,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": 2,
            "image_size": image_size,
            "patch_size": patch_size,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": text_hidden,
            "intermediate_size": text_intermediate,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 130000.0},
            "tie_word_embeddings": tied,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        scale_factor=scale_factor,
        image_token_id=image_token_id,
        tie_word_embeddings=tied,
    )
    model = SmolVLMForConditionalGeneration(config).eval()
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
    folder: Path,
    *,
    tiling: bool = True,
    grid_of_tiles: int = 4,
    nested_processor: bool = False,
    dtype: str = "float32",
    card: dict[str, Any] | None = None,
    max_shard_size: str = "1GB",
    **model: Any,
) -> Path:
    """A whole checkpoint folder; `model` are the arguments of `make_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    network = make_model(**model).to(getattr(torch, dtype))
    network.save_pretrained(folder, max_shard_size=max_shard_size)
    make_tokenizer(folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    view = network.config.vision_config.image_size
    processor = {
        "image_processor_type": "SmolVLMImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "do_pad": True,
        "do_image_splitting": tiling,
        "size": {"longest_edge": grid_of_tiles * view},
        "max_image_size": {"longest_edge": view},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    if nested_processor:
        name, value = "processor_config.json", {"image_processor": processor}
    else:
        name, value = "preprocessor_config.json", processor
    (folder / name).write_text(json.dumps(value))
    if card is not None:
        (folder / "judge.json").write_text(json.dumps(card))
    return folder


def make_card(**changes: Any) -> dict[str, Any]:
    """A judge card that knows three concepts."""
    card: dict[str, Any] = {
        "schema_version": 1,
        "name": "tiny",
        "question_template": "Is {condition} visible?",
        "labels": {"yes": ["Yes", " Yes", "yes", " yes"], "no": ["No", " No", "no", " no"]},
        "concepts": [
            {"name": "knife", "aliases": ["blade for cutting food"], "category": "weapons"},
            {"name": "beer", "aliases": [], "category": "alcohol"},
            {"name": "dog", "aliases": ["puppy"], "category": "animals"},
        ],
        "policies": [],
        "band": 0.05,
        "calibration_set": None,
    }
    return {**card, **changes}
