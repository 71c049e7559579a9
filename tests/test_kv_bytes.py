"""Keys and values in bytes, and two in a byte: graphs compute what the reference says, in a quarter
or an eighth of the room.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from edgejudge import Judge, Policy
from edgejudge.bundle import Bundle
from edgejudge.errors import FidelityError, ProviderError
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
from edgejudge.runtime.scheduling.workload import Sizes
from edgejudge.runtime.settings import Settings
from edgejudge.runtime.sliced import Request, SlicedEngine
from families import FAMILIES

BITS = {"int8": 8, "int4": 4}
BAND = {"int8": 5e-2, "int4": 2e-1}  # on label logits: a last bit may become a level of a key
KINDS = [(family, kv) for family in FAMILIES for kv in BITS]
BRANCHES = [[70, 71, 90], [70, 71, 91, 92], [80], [81, 82, 83, 84, 85]]
torch.set_num_threads(1)


Bundles = dict[tuple[str, str], tuple[Path, Bundle]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    root = tmp_path_factory.mktemp("kv")
    found = {}
    for family, maker in FAMILIES.items():
        checkpoint = maker.make_checkpoint(root / family)
        for kv in BITS:
            opened, plan = prepared(open_checkpoint(checkpoint), "w8", kv=kv)
            path = export(opened, root / f"{family}-{kv}", plan)
            found[family, kv] = checkpoint, Bundle.open(path, unsealed=True)
    return found


def prefix(engine: Engine) -> list[int]:
    return [1, *range(60, 60 + 50)]


@pytest.mark.parametrize(("family", "kv"), KINDS)
def test_graphs_equal_the_reference_that_rounds(bundles: Bundles, family: str, kv: str) -> None:
    bundle = bundles[family, kv][1]
    record = bundle.graph("cpu", "decoder", 0).kv
    assert record is not None and (record.dtype, record.scales) == (kv, "channel")
    assert graph_error(bundle, Engine.open(bundle, threads=1)) < BAND[kv]


@pytest.mark.parametrize(("kv", "most"), [("int8", 0.1), ("int4", 0.5)])
def test_rounding_moves_the_logits_and_little(bundles: Bundles, kv: str, most: float) -> None:
    """The reference with integers against the one without, over the same weights."""
    folder, _ = bundles["smolvlm", kv]
    checkpoint = open_checkpoint(folder)
    changed, plan = prepared(checkpoint, "w8", kv=kv)
    asked = asked_of(checkpoint, [CalibrationPicture("x", canary_image(40, 60), ("a cat", "beer"))])
    rows, image = checkpoint.labels.token_ids, checkpoint.tokens.image
    rounded, without = (
        np.concatenate(Reference(checkpoint.spec, weights, image).ask(asked, rows))
        for weights in (Stored(changed.weights, plan), Stored(changed.weights, plan.with_kv({})))
    )
    exact = np.concatenate(
        Reference(checkpoint.spec, Exact(checkpoint.weights), image).ask(asked, rows)
    )
    moved = np.sqrt(np.square(rounded - without).mean())
    assert 0 < moved < most * np.abs(exact).max()


@pytest.mark.parametrize(("family", "kv"), KINDS)
@pytest.mark.parametrize("chunk", [1, 7, 20, 512])
def test_any_split_packing_and_fork_give_the_same(
    bundles: Bundles, family: str, kv: str, chunk: int
) -> None:
    engine = Engine.open(bundles[family, kv][1], threads=1)
    ids = prefix(engine)
    wanted = engine.score(engine.prefill(ids), BRANCHES)
    engine.chunk = engine.pack_tokens = chunk
    held = engine.prefill(ids)
    assert np.abs(engine.score(held, BRANCHES) - wanted).max() < BAND[kv]
    assert np.abs(engine.score(held, BRANCHES, packed=False) - wanted).max() < BAND[kv]


@pytest.mark.parametrize(("family", "kv"), KINDS)
def test_a_fork_is_a_fresh_prompt(bundles: Bundles, family: str, kv: str) -> None:
    """Levels of a prefix are those of its rows alone, so what lay behind it leaves no trace."""
    engine = Engine.open(bundles[family, kv][1], threads=1)
    ids = prefix(engine)
    wanted = engine.score(engine.prefill(ids), BRANCHES[:1])
    held = engine.prefill(ids)
    engine.score(held, BRANCHES[1:])
    engine.append([99, 98], after=held)
    assert (engine.score(held, BRANCHES[:1]) == wanted).all()


@pytest.mark.parametrize(("family", "kv"), KINDS)
def test_a_prefix_put_back_is_the_one_that_was_computed(
    bundles: Bundles, family: str, kv: str
) -> None:
    engine = Engine.open(bundles[family, kv][1], threads=1)
    held = engine.prefill(prefix(engine))
    wanted = engine.score(held, BRANCHES)
    rows = engine.snapshot(held)
    assert rows is not None and rows.dtype == {"int8": np.int8, "int4": np.uint8}[kv]
    text = engine.spec.text
    values = 2 * text.layers * text.kv_heads * text.head_dim * held.length
    assert rows.nbytes == values * BITS[kv] // 8
    engine.prefill([1, 99, 98, 97])
    assert (engine.score(engine.restore(rows, held.position), BRANCHES) == wanted).all()


@pytest.mark.parametrize(("family", "kv"), KINDS)
def test_slices_keep_integers_too(bundles: Bundles, family: str, kv: str) -> None:
    bundle = bundles[family, kv][1]
    engine = Engine.open(bundle, threads=1)
    ids = prefix(engine)
    wanted = engine.score(engine.prefill(ids), BRANCHES)
    (found,) = SlicedEngine.open(bundle, 8 << 30, threads=1).ask([Request(BRANCHES, ids)])
    assert isinstance(found, np.ndarray) and np.abs(found - wanted).max() < BAND[kv]


@pytest.mark.parametrize("kv", BITS)
def test_a_task_graph_weighs_tokens_as_the_cache_does(bundles: Bundles, kv: str) -> None:
    bundle = bundles["smolvlm", kv][1]
    text = ModelSpec.from_json(bundle.manifest.spec).text
    channels = 2 * text.kv_heads * text.head_dim
    assert Sizes.of(bundle, Settings(1)).kv_bytes == channels * BITS[kv] // 8


@pytest.mark.parametrize("kv", BITS)
def test_the_whole_chain_with_a_store(tmp_path: Path, kv: str) -> None:
    """Export through the gate, a verdict, and the same one from a prefix kept on disk."""
    checkpoint = tiny.make_checkpoint(
        tmp_path / "checkpoint", card=tiny.make_card(), grid_of_tiles=2, text_layers=2
    )
    policy = Policy.from_yaml(
        "name: p\nversion: 1\nrules:\n  - {id: a, text: t, category: c, conditions: [beer]}\n"
    )
    manifest = export_bundle(
        checkpoint,
        tmp_path / "bundle",
        "exact",
        policies=[policy.record()],
        kv=kv,
        accept_flips=1.0,
    )
    assert manifest.fidelity is not None and manifest.fidelity.decisions is not None
    # Weights are exact: what moves a probability is the cache, and the report says so.
    assert manifest.fidelity.decisions.probability_error_max > 1e-3
    picture = canary_image(60, 90)
    found = [
        Judge.load(tmp_path / "bundle", threads=1, prefix_store=tmp_path / "kept").screen(
            picture, policy
        )
        for _ in range(2)
    ]
    assert [v.prefix_cache for v in found] == ["miss", "hit"]
    assert found[0].rules == found[1].rules


def test_a_refusal_names_the_cache(tmp_path: Path) -> None:
    checkpoint = tiny.make_checkpoint(tmp_path / "checkpoint", tiling=False)
    named = r"move most by keys and values in int4 \(0\.\d+\).* --kv float32 keeps keys and values"
    with pytest.raises(FidelityError, match=named):
        export_bundle(checkpoint, tmp_path / "bundle", "exact", kv="int4")


def test_visual_tokens_that_are_no_numbers_are_refused(bundles: Bundles) -> None:
    bundle = bundles["smolvlm", "int8"][1]
    image = bundle.manifest.tokens.image
    visual = np.full((1, 64), np.nan, np.float32)
    with pytest.raises(ProviderError, match="not numbers"):
        spec = ModelSpec.from_json(bundle.manifest.spec)
        Embeddings.of(bundle, spec).rows(np.array([image]), visual)
