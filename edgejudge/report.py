"""Verdicts as a table for people: rich on a terminal, aligned text elsewhere.

Takes verdicts; gives rows of text, lines, or draws on a terminal. Knows nothing of how verdicts
were reached. File names are hostile here too: what could steer a terminal is escaped.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TextIO

from edgejudge.printable import printable
from edgejudge.verdict import RuleVerdict, Verdict

__all__ = [
    "OUTCOMES",
    "Row",
    "outcome",
    "plain_table",
    "print_rich_table",
    "printable",
    "reason",
    "row",
    "tally",
]

Row = tuple[str, str, str, str]
OUTCOMES = ("unsafe", "uncertain", "safe", "failed")

_HEADINGS = ("path", "verdict", "why", "ms")
_MOST_CHARS = 60  # of a question
_MOST_REASONS = 3  # per row; --json has them all
_HOW = {
    "region": ", gone without its region",
    "reasoning": ", by reasoning",
    "unknown_concept": ", not a known concept",
    "not_asked": ", not asked",
}
_STYLES = {"safe": "green", "unsafe": "bold red", "uncertain": "yellow", "failed": "magenta"}


def outcome(verdict: Verdict) -> str:
    """The word a person reads: the verdict, or `failed` where there is none."""
    return verdict.verdict or "failed"


def reason(verdict: Verdict) -> str:
    """What decided: the broken rules, else what is in doubt, else the failure."""
    if verdict.error is not None:
        return f"{verdict.error.code}: {verdict.error.message}"
    if verdict.verdict == "unsafe":
        return _first_few([_named(rule) for rule in verdict.broken])
    doubts = [note.message for note in verdict.notes if note.doubtful]
    doubts += [_named(rule) for rule in verdict.rules if rule.verdict == "uncertain"]
    return _first_few(doubts)


def row(verdict: Verdict) -> Row:
    """What a table keeps of a verdict."""
    path = printable(verdict.path or "(in memory)")
    return path, outcome(verdict), printable(reason(verdict)), f"{verdict.total_ms:.0f}"


def tally(counts: Mapping[str, int]) -> str:
    """How often each outcome occurred, as in `2 unsafe, 1 uncertain, 5 safe, 0 failed`."""
    return ", ".join(f"{counts.get(word, 0)} {word}" for word in OUTCOMES)


def plain_table(rows: Sequence[Sequence[str]], headings: Sequence[str] = _HEADINGS) -> str:
    """Aligned columns, one line per row."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def print_rich_table(rows: Sequence[Row], stream: TextIO) -> None:
    """Draws on a terminal. rich is imported here alone: a pipe never pays for it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*_HEADINGS[:-1], header_style="bold", box=None, pad_edge=False)
    table.add_column(_HEADINGS[-1], justify="right")
    for path, word, why, ms in rows:
        # Text, not str: square brackets in a file name are no markup.
        table.add_row(Text(path, overflow="fold"), Text(word, _STYLES[word]), Text(why), Text(ms))
    Console(file=stream).print(table)


def _first_few(reasons: Sequence[str]) -> str:
    hidden = len(reasons) - _MOST_REASONS
    more = [f"and {hidden} more"] if hidden > 0 else []
    return ", ".join([*reasons[:_MOST_REASONS], *more])


def _named(rule: RuleVerdict) -> str:
    """A rule with the question that decided it, or that leaves it in doubt."""
    wanted = "uncertain" if rule.verdict == "uncertain" else "holds"
    conditions = [each for each in rule.conditions if each.outcome == wanted]
    if not conditions:
        return rule.id
    # An AND is as probable as its weakest part; what is in doubt is told by its most probable one.
    choose = max if wanted == "uncertain" else min
    shown = choose(conditions, key=lambda condition: condition.probability or 0.0).deciding
    value = "" if shown.probability is None else f" {shown.probability:.2f}"
    by = "" if rule.bundle is None else f", by {rule.bundle}"
    where = "" if rule.seen_in is None else f", {rule.seen_in}"
    moved = rule.stability
    spread = "" if moved is None else f", {moved.least:.2f} to {moved.most:.2f} in copies"
    # A condition may be a whole policy.
    text = textwrap.shorten(shown.text, _MOST_CHARS, placeholder="...")
    return f"{rule.id}{value} ({text}{_HOW.get(shown.test, '')}{by}{where}{spread})"
