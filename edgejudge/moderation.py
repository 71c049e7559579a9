"""OpenAI's moderation form of a verdict, for programs that read that already.

Takes a verdict and the policy it was made under; gives the form, key by key. A key that no rule of
the policy speaks of, or only rules that were not decided, is null and listed: it is never silently
false. Knows no pictures and no model.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike

from edgejudge.errors import InputError
from edgejudge.moderation_keys import OPENAI, OPENAI_KEYS
from edgejudge.policy import Policy, Rule, load_policy
from edgejudge.verdict import InputFailure, RuleVerdict, Verdict

__all__ = ["Moderation", "ModerationCategory", "keys_of", "moderation"]

# Of the built-in policy that bundles carry compiled by the bytes of its file. What else it has fits
# none of OpenAI's keys: a weapon, a drug or a gesture that is merely shown is none of their cases.
_STICKERS = {"gore": ("violence", "violence/graphic")}


@dataclass(frozen=True, slots=True)
class ModerationCategory:
    """`flagged` is None where nothing was decided, `score` None where nothing was measured; both
    are where it was not `judged`: no rule that was speaks of it.
    """

    key: str
    flagged: bool | None
    score: float | None
    judged: bool


@dataclass(frozen=True, slots=True)
class Moderation:
    """`flagged` is the picture's verdict: True where it is unsafe, by whatever rule, False where it
    is safe, and None where it is uncertain or could not be judged; `error` says why it could not.
    """

    id: str
    model: str
    path: str | None
    policy: str
    policy_sha256: str
    flagged: bool | None
    categories: tuple[ModerationCategory, ...]
    broken_rules: tuple[str, ...]
    error: InputFailure | None

    @property
    def not_judged(self) -> tuple[str, ...]:
        return tuple(each.key for each in self.categories if not each.judged)

    @property
    def undecided(self) -> tuple[str, ...]:
        return tuple(each.key for each in self.categories if each.judged and each.flagged is None)

    def to_json(self) -> dict[str, object]:
        """As OpenAI's endpoint answers, and what it has no place for. A failure has no result."""
        scores = [(each.key, each.score) for each in self.categories]
        result = {
            "flagged": self.flagged,
            "categories": {each.key: each.flagged for each in self.categories},
            "category_scores": {
                key: None if score is None else round(score, 6) for key, score in scores
            },
            "category_applied_input_types": {
                each.key: ["image"] if each.judged else [] for each in self.categories
            },
            "not_judged": list(self.not_judged),
            "undecided": list(self.undecided),
            "broken_rules": list(self.broken_rules),
        }
        return {
            "id": self.id,
            "model": self.model,
            "results": [] if self.error else [result],
            "path": self.path,
            "policy": {"name": self.policy, "sha256": self.policy_sha256},
            "error": self.error.to_json() if self.error else None,
        }


def keys_of(policy: Policy, rule: Rule) -> tuple[str, ...]:
    """OpenAI's keys that a rule falls under."""
    if policy.name == "stickers" and rule.conditions == _stickers_conditions().get(rule.id):
        return _STICKERS.get(rule.id, ())
    return tuple(
        key
        for taxonomy, _, key in (entry.partition(":") for entry in rule.maps_to)
        if taxonomy == OPENAI
    )


@cache
def _stickers_conditions() -> dict[str, tuple[tuple[str, ...], ...]]:
    return {rule.id: rule.conditions for rule in load_policy("stickers").rules}


def moderation(verdict: Verdict, policy: str | PathLike[str] | Policy) -> Moderation:
    """The form of a verdict. `policy` is the one it was made under, strictness included.

    Raises InputError for another one, since a rule's keys are not in a verdict.
    """
    if not isinstance(policy, Policy):
        policy = load_policy(policy)
    if policy.hash != verdict.policy_sha256:
        raise InputError(
            "policy",
            f"the verdict was made under another content of policy '{verdict.policy}' than the "
            "one given; give that, with the same strictness",
        )
    by_id = {rule.id: rule for rule in verdict.rules}
    falls: dict[str, list[RuleVerdict]] = {key: [] for key in OPENAI_KEYS}
    for rule in policy.rules:
        for key in keys_of(policy, rule):
            if rule.id in by_id:
                falls[key].append(by_id[rule.id])
    identity = [verdict.sha256 or repr(verdict.path), verdict.policy_sha256, verdict.bundle_sha256]
    return Moderation(
        id=f"modr-{hashlib.sha256(' '.join(identity).encode()).hexdigest()[:24]}",
        model=verdict.bundle,
        path=verdict.path,
        policy=verdict.policy,
        policy_sha256=verdict.policy_sha256,
        flagged={"unsafe": True, "safe": False}.get(verdict.verdict or ""),
        categories=tuple(_category(key, rules) for key, rules in falls.items()),
        broken_rules=tuple(rule.id for rule in verdict.broken),
        error=verdict.error,
    )


def _category(key: str, rules: Sequence[RuleVerdict]) -> ModerationCategory:
    outcomes = {rule.verdict for rule in rules}
    flagged = True if "unsafe" in outcomes else False if outcomes == {"safe"} else None
    scores = [rule.probability for rule in rules if rule.probability is not None]
    return ModerationCategory(key, flagged, max(scores, default=None), bool(rules))
