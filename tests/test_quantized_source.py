"""Checkpoints that AWQ or GPTQ quantized: their levels arrive in the bundle as they are."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import tiny_qwen
from edgejudge.bundle import Bundle, read_manifest
from edgejudge.errors import ExportError
from edgejudge.export import (
    Asked,
    Checkpoint,
    Exact,
    Reference,
    export,
    open_checkpoint,
    plan_of,
)
from edgejudge.export.quantize import dequantize
from edgejudge.export.quantized_source import PackedWeights
from edgejudge.goldens import graph_error
from edgejudge.runtime import Engine

torch.set_num_threads(1)
GROUP = 32
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False}
FORMS: dict[str, dict[str, Any]] = {
    "awq": AWQ,
    "gptq": GPTQ,
    "gptq v2": {**GPTQ, "checkpoint_format": "gptq_v2"},
    "gptq symmetric": {**GPTQ, "sym": True},
}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words(levels: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """[A, 8 * B] -> [A, B]: the i-th nibble of a word has the level of column order[i]."""
    out = np.zeros((levels.shape[0], levels.shape[1] // 8), np.uint32)
    for column in range(out.shape[1]):
        for i, place in enumerate(order):
            out[:, column] |= levels[:, 8 * column + place].astype(np.uint32) << np.uint32(4 * i)
    return out.view(np.int32)


def packed(levels: np.ndarray, zeros: np.ndarray, scales: np.ndarray, form: str) -> dict[str, Any]:
    """Levels [K, N], zeros and scales [G, N] as the tensors of a module."""
    if form == "awq":
        found = {"qweight": words(levels, AWQ_ORDER), "qzeros": words(zeros, AWQ_ORDER)}
    else:
        stored = zeros if form == "gptq v2" else zeros - 1
        found = {"qweight": words(levels.T).T, "qzeros": words(stored)}
        found["g_idx"] = (np.arange(len(levels)) // GROUP).astype(np.int32)
    return {n: np.ascontiguousarray(a) for n, a in {**found, "scales": scales}.items()}


def make(root: Path, form: str) -> tuple[Path, Path]:
    """Folders of the packed checkpoint, and of one with the floats that it means."""
    plain = tiny_qwen.make_checkpoint(root / "float", dtype="float16")
    file = plain / "model.safetensors"
    floats, rng = load_file(file), np.random.default_rng(3)
    tensors = {}
    for name, weight in floats.items():
        inside = ".layers." in name and name.endswith("_proj.weight") and "visual" not in name
        if not inside:
            tensors[name] = weight
            continue
        rows, inner = weight.shape
        levels = rng.integers(0, 16, (inner, rows))
        zeros = rng.integers(1, 16, (inner // GROUP, rows))
        if form == "gptq symmetric":
            zeros[:] = 8
        scales = rng.uniform(0.01, 0.04, zeros.shape).astype(np.float16)
        every = np.arange(inner) // GROUP
        exact = scales[every].astype(np.float32) * (levels - zeros[every])
        floats[name] = np.ascontiguousarray(exact.T, np.float32)
        stem = name.removesuffix(".weight")
        tensors |= {f"{stem}.{n}": a for n, a in packed(levels, zeros, scales, form).items()}
    quantized = root / "packed"
    shutil.copytree(plain, quantized)
    save_file(floats, file)
    save_file(tensors, quantized / "model.safetensors")
    configure(quantized, FORMS[form])
    return quantized, plain


def configure(folder: Path, section: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": section}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    return cache(lambda form: make(tmp_path_factory.mktemp("packed"), form))


@pytest.fixture(params=FORMS)
def pair(request: Any, made: Callable[[str], tuple[Path, Path]]) -> tuple[str, Path, Path]:
    return request.param, *made(request.param)


def decoder_matrices(opened: Checkpoint) -> list[str]:
    names = [name for name, _ in opened.family.weight_names(opened.spec)]
    return [n for n in names if "layers." in n and n.endswith("_proj.weight")]


def test_weights_are_what_the_packing_means(pair: tuple[str, Path, Path]) -> None:
    _, quantized, plain = pair
    found, wanted = open_checkpoint(quantized), open_checkpoint(plain)
    assert isinstance(found.weights, PackedWeights) and len(decoder_matrices(found)) == 21
    for name, shape in found.family.weight_names(found.spec):
        assert found.weights.shape(name) == shape
        assert (found.weights(name) == wanted.weights(name)).all(), name
        some = [len(found.weights(name)) - 1, 0]
        assert (found.weights.rows(name, some) == wanted.weights.rows(name, some)).all()


@pytest.mark.parametrize("block", [16, 32])
def test_levels_are_stored_as_they_are(pair: tuple[str, Path, Path], block: int) -> None:
    form, quantized, _ = pair
    source = open_checkpoint(quantized).weights
    assert isinstance(source, PackedWeights)
    for name in decoder_matrices(open_checkpoint(quantized))[:7]:
        q = source.blocks(name, slice(0, 24), block)
        assert q is not None and q.block == block
        assert (q.zeros is None) == (form == "gptq symmetric")
        assert (dequantize(q) == source.rows(name, slice(0, 24))).all()
    assert source.blocks(name, slice(0, 8), 64) is None, "two groups in a block"
    assert source.blocks(name, slice(0, 8), 24) is None


def test_the_bundle_judges_like_the_floats(pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    """Without a picture, since the tower is quantized as ever; nothing was rounded in the
    decoder.
    """
    form, quantized, plain = pair
    folder = export(quantized, tmp_path / "bundle", "small")
    bundle = Bundle.open(folder, unsealed=True)
    assert graph_error(bundle, Engine.open(bundle, threads=1)) < 1e-3
    records = [q for q in read_manifest(folder).quantization if q.group == "decoder" and q.block]
    scheme = "symmetric blocks" if form == "gptq symmetric" else "blocks with zeros"
    assert [(q.scheme, q.tensors, q.bits) for q in records] == [(scheme, 21, 4)]
    assert records[0].relative_rms_error == 0
    opened = open_checkpoint(plain)
    blind = next(g for g in bundle.manifest.golden if g.image is None)
    reference = Reference(opened.spec, Exact(opened.weights), opened.tokens.image, torch.float64)
    (truth,) = reference.ask([Asked(blind.branches)], opened.labels.token_ids)
    assert np.abs(np.array(blind.label_logits) - truth).max() < 1e-4
    # The floats themselves are rounded again, if hardly to others where a search finds the zeros.
    again = export(opened, tmp_path / "again", "small")
    worse = [q for q in read_manifest(again).quantization if q.group == "decoder" and q.block]
    assert worse[0].relative_rms_error > 5e-4


def test_where_a_recipe_wants_more_bits_floats_are_quantized(pair: tuple[str, Path, Path]) -> None:
    _, quantized, plain = pair
    found, wanted = open_checkpoint(quantized), open_checkpoint(plain)
    for recipe in ("w8", "fast"):
        name = decoder_matrices(found)[0]
        (ours,) = plan_of(found, recipe).quantized(found.weights, name)
        (theirs,) = plan_of(wanted, recipe).quantized(wanted.weights, name)
        assert (ours.q.levels == theirs.q.levels).all() and ours.q.zeros is None


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({**AWQ, "quant_method": "bitsandbytes"}, "'quant_method' is 'bitsandbytes'"),
        ({**AWQ, "bits": 8}, "'bits' is 8"),
        ({**AWQ, "group_size": -1}, "'group_size' is -1"),
        ({**AWQ, "group_size": 48}, "'group_size' is 48"),
        ({**AWQ, "version": "gemv"}, "'version' is 'gemv'"),
        ({**AWQ, "zero_point": False}, "'zero_point' is False"),
        ({**GPTQ, "sym": None}, "'sym' is None"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "'checkpoint_format' is 'marlin'"),
        ({**AWQ, "group_size": 64}, "groups of 64"),
        (None, "has the unexpected weight .*qweight|lacks weight"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(
    made: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    section: dict[str, Any] | None,
    why: str,
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(made("awq")[0], folder)
    configure(folder, section)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=why):
        open_checkpoint(folder)


def changed(folder: Path, copy: Path, ending: str, change: Any) -> Path:
    """A copy of the checkpoint with its first tensor of this ending changed."""
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    name = min(n for n in tensors if n.endswith(ending))
    tensors[name] = change(tensors[name])
    save_file(tensors, copy / "model.safetensors")
    return copy


def test_an_order_of_inputs_is_refused(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    backwards = changed(made("gptq")[0], tmp_path / "order", ".g_idx", lambda x: x[::-1].copy())
    with pytest.raises(ExportError, match="act-order"):
        open_checkpoint(backwards)


def test_a_zero_that_readers_disagree_on_is_refused(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = changed(made("gptq")[0], tmp_path / "zero", ".qzeros", lambda x: x | np.int32(15))
    opened = open_checkpoint(folder)
    with pytest.raises(ExportError, match="stored zero of 15"):
        [opened.weights(name) for name in decoder_matrices(opened)]


def test_words_of_another_type_are_refused(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    longer = changed(made("awq")[0], tmp_path / "type", ".qweight", lambda x: x.astype(np.int64))
    with pytest.raises(ExportError, match="only words of 32 bits"):
        open_checkpoint(longer)
