"""What a provider's compiler made of a graph, kept from one program to the next.

Takes a bundle's graph, a device and a function that opens a model file; gives what that function
opened: the compiled context in the user's cache where it is whole and of the same graph, device and
versions, and otherwise the graph itself, whose context is kept. A cache that cannot be written to
costs time only. Does not know sessions, and trusts what lies in the cache as little as its stamp.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import onnxruntime as ort

from edgejudge.bundle import Bundle, GraphRecord, cache_folder, sha256_of_file
from edgejudge.errors import EdgeJudgeError, ProviderError
from edgejudge.runtime.assignment import NodesElsewhere
from edgejudge.runtime.placement import UNITS, Device
from edgejudge.runtime.provider import provider_options
from edgejudge.runtime.settings import processor

__all__ = ["KEEPS", "Origin", "compiled_path", "made_once", "prepared"]

# Providers that compile a graph and can write down what they made of it.
KEEPS = ("QNNExecutionProvider", "OpenVINOExecutionProvider", *UNITS)

# Where a session comes from; `stale`: from the graph, because what was kept was not to be used.
Origin = Literal["cached", "compiled", "stale"]
T = TypeVar("T")

_SCHEMA_VERSION = 1
_STAMP = "stamp.json"


def compiled_path(bundle: Bundle, graph: GraphRecord, device: Device) -> Path:
    """The folder of a graph's context, its other files and their stamp."""
    key = [device.provider, device.version, provider_options(device), ort.__version__]
    short = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{Path(graph.file).stem}-{short}"
    return cache_folder() / "compiled" / bundle.fingerprint / name


def prepared(
    bundle: Bundle,
    graph: GraphRecord,
    device: Device,
    load: Callable[[Path, Mapping[str, str]], T],
) -> tuple[T, Origin]:
    """`load` opens a model file with entries for ONNX Runtime's configuration."""
    folder = compiled_path(bundle, graph, device)
    stamp = _stamp(bundle, graph, device)
    if not os.path.lexists(folder):
        return _compiled(bundle, graph, folder, stamp, load), "compiled"
    if _is_whole(folder, stamp):
        # Whole as it is, a device may refuse it: its driver is another one, say.
        with contextlib.suppress(EdgeJudgeError):
            return load(folder / _model_name(graph), {}), "cached"
    _discard(folder)
    return _compiled(bundle, graph, folder, stamp, load), "stale"


def made_once(
    bundle: Bundle, graph: GraphRecord, device: Device, make: Callable[[Path], None]
) -> tuple[Path, Origin]:
    """The folder that `make` filled, now or in an earlier program. Raises ProviderError where there
    is no room for it, and what `make` raises.
    """
    folder = compiled_path(bundle, graph, device)
    stamp = _stamp(bundle, graph, device)
    there = os.path.lexists(folder)
    if there and _is_whole(folder, stamp):
        return folder, "cached"
    if there:
        _discard(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            make(partial)
            _stamped(partial, folder, stamp)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if not _is_whole(folder, stamp):  # else another process was faster
            raise ProviderError(
                f"{folder}: what is compiled cannot be kept there ({error.strerror}); set "
                "EDGEJUDGE_CACHE to a folder with room"
            ) from None
    return folder, "stale" if there else "compiled"


def _model_name(graph: GraphRecord) -> str:
    return f"{Path(graph.file).stem}_ctx.onnx"


def _stamp(bundle: Bundle, graph: GraphRecord, device: Device) -> dict[str, Any]:
    """All that a context depends on; what it consists of is added when it is kept."""
    (record,) = (file for file in bundle.manifest.files if file.name == graph.file)
    return {
        "schema_version": _SCHEMA_VERSION,
        "fingerprint": bundle.fingerprint,
        "graph": graph.file,
        "graph_sha256": record.sha256,
        "provider": device.provider,
        "version": device.version,
        "options": provider_options(device),
        "onnxruntime": ort.__version__,
        "processor": processor(),
    }


def _contents(folder: Path) -> dict[str, Any]:
    """Size and hash of each file beside the stamp."""
    return {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": sha256_of_file(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / _STAMP
    }


def _is_whole(folder: Path, stamp: Mapping[str, Any]) -> bool:
    with contextlib.suppress(OSError, ValueError):
        found: Any = json.loads((folder / _STAMP).read_bytes())
        return bool(found == {**stamp, "files": _contents(folder)})
    return False


def _compiled(
    bundle: Bundle,
    graph: GraphRecord,
    folder: Path,
    stamp: Mapping[str, Any],
    load: Callable[[Path, Mapping[str, str]], T],
) -> T:
    source = bundle.graph_file(graph)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError:
        return load(source, {})
    try:
        # The context refers to its other files by name, so they keep the names they get here.
        config = {
            "ep.context_enable": "1",
            "ep.context_embed_mode": "0",
            "ep.context_file_path": str(partial / _model_name(graph)),
        }
        try:
            loaded = load(source, config)
        except NodesElsewhere:
            raise  # which no other way of opening it changes
        except EdgeJudgeError:
            # Perhaps the disk is full. If it is not that, this says what it is.
            return load(source, {})
        with contextlib.suppress(OSError):
            _keep(partial, folder, stamp, _model_name(graph))
        return loaded
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _keep(partial: Path, folder: Path, stamp: Mapping[str, Any], model: str) -> None:
    """Moves all of it into place at once. Raises OSError where another process was faster."""
    if not (partial / model).is_file():
        return  # a provider that compiled nothing writes nothing
    _stamped(partial, folder, stamp)


def _stamped(partial: Path, folder: Path, stamp: Mapping[str, Any]) -> None:
    record = {**stamp, "files": _contents(partial)}
    (partial / _STAMP).write_text(json.dumps(record, sort_keys=True))
    partial.rename(folder)


def _discard(folder: Path) -> None:
    """Out of the way at once, so that nobody meets half of it. What cannot be removed stays, and
    what is compiled instead is not kept.
    """
    if not folder.is_dir() or folder.is_symlink():
        with contextlib.suppress(OSError):
            folder.unlink()
        return
    with contextlib.suppress(OSError):
        away = Path(tempfile.mkdtemp(prefix=".stale-", dir=folder.parent))
        with contextlib.suppress(OSError):
            folder.rename(away / folder.name)
        shutil.rmtree(away, ignore_errors=True)
