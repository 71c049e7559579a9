"""`edgejudge check`: what becomes of a bundle on other devices, and whether its verdicts stay.

Takes the command's arguments; prints which form of which graphs is right where, what a provider did
not take and why, what handing keys and values over costs, and, beside another bundle or placement,
how many decisions differ. Exit code 0: every stage is where it was placed; 3: some are not, or too
many decisions differ; 2: nothing could be said.
"""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgejudge.commands.arguments import positive, seconds
from edgejudge.printable import printable

if TYPE_CHECKING:
    from edgejudge.gate import Tally
    from edgejudge.judge import Judge

__all__ = ["SCHEMA_VERSION", "add_parser", "run"]

SCHEMA_VERSION = 1


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "check",
        help="try a bundle on other devices: what is right, what is left to the CPU, what differs",
        description="Asks a bundle's canary on every device that it is placed on, lists the nodes "
        "that a provider leaves to the CPU with the reason, and compares decisions with those of "
        "the CPU alone or of another bundle.",
        epilog="exit codes: 0 every stage is where it was placed; 3 some are not, or more "
        "decisions differ than the gate of an export allows; 2 an error",
    )
    parser.add_argument("bundle", help="a bundle folder, or 'nano' for the one that ships here")
    parser.add_argument(
        "--place",
        required=True,
        metavar="PLACES",
        help="like vision=gpu,decoder=npu:qnn, or decoder.0=npu for one part",
    )
    parser.add_argument("--strict", action="store_true", help="refuse nodes left to the CPU")
    parser.add_argument("--deadline", type=seconds, metavar="SECONDS", help="of one run (120)")
    parser.add_argument(
        "--pictures",
        nargs="+",
        metavar="PATH",
        help="pictures or folders to compare decisions on (default: one that is drawn)",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="of them, the first N")
    parser.add_argument(
        "--against",
        metavar="DIR",
        help="compare with this bundle on the CPU, such as one of the recipe exact (default: the "
        "same bundle on the CPU)",
    )
    parser.add_argument("--policy", default="stickers", metavar="NAME|FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    from edgejudge.commands.arguments import libraries_on_stderr

    with libraries_on_stderr():
        found, document = _check(args)
    if args.json:
        print(json.dumps(document, sort_keys=True))
    else:
        _print(document)
    return 0 if found else 3


def _check(args: argparse.Namespace) -> tuple[bool, dict[str, Any]]:
    import tempfile
    from itertools import islice
    from pathlib import Path

    from edgejudge.agreement import agreement
    from edgejudge.bulk.names import find_files
    from edgejudge.judge import Judge, default_bundle
    from edgejudge.profiling import drawn_picture

    folder = default_bundle() if args.bundle == "nano" else Path(args.bundle)
    more: dict[str, Any] = {"allow_random": True, "prefix_cache_bytes": 0}
    judge = Judge.load(
        folder,
        verify=True,
        place=args.place,
        strict=args.strict,
        deadline=args.deadline,
        **more,
    )
    reference = Judge.load(args.against or folder, **more)
    with tempfile.TemporaryDirectory() as scratch:
        paths = [f for path in args.pictures or () for f in find_files(path)]
        if not paths:
            paths = [str(drawn_picture(Path(scratch)))]
        some = list(islice(paths, args.limit))
        tally = agreement(judge, reference, some, args.policy, _say)
    document = _document(judge, reference, tally, len(some))
    right = not document["unused"] and not document["violations"]
    return right, document


def _say(path: str) -> None:
    print(f"asking both about {printable(path)}", file=sys.stderr)


def _document(judge: "Judge", reference: "Judge", tally: "Tally", pictures: int) -> dict[str, Any]:
    from edgejudge.gate import upper_bound

    fleet = judge.engine.fleet  # type: ignore[union-attr]  # no BatchScorer without a budget
    sessions = [
        {
            "device": accelerator.device.name,
            "simulator": accelerator.device.simulator,
            "file": file,
            "origin": loaded.origin,
            "elsewhere": [asdict(node) for node in loaded.elsewhere],
        }
        for accelerator in fleet.accelerators
        for file, loaded in sorted(accelerator.loaded.items())
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": judge.bundle.manifest.name,
        "bundle_sha256": judge.bundle.fingerprint,
        "against_sha256": reference.bundle.fingerprint,
        "canaries": [
            {"device": device, "stage": stage, "form": form, "found": answer}
            for (device, stage), answers in fleet.answers.items()
            for form, answer in answers.items()
        ],
        "unused": [
            {"device": device, "stage": stage, "reason": reason}
            for (device, stage), reason in fleet.unused.items()
        ],
        "notes": [note for _, note in fleet.marks()],
        "sessions": sessions,
        "handover": {"rows": fleet.moved.rows, "bytes": fleet.moved.bytes, "ms": fleet.moved.ms},
        "pictures": pictures,
        "decisions": tally.decisions,
        "flips": tally.flips,
        "flips_upper": upper_bound(tally.flips, tally.decisions),
        "probability_error_99": tally.percentile_99(),
        "probability_error_max": max(tally.errors),
        "violations": tally.violations(),
    }


def _print(found: dict[str, Any]) -> None:
    for answer in found["canaries"]:
        value = answer["found"]
        told = f"label logits within {value:.2g}" if isinstance(value, float) else value
        print(f"{answer['device']:28} {answer['stage']:8} {answer['form']:14} {told}")
    for stage in found["unused"]:
        print(f"not used: {stage['device']} for {stage['stage']} ({stage['reason']})")
    for session in found["sessions"]:
        simulator = ", a simulator" if session["simulator"] else ""
        print(f"{session['file']}: {session['origin']} on {session['device']}{simulator}")
        for node in session["elsewhere"]:
            print(f"  left to {node['provider']}: {node['op']} {node['node']} ({node['reason']})")
        if not session["elsewhere"]:
            print("  every node is there")
    moved = found["handover"]
    print(
        f"keys and values handed over: {moved['rows']} rows, {moved['bytes'] / 2**20:.2f} MiB, "
        f"{moved['ms']:.1f} ms of the CPU"
    )
    print(
        f"{found['flips']} of {found['decisions']} decisions differ (at most "
        f"{found['flips_upper']:.2%} with 95 % confidence) on {found['pictures']} pictures; "
        f"probabilities by {found['probability_error_99']:.4f} (99th percentile), "
        f"{found['probability_error_max']:.4f} at most"
    )
    for broken in found["violations"]:
        print(f"too far: {printable(broken)}")
