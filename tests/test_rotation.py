"""Rotation: the same function in another basis, for every family; what is forgotten shows."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import outliers
import tiny
from edgejudge.bundle import Bundle, read_manifest
from edgejudge.errors import ExportError
from edgejudge.export import (
    CalibrationPicture,
    Checkpoint,
    Exact,
    Reference,
    asked_of,
    export,
    open_checkpoint,
    prepared,
    recipe_named,
)
from edgejudge.export.hadamard import Turn
from edgejudge.export.rotation import Rotated, rotated, rotated_by
from edgejudge.export.stream import Stream, residual_stream
from edgejudge.export.weights import row_blocks
from edgejudge.goldens import graph_error
from edgejudge.models.image import canary_image
from edgejudge.models.preset import PRESETS, preset_named
from edgejudge.runtime import Engine
from families import FAMILIES

torch.set_num_threads(1)
ENDS = {  # of a connector's last matrix
    "smolvlm": "",
    "qwen2_5_vl": "mlp.2.",
    "qwen3_vl": "linear_fc2.",
    "internvl": "linear_2.",
    "llava_onevision": "linear_2.",
}
TEXTS = ("a knife", "beer", "a dog", "written text")
ARGUMENTS = [(family, tied) for family in FAMILIES for tied in (False, True)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Checkpoint]:
    root = tmp_path_factory.mktemp("rotation")
    return {
        (family, tied): open_checkpoint(
            FAMILIES[family].make_checkpoint(root / f"{family} {tied}", tied=tied)
        )
        for family, tied in ARGUMENTS
    }


def logits(opened: Checkpoint, rows: tuple[int, ...] | None = None) -> np.ndarray:
    """Of a picture's questions, every word's or those of `rows`, in float32."""
    asked = asked_of(opened, [CalibrationPicture("drawn", canary_image(50, 70), TEXTS)])
    reference = Reference(opened.spec, Exact(opened.weights), opened.tokens.image)
    return reference.ask(asked, rows)[0]


def stream_of(opened: Checkpoint) -> Stream:
    return residual_stream(opened.family, opened.spec, opened.weights)


# --- the matrix ----------------------------------------------------------------------------------


def widths() -> list[int]:
    """Of hidden states and heads of every preset, of tiny checkpoints, and odd ones."""
    found = {16, 32, 64, 192, 52, 13, 1, 18}
    for name in PRESETS:
        text = preset_named(name).config["text_config"]
        found |= {text["hidden_size"], text["hidden_size"] // text["num_attention_heads"]}
    return sorted(found)


@pytest.mark.parametrize("width", widths())
def test_the_matrix_is_orthogonal(width: int) -> None:
    turn = Turn(width, 0)
    q = turn(np.eye(width, dtype=np.float32)).astype(np.float64)
    assert np.abs(q @ q.T - np.eye(width)).max() < 1e-6
    size = np.abs(q) * np.sqrt(width)
    if width % 4 == 0 and width != 52:  # there is a Hadamard matrix: all its numbers are alike
        assert np.allclose(size, 1, atol=1e-6)
    else:
        assert size.max() < 1.4143 + 1e-6 or width == 1
    x = np.random.default_rng(1).standard_normal((3, 2, width)).astype(np.float32)
    assert np.abs(turn(x) - x.astype(np.float64) @ q).max() < 1e-5
    assert width < 13 or (Turn(width, 1)(x) != turn(x)).any()


def test_one_channel_is_spread_over_all() -> None:
    x = np.zeros((1, 1536), np.float32)
    x[0, 7] = 1000
    assert np.allclose(np.abs(Turn(1536, 0)(x)), 1000 / np.sqrt(1536))


# --- where the stream is -------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_place_of_the_forward_pass_is_found(
    checkpoints: dict[tuple[str, bool], Checkpoint], family: str
) -> None:
    """By shape and name, which the code that finds them does not look at."""
    opened = checkpoints[family, False]
    found, spec = stream_of(opened), opened.spec
    names = dict(opened.family.weight_names(spec))
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(opened.family.group_of(name), []).append(name)
    decoder = groups["decoder"]
    inside = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    readers = [n for n in decoder if n.split(".")[-2] in inside and n.endswith("weight")]
    assert set(found.readers) == {*readers, opened.family.HEAD}
    assert found.norms == {
        n for n in decoder if n.endswith("norm.weight") and names[n][0] == spec.text.hidden
    }
    last = [n for n in groups["connector"] if ENDS[family] in n]
    written = [n for n in decoder if n.split(".")[-2] in ("o_proj", "down_proj")]
    assert found.writers == {*written, *(n for n in last if n.endswith("weight"))}
    biases = {n for n in last if n.endswith("bias")}
    tokens = {n for n in names if n.endswith("image_newline")}
    assert found.vectors == {opened.family.EMBEDDINGS, *biases, *tokens}
    assert len(biases) == (0 if family == "smolvlm" else 1 + spec.lanes)
    assert len(tokens) == spec.line_end


def changed_family(opened: Checkpoint, vision: Any, **weights: np.ndarray) -> Any:
    """The family with another end of its vision graph."""
    held = tiny.Held({**{n: opened.weights(n) for n, _ in opened.family.weight_names(opened.spec)}})
    held.arrays |= weights
    whole = {n: getattr(opened.family, n) for n in dir(opened.family) if not n.startswith("__")}

    def seen(ops: Any, spec: Any, inputs: Any, layers: Any = None) -> Any:
        return vision(ops, opened.family.vision(ops, spec, inputs, layers))

    return SimpleNamespace(**{**whole, "vision": seen}), held


def test_a_learned_token_is_found_as_a_vector(
    checkpoints: dict[tuple[str, bool], Checkpoint],
) -> None:
    opened = checkpoints["smolvlm", False]
    token = np.arange(64, dtype=np.float32)
    family, held = changed_family(opened, lambda ops, x: ops.prepend(x, "newline"), newline=token)
    found = residual_stream(family, opened.spec, held)
    assert found.vectors == {family.EMBEDDINGS, "newline"}
    turned = Rotated(held, found, 64)
    assert (turned("newline") == Turn(64, 0)(token)).all()
    assert (turned.rows("newline", slice(3, 9)) == Turn(64, 0)(token)[3:9]).all()


@pytest.mark.parametrize(
    ("vision", "why"),
    [
        (lambda ops, x: ops.activation(x, "gelu"), "no matrix makes"),
        (lambda ops, x: ops.some_new_op(x), "no matrix makes"),
        (lambda ops, x: ops.mul(x, x), "no matrix makes"),
        (lambda ops, x: (ops.activation(x, "gelu"), x)[1], "used elsewhere"),
        (lambda ops, x: ops.prepend(x, "short"), "in another shape"),
    ],
)
def test_what_cannot_be_turned_is_refused(
    checkpoints: dict[tuple[str, bool], Checkpoint], vision: Any, why: str
) -> None:
    opened = checkpoints["smolvlm", False]
    family, held = changed_family(opened, vision, short=np.zeros(8, np.float32))
    with pytest.raises(ExportError, match=f"cannot be turned: .*{why}"):
        residual_stream(family, opened.spec, held)


def test_a_decoder_that_looks_at_channels_is_refused(
    checkpoints: dict[tuple[str, bool], Checkpoint],
) -> None:
    opened = checkpoints["smolvlm", False]
    family, held = changed_family(opened, lambda ops, x: x)

    def decoder(ops: Any, spec: Any, hidden: Any, *rest: Any) -> Any:
        hidden = opened.family.decoder(ops, spec, hidden, *rest)
        return ops.add(hidden, ops.layer_norm(hidden, "w", "b", 1e-5))

    family.decoder = decoder
    with pytest.raises(ExportError, match="something that is no matrix uses it"):
        residual_stream(family, opened.spec, held)


# --- the function --------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "tied"), ARGUMENTS)
def test_the_function_stays_the_same(
    checkpoints: dict[tuple[str, bool], Checkpoint], family: str, tied: bool
) -> None:
    opened = checkpoints[family, tied]
    changed = rotated(opened)
    assert not changed.spec.text.tie_word_embeddings
    for rows in (None, opened.labels.token_ids):
        assert np.abs(logits(changed, rows) - logits(opened, rows)).max() < 1e-4
    stream = stream_of(opened)
    for name, shape in opened.family.weight_names(opened.spec):
        assert changed.weights.shape(name) == shape == changed.weights(name).shape
        if name in stream.norms:
            assert (changed.weights(name) == 1).all()
        touched = {*stream.readers, *stream.writers, *stream.vectors, *stream.norms}
        assert (changed.weights(name) == opened.weights(name)).all() == (name not in touched)


def test_it_also_holds_behind_smoothing_and_outliers(
    checkpoints: dict[tuple[str, bool], Checkpoint],
) -> None:
    from edgejudge.export.smoothing import smoothed

    opened = checkpoints["qwen2_5_vl", True]
    truth = logits(opened)
    for changed in (smoothed(rotated(opened)), rotated(outliers.scaled_channels(opened, 64.0))):
        assert np.abs(logits(changed) - truth).max() < 1e-4


def forgotten(stream: Stream) -> dict[str, Stream]:
    """The stream with one of its places left out, by what was left out."""
    reader, writer = sorted(stream.readers)[0], sorted(stream.writers)[0]
    found = {
        "a reader": replace(
            stream, readers={k: v for k, v in stream.readers.items() if k != reader}
        ),
        "a norm": replace(stream, readers={**stream.readers, reader: None}),
        "a writer": replace(stream, writers=stream.writers - {writer}),
    }
    for name in sorted(stream.vectors):
        found[name] = replace(stream, vectors=stream.vectors - {name})
    for name in sorted(stream.writers):
        if "deepstack" in name:
            found[name] = replace(stream, writers=stream.writers - {name})
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_is_forgotten_shows(
    checkpoints: dict[tuple[str, bool], Checkpoint], family: str
) -> None:
    opened = checkpoints[family, True]
    truth, stream = logits(opened), stream_of(opened)
    wrong = forgotten(stream)
    assert len(wrong) == 3 + len(stream.vectors) + opened.spec.lanes
    for what, places in wrong.items():
        moved = np.abs(logits(rotated_by(opened, places)) - truth).max()
        assert moved > 1e-2, what


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rotated_bundle_answers_as_the_checkpoint(
    checkpoints: dict[tuple[str, bool], Checkpoint], family: str, tmp_path: Path
) -> None:
    """Embeddings, visual tokens, lanes and both heads arrive turned; its golden vectors are what
    the checkpoint itself says of them.
    """
    opened = checkpoints[family, True]
    changed, plan = prepared(opened, replace(recipe_named("exact"), rotate=True))
    assert (changed.weights(opened.family.HEAD) != opened.weights(opened.family.HEAD)).any()
    bundle = Bundle.open(export(changed, tmp_path / "out", plan), unsealed=True)
    assert graph_error(bundle, Engine.open(bundle, threads=1)) < 1e-4
    plain = read_manifest(export(opened, tmp_path / "plain", "exact"))
    for found, wanted in zip(bundle.manifest.golden, plain.golden, strict=True):
        assert found.branches == wanted.branches
        moved = np.array(found.label_logits) - np.array(wanted.label_logits)
        assert np.abs(moved).max() < 1e-4


# --- as a source ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_the_whole(
    checkpoints: dict[tuple[str, bool], Checkpoint], family: str
) -> None:
    changed = rotated(checkpoints[family, False])
    for name, shape in changed.family.weight_names(changed.spec):
        whole = changed.weights(name)
        assert whole.dtype == np.float32
        for some in (slice(1, 4), [2, 0], [len(whole) - 1], slice(0, 0)):
            if shape[0] > 4:
                assert np.abs(changed.weights.rows(name, some) - whole[some]).max(initial=0) < 1e-6


class Counting(tiny.Held):
    """Remembers the most rows that were asked for at once."""

    most: dict[str, int] = {}

    def rows(self, name: str, index: Any) -> np.ndarray:
        found = super().rows(name, index)
        self.most[name] = max(self.most.get(name, 0), found.size)
        return found


def test_a_table_is_turned_a_few_rows_at_a_time_and_one_matrix_is_held() -> None:
    rng = np.random.default_rng(0)
    shapes = {"table": (5000, 256), "one": (256, 4000), "two": (256, 4000)}
    held = Counting({n: rng.standard_normal(s, np.float32) for n, s in shapes.items()})
    stream = Stream({}, frozenset(("one", "two")), frozenset(("table",)))
    turned = Rotated(held, stream, 256)
    for name, (rows, inner) in shapes.items():
        for some in row_blocks(rows, inner):
            turned.rows(name, some)
        assert held.most[name] <= 1 << 19
    q = Turn(256, 0)(np.eye(256, dtype=np.float32)).astype(np.float64)
    assert np.abs(turned("one") - q.T @ held("one")).max() < 1e-5
    assert np.abs(turned("table") - held("table") @ q).max() < 1e-5
    assert turned._held is not None and turned._held[0] == "one"


def test_halves_of_embeddings_are_no_worse() -> None:
    """A large channel leaves small ones in the halves' coarsest range, or beyond it."""
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((400, 192)).astype(np.float32) * 0.02
    tall = plain.copy()
    tall[:, 5] *= 1e4
    tall[:, 60:] *= 1e-6

    def error(table: np.ndarray) -> float:
        moved = table.astype(np.float16).astype(np.float64) - table
        return float(np.sqrt(np.square(moved).sum() / np.square(table, dtype=np.float64).sum()))

    for table in (plain, tall):
        assert error(Turn(192, 0)(table)) < 1.1 * error(table)
    nano = open_checkpoint(Path(__file__).parent.parent / "models" / "nano" / "checkpoint")
    name = nano.family.EMBEDDINGS
    assert error(rotated(nano).weights(name)) < 1.1 * max(error(nano.weights(name)), 2e-4)
