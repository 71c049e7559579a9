"""SmolVLM's config and weights, as transformers 5 writes them and as the Hub has them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SmolVLMConfig

import tiny
from edgejudge.bundle import BundleError
from edgejudge.errors import ExportError
from edgejudge.export.weights import CheckpointWeights
from edgejudge.models import smolvlm
from edgejudge.models.families import FAMILIES, family_for, family_named
from edgejudge.models.hf_config import HfConfig, read_json
from edgejudge.models.spec import ModelSpec


def hub_config() -> dict[str, Any]:
    """The keys of a released checkpoint: numbers that equal a default are left out."""
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": 49190,
        "model_type": "smolvlm",
        "scale_factor": 4,
        "text_config": {
            "head_dim": 64,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_attention_heads": 15,
            "num_hidden_layers": 32,
            "num_key_value_heads": 5,
            "qk_layer_norms": False,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "use_resampler": False,
            "vocab_size": 49280,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            "hidden_size": 768,
            "image_size": 512,
            "max_image_size": {"longest_edge": 512},
            "model_type": "smolvlm_vision",
            "num_attention_heads": 12,
            "patch_size": 16,
        },
    }


def read(value: dict[str, Any]) -> ModelSpec:
    return smolvlm.read_spec(HfConfig(value, "config.json"))


def test_the_hub_form_means_what_transformers_reads_in_it() -> None:
    old = hub_config()
    spec = read(old)
    new = SmolVLMConfig(**hub_config()).to_dict()
    assert "rope_parameters" in new["text_config"] and "rope_theta" not in new["text_config"]
    assert read(json.loads(json.dumps(new))) == spec
    assert (spec.vision.layers, spec.vision.intermediate, spec.vision.eps) == (12, 3072, 1e-6)
    assert (spec.text.rope_theta, spec.visual_tokens) == (100000.0, 64)


def test_absent_sizes_have_the_defaults_of_transformers() -> None:
    bare = {"model_type": "smolvlm", "vision_config": {}, "text_config": {"model_type": "llama"}}
    bare["vision_config"] = {"image_size": 64}  # the default of 224 does not divide by 2 x 32
    full = SmolVLMConfig(vision_config={"image_size": 64}, text_config={"model_type": "llama"})
    assert read(bare) == read(json.loads(json.dumps(full.to_dict())))


@pytest.mark.parametrize(
    "key", ["qk_layer_norms", "rope_interleaved", "use_resampler", "attention_bias", "mlp_bias"]
)
def test_another_architecture_is_refused_by_the_key_that_says_so(key: str) -> None:
    config = hub_config()
    config["text_config"][key] = True
    with pytest.raises(ExportError, match=f"text_config: '{key}' is True, only False or None"):
        read(config)


def test_families_are_found_by_what_the_config_says() -> None:
    assert family_for(HfConfig(hub_config(), "config.json")) is smolvlm
    assert [family_named(f.FAMILY) for f in FAMILIES] == list(FAMILIES)
    with pytest.raises(ExportError, match="supported families: smolvlm"):
        family_for(HfConfig({}, "config.json"))
    with pytest.raises(ExportError, match="known: smolvlm"):
        family_named("llava")


def test_a_spec_survives_the_manifest() -> None:
    spec = read(hub_config())
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(BundleError, match="spec.text: unknown key 'depth'"):
        value = spec.to_json()
        value["text"]["depth"] = 3
        ModelSpec.from_json(value)


def test_config_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="config.json: cannot be read"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{,}")
    with pytest.raises(ExportError, match="config.json: not valid JSON"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ExportError, match="expected a JSON object, got list"):
        read_json(tmp_path / "config.json")


def test_weight_names_and_shapes_are_those_of_transformers() -> None:
    model = tiny.make_model(image_size=39, patch_size=2, scale_factor=19, kv_heads=1)
    spec = read(json.loads(json.dumps(model.config.to_dict())))
    expected = {name: tuple(w.shape) for name, w in model.state_dict().items()}
    assert dict(smolvlm.weight_names(spec)) == expected
    assert {smolvlm.group_of(name) for name in expected} == {
        *("vision", "connector", "decoder", "embeddings", "head")
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_read_as_safetensors_reads_them(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "a": torch.randn(3, 5).to(dtype),
        "b": torch.randn(7).to(dtype),
        "none": torch.zeros(0, 4).to(dtype),
        "layers.0.rotary_emb.inv_freq": torch.zeros(2, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    weights = CheckpointWeights(tmp_path, {"c": "a", "b": "a"})
    weights.check([("a", (3, 5)), ("b", (7,)), ("c", (3, 5)), ("none", (0, 4))])
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if "rotary" not in name:
            assert np.array_equal(weights(name), tensor.float().numpy())
    assert np.array_equal(weights("c"), weights("a")) and weights("a").dtype == np.float32
    assert weights.parameters == 15 + 7
