"""A calibration for people: a table, what it promises and what it lacks, and what to label next.

Takes the records of a calibration; gives lines of text, or draws on a terminal. Knows nothing of
how anything was fitted. Names are hostile here too: what could steer a terminal is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TextIO

from edgejudge.calibrating.recorded import Recorded
from edgejudge.calibration import Calibration
from edgejudge.calibration_records import CalibratedRule, EstimateRecord, SideRecord, logit
from edgejudge.printable import printable
from edgejudge.report import plain_table

__all__ = ["draw", "nearest", "notes", "table"]

HEADINGS = (
    "rule",
    "labels",
    "method",
    "ECE held out",
    "threshold",
    "precision",
    "recall",
    "undecided",
    "decided",
    "wrong of broken",
    "wrong of not broken",
)
_MOST_NEXT = 3  # pictures a rule


def table(calibration: Calibration) -> list[tuple[str, ...]]:
    """One row per fitted rule."""
    return [_row(rule) for rule in calibration.record.rules]


def draw(calibration: Calibration, stream: TextIO) -> None:
    """The table, by rich on a terminal and as aligned text elsewhere."""
    rows = table(calibration)
    if not stream.isatty():
        print(plain_table(rows, HEADINGS), file=stream)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*HEADINGS, header_style="bold", box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console(file=stream).print(drawn)


def notes(calibration: Calibration) -> list[str]:
    """What the table cannot say, one sentence a line: aims that are not met as they were asked for,
    sides without a bound, rules that were not fitted.
    """
    lines = []
    for rule in calibration.record.rules:
        aim = rule.aim
        if aim.kind != "fbeta" and not aim.met:
            lines.append(
                f"{rule.id}: no threshold has {aim.kind} {aim.target:g} on these labels; this is "
                "the nearest to it"
            )
        elif aim.missing is not None:
            lines.append(
                f"{rule.id}: {aim.kind} {aim.target:g} is met by the point estimate alone, which "
                f"new pictures miss about every second time: {aim.missing}"
            )
        lines += [f"{rule.id}: {why}" for why in rule.guarantee.missing]
    lines += [f"{each.id}: not fitted, {each.why}" for each in calibration.record.unfitted]
    return [printable(line) for line in lines]


def nearest(
    calibration: Calibration, unlabelled: Mapping[str, Sequence[Recorded]]
) -> dict[str, list[str]]:
    """By rule, the judged pictures without a label that lie nearest to its threshold: what they are
    labelled says the most about where it belongs.
    """
    found = {}
    for rule in calibration.record.rules:
        made = calibration.rule(rule.id)
        assert made is not None
        at = logit(made.threshold)
        scored = []
        for row in unlabelled.get(rule.id, ()):
            score = min(
                max(made.apply(row.answers[text], text) for text in either)
                for either in rule.conditions
            )
            scored.append((abs(logit(score) - at), row.path))
        if scored:
            found[rule.id] = [path for _, path in sorted(scored)[:_MOST_NEXT]]
    return found


def _row(rule: CalibratedRule) -> tuple[str, ...]:
    low, high = rule.uncertain
    worth = rule.log_likelihood[rule.map.method]
    assert worth is not None
    own = f" + {len(rule.questions)} questions" if rule.questions else ""
    guarantee = rule.guarantee
    return (
        rule.id,
        f"{rule.positives} + {rule.negatives}",
        rule.map.method + own,
        f"{_two(rule.ece_before.value)} -> {_two(rule.ece_after.value)} (N {rule.ece_after.n})",
        f"{rule.threshold:.3g}",
        _share(rule.aim.precision),
        _share(rule.aim.recall),
        "-" if low == high else f"{low:.3g} to {high:.3g}",
        _share(guarantee.coverage),
        _side(guarantee.broken),
        _side(guarantee.not_broken),
    )


def _two(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _share(figure: EstimateRecord | None) -> str:
    """With its 95 % interval and N."""
    if figure is None:
        return "-"
    assert figure.low is not None and figure.high is not None
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f}, N {figure.n})"


def _side(side: SideRecord | None) -> str:
    if side is None:
        return "no bound"
    return f"{side.errors} of {side.n}, at most {side.bound:.3f}"
