"""InternVL3 against transformers: logits with and without an image, prompts, bundles."""

from collections.abc import Callable
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
import tiny_internvl
from edgejudge.bundle import Bundle
from edgejudge.errors import BundleError, ExportError
from edgejudge.export import Cut, Exact, Reference, export, open_checkpoint
from edgejudge.export.eager import EagerOps
from edgejudge.fidelity import export_bundle
from edgejudge.goldens import graph_error
from edgejudge.models import internvl
from edgejudge.models.fitting import check_fit
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.mosaic import MosaicSpec, prepare_mosaic
from edgejudge.models.prompt import Prompts
from edgejudge.models.spec import ModelSpec
from edgejudge.models.tokenizer import Tokenizer
from edgejudge.runtime import Engine, Settings

torch.set_num_threads(1)
IMAGE = tiny_internvl.IMAGE
TOLERANCE = 1e-4
SIZES = {  # height, width of each picture in the prompt
    "one view": ((30, 36),),
    "a row of tiles": ((32, 70),),
    "rows of tiles": ((90, 60),),
    "two pictures": ((40, 40), (70, 33)),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied, grouped KV": {},
    "tied, one KV head per head": {"tied": True, "kv_heads": 4},
    "faint": {"faint": True},
}
ORDINARY = "untied, grouped KV"


def config_of(model: Any) -> HfConfig:
    return HfConfig(model.config.to_dict(), "config.json")


def mosaic_spec(spec: ModelSpec) -> MosaicSpec:
    config = HfConfig(tiny_internvl.PROCESSOR, "preprocessor_config.json")
    return internvl.read_image_spec(config, spec)


@dataclass(frozen=True)
class Case:
    spec: ModelSpec
    weights: Any
    ids: list[int]
    feeds: list[dict[str, NDArray[Any]]]  # of each picture
    logits: NDArray[np.float32]  # [S, vocab] with the image
    blind_ids: list[int]
    blind_logits: NDArray[np.float32]


@cache
def case(variant: str, size: str) -> Case:
    model = tiny_internvl.make_model(**VARIANTS[variant])
    spec = internvl.read_spec(config_of(model))
    seen = [prepare_mosaic(canary_image(*s), mosaic_spec(spec)) for s in SIZES[size]]
    rng = np.random.default_rng(5)
    text = rng.integers(len(tiny_internvl.SPECIALS), tiny.VOCABULARY, (len(seen) + 1, 6)).tolist()
    ids = [1, *text[0]]
    for picture, after in zip(seen, text[1:], strict=True):
        views = len(picture.feeds["pixel_values"])
        ids += [3, *[IMAGE] * views * spec.view_tokens, 4, *after]
    pixels = np.concatenate([p.feeds["pixel_values"] for p in seen])
    blind = [i for i in ids if i != IMAGE]
    with torch.inference_mode():
        given_pixels = torch.from_numpy(pixels)
        logits = model(input_ids=torch.tensor([ids]), pixel_values=given_pixels).logits[0]
        blind_logits = model(input_ids=torch.tensor([blind])).logits[0]
    state = {_hub_name(name): w.numpy() for name, w in model.state_dict().items()}
    feeds = [p.feeds for p in seen]
    held = tiny.Held(state)
    return Case(spec, held, ids, feeds, logits.numpy(), blind, blind_logits.numpy())


def _hub_name(name: str) -> str:
    """A module's name in memory -> in a checkpoint."""
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    return name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)


def run(
    truth: Case, spec: ModelSpec, weights: Any, cuts: tuple[int, ...] = (), ops: Any = None
) -> NDArray[np.float32]:
    reference = Reference(spec, ops or Exact(weights), IMAGE)
    visual = torch.cat([reference.encode(feeds) for feeds in truth.feeds])
    hidden, used = [], 0
    for begin, end in zip((0, *cuts), (*cuts, len(truth.ids)), strict=True):
        chunk = truth.ids[begin:end]
        rows = chunk.count(IMAGE)
        hidden.append(reference.extend(chunk, visual[used : used + rows]))
        used += rows
    return reference.logits(torch.cat(hidden)).numpy()


