"""Bundles of every family: graphs give what the reference gives, however the work is cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgejudge.bundle import Bundle
from edgejudge.export import Cut, export
from edgejudge.goldens import graph_error
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.runtime import Engine, Settings
from families import FAMILIES

torch.set_num_threads(1)
RECIPES = ("exact", "w8", "small")
BRANCHES = [[70, 71, 72], [90], [60, 61, 62, 63, 64, 65, 66]]
Bundles = Callable[[str], Path]


@pytest.fixture(scope="module", params=FAMILIES)
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    root, maker = tmp_path_factory.mktemp(request.param), FAMILIES[request.param]
    checkpoint = maker.make_checkpoint(root / "checkpoint", dtype="bfloat16", tied=True)
    for recipe in RECIPES:
        export(checkpoint, root / recipe, recipe=recipe)
    export(checkpoint, root / "parts", recipe="exact", cut=Cut(3))
    return lambda name: root / name


def prefilled(folder: Path, chunk: int = 512) -> tuple[Engine, Any]:
    bundle = Bundle.open(folder, unsealed=True)
    engine = Engine.open(bundle, Settings(1, chunk))
    manifest = bundle.manifest
    seen = preprocess(canary_image(70, 100), image_spec(manifest.preprocessing))
    prompts, grid = Prompts.of(bundle), (seen.rows, seen.cols)
    visual = engine.encode_image(seen.feeds)
    return engine, engine.prefill(
        prompts.prefix_ids(*grid), visual, prompts.prefix_positions(*grid)
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_graphs_equal_the_reference(bundles: Bundles, recipe: str) -> None:
    bundle = Bundle.open(bundles(recipe), unsealed=True)
    error = graph_error(bundle, Engine.open(bundle, threads=1))
    assert error < (1e-4 if recipe == "exact" else 1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_packed_and_chunked_are_the_same_judge(bundles: Bundles, recipe: str) -> None:
    engine, prefix = prefilled(bundles(recipe))
    alone = engine.label_probabilities(engine.score(prefix, BRANCHES, packed=False))
    packed = engine.label_probabilities(engine.score(prefix, BRANCHES))
    assert np.abs(packed - alone).max() < 1e-5
    small, prefix = prefilled(bundles(recipe), chunk=7)
    assert np.abs(small.label_probabilities(small.score(prefix, BRANCHES)) - alone).max() < 1e-5


def test_parts_are_the_whole(bundles: Bundles) -> None:
    whole, prefix = prefilled(bundles("exact"))
    parts, other = prefilled(bundles("parts"))
    assert (whole.score(prefix, BRANCHES) == parts.score(other, BRANCHES)).all()
