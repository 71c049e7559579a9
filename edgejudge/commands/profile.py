"""`edgejudge profile`: where the milliseconds of a judge go, and how sure that is.

Takes the command's arguments; prints the machine's card, a table and one JSON line, or with --json
that alone. Measures through edgejudge.profiling.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgejudge.commands.arguments import libraries_on_stderr, positive, seconds, size, tell

if TYPE_CHECKING:
    from rich.console import Console

    from edgejudge.profiling.records import Compared, Profile

__all__ = ["add_parser", "run"]

_EPILOG = """\
exit status: 0 measured; 4 measured, and a whole run is slower than the record that --compare names,
by more than --allowed, with 95 % confidence; 2 nothing could be measured; 130 stopped by Ctrl-C:
what was measured until then is printed.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "profile",
        help="time a bundle: verdicts, scores, comparisons, text, stages, memory",
        description="Times a bundle through the judge that users call, with the spread of every "
        "figure, and says what to distrust.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bundle",
        help="a bundle folder, 'nano' for the one that ships here, or a preset: a published "
        "model's dimensions with random weights, made once (needs edgejudge[export])",
    )
    parser.add_argument(
        "--workload",
        default="screen",
        metavar="KIND[:NAME=N,...]",
        help="what to time (default: screen), like screen:rules=12,images=4 or decode:tokens=64; "
        "also library, score, compare, rank, rationale and prefill. One that is not known lists "
        "them with their numbers",
    )
    parser.add_argument("--policy", default="stickers", help="built-in name or YAML file")
    parser.add_argument("--picture", help="file to judge (default: drawn ones)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--runs", type=int, default=20, help="warm runs (default: 20)")
    length.add_argument(
        "--seconds",
        type=seconds,
        help="warm runs for so long: shows whether the machine slows down",
    )
    parser.add_argument(
        "--warmup", type=int, default=1, help="runs after the first that do not count (default: 1)"
    )
    parser.add_argument("--cold", type=int, default=0, help="whole processes to start and time")
    parser.add_argument(
        "--place",
        "--provider",
        metavar="PLACES",
        help="run stages on other devices, like vision=gpu,decoder=npu",
    )
    parser.add_argument("--recipe", default="balanced", help="of a preset (default: balanced)")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all)")
    parser.add_argument(
        "--memory-budget", type=size, metavar="SIZE", help="as for `edgejudge screen`"
    )
    parser.add_argument("--trace", metavar="FILE", help="write the last run for Perfetto")
    parser.add_argument(
        "--operators",
        action="store_true",
        help="one run more, which says what ONNX Runtime's operators took; --trace has them",
    )
    parser.add_argument("--report", metavar="FILE.html", help="write a page about it")
    parser.add_argument("--compare", metavar="OLD.json", help="print ratios to an older record")
    parser.add_argument(
        "--allowed",
        type=float,
        default=5.0,
        metavar="PERCENT",
        help="how much slower than the older record is no regression (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="print the record as one JSON line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from edgejudge.errors import InputError
    from edgejudge.models.preset import PRESETS
    from edgejudge.profiling import profile
    from edgejudge.profiling.presets import preset_bundle
    from edgejudge.profiling.records import compared

    if not args.allowed >= 0:
        raise InputError("usage", f"--allowed is {args.allowed}, expected a percentage from 0 on")

    bundle = None if args.bundle == "nano" else args.bundle
    if args.bundle in PRESETS and not Path(args.bundle).exists():
        bundle = str(preset_bundle(args.bundle, args.recipe, tell))
    with libraries_on_stderr():
        result, seen = profile(
            bundle,
            args.workload,
            policy=args.policy,
            picture=args.picture,
            runs=args.runs,
            seconds=args.seconds,
            warmup=args.warmup,
            cold=args.cold,
            place=args.place,
            threads=args.threads,
            memory_budget=args.memory_budget,
            operators=args.operators,
            progress=tell,
        )
    if args.trace:
        seen.save(args.trace)
    against = None
    if args.compare:
        against = compared(result, args.compare, args.allowed / 100)
    if args.report:
        from edgejudge.profiling.page import page

        Path(args.report).write_text(page(result, seen, against), encoding="utf-8")
    document = result.to_json()
    if against is not None:
        document["compared"] = against.to_json()
    if not args.json:
        _print(result, against)
    print(json.dumps(document, sort_keys=True))
    if result.stopped:
        return 130
    return 4 if against is not None and against.slower else 0


def _columns(result: "Profile", width: int) -> dict[str, list[str]]:
    """Headings with their cells, those left out that would not fit: a number is not cut."""
    found: dict[str, list[str]] = {}
    for name, value in result.figures().items():
        low_high = value.intervals.get("p50", ())
        cells = {
            "what": name,
            "n": str(value.n),
            "p50 ms": _number(value.p50),
            "95 %": " to ".join(map(_number, low_high)) or "-",
            "p90": _number(value.p90),
            "p95": _number(value.p95),
            "p99": _number(value.p99),
            "min": _number(value.min),
            "max": _number(value.max),
        }
        for heading, cell in cells.items():
            found.setdefault(heading, []).append(cell)
    for heading in ("p95", "min", "p99", "n", "max"):
        if sum(max(map(len, (h, *cells))) + 3 for h, cells in found.items()) < width:
            break
        del found[heading]
    return found


def _number(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 1000 else f"{ms:.1f}"


def _print(result: "Profile", against: "Compared | None") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgejudge.printable import printable

    console = Console()
    _card(result, console)
    title = printable(f"{result.bundle} ({result.recipe}): {result.of}")
    columns = _columns(result, console.width)
    table = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1))
    for heading, cells in columns.items():
        wide = max(map(len, (heading, *cells)))
        table.add_column(heading, no_wrap=True, justify="right" if heading != "what" else "left")
        table.columns[-1].min_width = wide
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    console.print(table)
    for name, rate in result.rates.items():
        low, high = rate.intervals.get("p50", (rate.p50, rate.p50))
        console.print(f"{name}: {rate.p50:,.1f} a second ({low:,.1f} to {high:,.1f})")
    opened = ", ".join(f"{ms:.0f} on {device}" for device, ms in result.opened_ms.items())
    console.print(
        f"first answer {result.first_verdict_ms:.0f} ms after the bundle was asked for: "
        f"{result.load_ms:.0f} to load it, {opened or 'none'} to open graphs, {result.compiled} "
        "compiled"
    )
    _memory(result, console)
    if (limits := result.limits) is not None:
        shares = {"prompts": limits.prompt_share, "writing": limits.written_share}
        told = " and ".join(f"{what} {s:.0%}" for what, s in shares.items() if s is not None)
        console.print(
            f"numpy reads {limits.read_gb_s:.1f} GB/s and multiplies {limits.gflops:.0f} GFLOP/s "
            f"(float32) here; of the arithmetic or the reading the decoder had: {told}"
        )
    for record in result.operators:
        console.print(
            f"{record.share:6.1%}  {record.ms:9.2f} ms  {record.runs:5} x {record.operator} on "
            f"{record.provider}",
            markup=False,
        )
    for warning in result.warnings:
        console.print(f"warning: {printable(warning)}", style="yellow", markup=False)
    if result.stopped:
        console.print("stopped by Ctrl-C: these are the runs until then", style="yellow")
    if against is not None:
        _compared(against, console)


