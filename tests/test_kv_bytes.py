"""Keys and values in bytes: graphs compute what the reference says, in a quarter of the room."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
import tiny_internvl
import tiny_llava
import tiny_qwen
from edgejudge import Judge, Policy
from edgejudge.bundle import Bundle
from edgejudge.errors import ProviderError
from edgejudge.export import (
    Exact,
    Reference,
    Stored,
    asked_of,
    export,
    open_checkpoint,
    prepared,
)
from edgejudge.export.calibration import CalibrationPicture
from edgejudge.fidelity import export_bundle
from edgejudge.goldens import graph_error
from edgejudge.models.image import canary_image
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime import Engine
from edgejudge.runtime.embeddings import Embeddings
from edgejudge.runtime.sliced import Request, SlicedEngine

FAMILIES = {
    "smolvlm": tiny.make_checkpoint,
    "qwen2_5_vl": tiny_qwen.make_checkpoint,
    "internvl": tiny_internvl.make_checkpoint,
    "llava_onevision": tiny_llava.make_checkpoint,
}
BAND = 5e-2  # on label logits: a last bit may become a level of a key
BRANCHES = [[70, 71, 90], [70, 71, 91, 92], [80], [81, 82, 83, 84, 85]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Bundle]]:
    root = tmp_path_factory.mktemp("kv")
    found = {}
    for family, make in FAMILIES.items():
        checkpoint = make(root / family)
        opened, plan = prepared(open_checkpoint(checkpoint), "w8", kv_bytes=True)
        path = export(opened, root / f"{family}-bundle", plan)
        found[family] = checkpoint, Bundle.open(path, unsealed=True)
    return found


def prefix(engine: Engine) -> list[int]:
    return [1, *range(60, 60 + 50)]


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_equal_the_reference_that_rounds(
    bundles: dict[str, tuple[Path, Bundle]], family: str
) -> None:
    bundle = bundles[family][1]
    kv = bundle.graph("cpu", "decoder", 0).kv
    assert kv is not None and (kv.dtype, kv.scales) == ("int8", "channel")
    assert graph_error(bundle, Engine.open(bundle, threads=1)) < BAND


def test_rounding_moves_the_logits_and_little(bundles: dict[str, tuple[Path, Bundle]]) -> None:
    """The reference with bytes against the one without, over the same weights."""
    folder, _ = bundles["smolvlm"]
    checkpoint = open_checkpoint(folder)
    changed, plan = prepared(checkpoint, "w8", kv_bytes=True)
    asked = asked_of(checkpoint, [CalibrationPicture("x", canary_image(40, 60), ("a cat", "beer"))])
    rows, image = checkpoint.labels.token_ids, checkpoint.tokens.image
    with_bytes, without = (
        np.concatenate(Reference(checkpoint.spec, weights, image).ask(asked, rows))
        for weights in (Stored(changed.weights, plan), Stored(changed.weights, plan.with_kv({})))
    )
    exact = np.concatenate(
        Reference(checkpoint.spec, Exact(checkpoint.weights), image).ask(asked, rows)
    )
    moved = np.sqrt(np.square(with_bytes - without).mean())
    assert 0 < moved < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 7, 20, 512])
def test_any_split_packing_and_fork_give_the_same(
    bundles: dict[str, tuple[Path, Bundle]], family: str, chunk: int
) -> None:
    engine = Engine.open(bundles[family][1], threads=1)
    ids = prefix(engine)
    wanted = engine.score(engine.prefill(ids), BRANCHES)
    engine.chunk = engine.pack_tokens = chunk
    held = engine.prefill(ids)
    assert np.abs(engine.score(held, BRANCHES) - wanted).max() < BAND
    assert np.abs(engine.score(held, BRANCHES, packed=False) - wanted).max() < BAND


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_put_back_is_the_one_that_was_computed(
    bundles: dict[str, tuple[Path, Bundle]], family: str
) -> None:
    engine = Engine.open(bundles[family][1], threads=1)
    held = engine.prefill(prefix(engine))
    wanted = engine.score(held, BRANCHES)
    rows = engine.snapshot(held)
    assert rows is not None and rows.dtype == np.int8
    text = engine.spec.text
    assert rows.nbytes == 2 * text.layers * text.kv_heads * text.head_dim * held.length
    engine.prefill([1, 99, 98, 97])
    assert (engine.score(engine.restore(rows, held.position), BRANCHES) == wanted).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_slices_keep_bytes_too(bundles: dict[str, tuple[Path, Bundle]], family: str) -> None:
    bundle = bundles[family][1]
    engine = Engine.open(bundle, threads=1)
    ids = prefix(engine)
    wanted = engine.score(engine.prefill(ids), BRANCHES)
    (found,) = SlicedEngine.open(bundle, 8 << 30, threads=1).ask([Request(BRANCHES, ids)])
    assert isinstance(found, np.ndarray) and np.abs(found - wanted).max() < BAND


def test_the_whole_chain_with_a_store(tmp_path: Path) -> None:
    """Export through the gate, a verdict, and the same one from a prefix kept on disk."""
    checkpoint = tiny.make_checkpoint(
        tmp_path / "checkpoint", card=tiny.make_card(), grid_of_tiles=2, text_layers=2
    )
    policy = Policy.from_yaml(
        "name: p\nversion: 1\nrules:\n  - {id: a, text: t, category: c, conditions: [beer]}\n"
    )
    export_bundle(
        checkpoint,
        tmp_path / "bundle",
        "exact",
        policies=[policy.record()],
        kv_bytes=True,
        accept_flips=1.0,
    )
    picture = canary_image(60, 90)
    found = [
        Judge.load(tmp_path / "bundle", threads=1, prefix_store=tmp_path / "kept").screen(
            picture, policy
        )
        for _ in range(2)
    ]
    assert [v.prefix_cache for v in found] == ["miss", "hit"]
    assert found[0].rules == found[1].rules


def test_visual_tokens_that_are_no_numbers_are_refused(
    bundles: dict[str, tuple[Path, Bundle]],
) -> None:
    bundle = bundles["smolvlm"][1]
    image = bundle.manifest.tokens.image
    visual = np.full((1, 64), np.nan, np.float32)
    with pytest.raises(ProviderError, match="not numbers"):
        spec = ModelSpec.from_json(bundle.manifest.spec)
        Embeddings.of(bundle, spec).rows(np.array([image]), visual)
