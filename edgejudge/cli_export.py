"""`edgejudge export`: a checkpoint in, a sealed bundle out.

Takes the command's arguments; prints what was made and how far it is from the reference. The
export itself, and the gate it has to pass, are edgejudge.fidelity's.
"""

import argparse
import json
import sys
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "export",
        help="turn a checkpoint into a bundle",
        description="Exports a Hugging Face checkpoint to a bundle, compares it with the fp32 "
        "reference and seals it. Needs the extra: pip install 'edgejudge[export]'.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint folder or a Hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="the bundle's new folder")
    parser.add_argument(
        "--recipe",
        default="w8",
        choices=("w8", "w4", "fp32"),
        help="precision of the weights (default: w8)",
    )
    parser.add_argument(
        "--layers-per-part",
        type=int,
        metavar="N",
        help="decoder layers per graph (default: all in one)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="shrink larger pictures to this many pixels, in families that keep a picture's own "
        "grid (default: what the checkpoint says)",
    )
    parser.add_argument(
        "--policy",
        action="append",
        dest="policies",
        metavar="NAME|FILE",
        help="compile this policy in; may be repeated (default: every built-in one)",
    )
    parser.add_argument(
        "--max-flip-rate",
        type=float,
        default=0.01,
        metavar="R",
        help="refuse the bundle if more decisions differ from the reference (default: 0.01)",
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    return parser


def run(args: argparse.Namespace) -> int:
    from edgejudge.bundle import to_json
    from edgejudge.fidelity import export_bundle
    from edgejudge.policy import builtin_names, load_policy

    policies = [load_policy(p).record() for p in args.policies or builtin_names()]
    manifest = export_bundle(
        args.checkpoint,
        args.out,
        recipe=args.recipe,
        layers_per_part=args.layers_per_part,
        max_pixels=args.max_pixels,
        policies=policies,
        max_flip_rate=args.max_flip_rate,
        force=args.force,
        progress=lambda text: print(text, file=sys.stderr),
    )
    size_bytes = sum(file.bytes for file in manifest.files)
    report = manifest.fidelity
    if report is None:
        raise AssertionError("export_bundle gives sealed bundles only")
    if args.json:
        result = {
            "out": args.out,
            "name": manifest.name,
            "recipe": manifest.recipe,
            "fingerprint": manifest.sha256,
            "bytes": size_bytes,
            "fidelity": to_json(report),
        }
        print(json.dumps(result, sort_keys=True))
        return 0
    print(f"{args.out}: {manifest.name}, {manifest.recipe}, {size_bytes / 2**20:.1f} MiB")
    print(f"fingerprint {manifest.sha256}")
    print(
        f"{report.flips} of {report.decisions} decisions differ from the fp32 reference "
        f"on {report.pictures} pictures ({report.calibration_set}); "
        f"probabilities by {report.max_probability_error} at most, "
        f"{report.mean_probability_error} on average"
    )
    print(
        f"graphs differ from the reference by at most {report.max_graph_error:g}; "
        f"label mass {report.label_mass.mean} on average, {report.label_mass.minimum} at least"
    )
    return 0
