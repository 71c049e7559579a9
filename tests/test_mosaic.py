"""Mosaics against transformers' Pillow-based processor, and what a bundle may say of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

import tiny_internvl
from edgejudge.errors import BundleError, ExportError
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.mosaic import MosaicSpec, mosaic_of, read_mosaic_spec
from edgejudge.models.vision_input import read_processor

CONFIG: dict[str, Any] = tiny_internvl.PROCESSOR


def spec_of(**changes: Any) -> MosaicSpec:
    return read_mosaic_spec(HfConfig({**CONFIG, **changes}, "preprocessor_config.json"))


def picture(height: int, width: int) -> Any:
    """Noise over a gradient: resampling has something to get wrong."""
    rng = np.random.default_rng(height * 1000 + width)
    base = canary_image(height, width).astype(int)
    return np.clip(base + rng.integers(-60, 60, base.shape), 0, 255).astype(np.uint8)


LIMITS = [(1, 12), (1, 6), (2, 5), (4, 4), (1, 1)]


@pytest.mark.parametrize(("least", "most"), LIMITS)
@settings(max_examples=40, deadline=None, derandomize=True)
@example(height=1, width=1)
@example(height=1, width=300)
@example(height=64, width=128)  # as near to 1 x 2 as to 2 x 4
@example(height=65, width=130)
@example(height=150, width=100)
@given(height=st.integers(1, 260), width=st.integers(1, 260))
def test_pixels_equal_the_processor(least: int, most: int, height: int, width: int) -> None:
    changes = {"min_patches": least, "max_patches": most}
    spec, rgb = spec_of(**changes), picture(height, width)
    # The family's own processor asks for tiles, whatever the file says.
    processor = GotOcr2ImageProcessorPil(**{**CONFIG, **changes, "crop_to_patches": True})
    wanted = processor(rgb, return_tensors="np", input_data_format="channels_last")
    found = preprocess(rgb, spec)
    pixels = found.feeds["pixel_values"]
    assert pixels.shape == wanted["pixel_values"].shape
    assert np.abs(pixels - wanted["pixel_values"]).max() < 1e-5
    assert (found.rows, found.cols) == mosaic_of(height, width, spec)
    assert max(found.rows, found.cols) <= spec.max_grid
    tiles = found.rows * found.cols
    assert len(pixels) == wanted["num_patches"][0] == tiles + 1 and tiles != 1


@settings(max_examples=300, deadline=None)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), least=st.integers(1, 12))
def test_the_grid_is_that_of_the_processor_for_pictures_of_any_size(
    height: int, width: int, least: int
) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    spec = spec_of(size={"height": 448, "width": 448}, min_patches=least, max_patches=12)
    cols, rows = get_optimal_tiled_canvas((height, width), (448, 448), least, 12)
    assert mosaic_of(height, width, spec) == ((0, 0) if (rows, cols) == (1, 1) else (rows, cols))


@pytest.mark.parametrize(
    ("size", "grid"), [((448, 896), (1, 2)), ((632, 1264), (1, 2)), ((635, 1270), (2, 4))]
)
def test_of_grids_as_near_a_larger_picture_takes_the_larger(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    spec = spec_of(size={"height": 448, "width": 448}, max_patches=12)
    assert mosaic_of(*size, spec) == grid


def test_views_are_tiles_in_reading_order_and_the_whole_last() -> None:
    """A picture of six colours, each where a tile is."""
    spec = spec_of()
    colours = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    rgb = np.repeat(np.repeat(colours, 64, 0), 64, 1)[..., None].repeat(3, -1)
    found = preprocess(rgb, spec)
    assert (found.rows, found.cols) == (2, 3)
    means = found.feeds["pixel_values"][:, 0, 8:24, 8:24].mean((1, 2)) * 0.229 + 0.485
    assert np.allclose(means[:6] * 255, colours.ravel(), atol=1)
    assert abs(means[6] * 255 - colours.mean()) < 15 and len(means) == 7


def test_both_forms_of_the_processor_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": CONFIG}))
    nested = read_mosaic_spec(read_processor(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    assert nested == read_mosaic_spec(read_processor(tmp_path))
    assert image_spec(nested.to_json()) == nested
    height, width = nested.example_size
    assert preprocess(picture(height, width), nested).rows == 1, "tiles and the whole"


def test_absent_keys_have_the_defaults_of_transformers() -> None:
    bare = read_mosaic_spec(HfConfig({"size": {"height": 32, "width": 32}}, "x"))
    theirs = GotOcr2ImageProcessorPil()
    assert (bare.min_tiles, bare.max_tiles) == (theirs.min_patches, theirs.max_patches)
    assert (bare.mean, bare.std) == (tuple(theirs.image_mean), tuple(theirs.image_std))
    assert (bare.resample, bare.rescale) == (theirs.resample.name, theirs.rescale_factor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_normalize": False}, "'do_normalize' is False"),
        ({"resample": 9}, "'resample' is 9"),
        ({"image_std": [0.5]}, "'image_std' must be three numbers"),
        ({"size": {"longest_edge": 32}}, "'height' is missing"),
        ({"size": {"height": 32, "width": 30}}, "'width' is 30, only 32"),
        ({"max_patches": 65}, "'max_patches' 65 is not from 1 to 64"),
        ({"min_patches": 7}, "'min_patches' 7 is not from 1 to 6"),
        ({"min_patches": 0}, "'min_patches' 0 is not from 1 to 6"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ExportError, match=message):
        read_mosaic_spec(read_processor(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view": 0}, "preprocessing.view: 0 is not from 1 to 4096"),
        ({"max_tiles": 10**6}, "preprocessing.max_tiles: 1000000 is not from 1 to 64"),
        ({"min_tiles": 13}, "preprocessing.min_tiles: 13 is not from 1 to 6"),
        ({"std": [1.0, 0.0, 1.0]}, "preprocessing.std"),
        ({"resample": "SINC"}, "preprocessing.resample"),
        ({"kind": "mosaik"}, "expected 'tiles', 'mosaic', 'patches' or 'anyres'"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_bundle_that_says_what_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        image_spec({**spec_of().to_json(), **change})
