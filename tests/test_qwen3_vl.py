"""Qwen3-VL against transformers: pixels, logits with and without an image, positions, prompts."""

from copy import deepcopy
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
import tiny_qwen3
from edgejudge.errors import ExportError
from edgejudge.export import open_checkpoint
from edgejudge.models import qwen3_vl
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import canary_image, preprocess
from edgejudge.models.patches import PatchSpec, prepare_patches
from edgejudge.models.prompt import Prompts
from edgejudge.models.rope import rotation
from edgejudge.models.spec import ModelSpec
from edgejudge.models.tokenizer import Tokenizer
from grid_parity import TOLERANCE, Case, case_of, difference, patch_spec, run, spec_of

torch.set_num_threads(1)
IMAGE = tiny_qwen3.IMAGE
SIZES = {  # height, width of each picture in the prompt
    "a square": ((64, 64),),
    "smaller than the table": ((24, 16),),
    "larger than the table": ((70, 100),),
    "one row": ((8, 60),),
    "two pictures": ((40, 24), (30, 64)),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied, grouped KV": {},
    "tied, one KV head per head": {"tied": True, "kv_heads": 4},
    "faint": {"faint": True},
    "as many taps as layers": {"taps": (0, 1, 3)},
    "the last layer tapped": {"taps": (3,)},
    "no taps": {"taps": ()},
}
ORDINARY = "untied, grouped KV"


@cache
def case(variant: str, size: str) -> Case:
    return case_of(qwen3_vl, tiny_qwen3, SIZES[size], **VARIANTS[variant])


def patches() -> PatchSpec:
    return patch_spec(tiny_qwen3, case(ORDINARY, "a square").spec)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, size: str) -> None:
    assert difference(case(variant, size)) < TOLERANCE


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_any_split_into_chunks_gives_the_same_logits(data: st.DataObject) -> None:
    truth = case(ORDINARY, "larger than the table")
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, len(truth.ids) - 1), max_size=6))))
    assert np.abs(run(truth, truth.spec, truth.weights, cuts) - truth.logits).max() < TOLERANCE


