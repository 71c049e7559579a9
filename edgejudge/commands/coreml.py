"""`edgejudge coreml`: what a bundle's Core ML programs are, and their packages for Xcode.

Takes the command's arguments; prints a report of every program, or one JSON line with --json. With
--out it writes the packages, a Swift file and the report beside them. The work is
edgejudge.coreml_report's and edgejudge.coreml_packages'.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgejudge.bundle import TensorRecord
    from edgejudge.coreml_report import FunctionReport, Report

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "coreml",
        help="report on a bundle's Core ML programs, and write them as packages for an app",
        description="Holds every program of a bundle that was exported with --targets cpu,coreml "
        "against the manifest, and says what it takes, gives and does, and which operations are "
        "known to leave the Neural Engine. With --out it writes NAME.mlpackage for each, "
        "Judge.swift, which calls them by the names of the manifest, and report.json.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--out", metavar="DIR", help="folder to write packages to")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON line")
    return parser


def run(args: argparse.Namespace) -> int:
    from edgejudge.bundle import Bundle, to_json
    from edgejudge.coreml_packages import write_packages
    from edgejudge.coreml_report import report

    bundle = Bundle.open(args.bundle)
    packages = write_packages(bundle, Path(args.out)) if args.out else []
    if args.json:
        print(json.dumps(to_json(report(bundle)), sort_keys=True))
    elif args.out:
        for package in packages:
            size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
            print(f"{package}: {_size(size)}")
        print(f"{Path(args.out) / 'Judge.swift'}: how to call them")
        print(f"{Path(args.out) / 'report.json'}: what they are")
    else:
        for line in _lines(report(bundle)):
            print(line)
    return 0


def _lines(found: "Report") -> Iterator[str]:
    """Not a table: a narrow terminal breaks lines, and would cut cells."""
    weights = sum(program.weight_bytes for program in found.programs)
    yield f"{found.bundle}: {len(found.programs)} Core ML programs, {_size(weights)} of weights"
    reasons = {}
    for program in found.programs:
        shared = program.shared_weight_bytes
        yield ""
        yield (
            f"{program.file}: {_size(program.weight_bytes)} of weights"
            + (f", {_size(shared)} shared by functions" if shared else "")
            + f"; {program.systems}"
        )
        for function in program.functions:
            yield from _function(function)
            reasons.update({left.rule: left.reason for left in function.leaves})
    yield ""
    for rule, reason in reasons.items():
        yield f"{rule}: {reason}"
    yield found.note


def _function(function: "FunctionReport") -> Iterator[str]:
    yield f"  {function.name}: {_tensors(function.inputs)} -> {_tensors(function.outputs)}"
    if function.states:
        yield f"    keeps {_tensors(function.states)}"
    kinds = sorted(function.operations.items(), key=lambda item: -item[1])
    yield f"    {function.computing} operations: " + ", ".join(
        f"{count} {kind}" for kind, count in kinds if kind != "const"
    )
    yield (
        f"    {function.leaving} of them are known to leave the Neural Engine, and "
        f"{function.reported} more are reported to"
    )
    by_rule: dict[str, list[str]] = {}
    for left in function.leaves:
        by_rule.setdefault(left.rule, []).append(f"{left.count} {left.operation}")
    for rule, some in by_rule.items():
        yield f"      {rule}: {', '.join(some)}"


def _tensors(tensors: "tuple[TensorRecord, ...]") -> str:
    return ", ".join(f"{t.name} {' x '.join(t.shape)} {t.dtype}" for t in tensors)


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 1 << 20 else f"{size / 2**10:.1f} KiB"
