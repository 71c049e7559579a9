"""An exported folder: its manifest and checked paths to its files.

Takes a folder and, to guard against tampering, the fingerprint it must have; gives a `Bundle`. A
file is hashed when it is first used, and a graph's references are checked with it; a stamp outside
the bundle (inode, size, times) saves the next process from doing so again. Knows nothing of models
or engines.
"""

import contextlib
import hashlib
import json
import mmap
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from edgejudge.errors import BundleError
from edgejudge.file_bytes import file_bytes
from edgejudge.hub_cache import with_real_files
from edgejudge.manifest import (
    SCHEMA_VERSION,
    CanaryRecord,
    CompiledCondition,
    CompiledPolicy,
    CompiledRule,
    ConceptRecord,
    DecisionsRecord,
    EmbeddingsRecord,
    FidelityRecord,
    FileRecord,
    FlipCount,
    GoldenRecord,
    GraphRecord,
    KvRecord,
    LabelMassRecord,
    Manifest,
    PartRecord,
    PolicyRecord,
    PromptRecord,
    QuantRecord,
    RelevanceRecord,
    RelevanceRule,
    RuleRecord,
    SideRecord,
    TargetRecord,
    TensorRecord,
    TokensRecord,
    WritingRecord,
)
from edgejudge.manifest_check import MANIFEST_NAME, check_manifest, is_flat_name
from edgejudge.printable import brief
from edgejudge.strict_json import canonical_json, from_json, to_json

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Bundle",
    "CanaryRecord",
    "CompiledCondition",
    "CompiledPolicy",
    "CompiledRule",
    "ConceptRecord",
    "DecisionsRecord",
    "EmbeddingsRecord",
    "FidelityRecord",
    "FileRecord",
    "FlipCount",
    "GoldenRecord",
    "GraphRecord",
    "KvRecord",
    "LabelMassRecord",
    "Manifest",
    "PartRecord",
    "PolicyRecord",
    "PromptRecord",
    "QuantRecord",
    "RelevanceRecord",
    "RelevanceRule",
    "RuleRecord",
    "SideRecord",
    "TargetRecord",
    "TensorRecord",
    "TokensRecord",
    "WritingRecord",
    "cache_folder",
    "keep_json",
    "canonical_json",
    "from_json",
    "is_flat_name",
    "manifest_of",
    "read_manifest",
    "sha256_of_file",
    "to_json",
]

_MAX_MANIFEST_BYTES = 16 << 20  # read as JSON it takes some thirty times as much memory


def cache_folder() -> Path:
    """Where this user's caches go; EDGEJUDGE_CACHE overrides the platform's place."""
    if override := os.environ.get("EDGEJUDGE_CACHE"):
        return Path(override)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgejudge"


