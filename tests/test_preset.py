"""Presets: published dimensions, random weights, and bundles that refuse to judge."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgejudge import Judge
from edgejudge.bundle import read_manifest
from edgejudge.cli import main
from edgejudge.errors import BundleError, ExportError
from edgejudge.export import open_checkpoint, preset_checkpoint
from edgejudge.export import preset as presets_module
from edgejudge.export.random_weights import RandomWeights
from edgejudge.export.weights import row_blocks
from edgejudge.models.families import family_for
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.preset import PRESETS, Preset, preset_named

torch.set_num_threads(1)
BUILT = [name for name in PRESETS if preset_named(name).built]


def parameters_by_transformers(preset: Preset) -> int:
    from transformers import (
        AutoConfig,
        AutoModelForImageTextToText,
        LlamaConfig,
        LlamaForCausalLM,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    config = dict(preset.config)
    kind = config.pop("model_type")
    with torch.device("meta"):
        if kind == "bluelm_v":  # no class of its own: the published parts, and a connector of two
            text, vision = dict(config["text_config"]), dict(config["vision_config"])
            text.pop("model_type")
            vision.pop("model_type")
            models = [
                LlamaForCausalLM(LlamaConfig(**text)),
                SiglipVisionModel(SiglipVisionConfig(vision_use_head=False, **vision)),
                torch.nn.Linear(4 * vision["hidden_size"], text["hidden_size"], bias=False),
                torch.nn.Linear(text["hidden_size"], text["hidden_size"], bias=False),
            ]
        else:
            whole = AutoConfig.for_model(kind, **config)
            models = [AutoModelForImageTextToText.from_config(whole)]
    return sum(p.numel() for model in models for p in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_that_transformers_counts(name: str) -> None:
    preset = preset_named(name)
    assert parameters_by_transformers(preset) == preset.parameters


@pytest.mark.parametrize("name", BUILT)
def test_our_weight_names_count_the_same(name: str) -> None:
    preset = preset_named(name)
    config = HfConfig(preset.config, name)
    family = family_for(config)
    spec = family.read_spec(config)
    shapes = dict(family.weight_names(spec))
    if spec.text.tie_word_embeddings:
        shapes.pop(family.HEAD)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == preset.parameters


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 5000),
    inner=st.sampled_from([1, 7, 400]),
    first=st.integers(0, 5000),
    count=st.integers(0, 900),
    picks=st.lists(st.integers(0, 4999), max_size=5),
)
def test_random_rows_are_rows_of_the_whole(
    rows: int, inner: int, first: int, count: int, picks: list[int]
) -> None:
    weights = RandomWeights({"a.weight": (rows, inner), "b.weight": (rows, inner)})
    whole = weights("a.weight")
    assert whole.shape == (rows, inner) and whole.dtype == np.float32
    assert (
        weights.rows("a.weight", slice(first, first + count)) == whole[first : first + count]
    ).all()
    picks = [p for p in picks if p < rows]
    assert (weights.rows("a.weight", picks) == whole[picks]).all()
    assert rows * inner < 50 or not (whole == weights("b.weight")).all()
    assert weights.parameters == 2 * rows * inner
    blocks = list(row_blocks(rows, inner))
    assert blocks[0].start == 0 and blocks[-1].stop == rows
    assert all(a.stop == b.start for a, b in zip(blocks, blocks[1:], strict=False))


def test_random_activations_stay_of_size_one() -> None:
    weights = RandomWeights({"m.weight": (512, 256), "norm.weight": (8,), "m.bias": (8,)})
    x = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    assert 0.8 < float((weights("m.weight") @ x).std()) < 1.2
    assert (weights("norm.weight") == 1).all() and (weights("m.bias") == 0).all()


def shrunk(name: str) -> Preset:
    """The preset with few and narrow layers, everything else as published."""
    preset = preset_named(name)
    config = json.loads(json.dumps(preset.config))
    config["text_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    if name.startswith("qwen"):
        sections = [4, 6, 6] if name == "qwen2.5-vl-3b" else [6, 5, 5]
        config["text_config"]["rope_parameters"]["mrope_section"] = sections
        config["vision_config"] |= {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "deepstack_visual_indexes": [0],
        }
    else:
        config["vision_config"] |= {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
    values = {f: getattr(preset, f) for f in Preset.__dataclass_fields__}
    return Preset(**{**values, "config": config})


def thinned(name: str) -> Preset:
    """The preset with its widths and few layers."""
    preset = preset_named(name)
    config = json.loads(json.dumps(preset.config))
    config["text_config"]["num_hidden_layers"] = 1
    config["vision_config"] |= {"depth": 2, "fullatt_block_indexes": [1]}
    values = {f: getattr(preset, f) for f in Preset.__dataclass_fields__}
    return Preset(**{**values, "config": config})


@pytest.mark.parametrize("name", BUILT)
def test_a_random_bundle_is_marked_and_refuses_to_judge(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(presets_module, "preset_named", shrunk)
    out = tmp_path / "out"
    command = ["export", "--preset", name, "--random-weights", "--out", str(out)]
    assert main([*command, "--max-pixels", "70000"] if "qwen" in name else command) == 0
    assert "its verdicts mean nothing" in capsys.readouterr().out
    manifest = read_manifest(out)
    assert manifest.random_weights and manifest.name == name
    report = manifest.fidelity
    # Four bits move hidden states of random weights by a few per cent, and decisions say nothing.
    assert report is not None and report.decisions is None and 0 < report.hidden_error < 0.3
    assert manifest.embeddings.rows == preset_named(name).config["text_config"]["vocab_size"]
    with pytest.raises(BundleError, match=r"its weights are random.*--allow-random"):
        Judge.load(out)
    picture = np.zeros((60, 80, 3), np.uint8)
    assert Judge.load(out, threads=1, allow_random=True).screen(picture).error is None
    assert main(["screen", str(out / "golden-0.png"), "--bundle", str(out)]) == 2
    assert "its weights are random" in capsys.readouterr().err
    assert main(["profile", str(out), "--runs", "1", "--json"]) == 0


@pytest.mark.parametrize("name", BUILT)
def test_the_stand_in_tokenizer_has_words_and_the_real_special_tokens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets_module, "preset_named", shrunk)
    opened = preset_checkpoint(name, tmp_path, ["a middle finger"])
    again = open_checkpoint(tmp_path / name, random_weights=True)
    assert again.tokens == opened.tokens
    assert opened.tokens.image == preset_named(name).config["image_token_id"]
    question = "Is the following visible in this image: a middle finger? Answer Yes or No."
    ids = opened.tokenizer.encode(question)
    assert len(ids) <= len(re.findall(r"\w+|[^\w\s]", question)) + 2, "words are single tokens"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "gpt"], "go together"),
        (
            ["--preset", "gpt", "--random-weights"],
            "no preset is called 'gpt'; known: smolvlm2-2.2b",
        ),
        (
            ["--preset", "bluelm-v-3b", "--random-weights"],
            "family bluelm_v, which is not built yet",
        ),
        (["folder", "--preset", "smolvlm2-2.2b"], "either a CHECKPOINT or a --preset"),
        (["folder", "--random-weights"], "go together"),
        ([], "either a CHECKPOINT or a --preset"),
    ],
)
def test_bad_presets_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--preset", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert all(("not built" in line) != (line.split()[0] in BUILT) for line in lines)


def test_an_unknown_key_in_a_preset_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def surprising(text: bytes) -> Any:
        return {**original(text), "surprise": 1}

    original = json.loads
    monkeypatch.setattr(json, "loads", surprising)
    with pytest.raises(ExportError, match="unknown key 'surprise'"):
        preset_named("smolvlm2-2.2b")
