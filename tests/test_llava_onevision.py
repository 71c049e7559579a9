"""LLaVA-OneVision against transformers: pixels, packing, logits, prompts, bundles."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import tiny
import tiny_llava
from edgejudge.bundle import Bundle
from edgejudge.errors import ExportError
from edgejudge.export import Exact, Reference, export, open_checkpoint
from edgejudge.models import anyres, llava_onevision
from edgejudge.models.anyres import AnyResSpec, prepare_anyres
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.packing import PACKED_ROWS, PACKED_SHARES
from edgejudge.models.prompt import Prompts
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime import Engine, Settings, stages

torch.set_num_threads(1)
IMAGE, VIEW = tiny_llava.IMAGE, tiny_llava.VIEW
TOLERANCE = 1e-4
SIZES = {  # height, width of each picture in the prompt, and its lines
    "one crop": (((18, 18), (4, 4)),),
    "enlarged to one crop": (((10, 10), (4, 4)),),
    "padded at its sides": (((36, 20), (8, 4)),),
    "padded above and below": (((20, 36), (4, 8)),),
    "interpolated": (((36, 36), (6, 6)),),
    "padded and interpolated": (((54, 40), (8, 5)),),
    "a strip without lines": (((1, 200), (0, 4)),),
    "a strip of ends of lines": (((200, 1), (4, 0)),),
    "two pictures": (((20, 36), (4, 8)), ((54, 40), (8, 5))),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied, grouped KV": {},
    "tied, one KV head per head": {"tied": True, "kv_heads": 4},
    "faint": {"faint": True},
}
ORDINARY = "untied, grouped KV"
HARDEST = "padded and interpolated"


def config_of(model: Any) -> HfConfig:
    return HfConfig(model.config.to_dict(), "config.json")


@cache
def tiny_spec() -> AnyResSpec:
    return tiny_llava.make_spec(config_of(tiny_llava.make_model()))


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
    model = tiny_llava.make_model(**VARIANTS[variant])
    spec = llava_onevision.read_spec(config_of(model))
    seen = [prepare_anyres(canary_image(*s), tiny_spec()) for s, _ in SIZES[size]]
    assert [(one.rows, one.cols) for one in seen] == [lines for _, lines in SIZES[size]]
    rng = np.random.default_rng(5)
    text = rng.integers(len(tiny_llava.SPECIALS), tiny.VOCABULARY, (len(seen) + 1, 6)).tolist()
    ids = [1, *text[0]]
    for picture, after in zip(seen, text[1:], strict=True):
        ids += [IMAGE] * (spec.view_tokens + picture.rows * (picture.cols + 1)) + after
    blind = [i for i in ids if i != IMAGE]
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([ids]),
            pixel_values=torch.cat([torch.from_numpy(p.feeds["pixel_values"]) for p in seen]),
            image_sizes=torch.tensor([s for s, _ in SIZES[size]]),
        ).logits[0]
        blind_logits = model(input_ids=torch.tensor([blind])).logits[0]
    state = {_saved_name(name): w.numpy() for name, w in model.state_dict().items()}
    feeds = [p.feeds for p in seen]
    return Case(spec, tiny.Held(state), ids, feeds, logits.numpy(), blind, blind_logits.numpy())


def _saved_name(name: str) -> str:
    """A module's name in memory -> in a checkpoint."""
    if name == "lm_head.weight":
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    return name.replace("language_model.", "language_model.model.", 1)


def run(truth: Case, spec: ModelSpec, weights: Any, cuts: tuple[int, ...]) -> NDArray[np.float32]:
    reference = Reference(spec, Exact(weights), IMAGE)
    visual = torch.cat([reference.encode(feeds) for feeds in truth.feeds])
    hidden, used = [], 0
    for begin, end in zip((0, *cuts), (*cuts, len(truth.ids)), strict=True):
        chunk = truth.ids[begin:end]
        rows = chunk.count(IMAGE)
        hidden.append(reference.extend(chunk, visual[used : used + rows]))
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
    truth = case(ORDINARY, HARDEST)
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, len(truth.ids) - 1), max_size=6))))
    assert np.abs(run(truth, truth.spec, truth.weights, cuts) - truth.logits).max() < TOLERANCE


# --- mutations -----------------------------------------------------------------------------------


