"""The `edgejudge` command: builds the parser, runs one subcommand, turns errors into exit codes.

Knows no subcommand's work: each is a module of edgejudge.commands with `add_parser` and `run`.
Those modules are light, and where a subcommand is named its module alone is imported; whatever is
heavy is imported when the subcommand runs.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import NoReturn

from edgejudge import __version__
from edgejudge.errors import EdgeJudgeError, FidelityError
from edgejudge.printable import brief

__all__ = ["EXIT_INTERRUPTED", "EXIT_REFUSED", "EXIT_STOPPED", "main"]

_MOST_CHARS = 4000  # of an error
EXIT_STOPPED = 2
EXIT_REFUSED = 3  # an export whose verdicts differ too much
EXIT_INTERRUPTED = 130  # what shells report for Ctrl-C
# Modules of edgejudge.commands, and the subcommands of each, in the order of the help.
_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "screen": ("screen",),
    "watch": ("watch",),
    "ask": ("ask", "score", "checklist"),
    "compare": ("compare", "rank"),
    "export": ("export",),
    "relevance": ("add-relevance",),
    "coreml": ("coreml",),
    "profile": ("profile",),
    "calibrate": ("calibrate",),
    "evaluate": ("eval",),
    "risk": ("risk-curve",),
    "cascade": ("stages",),
    "tune": ("tune",),
    "plan": ("plan",),
    "devices": ("devices",),
    "check": ("check",),
}


class _Parser(argparse.ArgumentParser):
    """argparse, with our one form of error message."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_STOPPED, f"error: {brief(message, _MOST_CHARS)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    named = [module for module, names in _COMMANDS.items() if given[:1] and given[0] in names]
    parser = _Parser(
        prog="edgejudge", description="Screens pictures against a policy, on this device, offline."
    )
    parser.add_argument("--version", action="version", version=f"edgejudge {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    runners: dict[str, Callable[[argparse.Namespace], int]] = {}
    for each in named or _COMMANDS:
        module = import_module(f"edgejudge.commands.{each}")
        module.add_parser(subparsers)
        for name, subparser in subparsers.choices.items():
            if name not in runners:
                runners[name] = module.run
                subparser.add_argument(
                    "--debug", action="store_true", help="show the traceback of an error"
                )
    args = parser.parse_args(given)
    for stream in (sys.stdout, sys.stderr):
        # A file name may hold bytes that the terminal's encoding has no sign for.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        return runners[args.command](args)
    except KeyboardInterrupt:
        print("error: stopped by Ctrl-C", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if args.debug:
            raise
        hint = "" if isinstance(error, EdgeJudgeError | OSError) else "; --debug shows where"
        kind = "" if isinstance(error, EdgeJudgeError) else f"{type(error).__name__}: "
        # It may name a file, or what a file says: one line, whatever they hold.
        print(f"error: {kind}{brief(str(error), _MOST_CHARS)}{hint}", file=sys.stderr)
        return EXIT_REFUSED if isinstance(error, FidelityError) else EXIT_STOPPED
