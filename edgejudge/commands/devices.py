"""`edgejudge devices`: the execution providers that are here, and why others are not.

Takes the command's arguments; prints two lists, or one JSON document with --json.
"""

import argparse
import json
from dataclasses import asdict

__all__ = ["SCHEMA_VERSION", "add_parser", "run"]

SCHEMA_VERSION = 1


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "devices",
        help="list the execution providers and devices of this machine",
        description=(
            "List every execution provider that edgejudge knows of: where it runs, what it "
            "computes in, and for a missing one the reason and what would install it. "
            "`screen --place` runs stages there, `check` says whether they are right."
        ),
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from edgejudge.runtime.devices import survey

    found, missing = survey()
    if args.json:
        document = {
            "schema_version": SCHEMA_VERSION,
            "devices": [asdict(device) for device in found],
            "absent": [asdict(absent) for absent in missing],
        }
        print(json.dumps(document, sort_keys=True))
        return 0
    for device in found:
        size = device.memory_bytes
        memory = "" if size is None else f", {size / 2**30:.1f} GiB"
        simulator = " (a simulator: its times mean nothing)" if device.simulator else ""
        made = f"{device.package} {device.version}"
        _print(device.provider, device.kind, f"{device.name}{memory}{simulator}; {made}")
        _print("", "", f"computes in {', '.join(device.precisions)}")
    print("\nnot here:")
    for absent in missing:
        install = f"; {absent.install}" if absent.install else ""
        _print(absent.provider, absent.kind, f"{absent.reason}{install}")
    return 0


def _print(name: str, kind: str, text: str) -> None:
    print(f"{name:27}{kind:5}{text}")
