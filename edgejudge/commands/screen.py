"""`edgejudge screen`: pictures and folders in, a table or JSON lines out.

Takes the parsed arguments; gives the exit code: 0 none unsafe, 1 some unsafe, 3 some uncertain or
failed and none unsafe, 2 stopped before any row, 130 stopped by Ctrl-C. Results go to stdout,
progress and the summary to stderr.
"""

import argparse
import contextlib
import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from edgejudge.commands import cascade
from edgejudge.commands.arguments import (
    add_judge,
    libraries_on_stderr,
    positive,
    seconds,
    size,
)
from edgejudge.errors import InputError

if TYPE_CHECKING:
    from edgejudge.plan import Plan
    from edgejudge.policy import Policy
    from edgejudge.regions import Region
    from edgejudge.verdict import Verdict

__all__ = ["add_parser", "exit_code", "find_files", "run"]

_EPILOG = """\
exit status: 0 no picture is unsafe; 1 some are; 3 none is, but some are uncertain or could not be
judged; 2 a usage or input error stopped the run; 130 stopped by Ctrl-C.
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
    add_judge(parser)
    parser.add_argument(
        "--fingerprint", metavar="SHA256", help="refuse the bundle unless its manifest has this"
    )
    parser.add_argument("--verify", action="store_true", help="hash every file of the bundle again")
    parser.add_argument(
        "--allow-random",
        action="store_true",
        help="judge with a bundle of random weights, whose verdicts mean nothing",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all)")
    parser.add_argument(
        "--place",
        metavar="PLACES",
        help="run stages on other devices, like vision=gpu,decoder=npu:qnn, or decoder.0=npu for "
        "one part; `edgejudge devices` lists them (default: all on the CPU)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse a device that is not right or leaves a node to the CPU, in place of a note",
    )
    parser.add_argument(
        "--deadline",
        type=seconds,
        metavar="SECONDS",
        help="how long one run on another device may take before it is passed over (default: 120)",
    )
    parser.add_argument(
        "--memory-budget",
        type=size,
        metavar="SIZE",
        help="memory for the whole process, like 512MiB; a judge that would not fit is read from "
        "disk a few layers at a time",
    )
    parser.add_argument(
        "--batch",
        type=positive,
        metavar="N",
        help="pictures that pass each slice of such a judge together (default: 8)",
    )
    _add_decisions(parser)
    cascade.add_options(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    form.add_argument(
        "--moderation",
        action="store_true",
        help="print JSON lines in OpenAI's moderation form; what the policy does not judge is null",
    )
    parser.add_argument(
        "--out",
        metavar="FILE.jsonl",
        help="also write JSON lines here as they come; a file with content is refused",
    )
    return parser


def _add_decisions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strictness",
        action="append",
        type=_strictness,
        default=[],
        metavar="NAME=HOW",
        help="judge a category or rule of the policy otherwise: allowed, default or sensitive; may "
        "be repeated",
    )
    parser.add_argument(
        "--method",
        choices=("clue", "thresholds"),
        help="decide by this, whatever the policy says",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="decide the rules that `edgejudge calibrate` fitted by it",
    )
    parser.add_argument(
        "--reasoning",
        action=argparse.BooleanOptionalAction,
        help="reason about what scores leave open, with the method clue (default: the policy's)",
    )
    parser.add_argument(
        "--regions",
        metavar="FILE.json",
        help="where objects are, for the method clue: picture path -> list of label, box [x, y, "
        "width, height] in pixels, confidence",
    )
    parser.add_argument(
        "--relevance-gate",
        action="store_true",
        help="skip rules whose text is not about the picture, where the bundle has an encoder",
    )


def find_files(path: str) -> Iterator[str]:
    """The path itself, or all regular files below a folder in sorted order.

    Links to files count as files, links to folders are not followed. A link that leads nowhere and
    a folder that cannot be read are given too, so that they become rows and are not lost.
    """
    pending = [path]
    while pending:
        current = pending.pop()
        if not os.path.isdir(current) or (current != path and os.path.islink(current)):
            if current == path or _is_file_or_lost(current):
                yield current
            continue
        try:
            names = sorted(os.listdir(current), reverse=True)
        except OSError:
            yield current
            continue
        pending.extend(os.path.join(current, name) for name in names)


def _is_file_or_lost(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def exit_code(outcomes: set[str]) -> int:
    """From the outcomes that occurred: unsafe, uncertain, safe, failed."""
    if "unsafe" in outcomes:
        return 1
    return 3 if outcomes - {"safe"} else 0


def run(args: argparse.Namespace) -> int:
    if args.place is None:
        return _run(args)
    with libraries_on_stderr():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from edgejudge.judge import BATCH, Judge
    from edgejudge.plan_options import strictly

    paths = [file for path in args.paths for file in find_files(path)]
    if not paths:
        folders = ", ".join(args.paths)
        raise InputError("empty", f"no files in {folders}; give a picture or a folder with some")
    judge = Judge.load(
        args.bundle,
        args.fingerprint,
        threads=args.threads,
        verify=args.verify,
        allow_random=args.allow_random,
        memory_budget=args.memory_budget,
        batch=args.batch or BATCH,
        place=args.place,
        strict=args.strict,
        deadline=args.deadline,
        calibration=args.calibration,
    )
    policy = strictly(args.policy, dict(args.strictness))
    form = _moderation_form(policy) if args.moderation else None
    told = cascade.Told(args)
    asked: Any = cascade.behind(judge, args)
    # A malformed policy stops the run here, before a results file is made.
    plan = asked.plan(
        policy,
        method=args.method,
        reasoning=args.reasoning,
        relevance_gate=args.relevance_gate,
        budget_ms=args.time_budget,
        first_broken=args.first_broken,
    )
    regions = None if args.regions is None else _read_regions(args.regions, paths)
    verdicts = asked.stream(paths, plan, regions=regions)
    for note in plan.notes:
        if note.code != "allowed":  # which was asked for
            stays = "; it stays uncertain" if note.code == "unknown_concept" else ""
            print(f"warning: {note.message}{stays}", file=sys.stderr)
    out = _open_new(args.out) if args.out else None
    printer = _Printer(args.json, out, len(paths), form)
    try:
        for verdict in verdicts:
            printer.add(verdict)
            told.add(verdict)
        printer.finish("")
        told.finish()
        if args.memory_budget is not None:
            _tell_peak(args.memory_budget)
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
        if not printer.counts or args.debug:
            raise
        printer.finish("stopped, ")
        print(f"error: {error}", file=sys.stderr)
        return exit_code({"failed", *printer.counts})
    finally:
        if out is not None:
            with contextlib.suppress(OSError):  # every row was flushed, or its failure was told
                out.close()
    return exit_code(set(printer.counts))


def _read_regions(path: str, pictures: list[str]) -> dict[str, tuple["Region", ...]]:
    """Of a file that may be about more pictures, but not about others alone."""
    from edgejudge.regions import read_regions

    found = read_regions(path)
    judged = set(pictures)
    if found and not judged & found.keys():
        raise InputError(
            "regions",
            f"{path} names none of the pictures, but {min(found)!r}; name them as the rows do",
        )
    if others := len(found.keys() - judged):
        print(f"warning: {path} names {others} pictures that are not judged", file=sys.stderr)
    return found


def _strictness(text: str) -> tuple[str, str]:
    name, equals, how = text.rpartition("=")
    if not (name and equals and how):
        raise argparse.ArgumentTypeError(f"'{text}' is no NAME=HOW, like violence=sensitive")
    return name, how


def _moderation_form(
    policy: "str | os.PathLike[str] | Policy | Plan",
) -> Callable[["Verdict"], dict[str, object]]:
    from edgejudge.moderation import moderation
    from edgejudge.policy import Policy, load_policy

    assert isinstance(policy, str | Policy)  # as the command line has it
    read = load_policy(policy) if isinstance(policy, str) else policy
    return lambda verdict: moderation(verdict, read).to_json()


def _tell_peak(budget: int) -> None:
    from edgejudge.profiling import peak_rss_mib

    print(f"peak {peak_rss_mib():.0f} MiB of {budget / 2**20:.0f} MiB", file=sys.stderr)


def _open_new(path: str) -> TextIO:
    """A results file that holds nothing yet: mixing two runs, or losing one, is never wanted."""
    try:
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by run)
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.tell() > 0:
            file.close()
            raise InputError(
                "exists", f"{path} has content already; give another --out or remove it"
            )
    except OSError as error:
        raise InputError("unwritable", f"{path} cannot be written: {error.strerror}") from error
    return file


class _Printer:
    """Rows as they come to the JSON outputs, or a table of all of them at the end."""

    def __init__(
        self,
        as_json: bool,
        out: TextIO | None,
        count: int,
        form: Callable[["Verdict"], dict[str, object]] | None = None,
    ) -> None:
        """`form` is printed in place of a verdict's own JSON; `out` has that in any case."""
        self.counts: Counter[str] = Counter()
        self._rows: list[tuple[str, str, str, str]] = []
        self._as_json = as_json or form is not None
        self._form = form
        self._out = out
        self._count = count
        self._began_s = time.perf_counter()
        self._shows_progress = sys.stderr.isatty() and count > 1

    def add(self, verdict: "Verdict") -> None:
        from edgejudge.report import outcome, row

        if self._as_json or self._out:
            line = json.dumps(verdict.to_json(), allow_nan=False)
            if self._out:
                self._out.write(line + "\n")
                self._out.flush()
            if self._form is not None:
                line = json.dumps(self._form(verdict), allow_nan=False)
            if self._as_json:
                print(line, flush=True)
        if not self._as_json:
            self._rows.append(row(verdict))
        self.counts[outcome(verdict)] += 1
        if self._shows_progress:
            done = self.counts.total()
            print(f"\r{done}/{self._count}", end="", file=sys.stderr, flush=True)

    def finish(self, prefix: str) -> None:
        from edgejudge.report import plain_table, print_rich_table, tally

        if self._shows_progress:
            print("\r\x1b[K", end="", file=sys.stderr)
        if self._rows and sys.stdout.isatty():
            print_rich_table(self._rows, sys.stdout)
        elif self._rows:
            print(plain_table(self._rows), flush=True)
        elapsed_s = time.perf_counter() - self._began_s
        print(
            f"{prefix}{self.counts.total()} of {self._count} judged in {elapsed_s:.2f} s: "
            f"{tally(self.counts)}",
            file=sys.stderr,
        )
