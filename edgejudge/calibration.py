"""A calibration file: what was fitted to labels, and its application to probabilities.

Takes the file of `edgejudge calibrate`; gives, for each rule that was fitted, a monotone map from
P(yes) to a calibrated probability, a threshold on that scale and the interval in which nothing is
decided. Knows nothing of how they were fitted, and needs none of the packages for that.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from edgejudge.calibration_records import CalibrationRecord, MapRecord
from edgejudge.errors import EdgeJudgeError, InputError
from edgejudge.file_bytes import file_bytes
from edgejudge.strict_json import canonical_json, from_json, to_json

__all__ = ["CALIBRATION_SCHEMA", "Calibration", "RuleCalibration", "short_id", "signed"]

CALIBRATION_SCHEMA = 1
_MOST_BYTES = 16 << 20
_SHORT = 12  # characters of a hash that people read

_Conditions = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class RuleCalibration:
    """What judging needs of one rule. Inside the open interval `uncertain`, which holds or touches
    `threshold`, nothing is decided; both are on the calibrated scale. `base_rate` is the share of
    the labelled pictures that break the rule.
    """

    id: str
    threshold: float
    uncertain: tuple[float, float]
    map: MapRecord
    base_rate: float
    questions: Mapping[str, MapRecord] = field(default_factory=dict)

    def apply(self, probability: float, question: str) -> float:
        """P(yes) of one question of the rule -> calibrated, in 0..1, never falling as it rises.

        The maximum of alternatives and the minimum of conditions commute with it, so it may be
        taken of questions or, where none has a map of its own, of the rule. Raises ValueError for
        what is not in 0..1, NaN too.
        """
        if (own := self.questions.get(question)) is not None:
            probability = own.apply(probability)
        return min(max(self.map.apply(probability), 0.0), 1.0)


class Calibration:
    """An opened calibration file; `record` is all that it says."""

    def __init__(self, record: CalibrationRecord) -> None:
        """Raises InputError for a record that says what cannot be."""
        for rule in record.rules:
            if min(rule.positives, rule.negatives) < 0:
                raise InputError("calibration", f"rule '{rule.id}': fewer labels than none")
            for made in (rule.map, *rule.questions.values()):
                if problem := made.problem():
                    raise InputError("calibration", f"rule '{rule.id}': {problem}")
            ends = rule.uncertain
            if len(ends) != 2 or not 0 <= ends[0] <= rule.threshold <= ends[1] <= 1:
                raise InputError(
                    "calibration",
                    f"rule '{rule.id}': threshold {rule.threshold} is not within the interval "
                    f"{list(ends)}, or that is not within 0..1",
                )
            if not 0 < rule.threshold < 1:
                raise InputError("calibration", f"rule '{rule.id}': no threshold between 0 and 1")
        self.record = record
        self._rules = {
            rule.id: RuleCalibration(
                rule.id,
                rule.threshold,
                (rule.uncertain[0], rule.uncertain[1]),
                rule.map,
                rule.positives / max(rule.positives + rule.negatives, 1),
                dict(rule.questions),
            )
            for rule in record.rules
        }
        if len(self._rules) != len(record.rules):
            raise InputError("calibration", "a rule is there twice")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Raises InputError for a file that is missing, malformed, or was edited."""
        file = Path(path)
        try:
            data = file_bytes(file, _MOST_BYTES)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                "calibration", f"calibration {file} cannot be read: {reason}"
            ) from None
        return cls.of(data, file)

    @classmethod
    def of(cls, data: bytes, file: Path) -> Self:
        """As `read`, of the file's bytes."""
        try:
            value: Any = json.loads(data)
            found = None if not isinstance(value, dict) else _id_of(value)
        except (ValueError, RecursionError) as error:
            raise InputError(
                "calibration", f"{file} is no calibration file, which is JSON: {error}"
            ) from None
        if found is None or value.get("schema_version") != CALIBRATION_SCHEMA:
            version = "none" if found is None else value.get("schema_version")
            raise InputError(
                "calibration",
                f"{file}: schema version {version}, and this edgejudge reads "
                f"{CALIBRATION_SCHEMA}; make it again with `edgejudge calibrate`",
            )
        if value.get("id") != found:
            raise InputError(
                "calibration",
                f"{file}: its content is not what its id says, so it was edited; make it again "
                "with `edgejudge calibrate`",
            )
        try:
            return cls(from_json(CalibrationRecord, value, str(file), _Malformed))
        except _Malformed as error:
            raise InputError("calibration", str(error)) from None

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def short_id(self) -> str:
        return short_id(self.record.id)

    def rule(self, rule_id: str) -> RuleCalibration | None:
        """None for a rule that was not fitted: it is decided as without a calibration."""
        return self._rules.get(rule_id)

    def check(
        self,
        bundle_sha256: str,
        policy: str,
        conditions: Mapping[str, _Conditions],
        question: str | None = None,
    ) -> None:
        """Whether it is for this bundle and this policy, given as its name, the conditions of its
        rules by id, and its own question template if it has one.

        Rules that were added, left out or reworded for people change nothing. Raises InputError for
        another bundle, policy, template, or a fitted rule that asks something else by now.
        """
        record = self.record
        if record.bundle_sha256 != bundle_sha256:
            self._refuse(
                f"for bundle {record.bundle} {short_id(record.bundle_sha256)}, and this one is "
                f"{short_id(bundle_sha256)}"
            )
        if record.policy != policy:
            self._refuse(f"for policy '{record.policy}', and this is '{policy}'")
        if record.question != question:
            self._refuse(f"when policy '{policy}' asked in other words")
        for rule in record.rules:
            if rule.id in conditions and conditions[rule.id] != rule.conditions:
                self._refuse(f"when rule '{rule.id}' had other conditions")

    def _refuse(self, why: str) -> None:
        raise InputError(
            "calibration",
            f"calibration {self.short_id} was fitted {why}; fit another with `edgejudge calibrate`",
        )

    def to_bytes(self) -> bytes:
        return canonical_json(to_json(self.record))


class _Malformed(EdgeJudgeError):
    """from_json raises its errors with a message alone."""


def signed(record: CalibrationRecord) -> CalibrationRecord:
    """The record with the id of its content."""
    return replace(record, id=_id_of(to_json(record)))


def short_id(sha256: str) -> str:
    """As people read it."""
    return sha256[:_SHORT]


def _id_of(value: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json({**value, "id": ""})).hexdigest()
