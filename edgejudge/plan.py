"""A policy made ready for one bundle: every question as token ids, every rule with its threshold.

Takes a policy and an opened bundle; gives a `Plan`. A built-in policy that the bundle carries in
compiled form is used as it is, which needs neither a YAML parser nor a tokenizer. Knows nothing of
images or engines.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING

from edgejudge.bundle import CompiledPolicy, Manifest
from edgejudge.clue_settings import ClueSettings
from edgejudge.compiled_check import check_rules
from edgejudge.models.concepts import known_names, knows
from edgejudge.models.prompt import Prompts
from edgejudge.policy import Policy, builtin_bytes, load_policy, source_sha256
from edgejudge.strictness import sensitive_clue, sensitive_threshold
from edgejudge.time_budget import TimeBudget
from edgejudge.verdict import Note

if TYPE_CHECKING:
    from edgejudge.calibration import RuleCalibration

__all__ = [
    "DEFAULT_THRESHOLD",
    "Plan",
    "PlannedRule",
    "Question",
    "make_plan",
    "only",
    "with_clue",
]

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Question:
    """`branch` is the place of its token ids in the plan: equal questions are asked once."""

    text: str
    branch: int
    known: bool


@dataclass(frozen=True, slots=True)
class PlannedRule:
    """Decided by `calibration` where it has one, else by CLUE with the settings `clue`, else by its
    threshold and the plan's band.

    `objects` are words for what its conditions are about, `gate` is the place of its text in the
    bundle's relevance encoder.
    """

    id: str
    text: str
    category: str
    threshold: float
    conditions: tuple[tuple[Question, ...], ...]
    objects: tuple[str, ...] = ()
    sensitive: bool = False
    clue: ClueSettings | None = None
    calibration: "RuleCalibration | None" = None
    gate: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """`branches` are the token ids to score; `notes` belong to every verdict under the policy;
    `question` is the policy's own template, where it has one.

    `clue` are the settings of the method "clue", `calibration` is the id of the one that rules
    have theirs from. A rule with a place in the relevance encoder is skipped below the cosine
    `gate`. Without a `budget` everything is asked at once; `stable` changed copies of a picture are
    asked too. `bundle` is the sha256 of the one whose
    tokens these are. A policy that is judged as a whole has neither rules nor branches here: it is
    `whole`.
    """

    policy: str
    version: str
    sha256: str
    band: float
    rules: tuple[PlannedRule, ...]
    branches: tuple[tuple[int, ...], ...]
    notes: tuple[Note, ...]
    question: str | None = None
    clue: ClueSettings | None = None
    calibration: str | None = None
    gate: float | None = None
    bundle: str = ""
    whole: Policy | None = None
    budget: TimeBudget | None = None
    stable: int = 0

    @property
    def conditions(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Rule id -> the texts that are asked, [condition][alternative]."""
        return {
            rule.id: tuple(tuple(q.text for q in either) for either in rule.conditions)
            for rule in self.rules
        }


def make_plan(policy: str | PathLike[str] | Policy, manifest: Manifest, prompts: Prompts) -> Plan:
    """Compiled by the bundle where it holds the same policy, compiled here otherwise."""
    plan, settings = _made(policy, manifest, prompts)
    return replace(with_clue(plan, settings), bundle=manifest.sha256)


def with_clue(plan: Plan, settings: ClueSettings | None) -> Plan:
    """The same plan decided by CLUE with these settings, or by thresholds without any."""
    if settings is None:
        rules = tuple(replace(rule, clue=None) for rule in plan.rules)
    else:
        rules = tuple(
            replace(rule, clue=sensitive_clue(settings) if rule.sensitive else settings)
            for rule in plan.rules
        )
    return replace(plan, rules=rules, clue=settings)


