"""The row of one picture: its verdict as plain JSON, and what tells whether it still holds.

Takes verdicts; gives rows, and verdicts of rows again. A row is what `Verdict.to_json` gives with
five keys more: `path_hex`, `settings`, `regions`, `shared_with`, and `path` as text that any
program can hold. Knows no file format.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any, TypeVar

from edgejudge.bulk.names import as_text, from_text, key_of
from edgejudge.verdict import (
    AlternativeVerdict,
    ConditionVerdict,
    Escalation,
    InputFailure,
    Note,
    RuleVerdict,
    SeenIn,
    Stability,
    Table,
    Verdict,
)

if TYPE_CHECKING:
    from edgejudge.regions import Region

__all__ = [
    "BEGINNING",
    "broken",
    "content_key",
    "content_of",
    "key_of_row",
    "make_row",
    "outcome_of",
    "path_of",
    "regions_digest",
    "shared_row",
    "to_line",
    "verdict_of",
]

BEGINNING = b'{"path": "'  # of every line that `to_line` gives
T = TypeVar("T")


def make_row(
    verdict: Verdict, path: str, settings: Mapping[str, Any], regions: str | None = None
) -> dict[str, Any]:
    """`settings` are those of the run's Identity, `regions` is the digest of the picture's own."""
    text, hexadecimal = as_text(path)
    first = {"path": text, "path_hex": hexadecimal}
    last = {"settings": settings, "regions": regions, "shared_with": None}
    return {**first, **verdict.to_json(), **first, **last}


def shared_row(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The row of another file with the same bytes: it says what was decided, and took nothing."""
    text, hexadecimal = as_text(path)
    second = row["escalated"]
    return {
        **row,
        "path": text,
        "path_hex": hexadecimal,
        "stages_ms": {},
        "placement": {},
        "prefix_cache": "off",
        "reused_tokens": 0,
        "image_prefixes": 0,
        "reasoning_calls": 0,
        "escalated": None if second is None else {**second, "stages_ms": {}, "placement": {}},
        "shared_with": row["shared_with"] or row["path"],
    }


def to_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def path_of(row: Mapping[str, Any]) -> str:
    """As the system has it. Raises KeyError, TypeError or ValueError for what is no row."""
    path, hexadecimal = row["path"], row["path_hex"]
    if not isinstance(path, str) or not isinstance(hexadecimal, str | None):
        raise TypeError("a path is text")
    return from_text(path, hexadecimal)


def key_of_row(row: Mapping[str, Any]) -> bytes:
    return key_of(path_of(row))


def outcome_of(row: Mapping[str, Any]) -> str:
    """safe, unsafe or uncertain; failed where there is no verdict."""
    verdict = row["verdict"]
    if verdict not in ("safe", "unsafe", "uncertain", None):
        raise ValueError("no such verdict")
    return verdict or "failed"


def content_of(row: Mapping[str, Any]) -> bytes | None:
    return content_key(row["sha256"], row["regions"])


def content_key(digest: str | None, regions: str | None) -> bytes | None:
    """16 bytes that stand for what was judged: a file's sha256 and that of its regions. None where
    the file could not be read, which equals nothing but another such failure of the same path.
    """
    if digest is None:
        return None
    return blake2b(f"{digest} {regions}".encode(), digest_size=16).digest()


def regions_digest(regions: "Sequence[Region]") -> str | None:
    """A sha256 of regions that were given for a picture; None without any."""
    if not regions:
        return None
    plain = [[each.label, *each.box, each.confidence] for each in regions]
    return sha256(json.dumps(plain).encode()).hexdigest()


def broken(row: Mapping[str, Any]) -> list[str]:
    """The ids of its broken rules."""
    return [str(rule["id"]) for rule in row["rules"] if rule["verdict"] == "unsafe"]


def verdict_of(row: Mapping[str, Any]) -> Verdict:
    """The verdict that a row was made of, its numbers rounded as they are there."""
    bundle, policy = row["bundle"], row["policy"]
    name = bundle["name"]
    second = row["escalated"]
    return _made(
        Verdict,
        row,
        path=path_of(row),
        rules=tuple(_rule(rule, name) for rule in row["rules"]),
        notes=tuple(_made(Note, note) for note in row["notes"]),
        error=_failure(row["error"]),
        bundle=name,
        bundle_sha256=bundle["sha256"],
        policy=policy["name"],
        policy_version=policy["version"],
        policy_sha256=policy["sha256"],
        method=policy["method"],
        stages_ms=Table(row["stages_ms"]),
        placement=Table(row["placement"]),
        escalated=None if second is None else _escalation(second, name),
    )


def _escalation(row: Mapping[str, Any], first: str) -> Escalation:
    return _made(
        Escalation,
        row,
        bundle=row["bundle"]["name"],
        bundle_sha256=row["bundle"]["sha256"],
        before=tuple(_rule(rule, first) for rule in row["before"]),
        error=_failure(row["error"]),
        stages_ms=Table(row["stages_ms"]),
        placement=Table(row["placement"]),
    )


def _rule(rule: Mapping[str, Any], first: str) -> RuleVerdict:
    bundle = rule.get("bundle")
    seen_in, stability = rule["seen_in"], rule["stability"]
    return _made(
        RuleVerdict,
        rule,
        conditions=tuple(_condition(condition) for condition in rule["conditions"]),
        bundle=None if bundle == first else bundle,
        seen_in=None if seen_in is None else _made(SeenIn, seen_in),
        stability=None if stability is None else _stability(stability),
    )


def _stability(value: Mapping[str, Any]) -> Stability:
    return _made(Stability, value, least=value["min"], most=value["max"], deviation=value["sd"])


def _condition(condition: Mapping[str, Any]) -> ConditionVerdict:
    alternatives = tuple(_made(AlternativeVerdict, each) for each in condition["alternatives"])
    texts = [each.text for each in alternatives]
    by = texts.index(condition["decided_by"])
    return _made(ConditionVerdict, condition, alternatives=alternatives, decided_by=by)


def _failure(error: Mapping[str, Any] | None) -> InputFailure | None:
    return None if error is None else _made(InputFailure, error)


def _made(kind: type[T], row: Mapping[str, Any], **given: Any) -> T:
    """A record from the keys of a row that have its fields' names, and from what is given."""
    plain = {
        each.name: tuple(value) if isinstance(value, list) else value
        for each in fields(kind)  # type: ignore[arg-type]
        if each.name in row and each.name not in given
        for value in [row[each.name]]
    }
    return kind(**plain, **given)
