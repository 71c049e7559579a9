"""`edgejudge tune`: finds the fastest settings on this machine and keeps them for later.

Takes the command's arguments; prints a table, or one JSON document with --json. Measures through
edgejudge.tuning, and with --costs through edgejudge.unit_costs.
"""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgejudge.bundle import Bundle

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "tune",
        help="find the fastest threads and pass sizes on this machine, and keep them",
        description=(
            "Time a bundle's decoder with several numbers of threads and pass sizes. The best are "
            "kept in the user's cache, and every later use of the bundle here takes them. With "
            "--costs, time each stage and part on each device instead, for `edgejudge plan`."
        ),
    )
    parser.add_argument("bundle", help="a bundle folder, or 'nano' for the one that ships here")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each value (default 5)")
    parser.add_argument(
        "--costs", action="store_true", help="measure what stages and parts cost on each device"
    )
    parser.add_argument(
        "--place",
        metavar="PLACES",
        help="with --costs: which devices beside the CPU, like vision=gpu,decoder=npu (default: "
        "one for each target of the bundle that is here)",
    )
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
    if args.place and not args.costs:
        raise InputError("usage", "--place says where --costs measures; give both")
    bundle = Bundle.open(default_bundle() if args.bundle == "nano" else args.bundle)
    if args.costs:
        return _costs(bundle, args)

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


def _costs(bundle: "Bundle", args: argparse.Namespace) -> int:
    from edgejudge.commands.arguments import libraries_on_stderr
    from edgejudge.printable import printable
    from edgejudge.runtime.scheduling import keep_profile
    from edgejudge.unit_costs import measure_costs

    def say(device: str) -> None:
        print(f"measuring on {device}", file=sys.stderr)

    with libraries_on_stderr():
        measured = measure_costs(bundle, args.place, args.rounds, say)
    file = keep_profile(bundle, measured.profile)
    if args.json:
        found = {"profile": measured.profile.to_json(), "left_out": list(measured.left_out)}
        print(json.dumps({"kept_in": str(file), **found}, sort_keys=True))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("unit", "device", "tokens", "behind", "n", "p50 ms")
    for row in measured.profile.rows:
        cells = (row.unit, row.device, str(row.tokens), str(row.past), str(row.n))
        table.add_row(*cells, f"{row.p50_ms:.2f}")
    console = Console()
    console.print(table)
    for why in measured.left_out:
        console.print(printable(why), style="dim", soft_wrap=True, markup=False)
    console.print(f"kept in {file}", style="dim", soft_wrap=True)
    return 0
