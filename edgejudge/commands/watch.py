"""`edgejudge watch`: a folder in, a row for each of its files as they come, and actions by outcome.

Takes the parsed arguments; gives the exit code of `screen`, and 3 too for files that are left or
about which something failed. Rows go to stdout, what is done to files, warnings and the summary to
stderr. watching/watch.py does the work.
"""

import argparse
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from edgejudge.commands import cascade, judge_options
from edgejudge.commands.arguments import seconds, tell

if TYPE_CHECKING:
    from edgejudge.verdict import Verdict
    from edgejudge.watching.watch import Watched

__all__ = ["add_parser", "run"]

_EPILOG = """\
A file is judged once it has come to rest: it was the same for --settle seconds, and nobody on this
machine has it open for writing. The results file is that of `edgejudge screen --out`, with the same
rules: after a kill the same command goes on where it stopped, and finishes the move that the kill
came into. BULK.md has the rules.

exit status: 130 stopped by Ctrl-C or SIGTERM, after the picture in hand, or at once when it comes
again; 2 a usage or input error. With --once: 0 no picture is unsafe; 1 some are; 3 none is, but
some are uncertain, could not be judged, are still being written, or could not be moved or blurred.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "watch",
        help="judge files as they appear in a folder, and move or blur those that are not safe",
        description="Judges every file in a folder against a policy, those that are there and "
        "those that come or change, until it is stopped.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="the folder, with all folders in it")
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="keep a row for each picture here, in FILE.jsonl, FILE.sqlite or FILE.parquet (which "
        "is written when the run ends); one of an earlier run is gone on with",
    )
    parser.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="OUTCOME=ACTION",
        help="what to do about a file that is unsafe, uncertain or failed: report (default), "
        "quarantine:DIR to move it there, blur:DIR to write a blurred copy there; may be repeated, "
        "also for one outcome",
    )
    parser.add_argument(
        "--except",
        dest="left_out",
        action="append",
        default=[],
        metavar="DIR",
        help="do not look into this folder; may be repeated",
    )
    parser.add_argument(
        "--settle",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="how long a file must have been the same (default: 2)",
    )
    parser.add_argument(
        "--every",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="how often to look; less often where a look takes long (default: 1)",
    )
    parser.add_argument("--once", action="store_true", help="end when what is there is judged")
    parser.add_argument("--json", action="store_true", help="print rows as JSON lines")
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="judge pictures again that an earlier run could not judge",
    )
    judge_options.add_options(parser)


def run(args: argparse.Namespace) -> int:
    with judge_options.results_alone(args):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from edgejudge.bulk.interrupt import CtrlC
    from edgejudge.watching.actions import read_action
    from edgejudge.watching.watch import Watched, check_folders, watch_folder

    actions = [action for text in args.on if (action := read_action(text)) is not None]
    check_folders(args.folder, args.out, actions, args.left_out)
    stages = cascade.Told(args)
    asked, plan, _ = judge_options.open_judge(args)
    watched, began_s = Watched(), time.perf_counter()

    def each(verdict: "Verdict") -> None:
        print(json.dumps(verdict.to_json()) if args.json else _line(verdict), flush=True)
        stages.add(verdict)

    def finish(how: str = "") -> None:
        elapsed_s = time.perf_counter() - began_s
        tell(f"{how}{_summary(watched, args.out, elapsed_s)}")
        stages.finish()
        judge_options.tell_peak(args.memory_budget)

    try:
        with CtrlC((signal.SIGINT, signal.SIGTERM)) as stop:
            if not args.once:
                tell(f"watching {args.folder}; Ctrl-C ends it")
            watch_folder(
                asked,
                args.folder,
                plan,
                out=args.out,
                actions=actions,
                left_out=args.left_out,
                settle_s=args.settle,
                every_s=args.every,
                once=args.once,
                retry_failed=args.retry_failed,
                each=each,
                told=tell,
                stop=stop,
                watched=watched,
            )
        finish("stopped, " if stop() else "")
    except KeyboardInterrupt:
        finish("stopped at once, ")
        return 130
    except BrokenPipeError:
        # The reader of stdout has left. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what shells report for a closed pipe
    except Exception as error:
        # A full disk, or a bundle whose damage shows late: what is done stands.
        if not watched.screened.written or args.debug:
            raise
        finish("stopped, ")
        tell(f"error: {error}")
        return _code(watched, {"failed"})
    return 130 if stop() else _code(watched, set())


def _code(watched: "Watched", more: set[str]) -> int:
    if watched.waiting or watched.undone:
        more = {"failed"}
    return judge_options.exit_code({*watched.screened.outcomes, *more})


def _line(verdict: "Verdict") -> str:
    from edgejudge.report import row

    path, word, why, _ = row(verdict)
    return f"{word:<9}  {path}  {why}".rstrip()


def _summary(watched: "Watched", out: str, elapsed_s: float) -> str:
    from edgejudge.report import tally

    screened = watched.screened
    said = (
        (screened.kept, f"kept from {out}"),
        (screened.shared, "decided by equal bytes"),
        (screened.changed, "judged again because the file changed"),
        (screened.retried, "judged again because it failed before"),
        (watched.quarantined, "moved to quarantine"),
        (watched.blurred, "blurred"),
        (watched.vanished, "gone before they were judged"),
        (watched.waiting, "not judged yet"),
        (watched.undone, "not moved or blurred, as the warnings say"),
    )
    text = f"{screened.done} judged in {elapsed_s:.2f} s: {tally(screened.outcomes)}"
    return "; ".join([text, *(f"{count} {what}" for count, what in said if count)])
