"""How strictly a policy's categories are judged: allowed, as written, or sensitive.

Takes a policy and what is wanted of its categories or rules; gives another policy. Nothing of the
judge has to be loaded again: strictness is of the policy alone, and its hash tells one from the
other. Knows no probabilities of pictures.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast, get_args

from edgejudge.clue_settings import ClueSettings
from edgejudge.errors import InputError
from edgejudge.policy import Policy, Rule, Strictness

__all__ = ["SENSITIVE_ODDS", "sensitive_clue", "sensitive_threshold", "with_strictness"]

# A sensitive rule is broken at a quarter of the odds. Odds, so that every threshold stays between
# 0 and 1 and moves by the same amount of evidence: 0.5 becomes 0.2, and 0.9 becomes 0.69.
SENSITIVE_ODDS = 4.0
_VALUES = get_args(Strictness)


def sensitive_threshold(threshold: float) -> float:
    """logit(t') = logit(t) - ln 4, which is t / (4 - 3t): below `threshold`, for any in (0, 1)."""
    # The smallest floats have no quarter.
    return threshold / (SENSITIVE_ODDS - (SENSITIVE_ODDS - 1) * threshold) or threshold


def sensitive_clue(settings: ClueSettings) -> ClueSettings:
    """The same step on CLUE's constants: what was accepted still is, and what is rejected was.

    `accept`, `region` and 1 + `reject`, the share of the prior below which a condition fails, are
    all lowered as a threshold is.
    """
    return replace(
        settings,
        # The smallest settings are lost in 1 + reject.
        reject=min(settings.reject, sensitive_threshold(1 + settings.reject) - 1),
        accept=sensitive_threshold(settings.accept),
        region=sensitive_threshold(settings.region),
    )


def with_strictness(policy: Policy, strictness: Mapping[str, str]) -> Policy:
    """See Policy.with_strictness. What an earlier call set stays, unless it is named again."""
    everything = policy.all_rules
    ids = {rule.id for rule in everything}
    categories = {rule.category for rule in everything}
    for key, value in strictness.items():
        if key not in ids | categories:
            raise InputError(
                "strictness",
                f"policy '{policy.name}' has no category or rule '{key}'; its categories are "
                f"{_listed(categories)}, its rules {_listed(ids)}",
            )
        if value not in _VALUES:
            raise InputError(
                "strictness",
                f"strictness of '{key}' is '{value}', which is none of {', '.join(_VALUES)}",
            )
    rules: list[Rule] = []
    allowed: list[tuple[int, Rule]] = []
    for place, rule in enumerate(everything):
        wanted = strictness.get(rule.id, strictness.get(rule.category, rule.strictness))
        value = cast(Strictness, wanted)
        if value == "sensitive" and policy.answer == "codes":
            raise InputError(
                "strictness",
                f"rule '{rule.id}' of policy '{policy.name}' has no sensitive form: an answer by "
                "codes has neither thresholds nor bodies; use default or allowed",
            )
        changed = replace(rule, strictness=value)
        if value == "allowed":
            allowed.append((place, changed))
        else:
            rules.append(changed)
    if not rules:
        raise InputError(
            "strictness",
            f"every rule of policy '{policy.name}' would be allowed, so nothing would be judged; "
            "leave at least one",
        )
    return replace(policy, rules=tuple(rules), allowed=tuple(allowed))


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
