"""Checkpoint -> unsealed bundle: graphs, weights, tokenizer and manifest in one new folder.

Takes a checkpoint and a recipe; gives the folder. It appears whole or not at all, and never takes
the place of something it did not make. Does not run what it made: comparing the bundle with the
reference, and sealing it, is fidelity's work.
"""

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgejudge.bundle import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    EmbeddingsRecord,
    FidelityRecord,
    FileRecord,
    Manifest,
    PolicyRecord,
    TargetRecord,
    read_manifest,
    sha256_of_file,
)
from edgejudge.errors import ExportError
from edgejudge.export.allocate import BASE, allocate, check_budget
from edgejudge.export.blocks import Plan
from edgejudge.export.checkpoint import Checkpoint, open_checkpoint
from edgejudge.export.compile import Compiler
from edgejudge.export.decide import decide
from edgejudge.export.graphs import GraphWriter, Runs
from edgejudge.export.importance import column_importance
from edgejudge.export.kv_steps import check_kv, kv_steps
from edgejudge.export.ledger import Ledger
from edgejudge.export.levels import Levels, key_of
from edgejudge.export.observe import calibration_pictures
from edgejudge.export.onnx_ops import OnnxOps
from edgejudge.export.parts import Cut, coreml_parts, layer_bytes, npu_parts, slices
from edgejudge.export.recipe import DEFAULT_RECIPE, Kinds, Recipe, kinds_of, recipe_named
from edgejudge.export.reference import Reference
from edgejudge.export.rotation import rotated, turned
from edgejudge.export.side_path import side_columns, sites_of
from edgejudge.export.smoothing import smoothed
from edgejudge.export.store import WeightStore
from edgejudge.export.stored import Stored
from edgejudge.export.targets import Variant, lower, variants_of
from edgejudge.export.weights import row_blocks
from edgejudge.export.workplace import kept, workplace

__all__ = [
    "check_target",
    "export",
    "hidden_of",
    "plan_of",
    "precision_for",
    "prepared",
    "publish",
    "seal",
]

_EMBEDDINGS = "embeddings.bin"
_TOOLS = ("edgejudge", "numpy", "onnx", "pillow", "tokenizers", "torch")
WHOLE = Cut()
_WRITING = "quantizing and writing weights"
_SMALL_PARAMETERS = 200_000_000


@dataclass(frozen=True, slots=True)
class _Precision:
    """How the reference computes. A model too large for float64 is still a reference, in float32,
    but fewer of its decimals survive a change of machine."""

    dtype: torch.dtype
    decimals: int


def precision_for(checkpoint: Checkpoint) -> _Precision:
    if checkpoint.weights.parameters <= _SMALL_PARAMETERS:
        return _Precision(torch.float64, 6)
    return _Precision(torch.float32, 3)


def export(
    checkpoint: str | Path | Checkpoint,
    out: str | Path,
    recipe: str | Plan = DEFAULT_RECIPE,
    cut: Cut = WHOLE,
    policies: Sequence[PolicyRecord] = (),
    force: bool = False,
    targets: Sequence[str] = ("cpu",),
    progress: Callable[[str, float], None] = lambda *_: None,
) -> Path:
    """Writes an unsealed bundle of the checkpoint into the folder `out`; gives its path.

    `recipe` is a name, or what `prepared` made of it and of this checkpoint. `cut` says into how
    many graphs the decoder goes. `targets` beside "cpu", which is always there, get graphs of
    their own: "gpu", "npu", "npu:a16w4". `policies` are compiled in. `force` replaces a bundle that
    is already there, and nothing else. `progress` is told what is being done, and the share of it
    that is done.
    """
    target = Path(out).resolve()
    check_target(target, force)
    if isinstance(recipe, str):
        recipe_named(recipe)  # a bad name is told before anything is read
    cut.check()
    variants_of(targets)  # as is one of a target
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    plan = recipe
    with workplace(target, "partial") as partial, kept(target) as work:
        if isinstance(plan, str):
            opened, plan = prepared(opened, plan, progress, work=work)
        variants = variants_of(targets, plan.kv_dtype)
        try:
            partial.mkdir(parents=True)
            _fill(partial, opened, plan, cut, policies, variants, progress)
            publish(partial, target, force)
        except OSError as error:
            raise ExportError(
                f"{target}: the bundle could not be written ({error.strerror or error}); make room "
                "there, or name another folder"
            ) from None
    return target