def _card(result: "Profile", console: "Console") -> None:
    m = result.machine
    versions = ", ".join(f"{name} {m[name]}" for name in ("edgejudge", "onnxruntime", "python"))
    console.print(f"{m['processor']}, {m['cores']} cores, {m['system']}; {versions}", markup=False)
    placement = ", ".join(f"{stage} on {where}" for stage, where in result.placement.items())
    settings = ", ".join(f"{name} {n}" for name, n in result.settings.items())
    console.print(f"{placement}; {settings}", markup=False)
    load = "unknown" if result.before.load is None else f"{result.before.load:g}"
    others = "unknown" if result.others is None else f"{result.others:.0%}"
    watts = ", ".join(f"{name} {w:.1f} W" for name, w in result.watts.items())
    console.print(
        f"load before {load}; meanwhile others had {others} of the cores, this process "
        f"{result.cpu_cores:.2f} cores; power {watts or 'not told here'}"
    )


def _memory(result: "Profile", console: "Console") -> None:
    steps = ", ".join(f"{name} {mib:.0f}" for name, mib in result.memory.resident.items())
    stages = ", ".join(f"{name} {mib:.1f}" for name, mib in result.memory.stages.items())
    kv = "" if result.memory.kv is None else f"; keys and values {result.memory.kv:.1f}"
    console.print(f"resident MiB: {steps}; peak {result.memory.peak:.0f}{kv}")
    console.print(f"graphs in MiB: {stages}")


def _compared(against: "Compared", console: "Console") -> None:
    from rich.table import Table

    table = Table("what", "new / old", "95 %", title="against the older record")
    for name, ratio in against.ratios.items():
        span = "-" if ratio.low is None else f"{ratio.low:.3f}-{ratio.high:.3f}"
        table.add_row(name, f"{ratio.value:.3f}", span)
    console.print(table)
    if against.differs:
        console.print(f"not the same in both: {', '.join(against.differs)}", style="yellow")
    if against.slower:
        console.print(f"slower: {', '.join(against.slower)}", style="red")
