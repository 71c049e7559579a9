"""InternVL3 against transformers: logits with and without an image, prompts, bundles."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiny
import tiny_internvl
from edgejudge.export import Exact, Reference
from edgejudge.export.eager import EagerOps
from edgejudge.models import internvl
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import canary_image
from edgejudge.models.mosaic import MosaicSpec, prepare_mosaic
from edgejudge.models.spec import ModelSpec

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
    return internvl.read_image_spec(config, spec, config)


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
