"""`edgejudge plan`: where a bundle's work would run best, when, and why not otherwise.

Takes the command's arguments; prints a placement, its predicted timeline and what was worse, or one
JSON document with --json; --picture draws the timeline. Plans through edgejudge.placement_plan.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]

_OBJECTIVES = ("latency", "energy", "throughput")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "plan",
        help="plan which device does which part of a bundle's work, from measured costs",
        description=(
            "From what stages and parts cost on each device, choose where each runs, and predict "
            "when; say how far that is from what is possible at all, and why other placements "
            "lost. Runs nothing."
        ),
    )
    parser.add_argument("bundle", help="a bundle folder, or 'nano' for the one that ships here")
    parser.add_argument(
        "--workload",
        default="screen",
        help="screen:rules=12,images=4 or prefill:tokens=512 or decode:tokens=64 (default screen)",
    )
    parser.add_argument(
        "--device-profile",
        metavar="FILE",
        help="costs of devices as JSON (default: those that `edgejudge tune --costs` kept)",
    )
    parser.add_argument(
        "--objective", choices=_OBJECTIVES, default="latency", help="what to make small or large"
    )
    parser.add_argument("--picture", metavar="FILE.svg", help="draw the timeline into a new file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from edgejudge.bundle import Bundle
    from edgejudge.judge import default_bundle
    from edgejudge.placement_plan import placement_plan
    from edgejudge.runtime.scheduling import Profile, read_workload
    from edgejudge.runtime.session import default_threads
    from edgejudge.runtime.settings import Settings, kept_settings

    workload = read_workload(args.workload)
    given = Profile.read(args.device_profile) if args.device_profile else None
    bundle = Bundle.open(default_bundle() if args.bundle == "nano" else args.bundle)
    profile = given or _kept(bundle, args.bundle)
    settings = kept_settings(bundle) or Settings(default_threads())
    plan = placement_plan(bundle, settings, workload, profile, args.objective)
    if args.picture:
        _draw(plan, Path(args.picture))
    if args.json:
        print(json.dumps(plan, sort_keys=True, allow_nan=False))
        return 0
    _show(plan)
    if args.picture:
        from edgejudge.printable import printable

        print(f"drawn into {printable(args.picture)}")
    return 0


def _kept(bundle: Any, asked: str) -> Any:
    from edgejudge.runtime.devices import survey
    from edgejudge.runtime.scheduling import ProfileError, kept_profile

    kept = kept_profile(bundle, {device.provider: device.version for device in survey()[0]})
    if kept is None:
        raise ProfileError(
            "no costs are kept for this bundle on this machine with these providers: run "
            f"`edgejudge tune {asked} --costs`, or give a file with --device-profile"
        )
    return kept


def _draw(plan: Mapping[str, Any], path: Path) -> None:
    """Written whole or not at all."""
    from edgejudge.bulk.files import replacing
    from edgejudge.errors import InputError
    from edgejudge.timeline_picture import timeline_svg

    try:
        with replacing(str(path)) as part:
            Path(part).write_text(timeline_svg(plan), encoding="utf-8")
    except OSError as error:
        raise InputError(
            "picture", f"{path}: the picture cannot be written ({error.strerror})"
        ) from None


def _show(plan: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgejudge.placement_plan import bars, sign
    from edgejudge.printable import brief, printable

    console = Console()
    unit = plan["unit"]
    console.print(Text(printable(f"{plan['bundle']}, {plan['workload']}")), soft_wrap=True)
    where = Table("", "unit", "device", "ms")
    busy: dict[str, float] = {}
    for run in plan["timeline"]:
        busy[run["unit"]] = busy.get(run["unit"], 0.0) + run["end_ms"] - run["begin_ms"]
    for name, device in plan["placement"].items():
        cells = (sign(name), brief(name), brief(device), f"{busy[name]:.1f}")
        where.add_row(*map(Text, cells))
    console.print(where)
    said = f"{plan['objective']}: {plan['value']:.1f} {unit}; "
    said += f"no placement and no order is below {plan['bound']:.1f}"
    said += "" if plan["proven"] else ", and not all were looked at"
    console.print(said, soft_wrap=True)
    console.print(
        f"{plan['makespan_ms']:.1f} ms in all, {plan['energy_mj']:.0f} mJ, "
        f"{plan['moving_ms']:.1f} ms of it to move bytes between devices",
        soft_wrap=True,
    )
    if plan["place"]:
        console.print(Text(f"to run it so: --place {printable(plan['place'])}"), soft_wrap=True)
    lines = bars(plan, max(20, min(console.width - 24, 100)))
    wide = max((len(device) for device, _ in lines), default=0)
    for device, line in lines:
        share = plan["busy_ms"][device] if device in plan["busy_ms"] else 0.0
        share = share / plan["makespan_ms"] if plan["makespan_ms"] else 0.0
        console.print(Text(f"{device:{wide}} {line} {share:4.0%}"), soft_wrap=True)
    others = Table("instead", unit, "", "why it lost")
    for other in plan["alternatives"]:
        value = "-" if other["value"] is None else f"{other['value']:.1f}"
        more = "" if other["value"] is None else f"{other['value'] / plan['value'] - 1:+.0%}"
        others.add_row(*map(Text, (brief(other["name"]), value, more, printable(other["why"]))))
    if plan["alternatives"]:
        console.print(others)
    for note in plan["notes"]:
        console.print(Text(f"note: {printable(note)}"), soft_wrap=True)
    console.print(Text(f"costs: {brief(plan['source'])}"), style="dim", soft_wrap=True)
