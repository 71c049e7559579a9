"""Label logits are the same however the work is cut: packed, alone, chunked or in parts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from edgejudge.bundle import Bundle
from edgejudge.errors import InputError, ProviderError
from edgejudge.export import Cut, export
from edgejudge.runtime import Engine

BAND = 1e-5  # on label probabilities: what DESIGN promises for any packing, order or chunking
LOGIT_BAND = 2e-4  # on label logits of weights at std 0.2, whose values reach 10
SLOW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint as fp32 and w8, and as fp32 in parts of one layer each."""
    root = tmp_path_factory.mktemp("engine")
    tiny.make_checkpoint(root / "checkpoint")
    export(root / "checkpoint", root / "exact", recipe="exact")
    export(root / "checkpoint", root / "w8", recipe="w8")
    export(root / "checkpoint", root / "parts", recipe="exact", cut=Cut(3))
    return {name: root / name for name in ("exact", "w8", "parts")}


def open_engine(folder: Path) -> Engine:
    return Engine.open(Bundle.open(folder, unsealed=True), threads=1)


@pytest.fixture(scope="module")
def engines(folders: dict[str, Path]) -> dict[str, Engine]:
    return {name: open_engine(folder) for name, folder in folders.items()}


def make_prefix(engine: Engine, views: int, seed: int = 0) -> tuple[list[int], np.ndarray]:
    """Prefix ids with the visual tokens of random views in their middle."""
    rng = np.random.default_rng(seed)
    side = engine.spec.vision.image_size
    pixels = rng.normal(size=(views, 3, side, side)).astype(np.float32)
    visual = engine.encode_image({"pixel_values": pixels})
    image = engine.bundle.manifest.tokens.image
    return [1, 60, 61, *[image] * len(visual), 62, 63], visual


# Some begin alike, as questions of one template do.
texts = st.builds(
    list.__add__,
    st.sampled_from([[], [77, 78, 79], [77, 78, 90, 91, 92]]),
    st.lists(st.integers(50, 400), min_size=1, max_size=14),
)


@pytest.mark.parametrize("recipe", ["exact", "w8"])
@given(branches=st.lists(texts, min_size=1, max_size=9), budget=st.integers(1, 40), data=st.data())
@SLOW
def test_packed_is_separate_in_any_order(
    engines: dict[str, Engine],
    recipe: str,
    branches: list[list[int]],
    budget: int,
    data: st.DataObject,
) -> None:
    engine = engines[recipe]
    prefix = engine.prefill(*make_prefix(engine, 1))
    alone = engine.score(prefix, branches, packed=False)
    order = data.draw(st.permutations(range(len(branches))))
    engine.pack_tokens = budget
    packed = engine.score(prefix, [branches[i] for i in order])
    assert np.abs(packed - alone[order]).max() < LOGIT_BAND
    difference = engine.label_probabilities(packed) - engine.label_probabilities(alone[order])
    assert np.abs(difference).max() < BAND


@pytest.mark.parametrize("recipe", ["exact", "w8"])
@given(chunk=st.integers(1, 60), views=st.integers(1, 3))
@SLOW
def test_chunked_is_whole(engines: dict[str, Engine], recipe: str, chunk: int, views: int) -> None:
    engine = engines[recipe]
    ids, visual = make_prefix(engine, views)
    branches = [[70, 71], [80, 81, 82]]
    engine.chunk = 512
    whole = engine.score(engine.prefill(ids, visual), branches)
    engine.chunk = chunk
    cut = engine.score(engine.prefill(ids, visual), branches)
    assert np.abs(cut - whole).max() < LOGIT_BAND
    difference = engine.label_probabilities(cut) - engine.label_probabilities(whole)
    assert np.abs(difference).max() < BAND


def test_parts_are_the_whole(engines: dict[str, Engine]) -> None:
    whole, parts = engines["exact"], engines["parts"]
    assert len(parts.bundle.manifest.parts) == parts.spec.text.layers
    branches = [[70, 71], [80]]
    a = whole.score(whole.prefill(*make_prefix(whole, 2)), branches)
    b = parts.score(parts.prefill(*make_prefix(parts, 2)), branches)
    assert np.abs(a - b).max() < LOGIT_BAND


def test_a_fork_is_a_fresh_prefill(engines: dict[str, Engine], folders: dict[str, Path]) -> None:
    """Many packs over one kept prefix leave nothing behind, and another image replaces it."""
    engine = engines["exact"]
    ids, visual = make_prefix(engine, 1)
    prefix = engine.prefill(ids, visual)
    first = engine.score(prefix, [[70, 71, 72]])
    engine.score(prefix, [[99] * 12, [98] * 9])
    assert np.array_equal(engine.score(prefix, [[70, 71, 72]]), first)
    other_ids, other = make_prefix(engine, 1, seed=1)
    assert not np.allclose(engine.score(engine.prefill(other_ids, other), [[70, 71, 72]]), first)
    fresh = open_engine(folders["exact"])
    again = fresh.score(fresh.prefill(ids, visual), [[70, 71, 72]])
    assert np.abs(again - first).max() < LOGIT_BAND  # the other engine may cut its chunks otherwise
    with pytest.raises(InputError, match="prefill it again"):
        engine.score(prefix, [[70]])


