"""How CLIP and SigLIP encoders see a picture, against transformers' Pillow-based processors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import tiny
from edgejudge.bundle import Bundle
from edgejudge.cli import main
from edgejudge.errors import BundleError, ExportError
from edgejudge.judge import default_bundle
from edgejudge.models.crop import CropSpec, prepare_crop, read_crop_spec
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import canary_image
from edgejudge.runtime import Engine

PROCESSORS: dict[str, Any] = {
    "clip": lambda: CLIPImageProcessorPil(
        size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}
    ),
    "siglip": lambda: SiglipImageProcessorPil(size={"height": 32, "width": 32}),
}


def spec_of(processor: Any) -> CropSpec:
    return read_crop_spec(HfConfig(json.loads(processor.to_json_string()), "processor"))


@pytest.mark.parametrize("kind", PROCESSORS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(height=st.integers(1, 130), width=st.integers(1, 130))
def test_pixels_equal_transformers(kind: str, height: int, width: int) -> None:
    if max(height, width) > 40 * min(height, width):
        return  # a strip: the resized picture would be enormous
    processor = PROCESSORS[kind]()
    rng = np.random.default_rng(height * 1000 + width)
    rgb = np.clip(canary_image(height, width) + rng.integers(-60, 60, (height, width, 3)), 0, 255)
    rgb = rgb.astype(np.uint8)
    wanted = processor(rgb, return_tensors="np", input_data_format="channels_last")
    found = prepare_crop(rgb, spec_of(processor))
    assert np.abs(found - wanted["pixel_values"]).max() < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"shortest_edge": 20}}, "'shortest_edge' is 20, only 30"),
        ({"crop_size": {"height": 30, "width": 20}}, "'width' is 20, only 30"),
        ({"do_center_crop": False}, "'height' is missing"),
        ({"resample": 9}, "'resample' is 9"),
        ({"image_mean": [1]}, "must be three numbers"),
    ],
)
def test_other_processors_are_refused(change: dict[str, Any], message: str) -> None:
    value = {**json.loads(PROCESSORS["clip"]().to_json_string()), **change}
    with pytest.raises(ExportError, match=message):
        read_crop_spec(HfConfig(value, "processor"))


def test_a_spec_goes_through_json() -> None:
    spec = spec_of(PROCESSORS["clip"]())
    assert CropSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(BundleError, match="unknown key 'surprise'"):
        CropSpec.from_json({**spec.to_json(), "surprise": 1})


def test_a_bundle_without_an_encoder_says_so() -> None:
    engine = Engine.open(Bundle.open(default_bundle()), threads=1)
    with pytest.raises(BundleError, match="has no relevance encoder; add one"):
        engine.relevance(np.zeros((1, 3, 30, 30), np.float32))


def test_without_optimum_the_command_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optimum.exporters.onnx", None)
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", tiling=False)
    command = ["export", str(folder), "--out", str(tmp_path / "out"), "--recipe", "exact"]
    assert main(command) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert main(["add-relevance", str(tmp_path / "out"), str(folder)]) == 2
    assert "needs Optimum" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
