"""The eager backend against transformers: the one outside truth about a family.

Every logit of every position to 1e-4 in float32, with and without an image, at any split of the
prompt. The mutations below must fail the same check, or it would prove nothing.
"""

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
from edgejudge.export import Exact, Reference
from edgejudge.models import smolvlm
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.spec import ModelSpec

torch.set_num_threads(1)
IMAGE = tiny.SPECIALS.index("<image>")
TOLERANCE = 1e-4

ORDINARY = "untied, grouped KV, scale 3"
VARIANTS: dict[str, dict[str, Any]] = {
    ORDINARY: {},
    "tied, one KV head per head": {"tied": True, "kv_heads": 4},
    "one KV head, scale 2": {"kv_heads": 1, "scale_factor": 2},
    "odd grid of 19": {"image_size": 39, "patch_size": 2, "scale_factor": 19},
    "faint": {"faint": True},
}
VIEWS = 13  # 3 x 4 tiles and the whole picture


@dataclass(frozen=True)
class Case:
    spec: ModelSpec
    weights: Any
    ids: list[int]
    pixels: NDArray[np.float32]
    logits: NDArray[np.float32]  # [S, vocab] with the image
    blind_logits: NDArray[np.float32]  # [S, vocab] of the same text without image tokens

    @property
    def blind_ids(self) -> list[int]:
        return [i for i in self.ids if i != IMAGE]


@cache
def case(variant: str) -> Case:
    model = tiny.make_model(**VARIANTS[variant])
    spec = smolvlm.read_spec(HfConfig(model.config.to_dict(), "config.json"))
    rng = np.random.default_rng(5)
    side = spec.vision.image_size
    scale = 0.01 if VARIANTS[variant].get("faint") else 1.0
    pixels = (rng.normal(size=(VIEWS, 3, side, side)) * scale).astype(np.float32)
    view = [IMAGE] * spec.visual_tokens
    text = rng.integers(len(tiny.SPECIALS), tiny.VOCABULARY, (VIEWS + 2, 3)).tolist()
    ids = [1, *text[0]]
    for part in text[1:-1]:
        ids += [3, *view, *part]
    ids += text[-1]
    state = {name: w.numpy() for name, w in model.state_dict().items()}
    blind = [i for i in ids if i != IMAGE]
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([ids]), pixel_values=torch.from_numpy(pixels)[None]
        ).logits[0]
        blind_logits = model(input_ids=torch.tensor([blind])).logits[0]
    return Case(spec, tiny.Held(state), ids, pixels, logits.numpy(), blind_logits.numpy())


def run(
    spec: ModelSpec,
    weights: Any,
    ids: list[int],
    pixels: NDArray[np.float32] | None,
    cuts: tuple[int, ...] = (),
) -> NDArray[np.float32]:
    """Logits at every position, the prompt fed in chunks that end at `cuts`."""
    reference = Reference(spec, Exact(weights), IMAGE)
    visual = None if pixels is None else reference.encode({"pixel_values": pixels})
    hidden, used = [], 0
    for begin, end in zip((0, *cuts), (*cuts, len(ids)), strict=True):
        chunk = ids[begin:end]
        rows = chunk.count(IMAGE)
        piece = None if visual is None else visual[used : used + rows]
        hidden.append(reference.extend(chunk, piece))
        used += rows
    return reference.logits(torch.cat(hidden)).numpy()


