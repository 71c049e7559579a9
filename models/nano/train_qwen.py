"""Trains a very small Qwen2.5-VL on a dozen of nano's concepts: a judge of another family, whose
verdicts mean something, since what quantization flips cannot be seen on random weights.

Takes sprites.npz and photos.npz; gives an ordinary Hugging Face checkpoint with its judge card.
Resumable. Does not know bundles or the runtime.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import make_questions
from concepts import CONCEPTS
from finish import YES_NO, card
from loop import Loop, add_arguments, source_of
from losses import Losses
from metrics import auroc
from scene import CELL, VIEW, Stage, base_rates, views_of
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from words import TEMPLATE, Prompts, train_tokenizer

KNOWN = (
    "gun",
    "fire",
    "beer",
    "pill",
    "skull",
    "die",
    "warning sign",
    "angry face",
    "heart",
    "pizza",
    "soccer ball",
    "moon",
)
PICTURES = 24  # in a batch
QUESTIONS = 8
PATCH, MERGE, FRAMES = 18, 2, 2
PROCESSOR = {
    "size": {"shortest_edge": CELL * CELL, "longest_edge": VIEW * VIEW},
    "patch_size": PATCH,
    "merge_size": MERGE,
    "temporal_patch_size": FRAMES,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
CLOSING = "<|im_end|>\n<|im_start|>assistant\n"
SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = """{% for message in messages -%}
{% if loop.first and message['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- for part in message['content'] -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


class QwenPrompts(Prompts):
    """Qwen2.5-VL's chat format; a picture is a grid of rows x cols visual tokens."""

    IMAGE = "<|image_pad|>"
    OPENING = SYSTEM
    BLIND_OPENING = SYSTEM
    CLOSING = CLOSING
    ANSWERS = ("Yes", "No")

    def _picture(self, rows: int, cols: int) -> str:
        return f"<|vision_start|>{self.IMAGE * (rows * cols)}<|vision_end|>"


class QwenLosses(Losses):
    """The same losses over Qwen2.5-VL's tower and positions."""

    @property
    def text(self) -> Any:
        return self.model.model.language_model

    def positions(self, rows: int, cols: int, start: int, after: torch.Tensor) -> torch.Tensor:
        """[3, 1, S]: time, row and column; text goes on after the largest (Qwen2-VL, 2.1)."""
        before = start - rows * cols - 1
        y, x = np.divmod(np.arange(rows * cols), cols)
        image = before + torch.from_numpy(np.stack([0 * y, y, x]))
        on = before + max(rows, cols) + torch.cat([torch.zeros(1, dtype=torch.long), 1 + after])
        text = torch.arange(before).expand(3, -1)
        return torch.cat([text, image, on.expand(3, -1)], 1)[:, None]

    def visual_tokens(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """uint8 [N, 3, H, W] -> [N, T, D]."""
        assert kept is None, "windows need whole pictures"
        x = pixels.float().div_(127.5).sub_(1.0)
        count, _, high, wide = x.shape
        rows, cols = high // CELL, wide // CELL
        x = x.unflatten(3, (cols, MERGE, PATCH)).unflatten(2, (rows, MERGE, PATCH))
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]  # merged patches together
        x = x.expand(-1, -1, -1, -1, -1, -1, FRAMES, -1, -1).flatten(5).flatten(0, 4)
        grid = torch.tensor([[1, rows * MERGE, cols * MERGE]]).expand(count, -1)
        tokens: torch.Tensor = self.model.model.visual(x, grid_thw=grid).pooler_output
        return tokens.unflatten(0, (count, rows * cols))


def make_model(vocabulary: int) -> Any:
    """1.6 M parameters: windows of 2 x 2 visual tokens, two layers that look beyond them."""
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "window_size": 2 * CELL,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1, 3],
        },
        text_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": SPECIALS.index("<|im_end|>"),
        },
        image_token_id=SPECIALS.index("<|image_pad|>"),
        video_token_id=SPECIALS.index("<|video_pad|>"),
        vision_start_token_id=SPECIALS.index("<|vision_start|>"),
        vision_end_token_id=SPECIALS.index("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def finish(folder: Path, model: Any) -> None:
    """An ordinary checkpoint in bf16, with its processor and judge card."""
    model.to(torch.bfloat16).save_pretrained(folder)
    processor = {"image_processor_type": "Qwen2VLImageProcessor", **PROCESSOR}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
    settings = {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    judge = card("nano-qwen", KNOWN, {}, 0.05, "../calibration", YES_NO)
    judge["question_template"] = TEMPLATE
    (folder / "judge.json").write_text(json.dumps(judge, indent=1) + "\n")
    (folder / "state.pt").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    source = source_of(args)
    if source is None:
        texts = [SYSTEM, CLOSING]
        train_tokenizer(SPECIALS, texts).save(str(args.out / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    model = make_model(tokenizer.get_vocab_size())
    if source:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    model.train()
    stage = Stage("train", args.sprites, args.photos, concepts=KNOWN)
    prompts = QwenPrompts(tokenizer, 0)
    losses = QwenLosses(model, prompts, "cpu", len(np.load(args.sprites)["concept"]))
    heads = {"bias": losses.bias, "scale": losses.scale, "sprites": losses.sprites}
    loop = Loop(model, heads, args)
    print(json.dumps({"parameters": model.num_parameters(), "step": loop.step}), flush=True)
    rates = base_rates(weights=stage.weights)
    unknown = [i for i, c in enumerate(CONCEPTS) if c.name not in KNOWN]
    rng = np.random.default_rng([args.seed, loop.step])
    while loop.running:
        scenes = [stage.scene(rng, busy=i % 2 == 0) for i in range(PICTURES)]
        tokens = losses.visual_tokens(
            torch.from_numpy(np.concatenate([views_of(s) for s in scenes]))
        )
        dense = torch.from_numpy(np.concatenate([s.dense for s in scenes]))
        sprite = torch.from_numpy(np.concatenate([s.sprite for s in scenes])).long()
        aux = losses.dense_loss(tokens, dense)
        named = losses.sprite_loss(tokens, sprite)
        for scene in scenes:
            scene.present[unknown] = -1
        present = [s.present for s in scenes]
        asked = make_questions(rng, prompts, rates, present, QUESTIONS)
        side = VIEW // CELL
        answer, blind, margin = losses.answer_loss(tokens[:, None], side, side, asked)
        record = {"aux": float(aux.detach()), "sprite": float(named.detach())}
        record |= {"answer": float(answer.detach()), "blind": float(blind.detach())}
        record["auroc"] = auroc(margin.numpy().ravel(), asked.answers.ravel())
        loop.update(12 * aux + 0.25 * named + answer + 0.1 * blind, record)
    finish(args.out, model)


if __name__ == "__main__":
    main()
