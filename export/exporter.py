"""Checkpoint -> unsealed bundle: graphs, weights, tokenizer and manifest in one new folder.

Takes a checkpoint and a recipe; gives the folder. It appears whole or not at all, and never takes
the place of something it did not make. Does not run what it made: comparing the bundle with the
reference, and sealing it, is fidelity's work.
"""

import importlib.metadata
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgejudge.bundle import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    EmbeddingsRecord,
    FidelityRecord,
    FileRecord,
    Manifest,
    PolicyRecord,
    read_manifest,
    sha256_of_file,
)
from edgejudge.errors import ExportError
from edgejudge.export.checkpoint import Checkpoint, open_checkpoint
from edgejudge.export.compile import Compiler
from edgejudge.export.graphs import split_layers, write_graphs
from edgejudge.export.ledger import Ledger
from edgejudge.export.onnx_ops import OnnxOps
from edgejudge.export.recipe import Recipe, recipe_named
from edgejudge.export.reference import Reference
from edgejudge.export.store import WeightStore
from edgejudge.export.stored import Exact, Stored
from edgejudge.export.workplace import workplace

__all__ = ["check_target", "export", "publish", "seal"]

_EMBEDDINGS = "embeddings.bin"
_TOOLS = ("edgejudge", "numpy", "onnx", "pillow", "tokenizers", "torch")
_ROWS_AT_ONCE = 4096
_SMALL_PARAMETERS = 200_000_000


@dataclass(frozen=True, slots=True)
class _Precision:
    """How the reference computes. A model too large for float64 is still a reference, in float32,
    but fewer of its decimals survive a change of machine."""

    dtype: torch.dtype
    decimals: int


def _precision_for(checkpoint: Checkpoint) -> _Precision:
    if checkpoint.weights.parameters <= _SMALL_PARAMETERS:
        return _Precision(torch.float64, 6)
    return _Precision(torch.float32, 3)


def export(
    checkpoint: str | Path,
    out: str | Path,
    recipe: str = "w8",
    layers_per_part: int | None = None,
    policies: Sequence[PolicyRecord] = (),
    force: bool = False,
    max_pixels: int | None = None,
) -> Path:
    """Writes an unsealed bundle of the checkpoint into the folder `out`; gives its path.

    `layers_per_part` cuts the decoder into graphs of that many layers. `policies` are compiled in.
    `force` replaces an edgejudge bundle that is already there, and nothing else.
    """
    target = Path(out).resolve()
    check_target(target, force)
    chosen = recipe_named(recipe)
    if layers_per_part is not None and layers_per_part < 1:
        raise ExportError(f"layers per part is {layers_per_part}, expected at least 1")
    opened = open_checkpoint(checkpoint, max_pixels)
    with workplace(target, "partial") as partial:
        partial.mkdir(parents=True)
        _fill(partial, opened, chosen, layers_per_part, policies)
        publish(partial, target, force)
    return target


def check_target(target: Path, force: bool) -> None:
    """Refuses a folder that something else lies in."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"{target}: is a file; name a folder that does not exist yet")
    held = {entry.name for entry in target.iterdir()}
    if not held:
        return
    if not force:
        raise ExportError(
            f"{target}: is not empty; name another folder, or replace it with --force"
        )
    if strange := sorted(held - _listed(target)):
        raise ExportError(
            f"{target}: --force replaces only a bundle, and {strange[0]!r} is not part of one; "
            "remove the folder yourself"
        )


def _listed(folder: Path) -> set[str]:
    """What a folder's manifest says is part of the bundle, whatever version wrote it."""
    try:
        value = json.loads((folder / MANIFEST_NAME).read_bytes())
        return {str(file["name"]) for file in value["files"]} | {MANIFEST_NAME}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def publish(partial: Path, target: Path, force: bool) -> None:
    """Moves a finished folder to its place."""
    check_target(target, force)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)


