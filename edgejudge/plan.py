"""A policy made ready for one bundle: every question as token ids, every rule with its threshold.

Takes a policy and an opened bundle; gives a `Plan`. A built-in policy that the bundle carries in
compiled form is used as it is, which needs neither a YAML parser nor a tokenizer. Knows nothing of
images or engines.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike

from edgejudge.bundle import CompiledPolicy, Manifest
from edgejudge.models.concepts import known_names, knows
from edgejudge.models.prompt import Prompts
from edgejudge.policy import Policy, builtin_bytes, load_policy, source_sha256
from edgejudge.verdict import Note

__all__ = ["DEFAULT_THRESHOLD", "Plan", "PlannedRule", "Question", "make_plan"]

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Question:
    """`branch` is the place of its token ids in the plan: equal questions are asked once."""

    text: str
    branch: int
    known: bool


@dataclass(frozen=True, slots=True)
class PlannedRule:
    id: str
    text: str
    category: str
    threshold: float
    conditions: tuple[tuple[Question, ...], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """`branches` are the token ids to score; `notes` belong to every verdict under the policy."""

    policy: str
    version: str
    sha256: str
    band: float
    rules: tuple[PlannedRule, ...]
    branches: tuple[tuple[int, ...], ...]
    notes: tuple[Note, ...]


def make_plan(policy: str | PathLike[str] | Policy, manifest: Manifest, prompts: Prompts) -> Plan:
    """Compiled by the bundle where it holds the same policy, compiled here otherwise."""
    if isinstance(policy, str) and (source := builtin_bytes(policy)) is not None:
        found = source_sha256(source)
        for compiled in manifest.policies:
            # The name alone would go on using the old form of a policy that was edited.
            if compiled.name == policy and compiled.source_sha256 == found:
                return _from_compiled(compiled, manifest.band)
    if not isinstance(policy, Policy):
        policy = load_policy(policy)
    for compiled in manifest.policies:
        if compiled.sha256 == policy.hash:
            return _from_compiled(compiled, manifest.band)
    return _compile(policy, manifest, prompts)


def _from_compiled(policy: CompiledPolicy, band: float) -> Plan:
    branches = _Branches()
    rules = tuple(
        PlannedRule(
            rule.id,
            rule.text,
            rule.category,
            rule.threshold,
            tuple(
                tuple(Question(c.text, branches.place(c.branch_ids), c.known) for c in alternatives)
                for alternatives in rule.conditions
            ),
        )
        for rule in policy.rules
    )
    return _plan(policy.name, policy.version, policy.sha256, band, rules, branches)


def _compile(policy: Policy, manifest: Manifest, prompts: Prompts) -> Plan:
    branches = _Branches()
    names = known_names(manifest.concepts)
    fitted = _fitted_thresholds(policy.name, manifest)
    rules = []
    for rule in policy.rules:
        threshold = rule.threshold
        if threshold is None:
            threshold = fitted.get((rule.id, rule.conditions), DEFAULT_THRESHOLD)
        conditions = tuple(
            tuple(
                Question(text, branches.place(prompts.branch_ids(text)), knows(names, text))
                for text in alternatives
            )
            for alternatives in rule.conditions
        )
        rules.append(PlannedRule(rule.id, rule.text, rule.category, threshold, conditions))
    return _plan(policy.name, policy.version, policy.hash, manifest.band, tuple(rules), branches)


def _fitted_thresholds(
    name: str, manifest: Manifest
) -> dict[tuple[str, tuple[tuple[str, ...], ...]], float]:
    """Thresholds of the bundle's policy of this name, for rules whose conditions are unchanged."""
    return {
        (rule.id, tuple(tuple(c.text for c in either) for either in rule.conditions)): (
            rule.threshold
        )
        for compiled in manifest.policies
        if compiled.name == name
        for rule in compiled.rules
    }


def _plan(
    name: str,
    version: str,
    sha256: str,
    band: float,
    rules: tuple[PlannedRule, ...],
    branches: "_Branches",
) -> Plan:
    unknown = sorted(
        {q.text for rule in rules for either in rule.conditions for q in either if not q.known}
    )
    # Not doubtful by itself: what it leaves undecided is already `uncertain` in the rules.
    notes = tuple(
        Note("unknown_concept", f"'{text}' is none of the concepts this bundle was made for")
        for text in unknown
    )
    return Plan(name, version, sha256, band, rules, tuple(branches.ids), notes)


class _Branches:
    """Token ids by first use; asking for the same ids again gives the same place."""

    def __init__(self) -> None:
        self.ids: list[tuple[int, ...]] = []
        self._places: dict[tuple[int, ...], int] = {}

    def place(self, ids: Iterable[int]) -> int:
        key = tuple(ids)
        if key not in self._places:
            self._places[key] = len(self.ids)
            self.ids.append(key)
        return self._places[key]
