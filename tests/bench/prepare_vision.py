"""The vision tower of a judge in each engine's own form, made once.

Takes a judge's checkpoint of the SmolVLM family and a cache folder; gives llama.cpp's projector
file with a text model of one thin layer for its vocabulary, and OpenVINO's graph with 8-bit
weights. Runs nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgejudge.export import Checkpoint

__all__ = ["float_tower", "mmproj", "openvino_tower", "vocabulary"]

_NAMES = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def mmproj(judge: Checkpoint, file: Path) -> None:
    """Matrices in Q8_0, as the model's publishers offer it for processors."""
    import gguf

    vision, weights = judge.spec.vision, judge.weights
    writer = gguf.GGUFWriter(file, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("idefics3")
    writer.add_vision_projection_dim(judge.spec.text.hidden)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_preproc_image_size(vision.image_size * 2)  # of a picture of three views
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden)
    writer.add_vision_feed_forward_length(vision.intermediate)
    writer.add_vision_block_count(vision.layers)
    writer.add_vision_head_count(vision.heads)
    writer.add_vision_attention_layernorm_eps(vision.eps)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(True)
    writer.add_vision_projector_scale_factor(judge.spec.scale_factor)

    def add(target: str, name: str) -> None:
        values = weights(name)
        if values.ndim == 2 and values.shape[1] % 32 == 0 and "position" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, values)

    stem = "model.vision_model"
    for name, target in (
        ("patch_embedding.weight", "v.patch_embd.weight"),
        ("patch_embedding.bias", "v.patch_embd.bias"),
        ("position_embedding.weight", "v.position_embd.weight"),
    ):
        add(target, f"{stem}.embeddings.{name}")
    for layer in range(vision.layers):
        for name, target in _NAMES.items():
            for kind in ("weight", "bias"):
                at = f"{stem}.encoder.layers.{layer}.{name}.{kind}"
                add(f"v.blk.{layer}.{target}.{kind}", at)
    for kind in ("weight", "bias"):
        add(f"v.post_ln.{kind}", f"{stem}.post_layernorm.{kind}")
    add("mm.model.fc.weight", "model.connector.modality_projection.proj.weight")
    _finish(writer)


def vocabulary(judge: Checkpoint, file: Path) -> None:
    """What llama.cpp wants beside a projector: the text model's words, and its width."""
    import gguf

    text = judge.spec.text
    made = json.loads((judge.folder / "tokenizer.json").read_bytes())
    special = {token["content"] for token in made["added_tokens"]}
    words = {**made["model"]["vocab"]} | {t["content"]: t["id"] for t in made["added_tokens"]}
    by_id = {number: word for word, number in words.items()}
    tokens = [by_id.get(number, f"[unused{number}]") for number in range(text.vocab)]
    kinds = gguf.TokenType
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(1024)
    writer.add_embedding_length(text.hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(text.heads)
    writer.add_layer_norm_rms_eps(text.eps)
    writer.add_rope_dimension_count(text.head_dim)
    writer.add_vocab_size(text.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.CONTROL if t in special else kinds.NORMAL for t in tokens])
    merges = [m if isinstance(m, str) else " ".join(m) for m in made["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_tensor("token_embd.weight", np.zeros((text.vocab, text.hidden), np.float16))
    writer.add_tensor("output_norm.weight", np.ones(text.hidden, np.float32))
    wide, thin = text.hidden, 32
    for name, shape in {
        **{f"attn_{n}": (wide, wide) for n in ("q", "k", "v", "output")},
        "ffn_gate": (thin, wide),
        "ffn_up": (thin, wide),
        "ffn_down": (wide, thin),
    }.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float16))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(wide, np.float32))
    _finish(writer)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def float_tower(judge: Checkpoint) -> Any:
    """pixel_values [V, 3, S, S] -> [V, n, D] by transformers' own modules, in float32."""
    import torch
    from transformers import SmolVLMConfig
    from transformers.models.smolvlm.modeling_smolvlm import (
        SmolVLMConnector,
        SmolVLMVisionTransformer,
    )

    config = SmolVLMConfig(**json.loads((judge.folder / "config.json").read_bytes()))

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model = SmolVLMVisionTransformer(config.vision_config)
            self.connector = SmolVLMConnector(config)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            found = self.connector(self.vision_model(pixel_values).last_hidden_state)
            assert isinstance(found, torch.Tensor)
            return found

    tower = Tower().eval()
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            weight.copy_(torch.from_numpy(judge.weights(f"model.{name}")))
    return tower


def openvino_tower(judge: Checkpoint, folder: Path, views: int) -> None:
    """Traced as it is, weights to int8 for each row, as optimum-intel does with `--weight-format
    int8`.
    """
    import openvino as ov
    import torch
    from nncf import CompressWeightsMode, compress_weights

    side = judge.spec.vision.image_size
    example = torch.zeros((views, 3, side, side))
    model = ov.convert_model(float_tower(judge), example_input=example)
    model = compress_weights(model, mode=CompressWeightsMode.INT8_ASYM)
    folder.mkdir(parents=True)
    ov.save_model(model, folder / "vision.xml", compress_to_fp16=False)
