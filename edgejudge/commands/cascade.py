"""`edgejudge stages`, and what `edgejudge screen` knows of time budgets, second bundles and stages.

Takes parsed arguments; gives a cascade, or counts by stage. The table of `stages` goes to stdout,
that of `screen --stages` to stderr. Exit code of `stages`: 0, or 2 where there are no rows.
"""

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from edgejudge.commands.variants import limits
from edgejudge.errors import InputError

if TYPE_CHECKING:
    from edgejudge.cascade import Cascade
    from edgejudge.judge import Judge
    from edgejudge.stage_report import Stages
    from edgejudge.verdict import Verdict

__all__ = ["Told", "add_options", "add_parser", "behind", "milliseconds", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "stages",
        help="say which stage decided how much of what was screened",
        description="Counts, over rows of `edgejudge screen --out`, which stage decided questions, "
        "rules and pictures, and what each stage took.",
    )
    parser.add_argument("rows", metavar="FILE.jsonl", help="a results file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from edgejudge.stage_report import read_rows

    found = read_rows(args.rows)
    print(json.dumps(found.to_json(), allow_nan=False) if args.json else found.table())
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `screen`."""
    parser.add_argument(
        "--time-budget",
        type=milliseconds,
        metavar="MS",
        help="for each picture: ask what tells the most per millisecond first, and leave uncertain "
        "what does not fit",
    )
    parser.add_argument(
        "--first-broken",
        action="store_true",
        help="ask no more about a picture when a rule is broken (default: list all broken rules)",
    )
    parser.add_argument(
        "--escalate", metavar="DIR", help="ask this bundle about what the first leaves uncertain"
    )
    parser.add_argument(
        "--escalate-calibration", metavar="FILE", help="that bundle's own calibration"
    )
    parser.add_argument(
        "--stages", action="store_true", help="tell at the end which stage decided how much"
    )
    parser.add_argument("--stages-out", metavar="FILE.json", help="write the same as JSON")


def milliseconds(text: str) -> float:
    """A time budget; `inf` is all the time there is."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected milliseconds above 0, got {text!r}")
    return value


def behind(first: "Judge", args: argparse.Namespace) -> "Judge | Cascade":
    """The judge that the arguments ask for: with a second bundle behind it, or by itself."""
    if args.escalate is None:
        if args.escalate_calibration is not None:
            raise InputError(
                "escalate", "--escalate-calibration is of a second bundle; name it by --escalate"
            )
        return first
    if args.memory_budget is not None:
        raise InputError(
            "memory_budget", "a memory budget is for one bundle; give it or --escalate, not both"
        )
    from edgejudge.cascade import Cascade
    from edgejudge.judge import Judge

    second = Judge.load(
        args.escalate,
        threads=args.threads,
        verify=args.verify,
        limits=limits(args),
        allow_random=args.allow_random,
        calibration=args.escalate_calibration,
    )
    return Cascade(first, second)


class Told:
    """Counts verdicts by stage, where that is asked for, and tells at the end."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Raises InputError for a file that is there already or cannot be made."""
        self._shown, self._path = args.stages, args.stages_out
        self._stages: Stages | None = None
        if self._path is not None:
            if os.path.exists(self._path):
                message = f"{self._path} is there already; give another --stages-out or remove it"
                raise InputError("exists", message)
            if not os.path.isdir(os.path.dirname(self._path) or "."):
                raise InputError("unwritable", f"there is no folder to write {self._path} in")
        if self._shown or self._path is not None:
            from edgejudge import stage_report

            self._stages = stage_report.Stages()

    def add(self, verdict: "Verdict") -> None:
        if self._stages is not None:
            self._stages.add(verdict.to_json())

    def finish(self) -> None:
        """Raises InputError where the file cannot be written."""
        if self._stages is None or not self._stages.whole_ms:
            return
        if self._shown:
            print(f"\n{self._stages.table()}", file=sys.stderr)
        if self._path is not None:
            try:
                with open(self._path, "x", encoding="utf-8") as file:
                    file.write(json.dumps(self._stages.to_json(), allow_nan=False) + "\n")
            except OSError as error:
                why = error.strerror or str(error)
                raise InputError("unwritable", f"{self._path} cannot be written: {why}") from None