def seal(bundle: Path, fidelity: FidelityRecord) -> Manifest:
    """Enters the fidelity report: from now on the bundle opens without `unsealed`."""
    manifest = replace(read_manifest(bundle), fidelity=fidelity).signed()
    _write_manifest(bundle, manifest)
    return manifest


def _fill(
    folder: Path,
    checkpoint: Checkpoint,
    recipe: Recipe,
    layers_per_part: int | None,
    policies: Sequence[PolicyRecord],
) -> None:
    spec, family, labels = checkpoint.spec, checkpoint.family, checkpoint.labels
    ledger = Ledger(family.group_of)
    with WeightStore(folder) as store:

        def make_ops(name: str) -> OnnxOps:
            return OnnxOps(name, checkpoint.weights, recipe, store, ledger)

        parts = split_layers(spec.text.layers, layers_per_part)
        graphs, part_records = write_graphs(folder, family, spec, labels.token_ids, parts, make_ops)
    embeddings = _write_embeddings(folder, checkpoint, recipe, ledger)
    shutil.copyfile(checkpoint.folder / "tokenizer.json", folder / "tokenizer.json")
    precision = _precision_for(checkpoint)
    weights = (
        Exact(checkpoint.weights) if recipe.bits is None else Stored(checkpoint.weights, recipe)
    )
    reference = Reference(spec, weights, checkpoint.tokens.image, precision.dtype)
    compiler = Compiler(checkpoint, reference, precision.decimals)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        sha256="",
        name=checkpoint.card.name,
        family=spec.family,
        recipe=recipe.name,
        spec=spec.to_json(),
        preprocessing=checkpoint.image.to_json(),
        tokens=checkpoint.tokens,
        prompt=checkpoint.prompt,
        labels=labels.labels,
        label_rows=labels.token_ids,
        band=checkpoint.card.band,
        concepts=checkpoint.card.concepts,
        policies=tuple(map(compiler.policy, policies)),
        parts=part_records,
        graphs=graphs,
        embeddings=embeddings,
        quantization=ledger.records(),
        canary=compiler.canary(recipe.tolerance),
        golden=compiler.golden(folder),
        files=_file_records(folder),
        fidelity=None,
        tools={name: importlib.metadata.version(name) for name in _TOOLS},
    )
    _write_manifest(folder, manifest.signed())


def _write_embeddings(
    folder: Path, checkpoint: Checkpoint, recipe: Recipe, ledger: Ledger
) -> EmbeddingsRecord:
    """The table as plain rows, which an engine maps and never loads whole."""
    name = checkpoint.family.EMBEDDINGS
    table = checkpoint.weights(name)  # [vocab, D]
    error = square = 0.0
    with (folder / _EMBEDDINGS).open("wb") as stream:
        for first in range(0, len(table), _ROWS_AT_ONCE):
            rows = table[first : first + _ROWS_AT_ONCE]
            stored = rows.astype(np.dtype(recipe.embeddings).newbyteorder("<"))
            if not np.isfinite(stored).all():
                raise ExportError(
                    f"{name} holds values beyond {recipe.embeddings}; use --recipe fp32"
                )
            stream.write(stored.tobytes())
            error += float(np.square(stored.astype(np.float32) - rows, dtype=np.float64).sum())
            square += float(np.square(rows, dtype=np.float64).sum())
    size = table.size * np.dtype(recipe.embeddings).itemsize
    ledger.rounded(name, recipe.embeddings, size, error, square)
    return EmbeddingsRecord(_EMBEDDINGS, recipe.embeddings, table.shape[0], table.shape[1])


def _file_records(folder: Path) -> tuple[FileRecord, ...]:
    return tuple(
        FileRecord(file.name, file.stat().st_size, sha256_of_file(file))
        for file in sorted(folder.iterdir())
    )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    partial = folder / f"{MANIFEST_NAME}.partial"
    partial.write_bytes(manifest.canonical())
    partial.replace(folder / MANIFEST_NAME)
