"""Strict JSON for frozen dataclasses: how every record of ours is read and written.

Takes plain JSON values and a dataclass; gives records and back. Unknown and missing keys are errors
by name, and so is what JSON can say and nothing else can hold: numbers without end, half a
character. Knows no record.
"""

import json
import math
import types
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin

from edgejudge.errors import BundleError, EdgeJudgeError
from edgejudge.printable import brief

__all__ = ["canonical_json", "from_json", "to_json"]

T = TypeVar("T")
_MOST_KEYS = 3  # of one sentence
_MOST_INT = 1 << 63


def to_json(value: Any) -> Any:
    """Plain JSON values of a record: dataclasses become objects, tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(
    kind: type[T], value: Any, where: str, error: type[EdgeJudgeError] = BundleError
) -> T:
    """`value` as `kind`; any deviation is an `error` that names the place in the document."""
    return cast(T, _read(kind, value, where, error))


def _read(kind: Any, value: Any, where: str, error: type[EdgeJudgeError]) -> Any:
    if kind is Any:
        return value
    if type(value) is kind:
        return _plain(value, where, error)
    form, inner = _form(kind)
    if form == "optional":
        return None if value is None else _read(inner, value, where, error)
    if form == "record":
        items = _expect(value, dict, where, error)
        if items.keys() != inner.keys():
            unknown, missing = items.keys() - inner.keys(), inner.keys() - items.keys()
            problem, keys = ("unknown", unknown) if unknown else ("missing", missing)
            some = ", ".join(f"'{brief(key)}'" for key in sorted(keys)[:_MOST_KEYS])
            more = f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
            raise error(f"{where}: {problem} key {some}{more}")
        return kind(**{k: _read(t, items[k], f"{where}.{k}", error) for k, t in inner.items()})
    if form == "tuple":
        items = _expect(value, list, where, error)
        if inner is int and set(map(type, items)) <= {int}:  # token ids: not one call per number
            if items and not -_MOST_INT <= min(items) <= max(items) < _MOST_INT:
                raise error(f"{where}: holds a number of more than 64 bits")
            return tuple(items)
        return tuple(_read(inner, v, f"{where}[{i}]", error) for i, v in enumerate(items))
    if form == "dict":
        items = _expect(value, dict, where, error)
        for key in items:
            _plain(key, f"{where}: its key '{brief(key)}'", error)
        return {k: _read(inner, v, f"{where}.{brief(k)}", error) for k, v in items.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(_plain(value, where, error))
    return _expect(value, kind, where, error)


def _plain(value: Any, where: str, error: type[EdgeJudgeError]) -> Any:
    """Text, a number or a truth value as it is, if others can hold it too."""
    kind = type(value)
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise error(f"{where}: holds half of a character (a surrogate)") from None
    elif kind is int and not -_MOST_INT <= value < _MOST_INT:
        raise error(f"{where}: a number of more than 64 bits")
    elif kind is float and not math.isfinite(value):
        raise error(f"{where}: {value} is not a number that can be computed with")
    return value


@cache
def _form(kind: Any) -> tuple[str, Any]:
    """What a field's type is made of; asked once per type, since a manifest has many fields."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is types.UnionType:  # only `X | None` is used
        return "optional", next(a for a in args if a is not type(None))
    if is_dataclass(kind):
        return "record", {f.name: f.type for f in fields(kind)}
    if origin in (tuple, dict):
        return origin.__name__, args[0] if origin is tuple else args[1]
    return "plain", None


def _expect(value: Any, kind: type, where: str, error: type[EdgeJudgeError]) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise error(f"{where}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def canonical_json(value: dict[str, Any]) -> bytes:
    """The one form of a document: a line per key, in order. Raises ValueError for NaN."""
    # No indent: that form is written by Python code, ten times slower, at every start.
    lines = [
        f"{json.dumps(key)}: " + json.dumps(value[key], sort_keys=True, allow_nan=False)
        for key in sorted(value)
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
