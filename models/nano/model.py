"""The nano architecture, and how its weights start.

Gives a SmolVLM configuration and a fresh model whose patch embedding is whitened. Does not know the
training loop.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scene import VIEW, Stage, views_of
from transformers import LlamaConfig, SmolVLMConfig
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from words import VOCABULARY

TOKENS_PER_VIEW = 16


def make_config() -> SmolVLMConfig:
    """Architecture of nano: 5.9 M parameters, head size 32."""
    return SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=6,
            image_size=VIEW,
            patch_size=12,
        ),
        text_config=LlamaConfig(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=VOCABULARY,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        scale_factor=3,
        image_token_id=4,
        tie_word_embeddings=True,
    )


def whiten(model: Any, stage: Stage, pictures: int = 400, eps: float = 1e-3) -> None:
    """Starts the patch embedding as whitened principal components, the position table as 2-D sines.

    A random projection lets the few brightest directions drown edges and shapes, and a small ViT
    spends its first thousand steps undoing that (the same trick as in K. Jordan's airbench, there
    for a convolution).
    """
    rng = np.random.default_rng(5)
    conv = model.model.vision_model.embeddings.patch_embedding
    size, width = conv.kernel_size[0], conv.out_channels
    pixels = np.concatenate([views_of(stage.view(rng)) for _ in range(pictures)])
    x = torch.from_numpy(pixels).float().div_(127.5).sub_(1.0)
    patches = (
        x.unfold(2, size, size)
        .unfold(3, size, size)
        .permute(0, 2, 3, 1, 4, 5)
        .flatten(3)
        .flatten(0, 2)
    )
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T).double())
    keep = vectors[:, -width:] / (values[-width:] + eps).sqrt()
    weight = (0.5 * keep.T).float()
    conv.weight.data.copy_(weight.view_as(conv.weight))
    conv.bias.data.copy_(-weight @ mean)
    table = model.model.vision_model.embeddings.position_embedding.weight.data
    side = math.isqrt(len(table))
    y, x_ = np.divmod(np.arange(len(table)), side)
    rates = 1 / 100 ** (np.arange(width // 4) / (width // 4))
    angles = [np.outer(v, rates) for v in (y, x_)]
    waves = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    table.copy_(torch.from_numpy(0.3 * waves).float())