def difference(truth: Case, spec: ModelSpec | None = None, weights: Any = None) -> float:
    """What the parity tests measure: the worst logit, with and without the image."""
    spec, weights = spec or truth.spec, weights or truth.weights
    seen = run(spec, weights, truth.ids, truth.pixels) - truth.logits
    blind = run(spec, weights, truth.blind_ids, None) - truth.blind_logits
    return max(float(np.abs(seen).max()), float(np.abs(blind).max()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str) -> None:
    assert difference(case(variant)) < TOLERANCE


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_any_split_into_chunks_gives_the_same_logits(data: st.DataObject) -> None:
    truth = case(ORDINARY)
    inner = st.integers(1, len(truth.ids) - 1)
    cuts = tuple(sorted(data.draw(st.sets(inner, max_size=6))))
    found = run(truth.spec, truth.weights, truth.ids, truth.pixels, cuts)
    assert np.abs(found - truth.logits).max() < TOLERANCE


def with_vision(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return replace(spec, vision=replace(spec.vision, **changes))


def with_text(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return replace(spec, text=replace(spec.text, **changes))


SPEC_MUTATIONS = {
    # Erf for tanh is the smallest wrong choice there is; it needs activations of ordinary size.
    "vision activation": (ORDINARY, lambda s: with_vision(s, activation="gelu")),
    "vision eps": ("faint", lambda s: with_vision(s, eps=1e-5)),
    "vision heads, so its scale": ("faint", lambda s: with_vision(s, heads=4)),
    "text activation": ("faint", lambda s: with_text(s, activation="gelu_tanh")),
    "text eps": ("faint", lambda s: with_text(s, eps=1e-6)),
    "rope theta": (ORDINARY, lambda s: with_text(s, rope_theta=1e5)),
}


@pytest.mark.parametrize("mutation", SPEC_MUTATIONS)
def test_a_wrong_number_fails_parity(mutation: str) -> None:
    variant, change = SPEC_MUTATIONS[mutation]
    truth = case(variant)
    assert difference(truth, change(truth.spec)) > TOLERANCE


@pytest.mark.parametrize("kind", ["bias", "norm"])
def test_any_ignored_bias_or_norm_fails_parity(kind: str) -> None:
    truth = case(ORDINARY)
    names = [
        "model.vision_model.embeddings.patch_embedding.bias",
        "model.vision_model.encoder.layers.1.self_attn.q_proj.bias",
        "model.vision_model.encoder.layers.1.self_attn.out_proj.bias",
        "model.vision_model.encoder.layers.1.mlp.fc2.bias",
        "model.vision_model.post_layernorm.bias",
    ]
    if kind == "norm":
        names = [
            "model.vision_model.encoder.layers.0.layer_norm2.weight",
            "model.text_model.layers.2.post_attention_layernorm.weight",
            "model.text_model.norm.weight",
        ]
    for name in names:
        neutral = np.zeros_like if kind == "bias" else np.ones_like
        mutated = tiny.Held({**truth.weights.arrays, name: neutral(truth.weights(name))})
        assert difference(truth, weights=mutated) > TOLERANCE, name


def test_plain_position_rows_fail_parity_on_an_odd_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = case("odd grid of 19")
    monkeypatch.setattr(smolvlm, "position_rows", lambda grid: np.arange(grid * grid))
    assert difference(truth) > TOLERANCE


def test_shifted_rope_positions_fail_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = case(ORDINARY)
    reference = Reference(truth.spec, Exact(truth.weights), IMAGE)
    reference.prefill(truth.blind_ids[:4])
    # A branch that starts one position late, as if the prefix were longer than its cache.
    monkeypatch.setattr(reference, "_position", 5)
    late = reference.logits(reference.extend(truth.blind_ids[4:])).numpy()
    assert np.abs(late - truth.blind_logits[4:]).max() > TOLERANCE


def test_the_wrong_attention_scale_fails_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = case(ORDINARY)
    attend = torch.nn.functional.scaled_dot_product_attention

    def louder(*args: Any, scale: float, **kwargs: Any) -> Any:
        return attend(*args, scale=scale * 1.01, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", louder)
    assert difference(truth) > TOLERANCE


def test_position_rows_equal_transformers_on_every_grid() -> None:
    from transformers.models.smolvlm.modeling_smolvlm import (
        SmolVLMVisionConfig,
        SmolVLMVisionEmbeddings,
    )

    plain = []
    for grid in range(1, 65):
        config = SmolVLMVisionConfig(
            hidden_size=1, image_size=grid, patch_size=1, num_attention_heads=1
        )
        module = SmolVLMVisionEmbeddings(config)
        with torch.no_grad():
            module.patch_embedding.weight.zero_()
            module.patch_embedding.bias.zero_()
            module.position_embedding.weight.copy_(torch.arange(grid * grid)[:, None])
            mask = torch.ones(1, grid, grid, dtype=torch.bool)
            rows = module(torch.zeros(1, 3, grid, grid), mask)[0, :, 0].long().numpy()
        assert (rows == smolvlm.position_rows(grid)).all(), grid
        if (rows == np.arange(grid * grid)).all():
            plain.append(grid)
    assert {16, 27, 32} <= set(plain) and 19 not in plain


def test_eps_and_the_like_are_read_from_the_config(tmp_path: Path) -> None:
    config = tiny.make_model().config.to_dict()
    config["vision_config"]["layer_norm_eps"] = 3e-6
    config["text_config"]["rms_norm_eps"] = 4e-6
    spec = smolvlm.read_spec(HfConfig(config, "config.json"))
    assert (spec.vision.eps, spec.text.eps) == (3e-6, 4e-6)
    assert (spec.text.rope_theta, spec.vision.activation) == (130000.0, "gelu_tanh")