def with_vision(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return replace(spec, vision=replace(spec.vision, **changes))


def with_text(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return replace(spec, text=replace(spec.text, **changes))


SPEC_MUTATIONS: dict[str, tuple[str, Callable[[ModelSpec], ModelSpec]]] = {
    "vision eps": ("faint", lambda s: with_vision(s, eps=1e-4)),
    "vision activation": (ORDINARY, lambda s: with_vision(s, activation="gelu")),
    "text eps": ("faint", lambda s: with_text(s, eps=1e-6)),
    "text activation": (ORDINARY, lambda s: with_text(s, activation="gelu")),
    "rope theta": (ORDINARY, lambda s: with_text(s, rope_theta=1e5)),
    "biases of queries, keys and values": (ORDINARY, lambda s: with_text(s, qkv_bias=False)),
}


@pytest.mark.parametrize("mutation", SPEC_MUTATIONS)
def test_a_wrong_number_fails_parity(mutation: str) -> None:
    variant, change = SPEC_MUTATIONS[mutation]
    truth = case(variant, HARDEST)
    assert difference(truth, change(truth.spec)) > TOLERANCE


def with_packing(feeds: dict[str, NDArray[Any]], change: Callable[..., Any]) -> dict[str, Any]:
    rows, shares = change(feeds[PACKED_ROWS].copy(), feeds[PACKED_SHARES].copy())
    return {**feeds, PACKED_ROWS: rows, PACKED_SHARES: shares}


def base_last(rows: Any, shares: Any) -> Any:
    return np.roll(rows, -16, axis=0), np.roll(shares, -16, axis=0)


def no_ends(rows: Any, shares: Any) -> Any:
    """Lines end with what stood before instead of the token that ends them."""
    ends = rows[:, 0] % 17 == 0
    rows[ends], shares[ends] = rows[np.flatnonzero(ends) - 1], shares[np.flatnonzero(ends) - 1]
    return rows, shares


def nearest(rows: Any, shares: Any) -> Any:
    """Of the four places that a token lies between the one with the largest share alone."""
    return rows, (np.arange(4) == shares.argmax(1)[:, None]).astype(np.float32)


def crop_by_crop(rows: Any, shares: Any) -> Any:
    """Tokens as crops have them, instead of lines across crops."""
    lines = np.flatnonzero(rows[:, 0] >= 17)
    order = lines[np.argsort(rows[lines, 0], kind="stable")]
    rows[lines], shares[lines] = rows[order], shares[order]
    return rows, shares


PACKING_MUTATIONS = {
    "the whole picture last": (HARDEST, base_last),
    "no ends of lines": (HARDEST, no_ends),
    "no interpolation": (HARDEST, nearest),
    "crop by crop": ("padded above and below", crop_by_crop),
}


@pytest.mark.parametrize("mutation", PACKING_MUTATIONS)
def test_a_wrong_packing_fails_parity(mutation: str) -> None:
    size, change = PACKING_MUTATIONS[mutation]
    truth = case(ORDINARY, size)
    wrong = replace(truth, feeds=[with_packing(feeds, change) for feeds in truth.feeds])
    assert difference(wrong) > TOLERANCE


@pytest.mark.parametrize("size", ["padded at its sides", "padded above and below"])
def test_padding_left_in_fails_parity(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of lines and tokens, of a canvas that is taken from its corner."""
    truth, (((height, width), lines),) = case(ORDINARY, size), SIZES[size]

    def corner(*_: int) -> tuple[range, range]:
        return range(lines[0]), range(lines[1])

    monkeypatch.setattr(anyres, "_filled", corner)
    seen = prepare_anyres(canary_image(height, width), tiny_spec())
    assert (seen.rows, seen.cols) == lines
    assert difference(replace(truth, feeds=[seen.feeds])) > TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.embeddings.patch_embedding.bias",
        "vision_tower.encoder.layers.1.self_attn.v_proj.bias",
        "vision_tower.encoder.layers.1.layer_norm2.weight",
        "multi_modal_projector.linear_1.bias",
        "multi_modal_projector.linear_2.bias",
        "image_newline",
        "language_model.model.layers.1.self_attn.k_proj.bias",
        "language_model.model.layers.2.post_attention_layernorm.weight",
    ],
)
def test_any_ignored_bias_or_norm_fails_parity(name: str) -> None:
    truth = case(ORDINARY, HARDEST)
    neutral = np.ones_like if name.endswith("weight") else np.zeros_like
    mutated = tiny.Held({**truth.weights.arrays, name: neutral(truth.weights(name))})
    assert difference(truth, weights=mutated) > TOLERANCE


def test_the_norm_behind_the_tower_is_passed_by() -> None:
    truth, name = case(ORDINARY, HARDEST), "vision_tower.post_layernorm.weight"
    mutated = tiny.Held({**truth.weights.arrays, name: np.zeros_like(truth.weights(name))})
    assert difference(truth, weights=mutated) < TOLERANCE


# --- the whole way -------------------------------------------------------------------------------


BRANCHES = [[70, 71, 72], [90], [60, 61, 62, 63, 64, 65, 66]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("llava")
    tiny_llava.make_checkpoint(root / "checkpoint", dtype="bfloat16", tied=True)
    export(root / "checkpoint", root / "exact", recipe="exact")
    return {name: root / name for name in ("checkpoint", "exact")}


def prefilled(folder: Path, chunk: int = 512, ahead: bool = True) -> tuple[Engine, Any]:
    bundle = Bundle.open(folder, unsealed=True)
    engine = Engine.open(bundle, Settings(1, chunk))
    seen = preprocess(canary_image(54, 40), image_spec(bundle.manifest.preprocessing))
    ids = Prompts.of(bundle).prefix_ids(seen.rows, seen.cols)
    visual = engine.encode_image(seen.feeds) if ahead else engine.views(seen.feeds)
    return engine, engine.prefill(ids, visual)


def test_pictures_encoded_along_are_those_encoded_ahead(folders: dict[str, Path]) -> None:
    engine, prefix = prefilled(folders["exact"])
    alone = engine.label_probabilities(engine.score(prefix, BRANCHES))
    for ahead in (True, False):
        small, prefix = prefilled(folders["exact"], 7, ahead)
        found = small.label_probabilities(small.score(prefix, BRANCHES))
        assert np.abs(found - alone).max() < 1e-5


def test_passes_wait_for_the_crops_that_they_need(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view to a group: the first passes may begin when the whole picture is encoded."""
    monkeypatch.setattr(stages, "PATCHES", 16)
    engine, prefix = prefilled(folders["exact"], chunk=8)
    wanted = engine.score(prefix, BRANCHES)
    seen = preprocess(canary_image(54, 40), image_spec(engine.bundle.manifest.preprocessing))
    views = engine.views(seen.feeds)
    assert views.sizes == (17,) * 10 and views.count == 16 + 8 * 6
    needed: list[list[int]] = []
    original = stages.Stages.run

    def watched(self: Any, trace: Any, cache: Any, passes: Any, *more: Any) -> None:
        needed.extend(list(one.views) for one in passes)
        original(self, trace, cache, passes, *more)

    monkeypatch.setattr(stages.Stages, "run", watched)
    prefix = engine.prefill(Prompts.of(engine.bundle).prefix_ids(seen.rows, seen.cols), views)
    assert needed[:2] == [[0], [0]] and needed[-1][-1] == 9
    assert all(after[-1] >= before[-1] for before, after in pairwise(needed))
    assert np.abs(engine.score(prefix, BRANCHES) - wanted).max() < 1e-5


def test_crops_can_be_bounded_at_export(tmp_path: Path) -> None:
    checkpoint = tiny_llava.make_checkpoint(tmp_path / "checkpoint")
    image = open_checkpoint(checkpoint, 2 * 18 * 18).image
    assert isinstance(image, AnyResSpec) and sorted(image.sizes) == [(18, 18), (18, 36), (36, 18)]
    assert len(prepare_anyres(canary_image(400, 300), image).feeds["pixel_values"]) <= 3
    with pytest.raises(ExportError, match="the limit is 100 pixels, .* to at least 324"):
        open_checkpoint(checkpoint, 100)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_found_by_the_names_that_older_versions_gave_them(
    tmp_path: Path, tied: bool
) -> None:
    new, old = (
        tiny_llava.make_checkpoint(tmp_path / name, tied=tied, text_layers=1)
        for name in ("new", "old")
    )
    arrays = load_file(old / "model.safetensors")
    renamed = {
        n.replace("vision_tower.", "vision_tower.vision_model."): a for n, a in arrays.items()
    }
    assert sum(".vision_model." in name for name in renamed) == 5 + 2 * 16
    save_file(renamed, old / "model.safetensors")
    wanted, found = open_checkpoint(new).weights, open_checkpoint(old).weights
    assert found.parameters == wanted.parameters
    for name in arrays:
        assert (found(name) == wanted(name)).all()
    save_file(
        {**renamed, "vision_tower.vision_model.head": arrays["image_newline"]},
        old / "model.safetensors",
    )
    with pytest.raises(ExportError, match="unexpected weight vision_tower.vision_model.head"):
        open_checkpoint(old)