@pytest.mark.parametrize("recipe", ["exact", "w8"])
@given(
    levels=st.lists(st.lists(st.integers(50, 400), min_size=1, max_size=30), max_size=4),
    image_at=st.integers(0, 4),
)
@SLOW
def test_a_tree_of_prefixes_is_one_prefix(
    engines: dict[str, Engine], recipe: str, levels: list[list[int]], image_at: int
) -> None:
    """System prompt, image, template: levels held one over the other, and one flat prefill."""
    engine = engines[recipe]
    ids, visual = make_prefix(engine, 1)
    parts: list[tuple[list[int], np.ndarray | None]] = [(level, None) for level in levels]
    parts.insert(image_at, (ids, visual))
    branches = [[70, 71], [80, 81, 82], [70, 90]]
    flat = engine.score(engine.prefill([i for part, _ in parts for i in part], visual), branches)
    held = []
    for part, seen in parts:
        held.append(engine.prefill(part, seen, after=held[-1] if held else None))
    deep = engine.score(held[-1], branches)
    assert np.abs(deep - flat).max() < LOGIT_BAND
    difference = engine.label_probabilities(deep) - engine.label_probabilities(flat)
    assert np.abs(difference).max() < BAND
    # A fork at a lower level is that level alone, and ends what was built on it.
    for level in reversed(held[:-1]):
        engine.score(level, branches)
    if len(held) > 1:
        with pytest.raises(InputError, match="prefill it again"):
            engine.score(held[-1], branches)


def test_a_snapshot_is_its_prefix(folders: dict[str, Path]) -> None:
    engine = open_engine(folders["w8"])  # not one whose pass sizes another test has changed
    ids, visual = make_prefix(engine, 1)
    branches = [[70, 71], [80, 81, 82]]
    system = engine.prefill([1, 55, 56])
    image = engine.prefill(ids, visual, after=system)
    expected = engine.score(image, branches)
    rows = engine.snapshot(image, after=system)
    assert rows is not None and rows.shape[3] == len(ids)
    assert engine.snapshot(image, system, rows.nbytes) is not None
    assert engine.snapshot(image, system, rows.nbytes - 1) is None, "more than may be kept"
    engine.score(system, [[99] * 20])
    again = engine.restore(rows, image.position, after=system)
    assert np.array_equal(engine.score(again, branches), expected)
    other = open_engine(folders["w8"])
    behind = other.prefill([1, 55, 56])
    assert np.array_equal(
        other.score(other.restore(rows, image.position, behind), branches), expected
    )
    with pytest.raises(InputError, match="prefill it again"):
        engine.snapshot(image)


def test_shared_beginnings_run_once(engines: dict[str, Engine]) -> None:
    engine = engines["exact"]
    prefix = engine.prefill([1, 60])
    engine.trace.clear()
    engine.score(prefix, [[77, 78, 79, i] for i in range(60, 70)])
    (score,) = [s for s in engine.trace.spans if s.name == "score"]
    assert score.counts == {"branches": 10, "tokens": 3 + 10}


def test_blind_prompts_do_not_see_each_other(engines: dict[str, Engine]) -> None:
    engine = engines["w8"]
    prompts = [[1, 60, 70], [1, 80, 81, 82, 83], [1, 90]]
    packed = engine.score_blind(prompts)
    assert np.abs(packed - engine.score_blind(prompts, packed=False)).max() < LOGIT_BAND


def test_the_cache_grows_between_buckets(engines: dict[str, Engine]) -> None:
    engine = engines["exact"]
    buckets = engine.bundle.graph("cpu", "decoder", 0).kv.length_buckets  # type: ignore[union-attr]
    long = [60 + i % 300 for i in range(buckets[0] + 40)]
    whole = engine.score(engine.prefill(long), [[70, 71]])
    engine.chunk = 100
    assert np.abs(engine.score(engine.prefill(long), [[70, 71]]) - whole).max() < LOGIT_BAND
    with pytest.raises(InputError, match="fewer or shorter"):
        engine.prefill([60] * (buckets[-1] + 1))


def test_label_rows_are_rows_of_the_full_head(engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        prefix = engine.prefill(*make_prefix(engine, 1))
        ends = engine.ends(prefix, [[70, 71], [80]])
        full = engine.full_logits(ends)
        assert full.shape == (2, engine.spec.text.vocab)
        band = LOGIT_BAND if engine.bundle.manifest.recipe == "exact" else 0.2
        rows = list(engine.bundle.manifest.label_rows)
        assert np.abs(full[:, rows] - engine.label_logits(ends)).max() < band


def test_verdicts_never_load_the_full_head(folders: dict[str, Path]) -> None:
    engine = open_engine(folders["w8"])
    engine.score(engine.prefill(*make_prefix(engine, 1)), [[70]])
    assert set(engine.placement) == {"vision", "decoder", "verdict_head"}
    assert {s.name for s in engine.trace.spans} >= {"load", "vision", "prefill", "decoder", "score"}


def test_probabilities_join_variants(engines: dict[str, Engine]) -> None:
    engine = engines["exact"]
    labels = engine.bundle.manifest.labels
    logits = np.zeros((1, len(engine.bundle.manifest.label_rows)), np.float32)
    expected = len(labels["yes"]) / (len(labels["yes"]) + len(labels["no"]))
    assert engine.label_probabilities(logits)[0] == pytest.approx(expected)
    logits[0, labels["yes"][0]] = 50
    assert engine.label_probabilities(logits)[0] == pytest.approx(1)
    logits[0, 0] = np.nan
    with pytest.raises(ProviderError, match="not numbers"):
        engine.label_probabilities(logits)


def test_image_tokens_and_visual_tokens_must_agree(engines: dict[str, Engine]) -> None:
    engine = engines["exact"]
    ids, visual = make_prefix(engine, 1)
    with pytest.raises(ProviderError, match="visual tokens"):
        engine.prefill(ids, visual[:-1])
    with pytest.raises(ValueError, match="token ids must be"):
        engine.prefill([10**6])
