"""What `edgejudge screen` knows of variants: limits on what a file may ask for, and changed copies.

Takes parsed arguments; gives the limits of a judge.
"""

import argparse
from typing import TYPE_CHECKING

from edgejudge.commands.arguments import positive, size

if TYPE_CHECKING:
    from edgejudge.images import Limits

__all__ = ["add_options", "limits"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `screen`."""
    parser.add_argument(
        "--stable",
        type=int,
        default=0,
        metavar="N",
        help="judge N changed copies of each picture too (1 to 8: resized, recompressed, cropped, "
        "flipped); the mean decides",
    )
    parser.add_argument(
        "--frames",
        type=positive,
        metavar="N",
        help="frames, pages or pictures that are judged of a file that has more (default: 8)",
    )
    parser.add_argument(
        "--max-frames",
        type=positive,
        metavar="N",
        help="how many are gone through to find them (default: 1000)",
    )
    parser.add_argument(
        "--max-frame-pixels",
        type=positive,
        metavar="N",
        help="and how many pixels these have together (default: 128000000)",
    )
    parser.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="refuse a picture with more pixels (default: 64000000)",
    )
    parser.add_argument(
        "--max-bytes",
        type=size,
        metavar="SIZE",
        help="refuse a file with more bytes (default: 64MiB)",
    )


def limits(args: argparse.Namespace) -> "Limits":
    from dataclasses import replace

    from edgejudge.images import DEFAULT_LIMITS

    names = ("frames", "max_frames", "max_frame_pixels", "max_pixels", "max_bytes")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return replace(DEFAULT_LIMITS, **given)
