"""`edgejudge eval`: a recipe in, figures with their intervals out.

Takes the parsed arguments; gives the exit code: 0 there are results, 2 there are none, 130 stopped
by Ctrl-C. The table goes to stdout, progress and notes to stderr.
"""

import argparse
import json
import os
import sys
from typing import Any

__all__ = ["add_parser", "run"]

_EPILOG = """\
EVALUATING.md describes recipes. With --out, rows are kept as they come: the same command goes on
where a stopped run was, if the recipe's first three sections, the data, the bundle and the policy
are the same.

exit status: 0 there are results; 2 a usage or input error, or no row could be scored; 130 stopped
by Ctrl-C.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval",
        help="measure a judge, or what a judge said, against truths",
        description="Measures a judge as a recipe says: scenario, instruction, inferencer and "
        "metrics in one YAML file. Recorded outputs are measured without a model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    parser.add_argument(
        "--bundle", metavar="DIR", help="an exported judge (default: the recipe's, or the bundled)"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="write rows.jsonl, results.json and report.html here",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def run(args: argparse.Namespace) -> int:
    from edgejudge.evaluation.run import evaluate
    from edgejudge.evaluation.terminal import plain, print_rich, printable

    shows = sys.stderr.isatty()

    def progress(done: int, count: int) -> None:
        if shows:
            print(f"\r{done}/{count}", end="", file=sys.stderr, flush=True)

    try:
        results = evaluate(args.recipe, args.bundle, args.out, progress)
    finally:
        if shows:
            print("\r\x1b[K", end="", file=sys.stderr)
    value = results.to_json()
    try:
        if args.json:
            print(json.dumps(value, allow_nan=False), flush=True)
        elif sys.stdout.isatty():
            print_rich(value["metrics"], sys.stdout)
        else:
            print(plain(value["metrics"]), flush=True)
    except BrokenPipeError:
        # The reader of stdout has left. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for note in results.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    counts = results.counts
    print(
        f"{counts['rows']} decisions about {counts['examples']} examples: "
        f"{counts['unscored']} unscored, {counts['undecided']} undecided",
        file=sys.stderr,
    )
    return 0
