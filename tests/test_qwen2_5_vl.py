"""Qwen2.5-VL against transformers: pixels, logits with and without an image, prompts, bundles."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiny
import tiny_qwen
from edgejudge.bundle import Bundle
from edgejudge.errors import ExportError, InputError
from edgejudge.export import Cut, Exact, Reference, export, open_checkpoint
from edgejudge.goldens import graph_error
from edgejudge.models import qwen2_5_vl
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.patches import PatchSpec, fit, prepare_patches, read_patch_spec
from edgejudge.models.prompt import Prompts
from edgejudge.models.spec import ModelSpec
from edgejudge.models.tokenizer import Tokenizer
from edgejudge.runtime import Engine, Settings

torch.set_num_threads(1)
IMAGE = tiny_qwen.IMAGE
TOLERANCE = 1e-4
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


def config_of(model: Any) -> HfConfig:
    return HfConfig(model.config.to_dict(), "config.json")


def patch_spec(spec: ModelSpec) -> PatchSpec:
    return read_patch_spec(HfConfig(tiny_qwen.PROCESSOR, "preprocessor_config.json"), spec)


@dataclass(frozen=True)
class Case:
    spec: ModelSpec
    weights: Any
    ids: list[int]
    positions: NDArray[np.int64]
    feeds: list[dict[str, NDArray[Any]]]  # of each picture
    logits: NDArray[np.float32]  # [S, vocab] with the image
    blind_ids: list[int]
    blind_logits: NDArray[np.float32]


@cache
def case(variant: str, size: str) -> Case:
    model = tiny_qwen.make_model(**VARIANTS[variant])
    spec = qwen2_5_vl.read_spec(config_of(model))
    seen = [prepare_patches(canary_image(*s), patch_spec(spec)) for s in SIZES[size]]
    rng = np.random.default_rng(5)
    text = rng.integers(len(tiny_qwen.SPECIALS), tiny.VOCABULARY, (len(seen) + 1, 6)).tolist()
    ids, positions, start = [1, *text[0]], [np.tile(np.arange(7), (3, 1))], 7
    for picture, after in zip(seen, text[1:], strict=True):
        y, x = np.divmod(np.arange(picture.rows * picture.cols), picture.cols)
        ids += [3, *[IMAGE] * len(y), 4, *after]
        positions += [np.full((3, 1), start), start + 1 + np.stack([0 * y, y, x])]
        start += 1 + max(picture.rows, picture.cols)
        positions.append(start + np.tile(np.arange(7), (3, 1)))
        start += 7
    patches = np.concatenate([p.feeds["patches"][p.feeds["slots"]] for p in seen])
    grid = torch.tensor([[1, 2 * p.rows, 2 * p.cols] for p in seen])
    blind = [i for i in ids if i != IMAGE]
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(
            input_ids=tokens,
            pixel_values=torch.from_numpy(patches),
            image_grid_thw=grid,
            mm_token_type_ids=(tokens == IMAGE).int(),
        ).logits[0]
        blind_logits = model(input_ids=torch.tensor([blind])).logits[0]
    state = {_hub_name(name): w.numpy() for name, w in model.state_dict().items()}
    return Case(
        spec,
        tiny.Held(state),
        ids,
        np.concatenate(positions, axis=1),
        [p.feeds for p in seen],
        logits.numpy(),
        blind,
        blind_logits.numpy(),
    )


def _hub_name(name: str) -> str:
    """A module's name in memory -> in a checkpoint."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def run(truth: Case, spec: ModelSpec, weights: Any, cuts: tuple[int, ...]) -> NDArray[np.float32]:
    reference = Reference(spec, Exact(weights), IMAGE)
    visual = torch.cat([reference.encode(feeds) for feeds in truth.feeds])
    hidden, used = [], 0
    for begin, end in zip((0, *cuts), (*cuts, len(truth.ids)), strict=True):
        chunk = truth.ids[begin:end]
        rows = chunk.count(IMAGE)
        piece = visual[used : used + rows]
        hidden.append(reference.extend(chunk, piece, truth.positions[:, begin:end]))
        used += rows
    return reference.logits(torch.cat(hidden)).numpy()