def difference(
    truth: Case, spec: ModelSpec | None = None, weights: Any = None, ops: Any = None
) -> float:
    spec, weights = spec or truth.spec, weights or truth.weights
    seen = run(truth, spec, weights, (), ops) - truth.logits
    reference = Reference(spec, Exact(weights), IMAGE)
    blind = reference.logits(reference.prefill(truth.blind_ids)).numpy() - truth.blind_logits
    return max(float(np.abs(seen).max()), float(np.abs(blind).max()))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, size: str) -> None:
    assert difference(case(variant, size)) < TOLERANCE


def test_pictures_of_these_sizes_have_so_many_views() -> None:
    views = {size: [len(f["pixel_values"]) for f in case(ORDINARY, size).feeds] for size in SIZES}
    assert list(views.values()) == [[1], [3], [7], [1, 3]]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_any_split_into_chunks_gives_the_same_logits(data: st.DataObject) -> None:
    truth = case(ORDINARY, "rows of tiles")
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, len(truth.ids) - 1), max_size=6))))
    assert np.abs(run(truth, truth.spec, truth.weights, cuts) - truth.logits).max() < TOLERANCE


def with_vision(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return replace(spec, vision=replace(spec.vision, **changes))


def with_text(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return replace(spec, text=replace(spec.text, **changes))


SPEC_MUTATIONS = {
    "vision eps": ("faint", lambda s: with_vision(s, eps=1e-5)),
    "vision activation": (ORDINARY, lambda s: with_vision(s, activation="gelu_tanh")),
    "text eps": ("faint", lambda s: with_text(s, eps=1e-6)),
    "text activation": (ORDINARY, lambda s: with_text(s, activation="gelu")),
    "rope theta": (ORDINARY, lambda s: with_text(s, rope_theta=1e5)),
    "no bias of queries, keys and values": (ORDINARY, lambda s: with_text(s, qkv_bias=False)),
}


@pytest.mark.parametrize("mutation", SPEC_MUTATIONS)
def test_a_wrong_number_fails_parity(mutation: str) -> None:
    variant, change = SPEC_MUTATIONS[mutation]
    truth = case(variant, "a row of tiles")
    assert difference(truth) < TOLERANCE
    assert difference(truth, change(truth.spec)) > TOLERANCE


def test_the_projector_has_an_eps_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = case("faint", "a row of tiles")
    monkeypatch.setattr(internvl, "_PROJECTOR_EPS", truth.spec.vision.eps)
    assert difference(truth) > TOLERANCE


class ClassKept(EagerOps):
    """The last patch is dropped in place of the class token."""

    def skip(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x[:, :-count]


class ClassLast(EagerOps):
    def prepend(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        return super().prepend(x, weight).roll(-1, 1)


class Columnwise(EagerOps):
    """The four patches of a visual token, column by column."""

    def pixel_shuffle(self, x: torch.Tensor, grid: int, scale: int) -> torch.Tensor:
        turned = x.reshape(len(x), grid, grid, -1).transpose(1, 2).reshape(x.shape)
        side = grid // scale
        y = super().pixel_shuffle(turned, grid, scale).reshape(len(x), side, side, -1)
        return y.transpose(1, 2).reshape(len(x), side * side, -1)


class TanhProjector(EagerOps):
    def activation(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        return super().activation(x, "gelu_tanh" if x.shape[-1] == 64 else kind)


class Unscaled(EagerOps):
    def scale(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        return x


@pytest.mark.parametrize("ops", [ClassKept, ClassLast, Columnwise, TanhProjector, Unscaled])
def test_a_wrong_step_fails_parity(ops: Callable[[Any], Any]) -> None:
    truth = case(ORDINARY, "a row of tiles")
    assert difference(truth, ops=ops(Exact(truth.weights))) > TOLERANCE


FEED_MUTATIONS = {
    "the whole first": lambda views: np.roll(views, 1, axis=0),
    "tiles column by column": lambda views: views[[0, 2, 4, 1, 3, 5, 6]],
    "colours as blue, green, red": lambda views: views[:, ::-1],
}


@pytest.mark.parametrize("mutation", FEED_MUTATIONS)
def test_views_out_of_order_fail_parity(mutation: str) -> None:
    truth = case(ORDINARY, "rows of tiles")
    change = FEED_MUTATIONS[mutation]
    feeds = [{"pixel_values": np.ascontiguousarray(change(f["pixel_values"]))} for f in truth.feeds]
    assert difference(replace(truth, feeds=feeds)) > TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.embeddings.patch_embeddings.projection.bias",
        "vision_tower.embeddings.cls_token",
        "vision_tower.embeddings.position_embeddings",
        "vision_tower.encoder.layer.0.attention.q_proj.bias",
        "vision_tower.encoder.layer.0.attention.projection_layer.bias",
        "vision_tower.encoder.layer.1.lambda_1",
        "vision_tower.encoder.layer.0.lambda_2",
        "vision_tower.encoder.layer.1.layernorm_after.bias",
        "vision_tower.encoder.layer.1.mlp.fc2.bias",
        "multi_modal_projector.layer_norm.weight",
        "multi_modal_projector.linear_1.bias",
        "multi_modal_projector.linear_2.bias",
        "language_model.model.layers.1.self_attn.v_proj.bias",
        "language_model.model.layers.2.post_attention_layernorm.weight",
    ],
)
def test_any_ignored_weight_fails_parity(name: str) -> None:
    truth = case(ORDINARY, "one view")
    ones = "lambda" in name or ("norm" in name and name.endswith("weight"))
    neutral = (np.ones_like if ones else np.zeros_like)(truth.weights(name))
    mutated = tiny.Held({**truth.weights.arrays, name: neutral})
    assert difference(truth, weights=mutated) > TOLERANCE


# --- config and prompt ---------------------------------------------------------------------------


def hub_config() -> dict[str, Any]:
    """The keys of a released checkpoint: numbers that equal a default are left out."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 256,
        "image_token_id": 151667,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "hidden_act": "silu",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 70,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "use_sliding_window": False,
            "vocab_size": 151674,
        },
        "vision_config": {
            "attention_bias": True,
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "image_size": [448, 448],
            "intermediate_size": 4096,
            "layer_norm_eps": 1e-06,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": 16,
            "num_channels": 3,
            "num_hidden_layers": 24,
            "patch_size": [14, 14],
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": False,
        },
    }


def read(value: dict[str, Any]) -> ModelSpec:
    return internvl.read_spec(HfConfig(value, "config.json"))


def test_the_hub_form_means_what_transformers_reads_in_it() -> None:
    from transformers import InternVLConfig

    spec = read(hub_config())
    new = InternVLConfig(**hub_config()).to_dict()
    assert "rope_parameters" in new["text_config"] and "rope_theta" not in new["text_config"]
    # What ties weights is said by no key of theirs; version 5 would, were there no head of its own.
    new["tie_word_embeddings"] = False
    assert read(new) == spec
    assert (spec.text.rope_theta, spec.text.head_dim, spec.view_tokens) == (1e6, 64, 256)
    assert not spec.text.tie_word_embeddings and (spec.vision.grid, spec.vision.eps) == (32, 1e-6)


def test_absent_sizes_have_the_defaults_of_transformers() -> None:
    from transformers import InternVLConfig

    bare: dict[str, Any] = {"model_type": "internvl", "tie_word_embeddings": True}
    bare |= {"vision_config": {"attention_bias": True}, "text_config": {"model_type": "qwen2"}}
    assert read(bare) == read(InternVLConfig(vision_config={"attention_bias": True}).to_dict())
    one = {**bare, "vision_config": {"attention_bias": True, "image_size": 448, "patch_size": 14}}
    assert read(one) == read(bare)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (None, "downsample_ratio", 0.25, "'downsample_ratio' is 0.25"),
        (None, "projector_hidden_act", "relu", "'projector_hidden_act' is 'relu'"),
        (None, "vision_feature_layer", -2, "'vision_feature_layer' is -2"),
        (None, "vision_feature_select_strategy", "full", "'vision_feature_select_strategy' is"),
        (None, "image_seq_length", 255, "'image_seq_length' is 255, only 4"),
        ("vision_config", "attention_bias", False, "'attention_bias' is False"),
        ("vision_config", "attention_bias", None, "'attention_bias' is None"),
        ("vision_config", "use_qk_norm", True, "'use_qk_norm' is True"),
        ("vision_config", "norm_type", "rms_norm", "'norm_type' is 'rms_norm'"),
        ("vision_config", "use_mask_token", True, "'use_mask_token' is True"),
        ("vision_config", "use_mean_pooling", False, "'use_mean_pooling' is False"),
        ("vision_config", "use_absolute_position_embeddings", False, "'use_absolute_position_e"),
        ("vision_config", "hidden_act", "quick_gelu", "'hidden_act' is 'quick_gelu'"),
        ("vision_config", "num_channels", 4, "'num_channels' is 4"),
        ("vision_config", "image_size", [32, 40], r"'image_size' must be the side .* \[32, 40\]"),
        ("vision_config", "image_size", 40, "a grid of 5 patches cannot be halved"),
        ("vision_config", "patch_size", "8", "'patch_size' must be the side of a square"),
        ("text_config", "model_type", "qwen3", "'model_type' is 'qwen3'"),
        ("text_config", "model_type", "llama", "'model_type' is 'llama'"),
        ("text_config", "use_sliding_window", True, "'use_sliding_window' is True"),
        ("text_config", "hidden_act", "gelu", "'hidden_act' is 'gelu'"),
        ("text_config", "rope_parameters", {"rope_type": "yarn"}, "'rope_type' is 'yarn'"),
        ("text_config", "rope_scaling", {"type": "linear"}, "'type' is 'linear'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    section: str | None, key: str, value: object, message: str
) -> None:
    config = tiny_internvl.make_model().config.to_dict()
    (config if section is None else config[section])[key] = value
    with pytest.raises(ExportError, match=message):
        read(config)


def test_views_of_another_size_than_the_towers_are_refused() -> None:
    spec = case(ORDINARY, "one view").spec
    config = {**tiny_internvl.PROCESSOR, "size": {"height": 48, "width": 48}}
    with pytest.raises(ExportError, match="makes views of 48 pixels, config.json means 32"):
        internvl.read_image_spec(HfConfig(config, "preprocessor_config.json"), spec)


CHAT = "<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"


def shown(views: int) -> str:
    """A picture as the processor writes it, and the line's end that the template puts behind."""
    return "<img>" + "<IMG_CONTEXT>" * 4 * views + "</img>\n"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    condition=st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",))),
    template=st.sampled_from(["Is {condition} visible?", "{condition}", "\n {condition}"]),
)
def test_the_seam_is_the_same_for_any_condition(condition: str, template: str) -> None:
    prompts, plain = _prompts()
    question = template.replace("{condition}", condition)
    for grid, views in (((0, 0), 1), ((2, 3), 7)):
        whole = plain.encode(CHAT.format(image=shown(views), question=question)).ids
        assert prompts.prefix_ids(*grid) + prompts.branch_ids(condition, template) == whole
        assert prompts.prefix_positions(*grid) is None
    blind = plain.encode(CHAT.format(image="", question=question)).ids
    assert prompts.blind_ids(condition, template) == blind


def test_pictures_are_a_line_apart() -> None:
    prompts, plain = _prompts()
    ids = prompts.prefix_ids(0, 0) + prompts.image_ids(1, 2, first=False) + prompts.branch_ids("x")
    both = CHAT.format(image=shown(1) + shown(3), question="Is x visible?")
    assert ids == plain.encode(both).ids


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    before=st.text(max_size=4),
    special=st.sampled_from(tiny_internvl.SPECIALS),
    after=st.text(max_size=4),
)
def test_special_tokens_in_user_text_are_text(before: str, special: str, after: str) -> None:
    prompts, _ = _prompts()
    text, tail = before + special + after, len(prompts.record.tail)
    for ids in (prompts.branch_ids(text), prompts.request_ids(text)):
        assert ids[:-tail] and min(ids[:-tail]) >= len(tiny_internvl.SPECIALS)
    blind = prompts.blind_ids(text)[len(prompts.record.blind_head) : -tail]
    assert not {IMAGE, *prompts.record.image_open, *prompts.record.view_close} & set(blind)


@cache
def _prompts() -> tuple[Prompts, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        plain = tiny.make_tokenizer(path, tiny_internvl.SPECIALS)
        tokenizer = Tokenizer(path)
    spec = case(ORDINARY, "one view").spec
    record = internvl.prompt_record(tokenizer, spec, mosaic_spec(spec), "Is {condition} visible?")
    return Prompts(record, IMAGE, lambda: tokenizer), plain


# The template of released checkpoints, whole; of 481 bytes.
RELEASED = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{'<|im_start|>assistant\n' }}{% endif %}"
)


def test_the_released_template_is_the_familys(tmp_path: Path) -> None:
    folder = tiny_internvl.make_checkpoint(tmp_path / "checkpoint")
    (folder / "chat_template.jinja").write_text(RELEASED)
    open_checkpoint(folder)
    for old, new in (("'<IMG_CONTEXT>\n'", "'<IMG_CONTEXT>'"), ("CONTEXT>\n", "CONTEXT>\n\n")):
        assert old in RELEASED
        (folder / "chat_template.jinja").write_text(RELEASED.replace(old, new))
        with pytest.raises(ExportError, match="its chat template writes"):
            open_checkpoint(folder)


# --- the whole way -------------------------------------------------------------------------------

RECIPES = ("exact", "w8", "small", "fast")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("internvl")
    tiny_internvl.make_checkpoint(root / "checkpoint", dtype="bfloat16", tied=True)
    for recipe in RECIPES:
        export(root / "checkpoint", root / recipe, recipe=recipe)
    export(root / "checkpoint", root / "parts", recipe="exact", cut=Cut(3))
    return {name: root / name for name in (*RECIPES, "parts")}


def prefilled(folder: Path, chunk: int = 512) -> tuple[Engine, Any]:
    bundle = Bundle.open(folder, unsealed=True)
    engine = Engine.open(bundle, Settings(1, chunk))
    seen = preprocess(canary_image(70, 100), image_spec(bundle.manifest.preprocessing))
    assert seen.rows * seen.cols > 1
    ids = Prompts.of(bundle).prefix_ids(seen.rows, seen.cols)
    return engine, engine.prefill(ids, engine.encode_image(seen.feeds))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_graphs_equal_the_reference(folders: dict[str, Path], recipe: str) -> None:
    bundle = Bundle.open(folders[recipe], unsealed=True)
    error = graph_error(bundle, Engine.open(bundle, threads=1))
    assert error < {"exact": 1e-4, "fast": 1e-2}.get(recipe, 1e-3)


BRANCHES = [[70, 71, 72], [90], [60, 61, 62, 63, 64, 65, 66]]


@pytest.mark.parametrize("recipe", RECIPES)
def test_packed_and_chunked_are_the_same_judge(folders: dict[str, Path], recipe: str) -> None:
    limit = 4e-2 if recipe == "fast" else 1e-5  # as test_tree_families.py has it
    engine, prefix = prefilled(folders[recipe])
    alone = engine.label_probabilities(engine.score(prefix, BRANCHES, packed=False))
    packed = engine.label_probabilities(engine.score(prefix, BRANCHES))
    assert np.abs(packed - alone).max() < limit
    small, prefix = prefilled(folders[recipe], chunk=7)
    assert np.abs(small.label_probabilities(small.score(prefix, BRANCHES)) - alone).max() < limit


def test_parts_are_the_whole(folders: dict[str, Path]) -> None:
    whole, prefix = prefilled(folders["exact"])
    parts, other = prefilled(folders["parts"])
    assert (whole.score(prefix, BRANCHES) == parts.score(other, BRANCHES)).all()


def test_the_gate_seals_a_bundle(tmp_path: Path) -> None:
    tiny_internvl.make_checkpoint(tmp_path / "checkpoint")
    manifest = export_bundle(tmp_path / "checkpoint", tmp_path / "out", "exact")
    assert manifest.fidelity is not None and manifest.fidelity.decisions is not None
    assert manifest.family == "internvl" and manifest.preprocessing["kind"] == "mosaic"


def test_a_bundle_that_does_not_fit_its_model_is_refused(folders: dict[str, Path]) -> None:
    manifest = Bundle.open(folders["exact"], unsealed=True).manifest
    check_fit(manifest, "x")
    for change, message in (
        ({"view": 48}, "preprocessing.view: 48, the spec says 32"),
        ({"max_tiles": 1}, "a picture of 64 x 32 is cut otherwise"),
    ):
        changed = replace(manifest, preprocessing={**manifest.preprocessing, **change})
        with pytest.raises(BundleError, match=message):
            check_fit(changed, "x")


def test_pixels_cannot_be_bounded(tmp_path: Path) -> None:
    checkpoint = tiny_internvl.make_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match="this one cuts pictures into tiles of 32 pixels"):
        open_checkpoint(checkpoint, 1000)
