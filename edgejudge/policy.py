"""Policies: what to judge, read from YAML and checked against the schema before anything runs.

Takes a built-in name, a file, or YAML text; gives a frozen `Policy` with a canonical hash. A rule
is broken when all its conditions hold; the alternatives inside one condition are OR. Knows nothing
of bundles, tokens or thresholds that were calibrated elsewhere. YAML is imported only to parse.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from edgejudge.bundle import PolicyRecord, RuleRecord
from edgejudge.errors import PolicyError

__all__ = ["Policy", "Rule", "builtin_bytes", "builtin_names", "load_policy", "source_sha256"]

MAX_POLICY_BYTES = 1 << 20
MAX_RULES = 256
MAX_QUESTIONS = 2048
MAX_TEXT_CHARS = 500
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BUILTIN_FOLDER = Path(__file__).parent / "policies"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: broken when every condition holds; a condition holds when any alternative does."""

    id: str
    text: str
    category: str
    conditions: tuple[tuple[str, ...], ...]
    threshold: float | None = None
    near_misses: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "id": self.id,
            "text": self.text,
            "category": self.category,
            "conditions": [list(alternatives) for alternatives in self.conditions],
            "threshold": self.threshold,
            "near_misses": list(self.near_misses),
        }


@dataclass(frozen=True, slots=True)
class Policy:
    """A named, versioned list of rules. Equal content has an equal `hash`, whatever its layout."""

    name: str
    version: str
    rules: tuple[Rule, ...]
    source_sha256: str = field(default="", compare=False)  # of the YAML; empty without one

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "version": self.version,
            "rules": [rule.to_json() for rule in self.rules],
        }

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON form: comments, quoting and key order do not change it."""
        text = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def record(self) -> PolicyRecord:
        """What export needs to compile the policy into a bundle."""
        rules = tuple(
            RuleRecord(rule.id, rule.text, rule.category, rule.threshold, rule.conditions)
            for rule in self.rules
        )
        return PolicyRecord(self.name, self.version, self.hash, self.source_sha256, rules)

    @classmethod
    def from_yaml(cls, source: str | bytes, name: str = "policy") -> "Policy":
        """Parse YAML text; `name` is what error messages call it."""
        from edgejudge.policy_yaml import parse_policy

        return parse_policy(source, name)


def builtin_names() -> tuple[str, ...]:
    """The policies that ship with the package, in sorted order."""
    return tuple(sorted(path.stem for path in _BUILTIN_FOLDER.glob("*.yaml")))


def builtin_bytes(name: str) -> bytes | None:
    """The YAML of a built-in policy, or None when there is none of that name."""
    if not _NAME.fullmatch(name):
        return None
    path = _BUILTIN_FOLDER / f"{name}.yaml"
    return path.read_bytes() if path.is_file() else None


def source_sha256(source: bytes) -> str:
    """Identifies YAML without parsing it, so that a compiled policy can be trusted or dropped.

    Line endings are normalised first: a checkout on Windows has the same policy.
    """
    return hashlib.sha256(source.replace(b"\r\n", b"\n")).hexdigest()


def load_policy(policy: str | os.PathLike[str]) -> Policy:
    """A built-in policy by name, or one from a YAML file."""
    if isinstance(policy, str) and (source := builtin_bytes(policy)) is not None:
        return Policy.from_yaml(source, f"{policy}.yaml")
    path = Path(policy)
    if not path.is_file():
        known = ", ".join(builtin_names())
        raise PolicyError(
            f"policy '{policy}' not found: give a built-in name ({known}) or a YAML file"
        )
    try:
        with path.open("rb") as file:
            source = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PolicyError(f"policy '{path}' cannot be read: {reason}") from error
    return Policy.from_yaml(source, str(path))