def difference(truth: Case, spec: ModelSpec | None = None, weights: Any = None) -> float:
    spec, weights = spec or truth.spec, weights or truth.weights
    seen = run(truth, spec, weights, ()) - truth.logits
    reference = Reference(spec, Exact(weights), IMAGE)
    blind = reference.logits(reference.prefill(truth.blind_ids)).numpy() - truth.blind_logits
    return max(float(np.abs(seen).max()), float(np.abs(blind).max()))


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

    spec = patch_spec(case(ORDINARY, "fills its windows").spec)
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
    patches = found.feeds["patches"][found.feeds["slots"]]
    assert np.abs(patches - wanted["pixel_values"]).max() < 1e-5


@given(rows=st.integers(1, 40), cols=st.integers(1, 40))
@settings(deadline=None)
def test_every_patch_has_a_slot_in_its_window(rows: int, cols: int) -> None:
    spec = replace(
        patch_spec(case(ORDINARY, "fills its windows").spec), min_pixels=1, max_pixels=10**6
    )
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
    record = qwen2_5_vl.prompt_record(tokenizer, spec, patch_spec(spec), "Is {condition} visible?")
    return Prompts(record, IMAGE, lambda: tokenizer), plain


# --- the whole way -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("qwen")
    tiny_qwen.make_checkpoint(root / "checkpoint", dtype="bfloat16", tied=True)
    for recipe in ("exact", "w8", "small"):
        export(root / "checkpoint", root / recipe, recipe=recipe)
    export(root / "checkpoint", root / "parts", recipe="exact", cut=Cut(3))
    return {name: root / name for name in ("exact", "w8", "small", "parts")}


def prefilled(folder: Path, chunk: int = 512) -> tuple[Engine, Any]:
    bundle = Bundle.open(folder, unsealed=True)
    engine = Engine.open(bundle, Settings(1, chunk))
    manifest = bundle.manifest
    seen = preprocess(canary_image(70, 100), image_spec(manifest.preprocessing))
    prompts = Prompts(
        manifest.prompt, manifest.tokens.image, lambda: Tokenizer(bundle.file("tokenizer.json"))
    )
    grid = (seen.rows, seen.cols)
    visual = engine.encode_image(seen.feeds)
    return engine, engine.prefill(
        prompts.prefix_ids(*grid), visual, prompts.prefix_positions(*grid)
    )


@pytest.mark.parametrize("recipe", ["exact", "w8", "small"])
def test_the_graphs_equal_the_reference(folders: dict[str, Path], recipe: str) -> None:
    bundle = Bundle.open(folders[recipe], unsealed=True)
    error = graph_error(bundle, Engine.open(bundle, threads=1))
    assert error < (1e-4 if recipe == "exact" else 1e-3)


BRANCHES = [[70, 71, 72], [90], [60, 61, 62, 63, 64, 65, 66]]


@pytest.mark.parametrize("recipe", ["exact", "w8", "small"])
def test_packed_and_chunked_are_the_same_judge(folders: dict[str, Path], recipe: str) -> None:
    engine, prefix = prefilled(folders[recipe])
    alone = engine.label_probabilities(engine.score(prefix, BRANCHES, packed=False))
    packed = engine.label_probabilities(engine.score(prefix, BRANCHES))
    assert np.abs(packed - alone).max() < 1e-5
    small, prefix = prefilled(folders[recipe], chunk=7)
    assert np.abs(small.label_probabilities(small.score(prefix, BRANCHES)) - alone).max() < 1e-5


def test_parts_are_the_whole(folders: dict[str, Path]) -> None:
    whole, prefix = prefilled(folders["exact"])
    parts, other = prefilled(folders["parts"])
    assert (whole.score(prefix, BRANCHES) == parts.score(other, BRANCHES)).all()


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
