"""`edgejudge profile`: where the milliseconds of a verdict go.

Takes the command's arguments; prints a table, or one JSON document with --json. Measures through
edgejudge.profiling.
"""

import argparse
import json

__all__ = ["add_parser", "run"]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "profile",
        help="time a bundle: first verdict, warm verdicts, stages, memory",
        description="Time a bundle from the bytes of a picture to its verdict.",
    )
    parser.add_argument("bundle", help="a bundle folder, or 'nano' for the one that ships here")
    parser.add_argument("--policy", default="stickers", help="built-in name or YAML file")
    parser.add_argument("--picture", help="file to judge (default: a drawn 1920x1080 PNG)")
    parser.add_argument("--runs", type=int, default=20, help="warm runs (default 20)")
    parser.add_argument("--cold", type=int, default=0, help="whole processes to start and time")
    parser.add_argument("--images", type=int, default=0, help="size of a library run, for images/s")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from edgejudge.errors import InputError
    from edgejudge.profiling import profile

    if args.runs < 1 or args.cold < 0 or args.images < 0:
        raise InputError("usage", "--runs must be at least 1, --cold and --images at least 0")
    bundle = None if args.bundle == "nano" else args.bundle
    result = profile(bundle, args.policy, args.picture, args.runs, args.cold, args.images)
    if args.json:
        print(json.dumps(result.to_json(), sort_keys=True))
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgejudge.printable import printable

    title = f"{result.bundle} ({result.recipe}), {result.questions} questions, {result.picture}"
    table = Table("what", "n", "p50 ms", "p95 ms", title=Text(printable(title)))
    rows = {"warm verdict": result.warm, **{f"  {k}": v for k, v in result.stages.items()}}
    rows["verdict, prefix kept"] = result.kept
    if result.cold_process:
        rows["cold process"] = result.cold_process
    for name, value in rows.items():
        table.add_row(name, str(value.n), f"{value.p50_ms:.1f}", f"{value.p95_ms:.1f}")
    console = Console()
    console.print(table)
    console.print(f"first verdict after load: {result.first_verdict_ms:.0f} ms")
    if result.library_images_per_s is not None:
        rate = result.library_images_per_s
        console.print(f"library: {rate:.1f} images/s over {result.library_images}")
    console.print(
        f"peak RSS {result.peak_rss_mib:.0f} MiB; {result.machine['processor']}", style="dim"
    )
    return 0
