"""Pictures at any resolution: pixels and packing against transformers, runs of packed tokens."""

import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiny_llava
from edgejudge.errors import BundleError, ExportError
from edgejudge.models import anyres, llava_onevision
from edgejudge.models.anyres import AnyResSpec, lines_of, prepare_anyres
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import canary_image, preprocess
from edgejudge.models.packing import PACKED_ROWS, Packing
from edgejudge.models.preset import preset_named
from edgejudge.runtime.views import Views

VIEW = tiny_llava.VIEW
torch.set_num_threads(1)


@cache
def config() -> HfConfig:
    return HfConfig(tiny_llava.make_model().config.to_dict(), "config.json")


@cache
def tiny_spec() -> AnyResSpec:
    return tiny_llava.make_spec(config())


def tokens_by_transformers(processor: Any, spec: AnyResSpec, height: int, width: int) -> int:
    """How many image tokens its processor writes for a picture."""
    from transformers.models.llava_onevision.processing_llava_onevision import (
        LlavaOnevisionProcessor as Kind,
    )

    whole: Any = SimpleNamespace(
        image_processor=processor,
        num_image_tokens=spec.grid**2,
        vision_aspect_ratio=f"anyres_max_{spec.most}",
    )
    whole._get_unpadded_features = lambda *sizes: Kind._get_unpadded_features(whole, *sizes)
    return int(Kind._get_number_of_features(whole, height, width, spec.view, spec.view))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(height=st.integers(1, 120), width=st.integers(1, 120))
def test_pixels_and_tokens_equal_the_processor(height: int, width: int) -> None:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    spec = tiny_spec()
    rgb = canary_image(height, width)
    processor = LlavaOnevisionImageProcessorPil(**tiny_llava.PROCESSOR)
    wanted = processor(rgb, return_tensors="np", input_data_format="channels_last")
    found = preprocess(rgb, spec)
    assert found.feeds["pixel_values"].shape == wanted["pixel_values"][0].shape
    assert np.abs(found.feeds["pixel_values"] - wanted["pixel_values"][0]).max() < 1e-5
    tokens = tokens_by_transformers(processor, spec, height, width)
    assert len(found.feeds[PACKED_ROWS]) == tokens == 16 + found.rows * (found.cols + 1)
    assert (found.rows, found.cols) == lines_of(height, width, spec)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(height=st.integers(1, 6000), width=st.integers(1, 6000))
def test_lines_of_the_published_model(height: int, width: int) -> None:
    preset = preset_named("llava-onevision-0.5b")
    model = HfConfig(preset.config, "config.json")
    spec = llava_onevision.read_image_spec(
        HfConfig(preset.processor, "preprocessor_config.json"),
        llava_onevision.read_spec(model),
        model,
    )
    assert (spec.view, spec.grid, spec.most, len(spec.sizes)) == (384, 27, 9, 36)
    rows, cols = lines_of(height, width, spec)
    processor = SimpleNamespace(image_grid_pinpoints=preset.processor["image_grid_pinpoints"])
    assert tokens_by_transformers(processor, spec, height, width) == 729 + rows * (cols + 1)
    assert rows * cols <= 1.21 * 9 * 729


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    most=st.integers(1, 12),
    grid=st.sampled_from([1, 2, 3, 4, 6, 9]),
)
def test_packing_is_what_the_model_does(height: int, width: int, most: int, grid: int) -> None:
    """Of any picture, view and bound, as transformers packs features."""
    from transformers import LlavaOnevisionModel

    spec = replace(tiny_spec(), most=most, grid=grid)
    places, shares, rows, cols = anyres._packed(height, width, spec)
    canvas = anyres._canvas(height, width, spec)
    high, wide = (side // VIEW for side in canvas)
    # transformers fails where lines are shrunk to nothing; here they are none.
    filled = anyres._filled(height, width, high * grid, wide * grid)
    assume((rows and cols) or not all(filled))
    rng = np.random.default_rng(height * width)
    features = rng.standard_normal((1 + high * wide, grid**2, 3)).astype(np.float32)
    end = rng.standard_normal(3).astype(np.float32)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=VIEW, patch_size=VIEW // grid),
        image_grid_pinpoints=tiny_llava.SIZES,
    )
    (wanted,), _ = LlavaOnevisionModel.pack_image_features(
        cast(Any, SimpleNamespace(config=config)),
        [torch.from_numpy(features)],
        torch.tensor([[height, width]]),
        torch.from_numpy(end),
        f"anyres_max_{most}",
    )
    ends = np.broadcast_to(end, (len(features), 1, 3))
    graph = np.concatenate([ends, features], axis=1).reshape(-1, 3)
    views = Views([], (len(graph),), [graph], Packing(places, shares))
    found = views.tokens(0, views.count)
    assert found.shape == tuple(wanted.shape) and len(found) == grid**2 + rows * (cols + 1)
    assert np.abs(found - wanted.numpy()).max() < 1e-5


