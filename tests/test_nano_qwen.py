"""The trained Qwen2.5-VL: what quantization flips where verdicts mean something."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgejudge import Judge, Policy
from edgejudge.bundle import Bundle, Manifest
from edgejudge.errors import FidelityError
from edgejudge.export import exporter, read_calibration, split_pictures
from edgejudge.fidelity import export_bundle
from edgejudge.models.concepts import known_names, knows

NANO = Path(__file__).parent.parent / "models" / "nano"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("nano-qwen") / "bundle"
    return out, export_bundle(NANO / "qwen", out, "w8")


def test_eight_bits_pass_the_gate(exported: tuple[Path, Manifest]) -> None:
    report = exported[1].fidelity
    assert report is not None and report.decisions is not None
    found = report.decisions
    assert (report.calibration_pictures, found.pictures) == (16, 168)
    assert found.decisions == 168 * 12 and found.near_decisions > 60
    assert found.flips_upper <= 0.005 and found.probability_error_99 <= 0.05
    assert found.label_mass.mean > 0.99, "it answers, and says nothing else"


def test_four_bits_everywhere_pass_by_second_order_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder of width 128 does not survive the nearest levels; random weights would not have
    told.
    """
    report = export_bundle(NANO / "qwen", tmp_path / "passed", "small").fidelity
    assert report is not None and report.decisions is not None
    assert report.decisions.probability_error_99 <= 0.045
    monkeypatch.setattr(exporter, "decide", lambda checkpoint, plan, *_: plan)
    with pytest.raises(FidelityError, match="99th percentile.* most by decoder in 4 bits"):
        export_bundle(NANO / "qwen", tmp_path / "out", "small")
    assert [p.name for p in tmp_path.iterdir()] == ["passed"]


def test_verdicts_mean_something(exported: tuple[Path, Manifest]) -> None:
    """Over pictures that it was not trained on, much larger than those that it was."""
    judge = Judge.load(exported[0], threads=1)
    entries = json.loads((NANO / "calibration" / "questions.json").read_bytes())
    labels = {e["image"]: {c["text"]: c["label"] for c in e["conditions"]} for e in entries}
    names = known_names(judge.bundle.manifest.concepts)
    shown, absent = [], []
    for picture in split_pictures(read_calibration(NANO / "calibration")).gate[::2]:
        texts = [t for t in picture.conditions if knows(names, t, judge.bundle.manifest.patterns)]
        rules = [
            f"  - {{id: r{i}, text: t, category: c, conditions: [{text}]}}"
            for i, text in enumerate(texts)
        ]
        policy = Policy.from_yaml("\n".join(["name: all", "version: 1", "rules:", *rules]))
        verdict = judge.screen(picture.rgb, policy)
        for rule, text in zip(verdict.rules, texts, strict=True):
            (shown if labels[picture.image][text] else absent).append(rule.probability)
    assert len(shown) > 15 and len(absent) > 500
    wins = np.greater.outer(shown, absent).mean()  # the area under the ROC curve
    assert wins > 0.75


def test_the_bundle_is_that_of_the_checkpoint(exported: tuple[Path, Manifest]) -> None:
    manifest = Bundle.open(exported[0], verify=True).manifest
    assert (manifest.name, manifest.family) == ("nano-qwen", "qwen2_5_vl")
    assert len(manifest.concepts) == 12
