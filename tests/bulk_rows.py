"""Small rows for tests of results files: as much of a verdict as they look at."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgejudge.bulk.identity import Identity
from edgejudge.bulk.names import as_text

IDENTITY = Identity("small", "b" * 64, "mine", "d" * 64, "thresholds", None, "{}")
OTHER = replace(IDENTITY, bundle="large", bundle_sha256="c" * 64)


def small_row(
    path: str, digest: str | None = "0" * 64, verdict: str | None = "safe", **more: Any
) -> dict[str, Any]:
    text, hexadecimal = as_text(path)
    error = None if verdict is not None else {"code": "truncated", "message": "it ends early"}
    rule = {"id": "weapons", "verdict": verdict}
    return {
        "path": text,
        "path_hex": hexadecimal,
        "sha256": digest,
        "verdict": verdict,
        "rules": [] if verdict is None else [rule],
        "error": error,
        **IDENTITY.to_json(),
        "regions": None,
        "shared_with": None,
        **more,
    }


def paths(rows: Mapping[str, Any] | list[dict[str, Any]]) -> list[str]:
    return [row["path"] for row in rows]  # type: ignore[index]
