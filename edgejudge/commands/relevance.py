"""`edgejudge add-relevance`: gives a bundle a CLIP or SigLIP encoder as an optional stage.

Takes the command's arguments; prints what was added. The work is edgejudge.relevance's.
"""

import argparse
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "add-relevance",
        help="give a bundle a CLIP or SigLIP encoder",
        description="Exports an encoder through Optimum and seals it into a bundle, with a vector "
        "for each rule: how much a picture is about a rule at all. Needs optimum-onnx, in an "
        "environment of its own.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("encoder", metavar="ENCODER", help="a CLIP or SigLIP checkpoint folder")
    parser.add_argument("--force", action="store_true", help="replace an encoder that is there")
    return parser


def run(args: argparse.Namespace) -> int:
    from edgejudge.relevance import add_relevance

    manifest = add_relevance(args.bundle, args.encoder, args.force)
    added = manifest.relevance
    if added is None:
        raise AssertionError("add_relevance adds it")
    print(
        f"{args.bundle}: {added.family} encoder added, {added.width} dimensions, "
        f"{len(added.rules)} rules"
    )
    print(f"fingerprint {manifest.sha256}")
    return 0
