"""`edgejudge coreml`: a bundle's Core ML programs as packages for Xcode, with a Swift file.

Takes the command's arguments; prints what was written. The work is edgejudge.coreml_packages'.
"""

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "coreml",
        help="write a bundle's Core ML packages for an app",
        description="Writes NAME.mlpackage for every program of a bundle that was exported with "
        "--targets cpu,coreml, and Judge.swift, which calls them by the names of the manifest.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    return parser


def run(args: argparse.Namespace) -> int:
    from edgejudge.bundle import Bundle
    from edgejudge.coreml_packages import write_packages

    for package in write_packages(Bundle.open(args.bundle), Path(args.out)):
        size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
        print(f"{package}: {size / 2**20:.1f} MiB")
    print(f"{Path(args.out) / 'Judge.swift'}: how to call them")
    return 0
