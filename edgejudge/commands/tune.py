"""`edgejudge tune`: finds the fastest settings on this machine and keeps them for later.

Takes the command's arguments; prints a table, or one JSON document with --json. Measures through
edgejudge.tuning.
"""

import argparse
import json
import sys
from dataclasses import asdict

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "tune",
        help="find the fastest threads and pass sizes on this machine, and keep them",
        description=(
            "Time a bundle's decoder with several numbers of threads and pass sizes. The best are "
            "kept in the user's cache, and every later use of the bundle here takes them."
        ),
    )
    parser.add_argument("bundle", help="a bundle folder, or 'nano' for the one that ships here")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each value (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from edgejudge.bundle import Bundle
    from edgejudge.errors import InputError
    from edgejudge.judge import default_bundle
    from edgejudge.runtime.settings import keep_settings
    from edgejudge.tuning import tune

    if args.rounds < 1:
        raise InputError("usage", "--rounds must be at least 1")
    bundle = Bundle.open(default_bundle() if args.bundle == "nano" else args.bundle)

    def say(setting: str) -> None:
        print(f"trying {setting}", file=sys.stderr)

    tuned = tune(bundle, args.rounds, say)
    file = keep_settings(bundle, tuned.settings)
    if args.json:
        found = {"bundle": bundle.manifest.name, "kept_in": str(file), **asdict(tuned)}
        print(json.dumps(found, sort_keys=True))
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgejudge.printable import printable

    title = f"{bundle.manifest.name} ({bundle.manifest.recipe}), {tuned.prompt_tokens} tokens"
    table = Table("setting", "value", "n", "p50 ms", "min to max", "", title=Text(printable(title)))
    chosen = asdict(tuned.settings)
    for trial in tuned.trials:
        span = f"{trial.min_ms:.1f} to {trial.max_ms:.1f}"
        mark = "chosen" if chosen[trial.setting] == trial.value else ""
        row = (trial.setting, str(trial.value), str(trial.n), f"{trial.p50_ms:.1f}", span, mark)
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"kept in {file}", style="dim", soft_wrap=True)
    return 0