@settings(max_examples=80, deadline=None)
@given(data=st.data(), height=st.integers(1, 120), width=st.integers(1, 120))
def test_any_run_of_tokens_is_that_of_the_whole(
    data: st.DataObject, height: int, width: int
) -> None:
    """However views are grouped, from the groups that it needs alone."""
    feeds = prepare_anyres(np.zeros((height, width, 3), np.uint8), tiny_spec()).feeds
    left, sizes = len(feeds["pixel_values"]), []
    while left:
        sizes.append(data.draw(st.integers(1, left)))
        left -= sizes[-1]
    sizes = [17 * size for size in sizes]
    rng = np.random.default_rng(1)
    graph = [rng.standard_normal((size, 5)).astype(np.float32) for size in sizes]
    whole = Views([], tuple(sizes), [*graph], Packing.of(feeds))
    begin = data.draw(st.integers(0, whole.count - 1))
    end = data.draw(st.integers(begin + 1, whole.count))
    needed = whole.groups(begin, end)
    some: list[NDArray[np.float32] | None] = [
        found if place in needed else None for place, found in enumerate(graph)
    ]
    part = Views([], tuple(sizes), some, Packing.of(feeds))
    assert (part.tokens(begin, end) == whole.tokens(0, whole.count)[begin:end]).all()
    for place in needed:  # none of them could be left out
        part = replace(part, found=[None if i == place else f for i, f in enumerate(graph)])
        if len(graph) > 1:
            with pytest.raises(AssertionError, match="a group that is needed"):
                part.tokens(begin, end)


def test_the_first_tokens_need_the_first_view_alone() -> None:
    feeds = prepare_anyres(canary_image(54, 40), tiny_spec()).feeds
    views = Views([], (17,) * 10, [None] * 10, Packing.of(feeds))
    assert views.groups(0, 16) == [0]
    # A line of the upper crops lies across all three of them, and across none below.
    assert views.groups(16, 22) == [1, 2, 3]
    assert views.groups(0, views.count) == list(range(10))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("do_center_crop", True, "'do_center_crop' is True"),
        ("crop_size", {"height": 9, "width": 9}, "'crop_size' is"),
        ("size", {"shortest_edge": 18}, "'height' is missing"),
        ("resample", 9, "'resample' is 9"),
        ("image_mean", [0.5], "'image_mean' must be three numbers"),
    ],
)
def test_a_processor_that_does_otherwise_is_refused_by_name(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        tiny_llava.make_spec(config(), **{key: value})


@pytest.mark.parametrize("sizes", [[], [[18]], [[18, 20]], [[0, 18]], [["18", 18]], [[18, 9000]]])
def test_canvases_that_are_none_are_refused(sizes: Any) -> None:
    model = HfConfig({**config().value, "image_grid_pinpoints": sizes}, "config.json")
    if sizes:  # none means those that transformers has by default
        with pytest.raises(ExportError, match="'image_grid_pinpoints': .*is not a height and"):
            tiny_llava.make_spec(model, image_grid_pinpoints=sizes)
    value = tiny_spec().to_json() | {"sizes": sizes}
    with pytest.raises(BundleError, match=r"preprocessing\.sizes"):
        AnyResSpec.from_json(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("view", 0), ("view", 5000), ("grid", 0), ("grid", 19), ("most", 0), ("most", 10**9)],
)
def test_numbers_that_no_picture_can_be_cut_by_are_refused(field: str, value: int) -> None:
    spec = tiny_spec()
    assert AnyResSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(BundleError, match=f"preprocessing.{field}"):
        AnyResSpec.from_json(spec.to_json() | {field: value})
