"""Probabilities that a judge gave before, as the rows of `edgejudge screen --out` hold them.

Takes a results file; gives, for each picture, P(yes) by question as the model said it, or why it
was not judged. Rows of another bundle or policy, and numbers that are no probabilities, are refused
with file and line. Knows nothing of labels, and runs no judge.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgejudge.errors import InputError
from edgejudge.file_bytes import file_bytes

__all__ = ["Recorded", "read_recorded", "recorded"]

_MOST_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Recorded:
    """One picture: P(yes) by question in `answers`, or in `failure` why there is none."""

    path: str
    sha256: str | None
    answers: Mapping[str, float]
    failure: str | None


def read_recorded(
    path: str | os.PathLike[str], bundle_sha256: str, policy_sha256: str
) -> tuple[list[Recorded], int]:
    """The rows, and how many bytes they take: a last line that was not finished is left out.

    Of several rows of one picture the last one counts. Raises InputError "scores".
    """
    name = os.fspath(path)
    try:
        data = file_bytes(name, _MOST_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError("scores", f"scores {name} cannot be read: {reason}") from None
    whole = data.rfind(b"\n") + 1
    if _is_json(data[whole:]):  # no line break at the end, but all of the row is there
        whole = len(data)
    found: dict[str, Recorded] = {}
    for line, each in enumerate(data[:whole].split(b"\n"), 1):
        if not each.strip():
            continue
        try:
            row = json.loads(each)
            one = recorded(row, bundle_sha256, policy_sha256)
        except InputError as error:
            raise InputError("scores", f"{name}, line {line}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError("scores", f"{name}, line {line}: it is no JSON: {error}") from None
        except (KeyError, TypeError, AttributeError):
            raise InputError(
                "scores",
                f"{name}, line {line}: it is no row of `edgejudge screen --out`; give such a file",
            ) from None
        found.pop(one.path, None)
        found[one.path] = one
    return list(found.values()), whole


def recorded(row: Mapping[str, Any], bundle_sha256: str, policy_sha256: str) -> Recorded:
    """One row of `Verdict.to_json`. Raises InputError for one that is of no use here, and KeyError,
    TypeError or AttributeError for what is no such row.
    """
    path = row["path"]
    if not isinstance(path, str):
        raise InputError("scores", "the picture has no path")
    for what, wanted in (("bundle", bundle_sha256), ("policy", policy_sha256)):
        if (found := row[what]["sha256"]) != wanted:
            raise InputError(
                "scores",
                f"the row is of {what} {row[what]['name']} {str(found)[:12]}, and this is "
                f"{wanted[:12]}; judge the pictures again into another file",
            )
    if row["verdict"] is None:
        return Recorded(path, row["sha256"], {}, str(row["error"]["code"]))
    if row.get("escalated") is not None:
        raise InputError("scores", "two bundles were asked; judge it without --escalate")
    if "region" in row.get("stages_used", ()):
        raise InputError(
            "scores", "a part of the picture was asked; judge it with --method thresholds"
        )
    answers: dict[str, float] = {}
    for rule in row["rules"]:
        for condition in rule["conditions"]:
            for each in condition["alternatives"]:
                raw, text = each.get("raw_probability"), each["text"]
                value = _probability(text, each["probability"] if raw is None else raw)
                # Rules may be of different frames of a file.
                answers[text] = max(value, answers.get(text, 0.0))
    return Recorded(path, row["sha256"], answers, None)


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


def _probability(text: str, value: Any) -> float:
    if value is None:
        raise InputError(
            "scores",
            f"'{text}' was not asked; judge it without relevance gate and time budget",
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError("scores", f"'{text}' has probability {value}, which is not in 0..1")
    return float(value)
