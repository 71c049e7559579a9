"""Figures as lines of text, for a terminal and for the page.

Takes the JSON of estimates; gives cells, or draws on a terminal.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from edgejudge.printable import printable

__all__ = ["HEADINGS", "cells", "plain", "print_rich", "printable"]

HEADINGS = ("figure", "value", "95 %", "n", "groups", "unscored", "undecided", "note")
_RIGHT = range(1, 7)


def cells(estimate: Mapping[str, Any]) -> list[str]:
    """One line. A figure that is not defined has a dash, and its note says why."""
    name, value, interval = estimate["name"], estimate["value"], estimate["interval"]
    return [
        f"{name} ({estimate['target']})" if estimate["target"] else name,
        "-" if value is None else _number(value),
        "-" if interval is None else f"{_number(interval[0])} to {_number(interval[1])}",
        *(str(estimate[key]) for key in ("n", "groups", "unscored", "undecided")),
        estimate["note"],
    ]


def plain(estimates: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns."""
    lines = [list(HEADINGS), *(list(map(printable, cells(each))) for each in estimates)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in _RIGHT else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def print_rich(estimates: Sequence[Mapping[str, Any]], stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, pad_edge=False)
    for column, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if column in _RIGHT else "left")
    for each in estimates:
        # Text, not str: a label may hold what rich takes for markup.
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in cells(each)))
    Console(file=stream).print(table)


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
