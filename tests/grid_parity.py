"""Families that keep a picture's own grid, against transformers: one prompt with pictures in it,
and the same prompt without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import tiny
from edgejudge.export import Exact, Reference
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.image import canary_image
from edgejudge.models.patches import PatchSpec, prepare_patches, read_patch_spec
from edgejudge.models.spec import ModelSpec

__all__ = ["TOLERANCE", "Case", "case_of", "difference", "patch_spec", "run", "spec_of"]

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    spec: ModelSpec
    weights: Any
    ids: list[int]
    positions: NDArray[np.int64]
    feeds: list[dict[str, NDArray[Any]]]  # of each picture
    logits: NDArray[np.float32]  # [S, vocab] with the pictures
    blind_ids: list[int]
    blind_logits: NDArray[np.float32]
    image: int  # the image token


def spec_of(family: Any, model: Any) -> ModelSpec:
    spec: ModelSpec = family.read_spec(HfConfig(model.config.to_dict(), "config.json"))
    return spec


def patch_spec(maker: ModuleType, spec: ModelSpec) -> PatchSpec:
    return read_patch_spec(HfConfig(maker.PROCESSOR, "preprocessor_config.json"), spec)


def case_of(
    family: Any, maker: ModuleType, sizes: Sequence[tuple[int, int]], **model_of: Any
) -> Case:
    """Pictures of these heights and widths with a few words before, between and behind them."""
    model = maker.make_model(**model_of)
    spec, image = spec_of(family, model), maker.IMAGE
    seen = [prepare_patches(canary_image(*s), patch_spec(maker, spec)) for s in sizes]
    rng = np.random.default_rng(5)
    text = rng.integers(len(maker.SPECIALS), tiny.VOCABULARY, (len(seen) + 1, 6)).tolist()
    ids, positions, start = [1, *text[0]], [np.tile(np.arange(7), (3, 1))], 7
    for picture, after in zip(seen, text[1:], strict=True):
        y, x = np.divmod(np.arange(picture.rows * picture.cols), picture.cols)
        ids += [3, *[image] * len(y), 4, *after]
        positions += [np.full((3, 1), start), start + 1 + np.stack([0 * y, y, x])]
        start += 1 + max(picture.rows, picture.cols)
        positions.append(start + np.tile(np.arange(7), (3, 1)))
        start += 7
    patches = np.concatenate([p.feeds["patches"][p.feeds.get("slots", slice(None))] for p in seen])
    grid = torch.tensor([[1, 2 * p.rows, 2 * p.cols] for p in seen])
    blind = [i for i in ids if i != image]
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(
            input_ids=tokens,
            pixel_values=torch.from_numpy(patches),
            image_grid_thw=grid,
            mm_token_type_ids=(tokens == image).int(),
        ).logits[0]
        blind_logits = model(input_ids=torch.tensor([blind])).logits[0]
    state = {maker.hub_name(name): w.numpy() for name, w in model.state_dict().items()}
    return Case(
        spec,
        tiny.Held(state),
        ids,
        np.concatenate(positions, axis=1),
        [p.feeds for p in seen],
        logits.numpy(),
        blind,
        blind_logits.numpy(),
        image,
    )


def run(truth: Case, spec: ModelSpec, weights: Any, cuts: tuple[int, ...]) -> NDArray[np.float32]:
    """Logits of the prompt, which goes in by pieces that end at `cuts`."""
    reference = Reference(spec, Exact(weights), truth.image)
    visual = torch.cat([reference.encode(feeds) for feeds in truth.feeds])
    hidden, used = [], 0
    for begin, end in zip((0, *cuts), (*cuts, len(truth.ids)), strict=True):
        chunk = truth.ids[begin:end]
        rows = chunk.count(truth.image)
        piece = visual[used : used + rows]
        hidden.append(reference.extend(chunk, piece, truth.positions[:, begin:end]))
        used += rows
    return reference.logits(torch.cat(hidden)).numpy()


def difference(truth: Case, spec: ModelSpec | None = None, weights: Any = None) -> float:
    """Largest, with the pictures and without."""
    spec, weights = spec or truth.spec, weights or truth.weights
    seen = run(truth, spec, weights, ()) - truth.logits
    reference = Reference(spec, Exact(weights), truth.image)
    blind = reference.logits(reference.prefill(truth.blind_ids)).numpy() - truth.blind_logits
    return max(float(np.abs(seen).max()), float(np.abs(blind).max()))
