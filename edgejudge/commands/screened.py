"""What `edgejudge screen` prints: rows as they come, or a table of all of them, and the summary.

Takes verdicts and summaries; rows and the table go to stdout, progress and the summary to stderr.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgejudge.bulk.ledger import Summary
from edgejudge.bulk.progress import Progress
from edgejudge.report import plain_table, print_rich_table, row, tally

if TYPE_CHECKING:
    from edgejudge.verdict import Verdict

__all__ = ["MOST_IN_TABLE", "Printer"]

MOST_IN_TABLE = 1000  # of pictures whose rows are in a file anyway
Form = Callable[["Verdict"], dict[str, object]]


class Printer:
    def __init__(self, as_json: bool, form: Form | None, out: str | None, total: int) -> None:
        """`form` is printed in place of a verdict's own JSON; `out` is the results file."""
        self.summary = Summary()
        self.progress = Progress(total, sys.stderr)
        self._rows: list[tuple[str, str, str, str]] = []
        self._form = form or (_own if as_json else None)
        self._out, self._total = out, total
        self._tables = self._form is None and (out is None or total <= MOST_IN_TABLE)
        self._began_s = time.perf_counter()

    def add(self, verdict: "Verdict") -> None:
        if self._form is not None:
            print(json.dumps(self._form(verdict), allow_nan=False), flush=True)
        elif self._tables:
            self._rows.append(row(verdict))

    def finish(self, prefix: str = "") -> None:
        self.progress.clear()
        if self._rows and sys.stdout.isatty():
            print_rich_table(self._rows, sys.stdout)
        elif self._rows:
            print(plain_table(self._rows), flush=True)
        summary = self.summary
        for sentence in summary.repairs:
            print(f"warning: {sentence}", file=sys.stderr)
        elapsed_s = time.perf_counter() - self._began_s
        text = f"{prefix}{summary.done} of {self._total} judged in {elapsed_s:.2f} s"
        print("; ".join([f"{text}: {tally(summary.outcomes)}", *self._more()]), file=sys.stderr)

    def _more(self) -> list[str]:
        """What a run over a results file did otherwise than judge each picture once."""
        summary = self.summary
        said = (
            (summary.kept, f"kept from {self._out}"),
            (summary.shared, "decided by equal bytes"),
            (summary.changed, "replaced because the file changed"),
            (summary.retried, "replaced because it failed before"),
        )
        return [f"{count} {what}" for count, what in said if count]


def _own(verdict: "Verdict") -> dict[str, object]:
    return verdict.to_json()
