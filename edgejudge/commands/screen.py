"""`edgejudge screen`: pictures and folders in, a table, JSON lines or a results file out.

Takes the parsed arguments; gives the exit code: 0 none unsafe, 1 some unsafe, 3 some uncertain or
failed and none unsafe, 2 stopped before any row, 130 stopped by Ctrl-C. Results go to stdout,
progress and the summary to stderr. bulk/screen.py does the work.
"""

import argparse
import os
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from edgejudge.bulk.names import listing, own_files
from edgejudge.commands import cascade, judge_options
from edgejudge.commands.judge_options import exit_code
from edgejudge.errors import InputError
from edgejudge.printable import printable

if TYPE_CHECKING:
    from edgejudge.policy import Policy
    from edgejudge.verdict import Verdict

__all__ = ["add_parser", "exit_code", "run"]

_EPILOG = """\
A results file keeps a row for each picture through kills, full disks and power cuts: the same
command goes on where it stopped. What is in the file and not named any more stays. BULK.md has the
rules.

exit status: 0 no picture is unsafe; 1 some are; 3 none is, but some are uncertain or could not be
judged; 2 a usage or input error stopped the run before any row; 130 stopped by Ctrl-C, after the
picture in hand, or at once when it is pressed again. Rows that were kept from earlier runs count.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "screen",
        help="judge pictures against a policy",
        description="Judges pictures against a policy. Folders are searched in sorted order; every "
        "regular file in them is judged by its content, whatever its name.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a picture or a folder")
    judge_options.add_options(parser)
    parser.add_argument(
        "--regions",
        metavar="FILE.json",
        help="where objects are, for the method clue: picture path -> list of label, box [x, y, "
        "width, height] in pixels, confidence",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    form.add_argument(
        "--moderation",
        action="store_true",
        help="print JSON lines in OpenAI's moderation form; what the policy does not judge is null",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="also keep a row for each picture here, in FILE.jsonl, FILE.parquet or FILE.sqlite; a "
        "file of an earlier run of the same bundle, policy and options is gone on with",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="judge pictures again that could not be judged, and replace their rows",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    with judge_options.results_alone(args):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from edgejudge.bulk.interrupt import CtrlC
    from edgejudge.bulk.screen import screen_files
    from edgejudge.bulk.store import check_out
    from edgejudge.commands.screened import Printer
    from edgejudge.regions import read_regions

    if args.out is not None:
        check_out(args.out)
    elif args.retry_failed:
        raise InputError("out", "--retry-failed is about rows of a results file; give it by --out")
    regions = None if args.regions is None else read_regions(args.regions)
    total = _count(args, regions or {})
    told = cascade.Told(args)
    asked, plan, policy = judge_options.open_judge(args)
    form = _moderation_form(policy) if args.moderation else None
    printer = Printer(args.json, form, args.out, total)
    summary = printer.summary

    def each(verdict: "Verdict") -> None:
        printer.add(verdict)
        told.add(verdict)

    try:
        with CtrlC() as stop:
            screen_files(
                asked,
                args.paths,
                plan,
                out=args.out,
                retry_failed=args.retry_failed,
                regions=regions,
                each=each,
                progress=printer.progress,
                stop=stop,
                summary=summary,
            )
        printer.finish("stopped by Ctrl-C, " if stop() else "")
        told.finish()
        judge_options.tell_peak(args.memory_budget)
    except KeyboardInterrupt:
        printer.finish("stopped by Ctrl-C, ")
        told.finish()
        return 130
    except BrokenPipeError:
        # The reader of stdout has left. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what shells report for a closed pipe
    except Exception as error:
        # A full disk, or a bundle whose damage shows late: the rows so far stand and are counted.
        if not summary.written or args.debug:
            raise
        printer.finish("stopped, ")
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return exit_code({"failed", *summary.outcomes})
    return 130 if stop() else exit_code(set(summary.outcomes))


def _count(args: argparse.Namespace, regions: Collection[str]) -> int:
    """How many files there are to judge. Regions may be about more pictures, but not about others
    alone: raises InputError.
    """
    total = 0
    named = set()
    for path in listing(args.paths, () if args.out is None else own_files(args.out)):
        total += 1
        if path in regions:
            named.add(path)
    if not total:
        folders = ", ".join(args.paths)
        raise InputError("empty", f"no files in {folders}; give a picture or a folder with some")
    if regions and not named:
        raise InputError(
            "regions",
            f"{args.regions} names none of the pictures, but {min(regions)!r}; name them as the "
            "rows do",
        )
    if others := len(regions) - len(named):
        print(
            f"warning: {printable(args.regions)} names {others} pictures that are not judged",
            file=sys.stderr,
        )
    return total


def _moderation_form(policy: "str | Policy") -> Callable[["Verdict"], dict[str, object]]:
    from edgejudge.moderation import moderation
    from edgejudge.policy import load_policy

    read = load_policy(policy) if isinstance(policy, str) else policy
    return lambda verdict: moderation(verdict, read).to_json()
