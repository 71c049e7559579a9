"""What a caller may want otherwise of a plan: strictness, method, a calibration, the gate.

Takes a plan, or the policy of one; gives another one. Knows no pictures and no engine.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

from edgejudge.bundle import Manifest
from edgejudge.clue_settings import ClueSettings
from edgejudge.errors import InputError
from edgejudge.plan import Plan, with_clue
from edgejudge.policy import Policy, load_policy
from edgejudge.time_budget import TimeBudget

if TYPE_CHECKING:
    from edgejudge.calibration import Calibration

__all__ = ["calibrated", "decided_by", "gated", "open_calibration", "strictly", "timed"]


def open_calibration(
    calibration: "str | PathLike[str] | Calibration", bundle_sha256: str
) -> "Calibration":
    """From a file, or as it is. Raises InputError for one of another bundle, or none at all."""
    from edgejudge.calibration import Calibration

    if not isinstance(calibration, Calibration):
        calibration = Calibration.read(calibration)
    record = calibration.record
    if record.bundle_sha256 != bundle_sha256:
        calibration.check(bundle_sha256, record.policy, {}, record.question)
    return calibration


def strictly(
    policy: str | PathLike[str] | Policy | Plan, strictness: Mapping[str, str] | None
) -> str | PathLike[str] | Policy | Plan:
    """The policy with some of its categories or rules "allowed" or "sensitive"; None leaves it as
    it is. Raises InputError for a plan, and for what the policy does not have.
    """
    if not strictness:
        return policy
    if isinstance(policy, Plan):
        raise InputError("strictness", "a plan is made with its strictness; give a policy instead")
    if not isinstance(policy, Policy):
        policy = load_policy(policy)
    return policy.with_strictness(strictness)


def decided_by(plan: Plan, method: str | None, reasoning: bool | None) -> Plan:
    """By "clue" or "thresholds", whatever the policy says, and with or without CLUE's reasoning;
    None leaves it to the policy. Raises InputError for another method, and for reasoning without
    CLUE.
    """
    if method not in (None, "clue", "thresholds"):
        raise InputError("method", f"there is no method '{method}'; give clue or thresholds")
    if plan.whole is not None and (method, reasoning) != (None, None):
        raise InputError(
            "method", f"policy '{plan.policy}' is judged as a whole; it has no method to choose"
        )
    settings = plan.clue
    if method == "clue":
        settings = settings or ClueSettings()
    elif method == "thresholds":
        settings = None
    if reasoning is not None:
        if settings is None:
            raise InputError("method", "thresholds decide without reasoning; give the method clue")
        settings = replace(settings, reasoning=reasoning)
    return plan if settings == plan.clue else with_clue(plan, settings)


def calibrated(plan: Plan, calibration: "Calibration") -> Plan:
    """With the calibration's maps, thresholds and intervals for the rules that it has. Raises
    InputError for one that was fitted to another bundle, policy or question.
    """
    calibration.check(plan.bundle, plan.policy, plan.conditions, plan.question)
    rules = tuple(replace(rule, calibration=calibration.rule(rule.id)) for rule in plan.rules)
    return replace(plan, rules=rules, calibration=calibration.id)


def gated(plan: Plan, manifest: Manifest) -> Plan:
    """Rules that the bundle's relevance encoder knows are skipped where their text is not about the
    picture: below the policy's `relevance`, which is a cosine on the scale of the encoder.

    Raises InputError where there is no encoder, or none of the policy's rules is in it.
    """
    record = manifest.relevance
    if record is None:
        raise InputError(
            "relevance",
            "the bundle has no relevance encoder; add one with `edgejudge add-relevance`, or "
            "screen without the gate",
        )
    texts = {
        (policy.name, rule.id): rule.text for policy in manifest.policies for rule in policy.rules
    }
    places = {(each.policy, each.rule): place for place, each in enumerate(record.rules)}
    # The encoder holds the rule's text as it was: a rule that was reworded since is asked.
    rules = tuple(
        replace(rule, gate=places.get((plan.policy, rule.id)))
        if texts.get((plan.policy, rule.id)) == rule.text
        else rule
        for rule in plan.rules
    )
    if all(rule.gate is None for rule in rules):
        raise InputError(
            "relevance",
            f"the bundle's relevance encoder knows no rule of policy '{plan.policy}'; compile the "
            "policy into the bundle and add the encoder again, or screen without the gate",
        )
    return replace(plan, rules=rules, gate=(plan.clue or ClueSettings()).relevance)


def timed(plan: Plan, budget_ms: float | None, first_broken: bool) -> Plan:
    """With so many milliseconds for a picture, and an end with the first broken rule. Raises
    InputError for what is no time, and for a policy whose rules are not asked one by one.
    """
    if budget_ms is None and not first_broken:
        return plan
    if plan.whole is not None:
        raise InputError(
            "time_budget",
            f"policy '{plan.policy}' is judged as a whole, of which no part can be left out; "
            "give a timeout instead",
        )
    if budget_ms is None:
        budget_ms = math.inf if plan.budget is None else plan.budget.ms
    return replace(plan, budget=TimeBudget(budget_ms, first_broken))
