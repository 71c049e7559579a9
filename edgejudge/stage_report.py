"""How far each stage of judging got, and what it took: shares of decisions, and milliseconds.

Takes rows of `edgejudge screen --out`, or verdicts in that form; gives counts and times by stage,
as JSON or as a table. Runs no judge.

A question is decided by the test that its row names. A rule that is broken is decided where the
last of its conditions was, one that is not where the first failing one was. A picture that is
unsafe is decided where the first broken rule was, one that is safe where its last rule was.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgejudge.errors import InputError
from edgejudge.report import plain_table

__all__ = ["Stages", "percentile", "read_rows"]

# In the order in which they are asked.
_STAGES = {
    "relevance": "gate",
    "language_prior": "language prior",
    "score": "score",
    "threshold": "score, threshold",
    "answer": "answer for the whole policy",
    "region": "region",
    "reasoning": "reasoning",
    "second": "second bundle",
    "uncertain": "left uncertain",
    "failed": "failed",
}
_ORDER = {test: place for place, test in enumerate(_STAGES)}
_UNITS = ("questions", "rules", "pictures")
_HEADINGS = ("stage", *_UNITS)


@dataclass(slots=True)
class Stages:
    """Rows so far."""

    counts: dict[str, Counter[str]] = field(
        default_factory=lambda: {unit: Counter() for unit in _UNITS}
    )
    left: Counter[str] = field(default_factory=Counter)  # open questions, by what left them so
    ms: dict[str, list[float]] = field(default_factory=dict)
    whole_ms: list[float] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        """One row. Raises KeyError, TypeError, AttributeError or ValueError for what is none."""
        self._add_times(row)
        if row["verdict"] is None:
            self.counts["pictures"]["failed"] += 1
            return
        second = row.get("escalated")
        asked = set()
        if second is not None and second["error"] is None:
            asked = {rule["id"] for rule in second["before"]}
        rules = []
        for rule in row["rules"]:
            for condition in rule["conditions"]:
                for each in condition["alternatives"]:
                    self.counts["questions"][_stage(each, rule["id"] in asked)] += 1
                    if each["outcome"] == "uncertain":
                        self.left[each["test"]] += 1
            rules.append((rule["verdict"], _stage_of_rule(rule, rule["id"] in asked)))
        self.counts["rules"].update(stage for _, stage in rules)
        self.counts["pictures"][_stage_of_picture(row["verdict"], rules)] += 1

    def to_json(self) -> dict[str, Any]:
        """Shares are of these questions, rules and pictures, and estimate nothing beyond them."""
        made: dict[str, Any] = {}
        for unit in _UNITS:
            n = self.counts[unit].total()
            made[unit] = {
                "n": n,
                "by": {
                    test: {"count": count, "share": count / n}
                    for test in _STAGES
                    if (count := self.counts[unit][test])
                },
            }
        made["left_uncertain_by"] = dict(self.left)
        made["ms"] = {name: _times(values) for name, values in self.ms.items()}
        made["ms"]["whole picture"] = _times(self.whole_ms)
        return made

    def table(self) -> str:
        """Two tables: what was decided where, and what it took."""
        totals = {unit: self.counts[unit].total() for unit in _UNITS}
        decided = [
            (name, *(_share(self.counts[unit][test], totals[unit]) for unit in _UNITS))
            for test, name in _STAGES.items()
            if any(self.counts[unit][test] for unit in _UNITS)
        ]
        decided.append(("all", *(str(totals[unit]) for unit in _UNITS)))
        why = ", ".join(f"{count} {test}" for test, count in self.left.most_common())
        left = f"\nquestions left uncertain: {why}" if why else ""
        times = [
            (name, str(len(values)), *(f"{value:.1f}" for value in _figures(values)))
            for name, values in (*self.ms.items(), ("whole picture", self.whole_ms))
            if values
        ]
        took = plain_table(times, ("stage", "pictures", "mean ms", "median", "p95", "most"))
        return f"{plain_table(decided, _HEADINGS)}{left}\n\n{took}"

    def _add_times(self, row: Mapping[str, Any]) -> None:
        stages = {name: float(ms) for name, ms in row["stages_ms"].items()}
        if row.get("escalated") is not None:
            stages["second bundle"] = float(sum(row["escalated"]["stages_ms"].values()))
        for name, ms in stages.items():
            self.ms.setdefault(name, []).append(ms)
        self.whole_ms.append(sum(stages.values()))


def read_rows(path: str | os.PathLike[str]) -> Stages:
    """Of a results file; a last line that was not finished is left out. Raises InputError "rows"
    with file and line for what is none.
    """
    made, name = Stages(), os.fspath(path)
    try:
        with open(name, "rb") as stream:
            for line, text in enumerate(stream, 1):
                if not text.strip():
                    continue
                try:
                    made.add(json.loads(text))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    if not text.endswith(b"\n"):
                        break
                    raise InputError(
                        "rows",
                        f"{name}, line {line}: it is no row of `edgejudge screen --out`; give such "
                        "a file",
                    ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError("rows", f"rows {name} cannot be read: {reason}") from None
    if not made.whole_ms:
        raise InputError("rows", f"{name} has no rows; write some with `edgejudge screen --out`")
    return made


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least this share of them does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def _stage(question: Mapping[str, Any], second: bool) -> str:
    if question["outcome"] == "uncertain":
        return "uncertain"
    if second:
        return "second"
    if question["test"] not in _STAGES:
        raise ValueError(f"unknown test {question['test']!r}")
    return str(question["test"])


def _stage_of_rule(rule: Mapping[str, Any], second: bool) -> str:
    if rule["verdict"] == "uncertain":
        return "uncertain"
    if second:
        return "second"
    broken = rule["verdict"] == "unsafe"
    wanted = "holds" if broken else "fails"
    tests = [
        _latest(each["test"] for each in _deciding(condition, wanted))
        for condition in rule["conditions"]
        if condition["outcome"] == wanted
    ]
    return _latest(tests) if broken else _earliest(tests)


def _deciding(condition: Mapping[str, Any], wanted: str) -> list[Mapping[str, Any]]:
    """The alternatives that make it hold or fail: any one, or all of them."""
    if wanted == "fails":
        return list(condition["alternatives"])
    return [condition]  # which names the test of its deciding one


def _stage_of_picture(verdict: str, rules: Iterable[tuple[str, str]]) -> str:
    if verdict == "unsafe":
        return _earliest(stage for outcome, stage in rules if outcome == "unsafe")
    if verdict == "safe":
        return _latest(stage for _, stage in rules)
    return "uncertain"


def _earliest(tests: Iterable[str]) -> str:
    return min(tests, key=_ORDER.__getitem__)


def _latest(tests: Iterable[str]) -> str:
    return max(tests, key=_ORDER.__getitem__)


def _times(values: Sequence[float]) -> dict[str, float | int]:
    names = ("mean", "median", "p95", "most")
    return {"n": len(values), **dict(zip(names, _figures(values), strict=True))}


def _figures(values: Sequence[float]) -> tuple[float, float, float, float]:
    return (
        sum(values) / len(values),
        percentile(values, 0.5),
        percentile(values, 0.95),
        max(values),
    )


def _share(count: int, n: int) -> str:
    return f"{count} ({count / n:.1%})" if n else "0"
