"""Typed reading of a checkpoint's JSON files.

Takes parsed JSON; gives values, or an ExportError that names file and key. `expect` states an
assumption of a family, so that a checkpoint which breaks it is refused instead of run wrongly.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from edgejudge.errors import ExportError

__all__ = ["HfConfig", "read_json"]

T = TypeVar("T", int, float, str, bool)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ExportError(
            f"{path}: cannot be read ({error.strerror}); a checkpoint folder must hold it"
        ) from None
    except ValueError as error:
        raise ExportError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


class HfConfig:
    """One object of a config file; `where` is how errors call it."""

    def __init__(self, value: dict[str, Any], where: str) -> None:
        self.value = value
        self.where = where

    def section(self, key: str) -> "HfConfig":
        value = self.value.get(key)
        if not isinstance(value, dict):
            raise ExportError(f"{self.where}: {key!r} must be an object, got {value!r}")
        return HfConfig(value, f"{self.where}, {key}")

    def read(self, kind: type[T], key: str, default: T | None = None) -> T:
        """The value of `key`; without a default it must be there."""
        value = self.value.get(key)
        if value is None:
            if default is None:
                raise ExportError(f"{self.where}: {key!r} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return kind(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ExportError(f"{self.where}: {key!r} must be {kind.__name__}, got {value!r}")
        return value

    def expect(self, key: str, *allowed: object) -> None:
        """`key` must hold one of `allowed`; absent counts as None."""
        value = self.value.get(key)
        if not any(value == a and type(value) is type(a) for a in allowed):
            wanted = " or ".join(map(repr, allowed))
            raise ExportError(
                f"{self.where}: {key!r} is {value!r}, only {wanted} is supported for this family"
            )
