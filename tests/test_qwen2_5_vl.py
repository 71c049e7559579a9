"""Qwen2.5-VL against transformers: pixels, logits with and without an image, prompts, bundles."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
import tiny_qwen
from edgejudge.bundle import Bundle
from edgejudge.errors import ExportError, InputError
from edgejudge.export import export, open_checkpoint
from edgejudge.models import qwen2_5_vl
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.patches import PatchSpec, fit, prepare_patches
from edgejudge.models.prompt import Prompts
from edgejudge.models.spec import ModelSpec
from edgejudge.models.tokenizer import Tokenizer
from grid_parity import TOLERANCE, Case, case_of, difference, patch_spec, run

torch.set_num_threads(1)
IMAGE = tiny_qwen.IMAGE
SIZES = {  # height, width of each picture in the prompt
    "fills its windows": ((64, 64),),
    "smaller than a window": ((24, 16),),
    "no multiple of windows": ((70, 100),),
    "two pictures": ((40, 24), (30, 64)),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied, grouped KV": {},
    "tied, one KV head per head": {"tied": True, "kv_heads": 4},
    "faint": {"faint": True},
}
ORDINARY = "untied, grouped KV"


@cache
def case(variant: str, size: str) -> Case:
    return case_of(qwen2_5_vl, tiny_qwen, SIZES[size], **VARIANTS[variant])


def patches() -> PatchSpec:
    return patch_spec(tiny_qwen, case(ORDINARY, "fills its windows").spec)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, size: str) -> None:
    assert difference(case(variant, size)) < TOLERANCE


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_any_split_into_chunks_gives_the_same_logits(data: st.DataObject) -> None:
    truth = case(ORDINARY, "no multiple of windows")
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, len(truth.ids) - 1), max_size=6))))
    assert np.abs(run(truth, truth.spec, truth.weights, cuts) - truth.logits).max() < TOLERANCE


def with_vision(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return replace(spec, vision=replace(spec.vision, **changes))


def with_text(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return replace(spec, text=replace(spec.text, **changes))


SPEC_MUTATIONS = {
    "vision eps": ("faint", lambda s: with_vision(s, eps=1e-4)),
    "another layer looks beyond its window": (ORDINARY, lambda s: with_vision(s, full_layers=(2,))),
    "no layer looks beyond its window": (ORDINARY, lambda s: with_vision(s, full_layers=())),
    "text eps": ("faint", lambda s: with_text(s, eps=1e-6)),
    "rope theta": (ORDINARY, lambda s: with_text(s, rope_theta=1e5)),
    "rope sections": (ORDINARY, lambda s: with_text(s, rope_sections=(3, 3, 2))),
    "no rope sections": (ORDINARY, lambda s: with_text(s, rope_sections=(8,))),
}


@pytest.mark.parametrize("mutation", SPEC_MUTATIONS)
def test_a_wrong_number_fails_parity(mutation: str) -> None:
    variant, change = SPEC_MUTATIONS[mutation]
    truth = case(variant, "no multiple of windows")
    assert difference(truth, change(truth.spec)) > TOLERANCE


FEED_MUTATIONS = {
    "vision rope": lambda f: {**f, "rope_cos": np.ones_like(f["rope_cos"])},
    "rows for columns": lambda f: {
        **f,
        **{k: np.roll(f[k], f[k].shape[1] // 2, axis=1) for k in ("rope_cos", "rope_sin")},
    },
    "empty slots attended": lambda f: {**f, "window_mask": np.ones_like(f["window_mask"])},
    "visual tokens in window order": lambda f: {**f, "tokens": np.sort(f["tokens"])},
}


@pytest.mark.parametrize("mutation", FEED_MUTATIONS)
def test_a_wrong_place_fails_parity(mutation: str) -> None:
    truth = case(ORDINARY, "no multiple of windows")
    wrong = replace(truth, feeds=[FEED_MUTATIONS[mutation](f) for f in truth.feeds])
    assert difference(wrong) > TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "visual.blocks.0.attn.qkv.bias",
        "visual.blocks.2.mlp.gate_proj.bias",
        "visual.merger.ln_q.weight",
        "visual.merger.mlp.0.bias",
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.2.post_attention_layernorm.weight",
    ],
)
def test_any_ignored_bias_or_norm_fails_parity(name: str) -> None:
    truth = case(ORDINARY, "fills its windows")
    neutral = np.zeros_like if name.endswith("bias") else np.ones_like
    mutated = tiny.Held({**truth.weights.arrays, name: neutral(truth.weights(name))})
    assert difference(truth, weights=mutated) > TOLERANCE


# --- preprocessing -------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(height=st.integers(1, 260), width=st.integers(1, 260))
def test_pixels_equal_the_processor(height: int, width: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    spec = patches()
    rgb = canary_image(height, width)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(InputError, match="200 to 1"):
            prepare_patches(rgb, spec)
        return
    wanted = Qwen2VLImageProcessorPil(**tiny_qwen.PROCESSOR)(
        rgb, return_tensors="np", input_data_format="channels_last"
    )
    found = preprocess(rgb, spec)
    assert wanted["image_grid_thw"].tolist() == [[1, 2 * found.rows, 2 * found.cols]]
    filled = found.feeds["patches"][found.feeds["slots"]]
    assert np.abs(filled - wanted["pixel_values"]).max() < 1e-5


@given(rows=st.integers(1, 40), cols=st.integers(1, 40))
@settings(deadline=None)
def test_every_patch_has_a_slot_in_its_window(rows: int, cols: int) -> None:
    spec = replace(patches(), min_pixels=1, max_pixels=10**6)
    found = prepare_patches(np.zeros((rows * 8, cols * 8, 3), np.uint8), spec).feeds
    slots, places, mask = found["slots"], found["places"], found["window_mask"]
    assert (rows, cols) == tuple(n // 8 for n in fit(rows * 8, cols * 8, spec))
    assert len(set(slots.tolist())) == len(slots) == rows * cols * 4
    assert (places[slots] == np.arange(len(slots))).all()
    assert mask.ravel()[slots].all() and mask.sum() == len(slots)
    assert mask.any(axis=1).all(), "a window of nothing"
    y, x = np.divmod(np.arange(rows * cols), cols)
    window = y // 4 * -(-cols // 4) + x // 4
    assert (slots[::4] // mask.shape[1] == window).all()


# --- config and prompt ---------------------------------------------------------------------------


def test_configs_of_old_and_new_transformers_mean_the_same() -> None:
    new = tiny_qwen.make_model(tied=True).config.to_dict()
    old = {**new, **new["text_config"], "model_type": "qwen2_5_vl"}
    del old["text_config"]
    rope = old.pop("rope_parameters")
    old["rope_theta"] = rope["rope_theta"]
    old["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    old["vision_config"] = {**new["vision_config"], "model_type": "qwen2_5_vl"}
    del old["vision_config"]["rope_parameters"]
    read = qwen2_5_vl.read_spec
    assert read(HfConfig(old, "config.json")) == read(HfConfig(new, "config.json"))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("text_config", "use_sliding_window", True, "'use_sliding_window' is True"),
        ("text_config", "hidden_act", "gelu", "'hidden_act' is 'gelu'"),
        ("vision_config", "out_hidden_size", 63, "'out_hidden_size' is 63"),
        ("vision_config", "window_size", 30, "'window_size' 30 is no multiple of the 8"),
        ("vision_config", "in_channels", 4, "'in_channels' is 4"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    section: str, key: str, value: object, message: str
) -> None:
    config = tiny_qwen.make_model().config.to_dict()
    config[section][key] = value
    with pytest.raises(ExportError, match=message):
        qwen2_5_vl.read_spec(HfConfig(config, "config.json"))


CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "{image}{question}<|im_end|>\n<|im_start|>assistant\n"
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(condition=st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",))))
def test_the_seam_is_the_same_for_any_condition(condition: str) -> None:
    prompts, plain = _prompts()
    image = "<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>"
    question = f"Is {condition} visible?"
    whole = plain.encode(CHAT.format(image=image, question=question)).ids
    assert prompts.prefix_ids(2, 3) + prompts.branch_ids(condition) == whole
    blind = plain.encode(CHAT.format(image="", question=question)).ids
    assert prompts.blind_ids(condition) == blind
    positions = prompts.prefix_positions(2, 3)
    assert positions is not None and positions.shape[1] == len(prompts.prefix_ids(2, 3))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    before=st.text(max_size=4),
    special=st.sampled_from(tiny_qwen.SPECIALS),
    after=st.text(max_size=4),
)
def test_special_tokens_in_user_text_are_text(before: str, special: str, after: str) -> None:
    prompts, _ = _prompts()
    text, tail = before + special + after, len(prompts.record.tail)
    for ids in (prompts.branch_ids(text), prompts.request_ids(text)):
        assert ids[:-tail] and min(ids[:-tail]) >= len(tiny_qwen.SPECIALS)
    blind = prompts.blind_ids(text)[len(prompts.record.blind_head) : -tail]
    assert not {IMAGE, prompts.record.view_open[-1]} & set(blind)


@cache
def _prompts() -> tuple[Prompts, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        plain = tiny.make_tokenizer(path, tiny_qwen.SPECIALS)
        tokenizer = Tokenizer(path)
    spec = case(ORDINARY, "fills its windows").spec
    record = qwen2_5_vl.prompt_record(tokenizer, spec, patches(), "Is {condition} visible?")
    return Prompts(record, IMAGE, lambda: tokenizer), plain


def test_the_largest_picture_can_be_bounded_at_export(tmp_path: Path) -> None:
    checkpoint = tiny_qwen.make_checkpoint(tmp_path / "checkpoint")
    export(open_checkpoint(checkpoint, 32 * 32), tmp_path / "out", recipe="exact")
    manifest = Bundle.open(tmp_path / "out", unsealed=True).manifest
    seen = preprocess(canary_image(400, 300), image_spec(manifest.preprocessing))
    assert seen.rows * seen.cols * 64 <= 32 * 32
    with pytest.raises(ExportError, match="the limit is 100 pixels"):
        open_checkpoint(checkpoint, 100)
    tiles = tiny.make_checkpoint(tmp_path / "tiles")
    with pytest.raises(ExportError, match="this one cuts pictures into tiles of 24 pixels"):
        open_checkpoint(tiles, 1000)
