"""Policies: what to judge, read from YAML and checked against the schema before anything runs.

Takes a built-in name, a file, or YAML text; gives a frozen `Policy` with a canonical hash. A rule
is broken when all its conditions hold; the alternatives inside one condition are OR. A policy may
also be judged as a whole, by one answer that names what is broken. Knows nothing of bundles, tokens
or thresholds that were calibrated elsewhere. YAML is imported only to parse.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgejudge.bundle import PolicyRecord, RuleRecord
from edgejudge.clue_settings import ClueSettings
from edgejudge.errors import PolicyError
from edgejudge.file_bytes import file_bytes

__all__ = [
    "COMPILED",
    "Answer",
    "Bodies",
    "Method",
    "Policy",
    "Rule",
    "Strictness",
    "builtin_bytes",
    "builtin_names",
    "load_policy",
    "source_sha256",
]

MAX_POLICY_BYTES = 1 << 20
MAX_RULES = 256
MAX_QUESTIONS = 2048
MAX_TEXT_CHARS = 500
MAX_BODY_CHARS = 2000
# What an export compiles in unless it is told otherwise. Others cost a bundle room and time for
# questions that most of its users never ask.
COMPILED = ("stickers",)

# How a policy is answered: a packed yes/no question per alternative, or one answer for the whole
# policy, written as LlavaGuard writes it (JSON) or as Llama Guard does (codes).
Answer = Literal["questions", "json", "codes"]
Method = Literal["thresholds", "clue"]
Strictness = Literal["allowed", "default", "sensitive"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BUILTIN_FOLDER = Path(__file__).parent / "policies"


@dataclass(frozen=True, slots=True)
class Bodies:
    """What the model is told of a category: as usual, where all of it is allowed, and where nothing
    of it is (LlavaGuard, arXiv 2406.05113, section 3).
    """

    default: str
    allowed: str
    sensitive: str

    def of(self, strictness: Strictness) -> str:
        return {
            "default": self.default,
            "allowed": self.allowed,
            "sensitive": self.sensitive,
        }[strictness]

    def to_json(self) -> dict[str, object]:
        return {"default": self.default, "allowed": self.allowed, "sensitive": self.sensitive}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: broken when every condition holds; a condition holds when any alternative does.

    A rule of a policy that is judged as a whole has no conditions: its `code` is what an answer
    names it by. `objects` are the words for what a condition is about, whose region CLUE removes;
    `maps_to` the keys of other taxonomies that it falls under, like "openai:violence".
    """

    id: str
    text: str
    category: str
    conditions: tuple[tuple[str, ...], ...]
    threshold: float | None = None
    near_misses: tuple[str, ...] = ()
    code: str | None = None
    objects: tuple[str, ...] = ()
    bodies: Bodies | None = None
    maps_to: tuple[str, ...] = ()
    strictness: Strictness = "default"  # by Policy.with_strictness, never by YAML

    def to_json(self) -> dict[str, object]:
        """Keys that say nothing are left out, but for those that every policy had from the first:
        the hash of a policy is that of this form.
        """
        value: dict[str, object] = {
            "id": self.id,
            "text": self.text,
            "category": self.category,
            "conditions": [list(alternatives) for alternatives in self.conditions],
            "threshold": self.threshold,
            "near_misses": list(self.near_misses),
        }
        if self.code is not None:
            value["code"] = self.code
        if self.objects:
            value["objects"] = list(self.objects)
        if self.bodies is not None:
            value["bodies"] = self.bodies.to_json()
        if self.maps_to:
            value["maps_to"] = list(self.maps_to)
        if self.strictness != "default":
            value["strictness"] = self.strictness
        return value


@dataclass(frozen=True, slots=True)
class Policy:
    """A named, versioned list of rules. Equal content has an equal `hash`, whatever its layout.

    `question` is put in place of the bundle's template, with {condition} where a condition goes;
    `clue` is there with the method "clue". `rules` are those that are judged, `allowed` those that
    `with_strictness` took out, each with its place among all: they cannot be broken.
    """

    name: str
    version: str
    rules: tuple[Rule, ...]
    source_sha256: str = field(default="", compare=False)  # of the YAML; empty without one
    question: str | None = None
    method: Method = "thresholds"
    clue: ClueSettings | None = None
    answer: Answer = "questions"
    allowed: tuple[tuple[int, Rule], ...] = ()

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """Those that are judged and those that are allowed, in the order they were written in."""
        rules = list(self.rules)
        for place, rule in self.allowed:
            rules.insert(place, rule)
        return tuple(rules)

    def to_json(self) -> dict[str, object]:
        value: dict[str, object] = {
            "name": self.name,
            "version": self.version,
            "rules": [rule.to_json() for rule in self.rules],
        }
        if self.question is not None:
            value["question"] = self.question
        if self.method != "thresholds":
            value["method"] = self.method
        if self.clue is not None:
            value["clue"] = self.clue.to_json()
        if self.answer != "questions":
            value["answer"] = self.answer
        if self.allowed:
            value["allowed"] = [[place, rule.to_json()] for place, rule in self.allowed]
        return value

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON form: comments, quoting and key order do not change it."""
        text = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def with_strictness(self, strictness: Mapping[str, str]) -> "Policy":
        """The same policy, with some of its categories or rules "allowed" or "sensitive".

        Keys are categories or rule ids, and a rule's own id goes before its category. An allowed
        rule is not judged: it moves from `rules` to `allowed`. A sensitive one is judged with the
        body written for that, or with a lower threshold (edgejudge/strictness.py has the formula).
        The hash is another one, unless all are "default". Raises InputError for names, values and
        combinations that there are not.
        """
        from edgejudge.strictness import with_strictness

        return with_strictness(self, strictness)

    def record(self) -> PolicyRecord:
        """What export needs to compile the policy into a bundle. Raises PolicyError for a policy
        that a bundle cannot carry: one that is judged as a whole, or with a question of its own.
        """
        if self.answer != "questions" or self.question is not None:
            what = "is judged as a whole" if self.answer != "questions" else "asks its own question"
            raise PolicyError(
                f"policy '{self.name}' {what}, so it cannot be compiled into a bundle; leave it "
                "out of the export and name it when you screen"
            )
        rules = tuple(
            RuleRecord(
                rule.id, rule.text, rule.category, rule.threshold, rule.conditions, rule.objects
            )
            for rule in self.rules
        )
        return PolicyRecord(
            self.name, self.version, self.hash, self.source_sha256, rules, self.clue
        )

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
        source = file_bytes(path, MAX_POLICY_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PolicyError(f"policy '{path}' cannot be read: {reason}") from error
    return Policy.from_yaml(source, str(path))
