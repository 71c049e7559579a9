"""What the commands `ask`, `score`, `checklist`, `compare` and `rank` share.

Takes parsed arguments and a call of the judge; prints a table or JSON lines and gives the exit
code: 0 when a result was produced, 2 when none was. Knows no call's meaning.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgejudge.bulk.names import find_files
from edgejudge.commands.arguments import positive, seconds
from edgejudge.errors import EdgeJudgeError, InputError

if TYPE_CHECKING:
    from edgejudge.judge import Judge

__all__ = ["EPILOG", "add_common", "add_rows", "listed", "load", "ms", "number", "one", "rows"]

EXIT_NONE = 2
EPILOG = "exit status: 0 there is a result; 2 there is none."


def add_common(parser: argparse.ArgumentParser, wording: str | None) -> None:
    """The judge, the form of the output, and `wording`: what its template must name."""
    parser.add_argument("--bundle", metavar="DIR", help="an exported judge (default: the bundled)")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all)")
    parser.add_argument(
        "--timeout", type=seconds, metavar="SECONDS", help="how long one result may take"
    )
    if wording is not None:
        parser.add_argument(
            "--wording", metavar="TEXT", help=f"ask in other words; the text names {wording}"
        )
    parser.add_argument("--json", action="store_true", help="print JSON, one line a result")


def add_rows(parser: argparse.ArgumentParser, least: str) -> None:
    """Pictures, of which each is a result; `least` is how many there must be, for argparse."""
    parser.add_argument("paths", nargs=least, metavar="PATH", help="a picture or a folder")
    parser.add_argument(
        "--together", action="store_true", help="all pictures in one prompt, which is one result"
    )


def load(args: argparse.Namespace) -> "Judge":
    from edgejudge.judge import Judge

    return Judge.load(args.bundle, threads=args.threads)


def listed(paths: Sequence[str]) -> list[str]:
    """Every picture, folders continued."""
    found = [file for path in paths for file in find_files(path)]
    if paths and not found:
        raise InputError(
            "empty", f"no files in {', '.join(paths)}; give a picture or a folder with some"
        )
    return found


def rows(
    args: argparse.Namespace,
    headings: Sequence[str],
    call: Callable[[Any], Any],
    cells: Callable[[Any], Sequence[str]],
) -> int:
    """`call` of each picture, of all together, or of none; `cells` are a result's row behind the
    path. What goes wrong with one picture is its row, and the others have theirs.
    """
    files = listed(args.paths)
    each: list[Any] = [files] if args.together and files else list(files) or [None]
    table: list[Sequence[str]] = []
    results = 0
    try:
        for images in each:
            path = images if isinstance(images, str | None) else " + ".join(images)
            try:
                found = call(images)
            except (EdgeJudgeError, MemoryError) as error:
                failure = _failure(error)
                if args.json:
                    _print_json({"path": path, "error": failure})
                empty = [""] * (len(headings) - 2)
                table.append([_name(path), f"failed: {failure['message']}", *empty])
                continue
            results += 1
            if args.json:
                _print_json({"path": path, "error": None, **found.to_json()})
            table.append([_name(path), *cells(found)])
        _finish(args, headings, table)
    except BrokenPipeError:
        return _reader_left()
    if len(each) > 1:
        print(f"{results} of {len(each)} have a result", file=sys.stderr)
    return 0 if results else EXIT_NONE


def one(
    args: argparse.Namespace, found: Any, headings: Sequence[str], table: Sequence[Sequence[str]]
) -> int:
    """A single result of several rows."""
    try:
        if args.json:
            _print_json(found.to_json())
        _finish(args, headings, table)
    except BrokenPipeError:
        return _reader_left()
    return 0


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def ms(found: Any) -> str:
    return f"{sum(found.made.stages_ms.values()):.0f}"


def _failure(error: Exception) -> dict[str, str]:
    if isinstance(error, InputError):
        return {"code": error.code, "message": str(error)}
    if isinstance(error, MemoryError):
        message = "it does not fit into memory; scale it down"
        return {"code": "out_of_memory", "message": message}
    return {"code": "engine_failed", "message": str(error)}


def _name(path: str | None) -> str:
    return "(no picture)" if path is None else path


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, allow_nan=False), flush=True)


def _finish(
    args: argparse.Namespace, headings: Sequence[str], table: Sequence[Sequence[str]]
) -> None:
    if args.json:
        return
    from edgejudge.report import plain_table, printable

    print(plain_table([[printable(cell) for cell in row] for row in table], headings), flush=True)


def _reader_left() -> int:
    # Python would complain again when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # what shells report for a closed pipe