def with_vision(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return replace(spec, vision=replace(spec.vision, **changes))


def with_text(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return replace(spec, text=replace(spec.text, **changes))


SPEC_MUTATIONS = {
    "vision eps": ("faint", lambda s: with_vision(s, eps=1e-4)),
    "vision activation": (ORDINARY, lambda s: with_vision(s, activation="gelu")),
    "another layer tapped": (ORDINARY, lambda s: with_vision(s, taps=(0, 1))),
    "one tap fewer": (ORDINARY, lambda s: with_vision(s, taps=(0,))),
    "text eps": ("faint", lambda s: with_text(s, eps=1e-6)),
    "rope theta": (ORDINARY, lambda s: with_text(s, rope_theta=1e5)),
    "rope sections": (ORDINARY, lambda s: with_text(s, rope_sections=(8, 4, 4))),
    "sections in runs": (ORDINARY, lambda s: with_text(s, rope_interleaved=False)),
    "queries as they are": (ORDINARY, lambda s: with_text(s, qk_norm=False)),
}


@pytest.mark.parametrize("mutation", SPEC_MUTATIONS)
def test_a_wrong_number_fails_parity(mutation: str) -> None:
    variant, change = SPEC_MUTATIONS[mutation]
    truth = case(variant, "larger than the table")
    assert difference(truth, change(truth.spec)) > TOLERANCE


FEED_MUTATIONS = {
    "vision rope": lambda f: {**f, "rope_cos": np.ones_like(f["rope_cos"])},
    "rows for columns": lambda f: {
        **f,
        **{k: np.roll(f[k], f[k].shape[1] // 2, axis=1) for k in ("rope_cos", "rope_sin")},
    },
    "nearest row of the table": lambda f: {
        **f,
        "table_shares": (f["table_shares"] == f["table_shares"].max(1, keepdims=True)).astype("f4"),
    },
    "table in reading order": lambda f: {**f, "table_rows": np.sort(f["table_rows"], axis=0)},
}


@pytest.mark.parametrize("mutation", FEED_MUTATIONS)
def test_a_wrong_place_fails_parity(mutation: str) -> None:
    truth = case(ORDINARY, "larger than the table")
    wrong = replace(truth, feeds=[FEED_MUTATIONS[mutation](f) for f in truth.feeds])
    assert difference(wrong) > TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "model.visual.patch_embed.proj.bias",
        "model.visual.blocks.0.attn.qkv.bias",
        "model.visual.blocks.2.mlp.linear_fc1.bias",
        "model.visual.blocks.3.norm2.bias",
        "model.visual.merger.norm.weight",
        "model.visual.merger.linear_fc2.bias",
        "model.visual.deepstack_merger_list.0.norm.weight",
        "model.visual.deepstack_merger_list.1.linear_fc1.bias",
        "model.language_model.layers.0.self_attn.q_norm.weight",
        "model.language_model.layers.1.self_attn.k_norm.weight",
        "model.language_model.layers.2.post_attention_layernorm.weight",
    ],
)
def test_any_ignored_bias_or_norm_fails_parity(name: str) -> None:
    truth = case(ORDINARY, "a square")
    neutral = np.zeros_like if name.endswith("bias") else np.ones_like
    mutated = tiny.Held({**truth.weights.arrays, name: neutral(truth.weights(name))})
    assert difference(truth, weights=mutated) > TOLERANCE


def test_tables_of_taps_are_not_exchanged() -> None:
    truth = case(ORDINARY, "a square")
    stem = "model.visual.deepstack_merger_list"
    swapped = {
        name.replace(f"{stem}.0", f"{stem}.x").replace(f"{stem}.1", f"{stem}.0"): array
        for name, array in truth.weights.arrays.items()
    }
    swapped = {name.replace(f"{stem}.x", f"{stem}.1"): array for name, array in swapped.items()}
    assert difference(truth, weights=tiny.Held(swapped)) > TOLERANCE


# --- preprocessing and positions -----------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(height=st.integers(1, 260), width=st.integers(1, 260))
def test_pixels_equal_the_processor(height: int, width: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    rgb = canary_image(height, width)
    if max(height, width) > 200 * min(height, width):
        return
    wanted = Qwen2VLImageProcessorPil(**tiny_qwen3.PROCESSOR)(
        rgb, return_tensors="np", input_data_format="channels_last"
    )
    found = preprocess(rgb, patches())
    assert wanted["image_grid_thw"].tolist() == [[1, 2 * found.rows, 2 * found.cols]]
    assert np.abs(found.feeds["patches"] - wanted["pixel_values"]).max() < 1e-5


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 40), cols=st.integers(1, 40), side=st.integers(1, 48))
def test_a_stretched_table_is_that_of_transformers(rows: int, cols: int, side: int) -> None:
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    spec = replace(patches(), table_side=side, min_pixels=1, max_pixels=10**7)
    seen = prepare_patches(np.zeros((rows * 8, cols * 8, 3), np.uint8), spec)
    grid = torch.tensor([[1, 2 * rows, 2 * cols]])
    found, shares = get_vision_interpolation_indices_and_weights(
        grid, side, align_corners=True, spatial_merge_size=2
    )
    assert (seen.feeds["table_rows"] == found.numpy()).all()
    assert np.abs(seen.feeds["table_shares"] - shares.numpy()).max() < 1e-6
    assert np.abs(seen.feeds["table_shares"].sum(1) - 1).max() < 1e-5


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.integers(0, 4000)] * 3), min_size=1, max_size=5))
def test_interleaved_positions_turn_as_in_transformers(places: list[tuple[int, ...]]) -> None:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    model = _model()
    positions = np.array(places, np.int64).T
    theirs = Qwen3VLTextRotaryEmbedding(model.config.text_config)(
        torch.zeros(1), torch.from_numpy(positions)[:, None]
    )
    ours = rotation(positions, spec_of(qwen3_vl, model).text)
    for wanted, found in zip(theirs, ours, strict=True):
        half = wanted[0, :, : found.shape[1]]
        assert np.abs(half.numpy() - found).max() < 1e-6