def only(plan: Plan, ids: Collection[str]) -> Plan:
    """The same plan for some of its rules; one for a policy that is judged as a whole as it is."""
    if plan.whole is not None:
        return plan
    branches = _Branches()
    rules = tuple(
        replace(
            rule,
            conditions=tuple(
                tuple(replace(q, branch=branches.place(plan.branches[q.branch])) for q in either)
                for either in rule.conditions
            ),
        )
        for rule in plan.rules
        if rule.id in ids
    )
    kept = tuple(note for note in plan.notes if note.code != "unknown_concept")
    return replace(plan, rules=rules, branches=tuple(branches.ids), notes=kept + _unknown(rules))


def _made(
    policy: str | PathLike[str] | Policy, manifest: Manifest, prompts: Prompts
) -> tuple[Plan, ClueSettings | None]:
    if isinstance(policy, str) and (source := builtin_bytes(policy)) is not None:
        found = source_sha256(source)
        for compiled in manifest.policies:
            # The name alone would go on using the old form of a policy that was edited.
            if compiled.name == policy and compiled.source_sha256 == found:
                return _from_compiled(compiled, manifest.band), compiled.clue
    if not isinstance(policy, Policy):
        policy = load_policy(policy)
    for compiled in manifest.policies:
        if compiled.sha256 == policy.hash:
            check_rules(compiled, policy)
            return _from_compiled(compiled, manifest.band), compiled.clue
    if policy.answer != "questions":
        return _whole(policy, manifest), None
    return _compile(policy, manifest, prompts), policy.clue


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
            rule.objects,
        )
        for rule in policy.rules
    )
    return _plan(policy.name, policy.version, policy.sha256, band, rules, branches)


def _compile(policy: Policy, manifest: Manifest, prompts: Prompts) -> Plan:
    branches = _Branches()
    names = known_names(manifest.concepts)
    # What was fitted, and what a specialist learned, is about the bundle's own question.
    own = policy.question is not None
    fitted = {} if own else _fitted_thresholds(policy.name, manifest)
    rules = []
    for rule in policy.rules:
        threshold = rule.threshold
        if threshold is None:
            threshold = fitted.get((rule.id, rule.conditions), DEFAULT_THRESHOLD)
        sensitive = rule.strictness == "sensitive"
        if sensitive:
            threshold = sensitive_threshold(threshold)
        conditions = tuple(
            tuple(
                Question(
                    text,
                    branches.place(prompts.branch_ids(text, policy.question)),
                    knows(names, text, manifest.patterns) and not (own and names),
                )
                for text in alternatives
            )
            for alternatives in rule.conditions
        )
        rules.append(
            PlannedRule(
                rule.id, rule.text, rule.category, threshold, conditions, rule.objects, sensitive
            )
        )
    plan = _plan(policy.name, policy.version, policy.hash, manifest.band, tuple(rules), branches)
    notes = _allowed(policy)
    if own and names:
        message = "the policy asks a question of its own, which this bundle was not made for"
        return replace(
            plan, notes=(*notes, Note("unknown_question", message)), question=policy.question
        )
    return replace(plan, notes=(*notes, *plan.notes), question=policy.question)


def _whole(policy: Policy, manifest: Manifest) -> Plan:
    notes = _allowed(policy)
    if manifest.concepts:
        message = "the policy is judged as a whole, which this bundle was not made for"
        notes = (*notes, Note("unknown_question", message))
    return Plan(
        policy.name, policy.version, policy.hash, manifest.band, (), (), notes, whole=policy
    )


def _allowed(policy: Policy) -> tuple[Note, ...]:
    return tuple(
        Note("allowed", f"rule '{rule.id}' is allowed here, so it was not judged")
        for _, rule in policy.allowed
    )


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
    return Plan(name, version, sha256, band, rules, tuple(branches.ids), _unknown(rules))


def _unknown(rules: Iterable[PlannedRule]) -> tuple[Note, ...]:
    texts = {q.text for rule in rules for either in rule.conditions for q in either if not q.known}
    # Not doubtful by itself: what it leaves undecided is already `uncertain` in the rules.
    return tuple(
        Note("unknown_concept", f"'{text}' is none of the concepts this bundle was made for")
        for text in sorted(texts)
    )


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
