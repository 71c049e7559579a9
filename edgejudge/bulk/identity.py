"""What a file of verdicts is of: all that decides them but the pictures.

Takes a judge and a plan, or a row; gives an `Identity`, and the sentence in which two differ. Where
stages run and how many threads there are is no part of it: that changes no verdict.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgejudge.cascade import Cascade, Plans
    from edgejudge.judge import Judge
    from edgejudge.plan import Plan

__all__ = ["Identity", "identity_of"]

# Of a plan: told by name in an identity, or following from bundle, policy and calibration.
_ELSEWHERE = {
    *("policy", "version", "sha256", "bundle", "calibration"),
    *("band", "rules", "branches", "notes", "question", "whole"),
}
# Of limits: it refuses whole files, and decides nothing about others.
_REFUSING = {"max_bytes"}


@dataclass(frozen=True, slots=True)
class Identity:
    """Two runs with equal ones give one picture one verdict; names do not count.

    `settings` is JSON with sorted keys of what was asked for beside a plain plan: CLUE's constants,
    a relevance gate, a time budget, changed copies, limits on frames and pixels, a second bundle.
    """

    bundle: str
    bundle_sha256: str
    policy: str
    policy_sha256: str
    method: str
    calibration: str | None
    settings: str

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Identity":
        """Of a row, or of `to_json`. Raises KeyError or TypeError for what is none, or does not say
        its settings.
        """
        bundle, policy = row["bundle"], row["policy"]
        return cls(
            str(bundle["name"]),
            str(bundle["sha256"]),
            str(policy["name"]),
            str(policy["sha256"]),
            str(policy["method"]),
            row["calibration"],
            _canonical(row["settings"]),
        )

    def to_json(self) -> dict[str, Any]:
        """In the keys of a row."""
        return {
            "bundle": {"name": self.bundle, "sha256": self.bundle_sha256},
            "policy": {"name": self.policy, "sha256": self.policy_sha256, "method": self.method},
            "calibration": self.calibration,
            "settings": json.loads(self.settings),
        }

    def difference(self, other: "Identity") -> tuple[str, str] | None:
        """The first thing in which they differ, named as this one has it and as the other does."""
        mine, its = list(self._named()), list(other._named())
        for (value, name), (other_value, other_name) in zip(mine, its, strict=True):
            if value != other_value:
                return name, other_name
        one, two = json.loads(self.settings), json.loads(other.settings)
        for key in sorted({*one, *two}):
            if one.get(key) != two.get(key):
                return _setting(key, one), _setting(key, two)
        return None

    def _named(self) -> list[tuple[str | None, str]]:
        calibration = self.calibration
        return [
            (self.bundle_sha256, f"bundle '{self.bundle}' ({self.bundle_sha256[:12]})"),
            (self.policy_sha256, f"policy '{self.policy}' ({self.policy_sha256[:12]})"),
            (self.method, f"method {self.method}"),
            (calibration, f"calibration {calibration[:12]}" if calibration else "no calibration"),
        ]


def identity_of(judge: "Judge | Cascade", plan: "Plan | Plans") -> Identity:
    """Of what a judge, or two of them, will say under their plan."""
    from edgejudge.cascade import Cascade, Plans

    if isinstance(judge, Cascade):
        assert isinstance(plan, Plans)
        second = {
            "bundle": judge.second.bundle.manifest.name,
            "sha256": judge.second.bundle.fingerprint,
            "calibration": plan.second.calibration,
            **_settings(judge.second, plan.second),
        }
        return _identity(judge.first, plan.first, {"second bundle": second})
    assert not isinstance(plan, Plans)
    return _identity(judge, plan, {})


def _identity(judge: "Judge", plan: "Plan", more: Mapping[str, Any]) -> Identity:
    return Identity(
        judge.bundle.manifest.name,
        judge.bundle.fingerprint,
        plan.policy,
        plan.sha256,
        "thresholds" if plan.clue is None else "clue",
        plan.calibration,
        _canonical({**_settings(judge, plan), **more}),
    )


def _settings(judge: "Judge", plan: "Plan") -> dict[str, Any]:
    limits = _unlike_default(judge.limits, _REFUSING)
    return {**_unlike_default(plan, _ELSEWHERE), **({"limits": limits} if limits else {})}


def _unlike_default(record: Any, without: Collection[str]) -> dict[str, Any]:
    """Its fields that are not as they are by themselves: one that a later version adds counts from
    the first run that uses it.
    """
    return {
        each.name: _plain(value)
        for each in fields(record)
        if each.name not in without
        for value in [getattr(record, each.name)]
        if each.default is MISSING or value != each.default
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _canonical(value: Mapping[str, Any]) -> str:
    if not isinstance(value, Mapping):
        raise TypeError("settings are an object")
    return json.dumps(value, sort_keys=True)


def _setting(key: str, settings: Mapping[str, Any]) -> str:
    return f"{key} {json.dumps(settings[key])}" if key in settings else f"no {key}"