def prepared(
    checkpoint: Checkpoint,
    recipe: str | Recipe,
    progress: Callable[[str, float], None] = lambda *_: None,
    kv: str = "float32",
    work: Path | None = None,
    budget: int | None = None,
) -> tuple[Checkpoint, Plan]:
    """The checkpoint as a recipe wants it, the same function with other weights; and how they are
    stored. `kv` is what keys and values are kept in: "float32", "int8" or "int4". What takes long
    is kept in `work`, if it is named, where an export that was killed finds it again; the plan
    reads it there. `budget` is how many bytes all weights may take: then bits are found for that,
    and `recipe` is not asked.
    """
    check_kv(kv, checkpoint)
    if budget is not None:
        recipe = BASE
    chosen = recipe_named(recipe) if isinstance(recipe, str) else recipe
    if budget is not None:  # before anything that takes long
        check_budget(checkpoint, Plan(chosen, _kinds(checkpoint)), budget)
    if _rotates(checkpoint, chosen):
        progress("rotating the residual stream", 0.0)
        checkpoint = rotated(checkpoint)
    if chosen.smooth:
        progress("smoothing activations", 0.0)
        checkpoint = smoothed(checkpoint)
    plan = plan_of(checkpoint, chosen, progress)
    if budget is not None:
        plan = allocate(checkpoint, plan, budget, progress)
    if plan.recipe.side_gain:
        progress("looking for channels to keep exact", 0.0)
        names = [n for n, _ in checkpoint.family.weight_names(checkpoint.spec) if plan.integer(n)]
        exact = side_columns(checkpoint, sites_of(checkpoint, names), plan.recipe.side_gain)
        plan = plan.with_exact(exact)
    if plan.recipe.second_order and calibration_pictures(checkpoint):
        choices = (plan.recipe, plan.chosen_bits, checkpoint.image, _tools())
        levels = Levels(work, key_of(checkpoint, choices))
        dtype = precision_for(checkpoint).dtype
        plan = decide(checkpoint, plan, levels, dtype, progress)
    if kv != "float32":
        progress("looking at keys and values", 0.0)
        plan = plan.with_kv(kv_steps(checkpoint, kv))
    return checkpoint, plan


def hidden_of(
    checkpoint: Checkpoint, recipe: Recipe, hidden: NDArray[np.float64]
) -> NDArray[np.floating[Any]]:
    """Hidden states [N, D] of the checkpoint in the basis of what a recipe makes of it."""
    return turned(hidden) if _rotates(checkpoint, recipe) else hidden


def _rotates(checkpoint: Checkpoint, recipe: Recipe) -> bool:
    """Weights that mean nothing have no channels that tower, and a pass computes the same."""
    return recipe.rotate and not checkpoint.random_weights


def plan_of(
    checkpoint: Checkpoint,
    recipe: str | Recipe,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> Plan:
    """How a recipe stores this checkpoint's weights. Runs the reference on the calibration set,
    where the checkpoint has one and the recipe searches scales.
    """
    chosen = recipe_named(recipe) if isinstance(recipe, str) else recipe
    importance = {}
    if chosen.search and checkpoint.calibration_folder is not None:
        progress("looking at calibration pictures", 0.0)
        importance = column_importance(checkpoint)
    return Plan(chosen, _kinds(checkpoint), importance.get)


def _kinds(checkpoint: Checkpoint) -> Kinds:
    return kinds_of(checkpoint.family.group_of, checkpoint.spec.text.layers)


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


def seal(
    bundle: Path, fidelity: FidelityRecord, targets: tuple[TargetRecord, ...] | None = None
) -> Manifest:
    """Enters the fidelity report, and what was measured of other targets: from now on the bundle
    opens without `unsealed`.
    """
    found = read_manifest(bundle)
    measured = found.targets if targets is None else targets
    manifest = replace(found, fidelity=fidelity, targets=measured).signed()
    _write_manifest(bundle, manifest)
    return manifest


def _fill(
    folder: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    cut: Cut,
    policies: Sequence[PolicyRecord],
    variants: Sequence[Variant],
    progress: Callable[[str, float], None],
) -> None:
    spec, family, labels = checkpoint.spec, checkpoint.family, checkpoint.labels
    recipe, ledger = plan.recipe, Ledger(family.group_of)
    total = checkpoint.weights.parameters
    with WeightStore(folder, lambda values: progress(_WRITING, min(1.0, values / total))) as store:

        def maker(chosen: Plan) -> Callable[[str], OnnxOps]:
            return lambda name: OnnxOps(name, checkpoint.weights, chosen, store, ledger)

        writing = plan.for_writing()
        writer = GraphWriter(
            folder,
            store,
            family,
            spec,
            labels.token_ids,
            maker(plan),
            None if writing is None else maker(writing),
            plan.kv_dtype,
            bool(recipe.integer) and recipe.integer_bits == 8,
        )
        runs = _runs(checkpoint, plan, cut, variants)
        written = writer.write(runs)
        others = lower(folder, store, checkpoint, plan, runs.parts, variants, progress)
    embeddings = _write_embeddings(folder, checkpoint, recipe, ledger)
    shutil.copyfile(checkpoint.folder / "tokenizer.json", folder / "tokenizer.json")
    progress("computing golden vectors by the reference", 0.0)
    precision = precision_for(checkpoint)
    weights = Stored(checkpoint.weights, plan)
    reference = Reference(spec, weights, checkpoint.tokens.image, precision.dtype)
    compiler = Compiler(checkpoint, reference, precision.decimals)
    compiled = compiler.compile(policies, folder, recipe.tolerance)

    def canary_logits(chosen: Plan) -> tuple[tuple[float, ...], ...]:
        stored = Stored(checkpoint.weights, chosen)
        other = Reference(spec, stored, checkpoint.tokens.image, precision.dtype)
        return compiler.canary_logits(other)

    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        sha256="",
        name=checkpoint.card.name,
        family=spec.family,
        recipe=recipe.name,
        random_weights=checkpoint.random_weights,
        spec=spec.to_json(),
        preprocessing=checkpoint.image.to_json(),
        tokens=checkpoint.tokens,
        prompt=checkpoint.prompt,
        labels=labels.labels,
        label_rows=labels.token_ids,
        band=checkpoint.card.band,
        concepts=checkpoint.card.concepts,
        patterns=checkpoint.card.patterns,
        policies=compiled.policies,
        parts=written.parts,
        vision_slices=written.vision_slices,
        decoder_slices=written.decoder_slices,
        graphs=(*written.graphs, *(graph for one in others for graph in one.graphs)),
        targets=tuple(one.record(canary_logits) for one in others),
        embeddings=embeddings,
        relevance=None,
        quantization=ledger.records(),
        canary=compiled.canary,
        golden=compiled.golden,
        files=_file_records(folder),
        fidelity=None,
        tools=_tools(),
    )
    _write_manifest(folder, manifest.signed())


