"""The decoders that all engines are measured on, and checkpoints of them with random weights.

Takes a name; gives a text-only Hugging Face folder for the peers and a judge of the same decoder,
with the same weights, for edgejudge. Knows no engine.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgejudge.export import Checkpoint, open_checkpoint, preset_checkpoint
from edgejudge.export.random_weights import RandomWeights
from edgejudge.export.weights import CheckpointWeights, Source, row_blocks
from edgejudge.models.preset import Preset, preset_named

__all__ = ["SHAPES", "Shape", "judge_checkpoint", "text_checkpoint", "write_bf16"]


@dataclass(frozen=True)
class Shape:
    """`text` is the peers' config.json, `preset` a judge around the same decoder; `inside` is what
    the judge's checkpoint puts before "layers", where the text-only one has "model.".
    """

    name: str
    text: dict[str, Any]
    preset: Preset
    inside: str
    views: int = 0  # of a picture whose tokens W2's prefix has room for; 0 has no tower to speak of


def _qwen(name: str, hidden: int, inner: int, layers: int, heads: int) -> Shape:
    """A Qwen2.5 decoder, in a Qwen2.5-VL with one thin vision layer."""
    preset = preset_named("qwen2.5-vl-3b")
    config = copy.deepcopy(preset.config)
    dimensions = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
    }
    config["text_config"].update(dimensions)
    config["vision_config"].update(
        depth=1,
        hidden_size=320,
        intermediate_size=640,
        num_heads=4,
        out_hidden_size=hidden,
        fullatt_block_indexes=[0],
    )
    text = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **dimensions,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    return Shape(name, text, replace(preset, name=name, config=config), "model.")


def _smol() -> Shape:
    """The text model of SmolVLM2-2.2B, which is SmolLM2-1.7B."""
    preset = preset_named("smolvlm2-2.2b")
    inner = preset.config["text_config"]
    text = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": inner["hidden_size"],
        "intermediate_size": inner["intermediate_size"],
        "num_hidden_layers": inner["num_hidden_layers"],
        "num_attention_heads": inner["num_attention_heads"],
        "num_key_value_heads": inner["num_key_value_heads"],
        "vocab_size": inner["vocab_size"],
        "rms_norm_eps": inner["rms_norm_eps"],
        "rope_theta": inner.get("rope_theta", inner.get("rope_parameters", {}).get("rope_theta")),
        "hidden_act": "silu",
        "max_position_embeddings": inner["max_position_embeddings"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Shape("smolvlm2-2.2b", text, preset, "model.text_model.", 3)


SHAPES = {
    "qwen2.5-1.5b": lambda: _qwen("qwen2.5-1.5b", 1536, 8960, 28, 12),
    "smolvlm2-2.2b": _smol,
    "smoke": lambda: _qwen("smoke", 256, 512, 2, 2),  # whether every engine starts at all
}


def write_bf16(weights: Source, names: dict[str, str], file: Path) -> None:
    """One safetensors file, a few rows at a time; `names` maps what a tensor is called there to
    what the source calls it.
    """
    header, offset = {}, 0
    for name, source in names.items():
        shape = weights.shape(source)
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for source in names.values():
            shape = weights.shape(source)
            for rows in row_blocks(shape[0], int(np.prod(shape[1:]))):
                bits = weights.rows(source, rows).view(np.uint32)
                stream.write(((bits + 0x8000) >> 16).astype("<u2").tobytes())


def judge_checkpoint(preset: Preset, folder: Path, texts: list[str]) -> Checkpoint:
    """A bf16 checkpoint of a judge with random weights, written once; opened."""
    place = folder / preset.name
    if not (place / "weights").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        made = preset_checkpoint(preset, place, texts)
        shapes = _shapes(made)
        partial = place / "partial"
        partial.mkdir()
        write_bf16(RandomWeights(shapes), {n: n for n in shapes}, partial / "model.safetensors")
        partial.rename(place / "weights")
    opened = open_checkpoint(place / preset.name, random_weights=True)
    aliases = {opened.family.HEAD: opened.family.EMBEDDINGS}
    return replace(opened, weights=CheckpointWeights(place / "weights", aliases))


def text_checkpoint(shape: Shape, judge: Checkpoint, folder: Path) -> Path:
    """The judge's decoder alone, as an ordinary text checkpoint, written once."""
    place = folder / shape.name
    if place.exists():
        return place
    partial = folder / f"{shape.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    family = judge.family
    names = {"model.embed_tokens.weight": family.EMBEDDINGS}
    if not shape.text["tie_word_embeddings"]:
        names["lm_head.weight"] = family.HEAD
    for name in _shapes(judge):
        if name.startswith(shape.inside) and name != family.EMBEDDINGS:
            names["model." + name.removeprefix(shape.inside)] = name
    write_bf16(judge.weights, names, partial / "model.safetensors")
    (partial / "config.json").write_text(json.dumps(shape.text))
    shutil.copyfile(judge.folder / "tokenizer.json", partial / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (partial / "tokenizer_config.json").write_text(json.dumps(settings))
    partial.rename(place)
    return place


def _shapes(judge: Checkpoint) -> dict[str, tuple[int, ...]]:
    shapes = dict(judge.family.weight_names(judge.spec))
    if judge.spec.text.tie_word_embeddings:
        shapes.pop(judge.family.HEAD)
    return shapes
