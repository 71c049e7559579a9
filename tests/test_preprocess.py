"""Preprocessing against transformers' Pillow-based processor, and the layout of its views."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgejudge.errors import ExportError
from edgejudge.models.image import canary_image, preprocess
from edgejudge.models.tiles import TileSpec, grid_of, read_tile_spec
from edgejudge.models.vision_input import read_processor


def make_spec(**changes: Any) -> TileSpec:
    values: dict[str, Any] = {
        "kind": "tiles",
        "longest_edge": 96,
        "view": 24,
        "tiling": True,
        "resample": "LANCZOS",
        "rescale": 1 / 255,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.25, 0.5),
    }
    return TileSpec(**{**values, **changes})


def picture(height: int, width: int) -> Any:
    """Noise over a gradient: resampling has something to get wrong."""
    rng = np.random.default_rng(height * 1000 + width)
    base = canary_image(height, width).astype(int)
    return np.clip(base + rng.integers(-60, 60, base.shape), 0, 255).astype(np.uint8)


def truth(rgb: Any, spec: TileSpec) -> Any:
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": spec.longest_edge},
        max_image_size={"longest_edge": spec.view},
        do_image_splitting=spec.tiling,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )
    return processor(
        rgb, return_row_col_info=True, return_tensors="np", input_data_format="channels_last"
    )


@pytest.mark.parametrize("tiling", [True, False])
@pytest.mark.parametrize("longest_edge", [96, 95, 24])
@settings(max_examples=40, deadline=None, derandomize=True)
@example(height=1, width=1)
@example(height=1, width=300)
@example(height=240, width=60)
@example(height=97, width=131)
@given(height=st.integers(1, 260), width=st.integers(1, 260))
def test_pixels_equal_the_processor(
    tiling: bool, longest_edge: int, height: int, width: int
) -> None:
    spec = make_spec(tiling=tiling, longest_edge=longest_edge)
    rgb = picture(height, width)
    wanted, found = truth(rgb, spec), preprocess(rgb, spec)
    assert found.feeds["pixel_values"].shape == wanted["pixel_values"][0].shape
    assert np.abs(found.feeds["pixel_values"] - wanted["pixel_values"][0]).max() < 1e-5
    assert [[found.rows]] == wanted["rows"] and [[found.cols]] == wanted["cols"]
    assert grid_of(height, width, spec) == (found.rows, found.cols)
    assert max(found.rows, found.cols) <= spec.max_grid
    # Every view is a full square, so no model of the family needs a pixel mask.
    assert wanted["pixel_attention_mask"].all()


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4), (4, 4, 4)])
def test_anything_but_rgb_pixels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        preprocess(np.zeros(shape, np.uint8), make_spec())
    with pytest.raises(ValueError, match="expected uint8"):
        preprocess(np.zeros((4, 4, 3)), make_spec())  # type: ignore[arg-type]


CONFIG = {
    "do_image_splitting": False,
    "size": {"longest_edge": 96},
    "max_image_size": {"longest_edge": 24},
    "resample": 1,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.25, 0.5],
}


def test_both_forms_of_the_processor_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": CONFIG}))
    nested = read_tile_spec(read_processor(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    assert nested == read_tile_spec(read_processor(tmp_path)) == make_spec(tiling=False)
    assert TileSpec.from_json(nested.to_json()) == nested


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_normalize": False}, "'do_normalize' is False"),
        ({"resample": 9}, "'resample' is 9"),
        ({"image_mean": [0.5]}, "'image_mean' must be three numbers"),
        ({"size": {"height": 3}}, "'longest_edge' is missing"),
        ({"max_image_size": None}, "'max_image_size' must be an object"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ExportError, match=message):
        read_tile_spec(read_processor(tmp_path))


def test_a_checkpoint_without_preprocessing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="neither preprocessor_config.json nor"):
        read_tile_spec(read_processor(tmp_path))


def test_the_canary_is_the_same_picture_everywhere() -> None:
    import hashlib

    found = hashlib.sha256(canary_image(48, 96).tobytes()).hexdigest()
    assert found == CANARY_SHA256


# Made by hashing canary_image(48, 96); bundles in the world depend on it.
CANARY_SHA256 = "36fb62c6dda7f4d8f52f9714507b27a2c8a3bb6cba4143bd4ca764ab584af5c5"
