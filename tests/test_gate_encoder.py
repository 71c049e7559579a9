"""A tiny CLIP and a tiny SigLIP through Optimum, into a bundle. `make test-gate` runs this."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("optimum") is None:
    pytest.skip("needs Optimum, in its own environment: make test-gate", allow_module_level=True)

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgejudge import Judge
from edgejudge.bundle import Bundle, read_manifest
from edgejudge.cli import main
from edgejudge.judge import default_bundle
from edgejudge.models.crop import CropSpec, prepare_crop
from edgejudge.models.image import canary_image
from edgejudge.runtime import Engine

torch.set_num_threads(1)
SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
WORDS = "a the picture shows weapon fire alcoholic drink smoking pills gambling of an or".split()


def make_encoder(folder: Path, family: str) -> Path:
    """A random encoder whose vectors depend on their input, saved by transformers."""
    text = {**SIZE, "num_hidden_layers": 2, "vocab_size": 40, "max_position_embeddings": 16}
    vision = {**SIZE, "num_hidden_layers": 2, "image_size": 30, "patch_size": 10}
    if family == "clip":
        text |= {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 2}
        config: Any = transformers.CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=24
        )
        model: Any = transformers.CLIPModel(config)
        processor: Any = transformers.CLIPImageProcessor(
            size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}
        )
    else:
        model = transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config=vision)
        )
        processor = transformers.SiglipImageProcessor(size={"height": 30, "width": 30})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}
    vocabulary |= {word: 4 + i for i, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
        model_input_names=["input_ids", "attention_mask"] if family == "clip" else ["input_ids"],
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_bundle(), tmp_path / "bundle"))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_an_encoder_becomes_a_stage(
    family: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_encoder(tmp_path / family, family)
    before = read_manifest(bundle)
    assert main(["add-relevance", str(bundle), str(folder)]) == 0
    assert f"{family} encoder added" in capsys.readouterr().out
    opened = Bundle.open(bundle, verify=True)
    record = opened.manifest.relevance
    assert record is not None and opened.sealed and record.family == family
    rules = [(p.name, r.id, r.text) for p in opened.manifest.policies for r in p.rules]
    assert [(r.policy, r.rule) for r in record.rules] == [(p, r) for p, r, _ in rules]
    # Everything that was there is still there, bit for bit.
    assert set(before.files) <= set(opened.manifest.files)
    assert before.graphs == tuple(g for g in opened.manifest.graphs if g.stage != "relevance")

    engine = Engine.open(opened, threads=1)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if family == "siglip" else True
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    tokens = tokenizer(
        [t for *_, t in rules], padding=padding, truncation=True, return_tensors="pt"
    )
    seen = []
    for height, width in ((40, 90), (31, 30), (120, 60)):
        rgb = canary_image(height, width)
        with torch.inference_mode():
            out = model(**tokens, pixel_values=processor(rgb, return_tensors="pt")["pixel_values"])
        wanted = (out.text_embeds @ out.image_embeds[0]).numpy()
        pixels = prepare_crop(rgb, CropSpec.from_json(record.preprocessing))
        found = engine.relevance(pixels)
        assert found.shape == (len(rules),) and np.abs(found - wanted).max() < 1e-4
        seen.append(found)
    assert np.ptp(np.stack(seen), axis=0).max() > 1e-3, "pictures differ"
    assert np.ptp(seen[0]) > 1e-3, "rules differ"
    # The judge judges as before.
    judge = Judge.load(bundle, fingerprint=opened.fingerprint, threads=1)
    assert judge.screen(canary_image(64, 64)).error is None
    # Its gate skips the rules whose texts are not about the picture.
    plan, middle = judge.plan("stickers", relevance_gate=True), float(np.median(seen[0]))
    assert plan.gate == 0.22
    gated = judge.screen(canary_image(40, 90), dataclasses.replace(plan, gate=middle))
    assert [rule.relevance for rule in gated.rules] == pytest.approx(seen[0].tolist(), abs=1e-5)
    skipped = [rule.conditions[0].test == "relevance" for rule in gated.rules]
    assert skipped == (seen[0] < middle).tolist() and any(skipped) and not all(skipped)


def test_a_second_encoder_needs_force(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_encoder(tmp_path / "clip", "clip")
    second = make_encoder(tmp_path / "siglip", "siglip")
    assert main(["add-relevance", str(bundle), str(first)]) == 0
    assert main(["add-relevance", str(bundle), str(second)]) == 2
    assert "has a relevance encoder already" in capsys.readouterr().err
    assert main(["add-relevance", str(bundle), str(second), "--force"]) == 0
    record = Bundle.open(bundle, verify=True).manifest.relevance
    assert record is not None and record.family == "siglip"
    assert [g.stage for g in read_manifest(bundle).graphs].count("relevance") == 1


@pytest.mark.parametrize("fault", ["family", "nothing", "wrong graph"])
def test_a_bad_encoder_leaves_the_bundle_as_it_was(
    fault: str,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_encoder(tmp_path / "clip", "clip")
    messages = {
        "family": "'model_type' is 'bert', expected one of clip, siglip",
        "nothing": "config.json: cannot be read",
        "wrong graph": "cosines are",
    }
    if fault == "family":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    elif fault == "nothing":
        shutil.rmtree(folder)
    else:
        from edgejudge.export.relevance import Encoder

        monkeypatch.setattr(Encoder, "cosines", lambda made, _: -made.texts[:, 0])
    before = {p.name: p.read_bytes() for p in bundle.iterdir()}
    assert main(["add-relevance", str(bundle), str(folder)]) == 2
    assert messages[fault] in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == before
    assert sorted(p.name for p in bundle.parent.iterdir() if p.name.startswith(".")) == []