@cache
def _model() -> Any:
    return tiny_qwen3.make_model()


# --- config and prompt ---------------------------------------------------------------------------


def test_configs_of_old_and_new_transformers_mean_the_same() -> None:
    new = tiny_qwen3.make_model(tied=True).config.to_dict()
    old = deepcopy(new)
    rope = old["text_config"].pop("rope_parameters")
    old["text_config"]["rope_theta"] = rope.pop("rope_theta")
    old["text_config"]["rope_scaling"] = rope
    old["vision_config"]["model_type"] = "qwen3_vl"
    del old["vision_config"]["rope_parameters"]
    read = qwen3_vl.read_spec
    assert read(HfConfig(old, "config.json")) == read(HfConfig(new, "config.json"))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("text_config", "attention_bias", True, "'attention_bias' is True"),
        ("text_config", "hidden_act", "gelu", "'hidden_act' is 'gelu'"),
        ("text_config", "num_hidden_layers", 1, "names 2 layers, the text model has 1"),
        ("text_config", "rope_parameters", {"mrope_section": [16, 8]}, "must be three that add up"),
        (
            "text_config",
            "rope_parameters",
            {"mrope_section": [6, 5, 5], "mrope_interleaved": False},
            "'mrope_interleaved' is False",
        ),
        ("vision_config", "out_hidden_size", 63, "'out_hidden_size' is 63"),
        ("vision_config", "num_position_embeddings", 35, "is 35, expected a square"),
        ("vision_config", "deepstack_visual_indexes", [2, 0], r"must rise, got \[2, 0\]"),
        ("vision_config", "deepstack_visual_indexes", [4], "must be layers of 4, got"),
        ("vision_config", "hidden_act", "gelu", "'hidden_act' is 'gelu'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    section: str, key: str, value: object, message: str
) -> None:
    config = tiny_qwen3.make_model().config.to_dict()
    config[section][key] = value
    with pytest.raises(ExportError, match=message):
        qwen3_vl.read_spec(HfConfig(config, "config.json"))


CHAT = "<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"


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
    special=st.sampled_from(tiny_qwen3.SPECIALS),
    after=st.text(max_size=4),
)
def test_special_tokens_in_user_text_are_text(before: str, special: str, after: str) -> None:
    prompts, _ = _prompts()
    text, tail = before + special + after, len(prompts.record.tail)
    for ids in (prompts.branch_ids(text), prompts.request_ids(text)):
        assert ids[:-tail] and min(ids[:-tail]) >= len(tiny_qwen3.SPECIALS)


@cache
def _prompts() -> tuple[Prompts, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        plain = tiny.make_tokenizer(path, tiny_qwen3.SPECIALS)
        tokenizer = Tokenizer(path)
    spec = case(ORDINARY, "a square").spec
    record = qwen3_vl.prompt_record(tokenizer, spec, patches(), "Is {condition} visible?")
    return Prompts(record, IMAGE, lambda: tokenizer), plain


def test_a_checkpoint_as_the_hub_has_it_opens(tmp_path: Path) -> None:
    """Names of weights are those that transformers writes, tied and untied."""
    for tied in (False, True):
        folder = tiny_qwen3.make_checkpoint(tmp_path / str(tied), tied=tied)
        opened = open_checkpoint(folder)
        assert opened.spec.text.tie_word_embeddings is tied
        assert opened.spec.width_at(0) == 3 * 64 and opened.spec.width_at(2) == 64
