"""Adds a relevance encoder to a sealed bundle, and seals it again.

Takes a bundle and an encoder's checkpoint; gives the bundle's new manifest. The stage is accepted
only if the runtime gives each rule's cosine as the encoder itself does. Knows no encoder.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgejudge.bundle import (
    Bundle,
    FileRecord,
    GraphRecord,
    Manifest,
    RelevanceRecord,
    RelevanceRule,
    TensorRecord,
    sha256_of_file,
)
from edgejudge.errors import ExportError
from edgejudge.fidelity import exporting_tools
from edgejudge.models.crop import prepare_crop
from edgejudge.models.image import canary_image

if TYPE_CHECKING:
    from edgejudge.export.relevance import Encoder

__all__ = ["add_relevance"]

STAGE = "relevance"
_GRAPH, _TEXTS = "cpu.relevance.onnx", "relevance.texts.bin"
_TOLERANCE = 1e-4
_CANARY = (240, 320)


def add_relevance(bundle: str | Path, encoder: str | Path, force: bool = False) -> Manifest:
    """The texts are those of the rules of the bundle's policies. `force` replaces an encoder that
    is there already.

    Raises ExportError for an encoder that cannot be exported or that the runtime does not
    reproduce; the bundle is then as it was.
    """
    exporting = exporting_tools()
    from edgejudge.export.relevance import export_encoder

    opened = Bundle.open(bundle, verify=True)
    manifest = opened.manifest
    if manifest.relevance is not None and not force:
        raise ExportError(f"{bundle}: has a relevance encoder already; replace it with --force")
    rules = [(policy.name, rule) for policy in manifest.policies for rule in policy.rules]
    if not rules:
        raise ExportError(f"{bundle}: has no compiled policy whose rules a picture could be about")
    made = export_encoder(Path(encoder).resolve(), [rule.text for _, rule in rules])
    record = RelevanceRecord(
        family=made.family,
        preprocessing=made.preprocessing.to_json(),
        texts=_TEXTS,
        width=made.texts.shape[1],
        rules=tuple(RelevanceRule(policy, rule.id) for policy, rule in rules),
    )
    target = opened.path
    with exporting.workplace(target, STAGE) as partial:
        partial.mkdir()
        for file in manifest.files:
            if file.name not in (_GRAPH, _TEXTS):
                _link(target / file.name, partial / file.name)
        (partial / _GRAPH).write_bytes(made.graph)
        (partial / _TEXTS).write_bytes(np.ascontiguousarray(made.texts, "<f4").tobytes())
        changed = _with_stage(manifest, partial, record, made)
        (partial / "bundle.json").write_bytes(changed.canonical())
        _check(partial, made)
        exporting.publish(partial, target, force=True)
    return changed


def _link(source: Path, place: Path) -> None:
    """The same file under another name, where the file system can; bundles are large."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)


def _with_stage(
    manifest: Manifest, folder: Path, record: RelevanceRecord, made: "Encoder"
) -> Manifest:
    side = made.preprocessing.side
    graph = GraphRecord(
        target="cpu",
        stage=STAGE,
        part=None,
        variant="",
        tokens=None,
        file=_GRAPH,
        weight_files=(),
        inputs=(TensorRecord("pixel_values", "float32", ("1", "3", str(side), str(side))),),
        outputs=(TensorRecord("image_embeds", "float32", ("1", str(record.width))),),
        kv=None,
    )
    kept = tuple(g for g in manifest.graphs if g.stage != STAGE)
    files = {f.name: f for f in manifest.files}
    for name in (_GRAPH, _TEXTS):
        file = folder / name
        files[name] = FileRecord(name, file.stat().st_size, sha256_of_file(file))
    return replace(
        manifest,
        graphs=(*kept, graph),
        files=tuple(files[name] for name in sorted(files)),
        relevance=record,
    ).signed()


def _check(folder: Path, made: "Encoder") -> None:
    """The runtime's cosines against the encoder's own, on the canary."""
    from edgejudge.runtime import Engine

    pixels = prepare_crop(canary_image(*_CANARY), made.preprocessing)
    found = Engine.open(Bundle.open(folder)).relevance(pixels)
    error = float(np.abs(found - made.cosines(pixels)).max())
    if not error <= _TOLERANCE:
        raise ExportError(
            f"the runtime's cosines are {error:.2g} off the encoder's, allowed are {_TOLERANCE}; "
            "this is a fault of the export, not of the checkpoint"
        )
