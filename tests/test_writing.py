"""Graphs for text: over the cache of those that judge, loaded for text alone, near to them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
import tiny_llava
import tiny_qwen
from edgejudge.bundle import Bundle
from edgejudge.combinations import Spoken, written_ends
from edgejudge.export import Reference, Stored, export, open_checkpoint, prepared
from edgejudge.runtime import Engine
from edgejudge.runtime.tree import even_parts

torch.set_num_threads(1)
FAMILIES: dict[str, Any] = {
    "smolvlm": tiny,
    "qwen2_5_vl": tiny_qwen,
    "llava_onevision": tiny_llava,
}
RECIPES = ("exact", "w8", "balanced", "fast")
PROMPT = [60, 71, 82, 93, 104, 115, 126, 137]
CASES = [(family, recipe) for family in FAMILIES for recipe in RECIPES]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("writing")
    return {name: maker.make_checkpoint(root / name) for name, maker in FAMILIES.items()}


@pytest.fixture(scope="module")
def engines(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Engine]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        (family, recipe): Engine.open(
            Bundle.open(
                export(checkpoints[family], root / f"{family}-{recipe}", recipe), unsealed=True
            ),
            threads=1,
        )
        for family, recipe in CASES
    }


@pytest.mark.parametrize("family,recipe", CASES)
def test_a_step_is_near_to_a_prompts_token(
    engines: dict[tuple[str, str], Engine], family: str, recipe: str
) -> None:
    engine = engines[family, recipe]
    _, whole = engine.append([*PROMPT, 200])
    prefix = engine.prefill(PROMPT)
    after, hidden = engine.step(200, prefix)
    assert (after.length, after.position) == (len(PROMPT) + 1, prefix.position + 1)
    distance = np.linalg.norm(hidden - whole) / np.linalg.norm(whole)
    # Four bits on random weights: 0.6 was seen.
    assert distance < {"exact": 1e-5, "w8": 0.06, "balanced": 0.06, "fast": 0.8}[recipe]
    assert (distance > 1e-5) == (recipe != "exact"), "graphs of its own"
    # What is written lies in the cache: a second token sees the first.
    _, second = engine.step(201, after)
    _, other = engine.step(201, engine.step(300, prefix)[0])
    assert np.abs(second - other).max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_writes_what_its_plan_says(
    engines: dict[tuple[str, str], Engine], checkpoints: dict[str, Path], family: str
) -> None:
    """Four bits in the decoder, over keys and values of the integer graphs."""
    opened = open_checkpoint(checkpoints[family])
    changed, plan = prepared(opened, "fast")
    writing = plan.for_writing()
    assert writing is not None
    judge, text = (
        Reference(opened.spec, Stored(changed.weights, p), opened.tokens.image, torch.float64)
        for p in (plan, writing)
    )
    judge.prefill(PROMPT)
    text.prefill(PROMPT)
    text._ops._cache = dict(judge._ops._cache)
    expected = text.extend([200])[-1].numpy()
    engine = engines[family, "fast"]
    _, found = engine.step(200, engine.prefill(PROMPT))
    _, integer = engine.append([200], after=engine.prefill(PROMPT))
    near = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    far = np.linalg.norm(integer - expected) / np.linalg.norm(expected)
    assert near < 0.06 and far > 3 * near, (near, far)


@pytest.mark.parametrize("family,recipe", CASES)
def test_writing_leaves_verdicts_as_they_were(
    engines: dict[tuple[str, str], Engine], family: str, recipe: str
) -> None:
    engine = engines[family, recipe]
    branches = [[210, 211], [212], [213, 214, 215]]
    prefix = engine.prefill(PROMPT)
    before = engine.score(prefix, branches)
    after = prefix
    for token in (220, 221, 222):
        after, _ = engine.step(token, after)
    assert (engine.score(prefix, branches) == before).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_verdicts_never_load_what_text_needs(
    engines: dict[tuple[str, str], Engine], recipe: str
) -> None:
    bundle = engines["smolvlm", recipe].bundle
    engine = Engine.open(bundle, threads=1)
    engine.score(engine.prefill(PROMPT), [[210], [211, 212]])
    assert engine.held_stages == {"decoder", "verdict_head"}
    engine.step(210, engine.prefill(PROMPT))
    assert ("writer" in engine.held_stages) == (recipe != "exact")
    if recipe in ("w8", "balanced"):
        files = [bundle.graph("cpu", stage, 0).weight_files for stage in ("decoder", "writer")]
        assert files[0] == files[1], "the same weights: nothing is stored twice"


@pytest.mark.parametrize("recipe", ["w8", "fast"])
def test_the_gates_way_is_the_same_as_step_by_step(
    engines: dict[tuple[str, str], Engine], recipe: str
) -> None:
    engine = engines["qwen2_5_vl", recipe]
    branches = [[210, 211, 212], [213]]
    prefix = engine.prefill(PROMPT)
    found = written_ends(engine, prefix, branches)
    for branch, end in zip(branches, found, strict=True):
        after = engine.prefill(PROMPT)
        if branch[:-1]:
            after = engine.prefill(branch[:-1], after=after)
        assert np.abs(engine.step(branch[-1], after)[1] - end).max() < 1e-5


def test_what_is_written_is_held_against_what_is_decided(
    engines: dict[tuple[str, str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines["smolvlm", "w8"]
    manifest = engine.bundle.manifest
    ids = {
        label: [manifest.label_rows[row] for row in rows] for label, rows in manifest.labels.items()
    }
    other = next(i for i in range(400) if i not in manifest.label_rows)
    written = [ids["yes"][0], ids["no"][-1], ids["no"][0], other]
    logits = np.zeros((4, manifest.embeddings.rows), np.float32)
    logits[np.arange(4), written] = 1
    monkeypatch.setattr(Engine, "full_logits", lambda *_: logits)
    spoken = Spoken()
    spoken.add(engine, np.zeros((4, 64), np.float32), np.array([0.9, 0.1, 0.7, 0.9]))
    assert (spoken.words, spoken.agree) == (3, 2)


@given(st.integers(0, 5000), st.integers(1, 600))
def test_parts_are_even_and_few(count: int, most: int) -> None:
    sizes = [part.stop - part.start for part in even_parts(count, most)]
    assert sum(sizes) == count and len(sizes) == -(-count // most)
    assert not sizes or (max(sizes) <= most and max(sizes) - min(sizes) <= 1)