def keep_json(file: Path, value: Any) -> None:
    """Writes a file of the cache whole or not at all, whoever else writes it. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(value, sort_keys=True))
    partial.replace(file)


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(path: Path) -> Manifest:
    """The manifest of the folder `path`, checked against its own canonical form and hash, and for
    what cannot be.
    """
    file = path / MANIFEST_NAME
    try:
        data = file_bytes(file, _MAX_MANIFEST_BYTES)
    except OSError as error:
        raise BundleError(
            f"{path} is not a bundle: {MANIFEST_NAME} cannot be read ({error.strerror}); "
            "make one with `edgejudge export`"
        ) from None
    return manifest_of(data, file)


def manifest_of(data: bytes, file: Path) -> Manifest:
    """What a manifest's bytes say; `file` is what errors call it."""
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not valid JSON ({error}); export the bundle again") from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if type(version) is int and version != SCHEMA_VERSION:
        raise BundleError(
            f"{file}: schema version {version}, this edgejudge reads {SCHEMA_VERSION}; "
            "export the bundle again"
        )
    manifest = from_json(Manifest, value, MANIFEST_NAME)
    try:
        canonical = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: {error}; export the bundle again") from None
    if canonical != data:
        raise BundleError(f"{file}: not in canonical form, so it was edited; export it again")
    found = hashlib.sha256(canonical_json({**value, "sha256": ""})).hexdigest()
    if found != manifest.sha256:
        raise BundleError(
            f"{file}: its sha256 is {found}, it claims {manifest.sha256}; "
            "it is damaged, export the bundle again"
        )
    check_manifest(manifest, value, data, str(file))
    return manifest


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. `path` is absolute; nothing but the manifest has been read yet."""

    path: Path
    manifest: Manifest
    _files: dict[str, FileRecord] = field(repr=False)
    _checked: set[str] = field(repr=False)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        fingerprint: str | None = None,
        verify: bool = False,
        unsealed: bool = False,
    ) -> Self:
        """`verify` hashes every file now; `unsealed` admits an export that fidelity has not seen.

        `fingerprint` is the sha256 in the manifest; give it to pin the bundle itself.
        """
        folder = with_real_files(_resolved(Path(path)), cache_folder())
        manifest = read_manifest(folder)
        if fingerprint is not None and fingerprint != manifest.sha256:
            raise BundleError(
                f"{folder}: fingerprint is {manifest.sha256}, expected {fingerprint}; "
                "this is another bundle than the one you pinned"
            )
        if manifest.fidelity is None and not unsealed:
            raise BundleError(
                f"{folder}: not sealed, its verdicts were never compared with the reference; "
                "finish it with `edgejudge export`"
            )
        bundle = cls(folder, manifest, {f.name: f for f in manifest.files}, set())
        if verify:
            for name in bundle._files:
                bundle._locate(name)
                bundle._hash(name)
        return bundle

    @property
    def fingerprint(self) -> str:
        return self.manifest.sha256

    @property
    def sealed(self) -> bool:
        return self.manifest.fidelity is not None

    def has(self, target: str, stage: str) -> bool:
        return any((g.target, g.stage) == (target, stage) for g in self.manifest.graphs)

    def graph(self, target: str, stage: str, part: int | None = None) -> GraphRecord:
        for record in self.manifest.graphs:
            if (record.target, record.stage, record.part) == (target, stage, part):
                return record
        held = ", ".join(sorted({f"{g.target} {g.stage}" for g in self.manifest.graphs}))
        wanted = f"{target} {stage}" + ("" if part is None else f" part {part}")
        raise BundleError(f"{self.path}: has no graph for {wanted}, only: {held}")

    def graphs(self, target: str, variant: str, stage: str) -> tuple[GraphRecord, ...]:
        """All of a stage, of every part and shape."""
        wanted = (target, variant, stage)
        return tuple(g for g in self.manifest.graphs if (g.target, g.variant, g.stage) == wanted)

    def graph_file(self, graph: GraphRecord) -> Path:
        """The path of a graph, after its weight files were checked too: the engine opens them."""
        for name in graph.weight_files:
            self.file(name)
        return self.file(graph.file)

    def file(self, name: str) -> Path:
        """The checked path of a file that the manifest lists."""
        path = self._locate(name)
        if name in self._checked:
            return path
        stamps = _Stamps(self.fingerprint)
        if not stamps.holds(path):
            self._hash(name)
            stamps.put(path)
        self._checked.add(name)
        return path

    def _record(self, name: str) -> FileRecord:
        if not is_flat_name(name):
            raise BundleError(
                f"{self.path}: file name '{brief(name)}' does not stay inside the bundle"
            )
        if name not in self._files:
            raise BundleError(f"{self.path}: {name!r} is not listed in {MANIFEST_NAME}")
        return self._files[name]

    def _locate(self, name: str) -> Path:
        record = self._record(name)
        path = self.path / name
        try:
            real = path.resolve(strict=True)
            size = real.stat().st_size
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be read ({error.strerror}); copy or export the bundle again"
            ) from None
        except RuntimeError:  # before Python 3.13, of links that lead to each other
            raise BundleError(f"{path}: is a link to itself; put the file itself there") from None
        if real.parent != self.path:
            raise BundleError(f"{path}: leads out of the bundle; put the file itself there")
        if not real.is_file():
            raise BundleError(f"{path}: is no regular file; copy or export the bundle again")
        if size != record.bytes:
            raise BundleError(
                f"{path}: {size} bytes, expected {record.bytes}; "
                "it is damaged, copy or export the bundle again"
            )
        return path

    def _hash(self, name: str) -> None:
        path = self.path / name
        try:
            found = sha256_of_file(path)
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be read ({error.strerror}); check its permissions"
            ) from None
        if found != self._files[name].sha256:
            raise BundleError(
                f"{path}: its sha256 is not the one in {MANIFEST_NAME}; "
                "it is damaged, copy or export the bundle again"
            )
        for graph in self.manifest.graphs:
            if graph.file == name:
                self._check_references(path, graph)

    def _check_references(self, path: Path, graph: GraphRecord) -> None:
        """A graph may point into its own weight files and nowhere else, and asks an engine for
        nothing but its operators.
        """
        # Imported here: a graph is parsed when its file is hashed, which a stamp mostly saves.
        from edgejudge.mil_file import check_program
        from edgejudge.onnx_files import check_model

        if not path.stat().st_size:  # which cannot be mapped
            raise BundleError(f"{path}: is empty; export the bundle again")
        with path.open("rb") as stream:
            # Mapped, since an encoder may carry its weights. An error's traceback may go on looking
            # into it, so it is closed when nobody does any more.
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if graph.target == "coreml":
            check_program(mapped, str(path))
        else:
            check_model(memoryview(mapped), str(path), graph.weight_files)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, or links in a circle
        raise BundleError(
            f"{brief(str(path))} is not a bundle: {error}; make one with `edgejudge export`"
        ) from None


class _Stamps:
    """Which files of one bundle were hashed before: path -> [device, inode, size, time].

    Only a shortcut: whatever goes wrong with the stamp file means hashing once more.
    """

    def __init__(self, fingerprint: str) -> None:
        self._file = cache_folder() / "stamps" / f"{fingerprint}.json"
        self._stamps: dict[str, list[int]] = {}
        with contextlib.suppress(OSError, ValueError):
            value = json.loads(self._file.read_bytes())
            if isinstance(value, dict):
                self._stamps = value

    @staticmethod
    def _stamp(path: Path) -> list[int]:
        stat = path.stat()
        return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

    def holds(self, path: Path) -> bool:
        return self._stamps.get(str(path)) == self._stamp(path)

    def put(self, path: Path) -> None:
        self._stamps[str(path)] = self._stamp(path)
        with contextlib.suppress(OSError):
            keep_json(self._file, self._stamps)
