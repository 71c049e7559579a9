"""The scripts that made nano: what they draw, ask and count, on sprites drawn here."""

import importlib
import itertools
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.bundle import Bundle
from edgejudge.models.prompt import Prompts
from edgejudge.models.tokenizer import Tokenizer

NANO = Path(__file__).parent.parent / "models" / "nano"


@pytest.fixture(scope="module")
def nano() -> dict[str, ModuleType]:
    """The scripts import each other by bare name, as they do when they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(NANO)
        names = (
            "concepts",
            "evaluate",
            "metrics",
            "mosaics",
            "muon",
            "scene",
            "train_qwen",
            "words",
        )
        return {name: importlib.import_module(name) for name in names}


@pytest.fixture(scope="module")
def stage(nano: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> object:
    """One disc per concept, each of its own grey, and two photographs, one of which shows a cat."""
    folder = tmp_path_factory.mktemp("stage")
    count = len(nano["concepts"].CONCEPTS)
    y, x = np.mgrid[0:64, 0:64] - 31.5
    disc = np.zeros((count + 1, 64, 64, 4), np.uint8)
    disc[..., :3] = np.arange(count + 1)[:, None, None, None] * 3
    disc[:, np.hypot(x, y) < 31, 3] = 255
    concept = np.arange(-1, count)
    np.savez(folder / "s.npz", rgba=disc, concept=concept, artist=np.array(["a"] * len(disc)))
    photos = np.empty(2, object)
    photos[:] = [np.full((90, 120, 3), v, np.uint8) for v in (40, 200)]
    np.savez(folder / "p.npz", rgb=photos, split=np.array(["t", "t"]), shows=np.array(["cat", ""]))
    return nano["scene"].Stage("t", folder / "s.npz", folder / "p.npz")


@pytest.mark.parametrize(("rows", "cols", "busy"), [(0, 0, False), (3, 4, True), (2, 2, False)])
def test_dense_labels_lie_on_shown_concepts(
    nano: dict[str, ModuleType], stage: object, rows: int, cols: int, busy: bool
) -> None:
    scene = nano["scene"]
    seen = 0
    for seed in range(12):
        made = stage.scene(np.random.default_rng(seed), rows, cols, busy=busy)  # type: ignore[attr-defined]
        views = nano["scene"].views_of(made)
        assert views.shape == (rows * cols + 1, 3, scene.VIEW, scene.VIEW)
        assert made.dense.shape == (len(views), 16, len(made.present))
        labelled = (made.dense == 1).any(axis=(0, 1))
        assert (made.present[labelled] == 1).all(), "a label for what was not drawn"
        # Each drawn sticker is labelled somewhere, or was too cut up to be labelled at all.
        touched = (made.dense > 0).any(axis=(0, 1))
        assert touched[made.present == 1].all()
        # The drawing under a token is of a concept that the token is labelled with.
        rows_of = made.sprite[made.sprite > 0] - 1  # the stage's row 0 is its distractor
        layers = made.dense[made.sprite > 0]
        assert (layers[rows_of > 0, rows_of[rows_of > 0] - 1] == 1).all()
        seen += int(labelled.sum())
    assert seen > 10


def test_a_view_is_asked_only_what_can_be_seen_in_it(
    nano: dict[str, ModuleType], stage: object
) -> None:
    ignore, unclear, shown = nano["scene"].IGNORE, 0, 0
    for seed in range(40):
        made = stage.view(np.random.default_rng(seed))  # type: ignore[attr-defined]
        dense = made.dense[0]
        assert ((dense == 1).any(0) == (made.present == 1)).all()
        hidden = (dense == ignore).any(0) & ~(dense == 1).any(0)
        assert (made.present[hidden] == -1).all(), "a part too small to name is no negative"
        unclear, shown = unclear + int(hidden.sum()), shown + int((made.present == 1).sum())
    assert unclear > 0, unclear
    assert shown > 40, shown


def test_some_pictures_to_train_on_have_no_colour_and_no_others(
    nano: dict[str, ModuleType], tmp_path: Path
) -> None:
    made = nano["scene"]
    disc = np.zeros((2, 64, 64, 4), np.uint8)
    disc[..., 0], disc[..., 3] = 200, 255  # red
    np.savez(tmp_path / "s.npz", rgba=disc, concept=np.array([-1, 0]), artist=np.array(["a", "a"]))
    none = np.empty(0, object)
    np.savez(tmp_path / "p.npz", rgb=none, split=np.empty(0, str), shows=np.empty(0, str))

    def grey(split: str) -> float:
        stage = made.Stage(split, tmp_path / "s.npz", tmp_path / "p.npz")
        found = []
        for seed in range(200):
            pixels = np.asarray(stage.view(np.random.default_rng(seed), 2).image, np.int16)
            found.append(np.abs(pixels - pixels[..., :1]).max() <= 2)  # JPEG rounds
        return float(np.mean(found))

    assert 0.04 < grey("train") < 0.2
    assert grey("val") == grey("test") < 0.02


def test_a_mosaic_shows_what_its_views_show(nano: dict[str, ModuleType]) -> None:
    rng = np.random.default_rng(0)
    views = torch.arange(60.0).half()[:, None, None].expand(-1, 16, 4)
    shown = np.zeros((60, 5), np.int8)
    shown[rng.random((60, 5)) < 0.1] = 1
    shown[7, 2] = -1
    pool = nano["mosaics"].Pool(views, shown, {})
    for rows, cols in [(0, 0), (2, 2), (3, 4)] * 20:
        tokens, present = pool.mosaic(rng, rows, cols)
        assert tokens.shape == (rows * cols + 1, 16, 4)
        used = shown[tokens[:, 0, 0].int().numpy()]
        assert ((used == 1).any(0) == (present == 1)).all()
        assert (((used == -1).any(0) & ~(used == 1).any(0)) == (present == -1)).all()


def test_a_whole_picture_shows_what_its_bare_tiles_were_given(
    nano: dict[str, ModuleType],
) -> None:
    rng = np.random.default_rng(1)
    views = torch.arange(60.0).half()[:, None, None].expand(-1, 16, 4)
    shown = np.zeros((60, 5), np.int8)
    shown[:30][rng.random((30, 5)) < 0.3] = 1
    shown[3, 1] = -1
    own = torch.arange(100.0, 126.0).half().reshape(2, 13, 1, 1).expand(-1, -1, 16, 4)
    bare = rng.random((2, 13)) < 0.5
    bare[:, -1] = False
    present = np.array([[1, 0, 0, 0, -1], [0, 0, 1, 0, 0]], np.int8)
    whole = nano["mosaics"].Whole(
        own, present, bare, np.zeros((*own.shape[:3], len(present[0])), bool), [(), ()]
    )
    pool = nano["mosaics"].Pool(views, shown, {(3, 4): whole})
    exchanged = 0
    for _ in range(60):
        tokens, present = pool.picture(rng, 3, 4)
        ids = tokens[:, 0, 0].int().numpy()
        which = int(ids[-1] - 100) // 13
        kept = ids >= 100
        assert (ids[kept] == 100 + 13 * which + np.flatnonzero(kept)).all()
        assert not (~kept & ~bare[which]).any(), "only bare tiles are exchanged"
        seen = np.concatenate([whole.shown[which][None], shown[ids[~kept]]])
        assert ((seen == 1).any(0) == (present == 1)).all()
        assert (((seen == -1).any(0) & ~(seen == 1).any(0)) == (present == -1)).all()
        exchanged += int((~kept).sum())
    assert exchanged > 60
    assert (own[:, :, 0, 0].int().numpy() >= 100).all(), "the pool itself stays as it was"


def test_a_photograph_is_no_negative_for_what_it_shows(
    nano: dict[str, ModuleType], stage: object
) -> None:
    cat = [c.name for c in nano["concepts"].CONCEPTS].index("cat")
    values = {
        int(stage.scene(np.random.default_rng(s), show=[]).present[cat])  # type: ignore[attr-defined]
        for s in range(40)
    }
    assert values == {0, -1}
    present = np.zeros(len(nano["concepts"].CONCEPTS), np.int8)
    present[cat] = -1
    asked = [nano["words"].ask(np.random.default_rng(s), present, 8) for s in range(20)]
    assert cat not in {i for each in asked for i in each}


def test_questions_hold_what_is_shown_and_hard_negatives(nano: dict[str, ModuleType]) -> None:
    concepts = nano["concepts"].CONCEPTS
    present = np.zeros(len(concepts), np.int8)
    dog = [c.name for c in concepts].index("dog")
    present[dog] = 1
    asked = nano["words"].ask(np.random.default_rng(0), present, 8)
    assert len(set(asked)) == 8 and dog in asked
    same = [i for i in asked if concepts[i].category == "animal" and i != dog]
    assert len(same) >= 3


def test_trainer_and_runtime_write_the_same_prompts(nano: dict[str, ModuleType]) -> None:
    from tokenizers import Tokenizer as Raw

    bundle = Bundle.open(NANO / "bundle")
    manifest = bundle.manifest
    path = bundle.file("tokenizer.json")
    ours = Prompts(manifest.prompt, manifest.tokens.image, lambda: Tokenizer(path))
    trained = nano["words"].Prompts(Raw.from_file(str(path)), manifest.prompt.visual_tokens)
    grid = range(len(manifest.prompt.tile_open) + 1)
    for rows, cols in [(0, 0), *((r, c) for r, c in itertools.product(grid, grid) if r and c)]:
        assert ours.prefix_ids(rows, cols) == trained.prefix(rows, cols)
    for index, concept in enumerate(nano["concepts"].CONCEPTS):
        assert ours.branch_ids(concept.phrase) == trained.branches[index]["phrase"]
        assert ours.blind_ids(concept.alias) == trained.blind[index]["alias"]
    assert {c.name for c in manifest.concepts} == {c.name for c in nano["concepts"].CONCEPTS}


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_brute_force_one(
    nano: dict[str, ModuleType], rows: list[tuple[int, bool]]
) -> None:
    scores = np.array([s / 7 for s, _ in rows])
    labels = np.array([int(b) for _, b in rows])
    positive, negative = scores[labels == 1], scores[labels == 0]
    if len(positive) and len(negative):
        pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
        assert nano["metrics"].auroc(scores, labels) == pytest.approx(np.mean(pairs))


def test_a_threshold_is_near_the_best_there_is(nano: dict[str, ModuleType]) -> None:
    """On the scale of the scores, however far that is from a probability."""
    random = np.random.default_rng(3)
    truth = random.random(1500) ** 3
    labels = (random.random(1500) < truth).astype(int)
    for scores in (truth, truth**4, np.round(truth, 2)):
        cut = nano["evaluate"].best_threshold(scores, labels)
        found = nano["evaluate"].f1_of(scores >= cut, labels)
        best = max(nano["evaluate"].f1_of(scores >= c, labels) for c in scores)
        assert best - 0.02 < found <= best
    assert nano["evaluate"].best_threshold(truth[:5], labels[:5]) == 0.5  # too few


def test_muon_pulls_singular_values_towards_one(nano: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    for shape in ((2, 8, 24), (1, 24, 8)):
        values = torch.linalg.svdvals(nano["muon"].orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.3


def test_the_small_qwen_trains_on_what_its_family_computes(nano: dict[str, ModuleType]) -> None:
    """Its pictures, prompt and positions while training are those of transformers afterwards."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    qwen, words = nano["train_qwen"], nano["words"]
    tokenizer = words.train_tokenizer(qwen.SPECIALS, [qwen.SYSTEM, qwen.CLOSING])
    torch.manual_seed(0)
    model = qwen.make_model(tokenizer.get_vocab_size()).eval()
    prompts = qwen.QwenPrompts(tokenizer, 0)
    losses = qwen.QwenLosses(model, prompts, "cpu", 3)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 144, 108), np.uint8)
    processor = Qwen2VLImageProcessorPil(**qwen.PROCESSOR)
    seen = processor(images=list(pixels.transpose(0, 2, 3, 1)), return_tensors="pt")
    with torch.no_grad():
        expected = model.model.visual(seen.pixel_values, grid_thw=seen.image_grid_thw).pooler_output
        found = losses.visual_tokens(torch.from_numpy(pixels))
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-4, rtol=1e-4)
    rows, cols = (seen.image_grid_thw[0, 1:] // 2).tolist()
    assert (rows, cols) == (4, 3)
    ids = torch.tensor([prompts.prefix(rows, cols) + prompts.branches[0]["phrase"]])
    kinds = (ids == prompts.image_id).int()
    truth, _ = model.model.get_rope_index(ids, kinds, image_grid_thw=seen.image_grid_thw[:1])
    start = len(prompts.prefix(rows, cols))
    after = torch.arange(ids.shape[1] - start)
    assert (losses.positions(rows, cols, start, after) == truth).all()
