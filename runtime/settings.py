"""How an engine works on this machine: threads, and tokens of a pass.

Takes a bundle; gives what `edgejudge tune` measured for it here and kept in the user's cache, or
what suits most. A record of another processor or another ONNX Runtime is not used. Does not
measure.
"""

import contextlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime as ort

from edgejudge.bundle import Bundle, cache_folder, from_json, keep_json
from edgejudge.errors import BundleError
from edgejudge.file_bytes import file_bytes
from edgejudge.runtime.session import default_threads

__all__ = ["Settings", "costs_file", "keep_settings", "kept_settings", "machine", "processor"]

_SCHEMA_VERSION = 1
_MOST = 1 << 20
_MOST_BYTES = 1 << 20  # of a record


@dataclass(frozen=True, slots=True)
class Settings:
    """`chunk` is how many prompt tokens run in one pass at most, `pack_tokens` how many tokens of
    packed questions.
    """

    threads: int
    chunk: int = 384
    pack_tokens: int = 512

    def __post_init__(self) -> None:
        counts = (self.threads, self.chunk, self.pack_tokens)
        if not 1 <= min(counts) <= max(counts) <= _MOST:
            raise ValueError(f"threads, chunk and pack_tokens must be from 1 to {_MOST}: {self}")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def kept_settings(bundle: Bundle) -> Settings | None:
    """Those that were measured for this bundle on this machine."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, BundleError):
        record = json.loads(file_bytes(_file(bundle), _MOST_BYTES))
        if record["machine"] == machine():
            return from_json(Settings, record["settings"], "settings")
    return None


def keep_settings(bundle: Bundle, settings: Settings) -> Path:
    """Written whole or not at all; every engine of the bundle opened later uses them."""
    file = _file(bundle)
    keep_json(file, {"machine": machine(), "settings": asdict(settings)})
    return file


def _file(bundle: Bundle) -> Path:
    return cache_folder() / "tuning" / f"{bundle.fingerprint}.json"


def costs_file(bundle: Bundle) -> Path:
    """Where `edgejudge tune --costs` keeps what it measured."""
    return cache_folder() / "costs" / f"{bundle.fingerprint}.json"


def machine() -> dict[str, str | int]:
    """What a measurement or a check here depends on."""
    return {
        "schema_version": _SCHEMA_VERSION,
        "processor": processor(),
        "cores": default_threads(),
        "onnxruntime": ort.__version__,
    }