def _tools() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _TOOLS}


def _runs(checkpoint: Checkpoint, plan: Plan, cut: Cut, variants: Sequence[Variant]) -> Runs:
    family, spec = checkpoint.family, checkpoint.spec

    def costs(group: str, layers: int, plan: Plan = plan) -> list[int]:
        return layer_bytes(family.weight_names(spec), plan, layers, group)

    decoder = costs("decoder", spec.text.layers)

    def those(target: str) -> list[list[int]]:
        plans = (plan.for_target(v.recipe(plan.recipe)) for v in variants if v.target == target)
        return [costs("decoder", spec.text.layers, other) for other in plans]

    parts = npu_parts(cut, those("npu"))
    if parts is None and (programs := those("coreml")):
        parts = coreml_parts(cut, max(programs, key=sum))
    return Runs(
        cut.apply(decoder) if parts is None else parts,
        slices(costs("vision", spec.vision.layers)),
        slices(decoder),
    )


def _write_embeddings(
    folder: Path, checkpoint: Checkpoint, recipe: Recipe, ledger: Ledger
) -> EmbeddingsRecord:
    """The table as plain rows, which an engine maps and never loads whole."""
    name = checkpoint.family.EMBEDDINGS
    rows, width = checkpoint.weights.shape(name)
    dtype = np.dtype(recipe.embeddings)
    error = square = 0.0
    with (folder / _EMBEDDINGS).open("wb") as stream:
        for some in row_blocks(rows, width):
            exact = checkpoint.weights.rows(name, some)
            with np.errstate(over="ignore"):  # told below, by name
                stored = exact.astype(dtype.newbyteorder("<"))
            if not np.isfinite(stored).all():
                raise ExportError(f"{name} holds values beyond {dtype}; use --recipe exact")
            stream.write(stored.tobytes())
            error += float(np.square(stored.astype(np.float32) - exact, dtype=np.float64).sum())
            square += float(np.square(exact, dtype=np.float64).sum())
    ledger.rounded(name, dtype.name, rows * width * dtype.itemsize, error, square)
    return EmbeddingsRecord(_EMBEDDINGS, dtype.name, rows, width)


def _file_records(folder: Path) -> tuple[FileRecord, ...]:
    return tuple(
        FileRecord(file.name, file.stat().st_size, sha256_of_file(file))
        for file in sorted(folder.iterdir())
    )


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    partial = folder / f"{MANIFEST_NAME}.partial"
    partial.write_bytes(manifest.canonical())
    partial.replace(folder / MANIFEST_NAME)
