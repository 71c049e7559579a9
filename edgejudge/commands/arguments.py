"""Values and arguments of the command line that several commands take.

Takes an argument's text; gives its value, or an error that argparse shows.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from edgejudge.printable import printable

__all__ = ["add_judge", "libraries_on_stderr", "positive", "seconds", "size", "tell"]


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Which policy is judged by which bundle."""
    parser.add_argument(
        "--policy",
        default="stickers",
        metavar="NAME|FILE",
        help="a built-in policy or a YAML file (default: stickers)",
    )
    parser.add_argument("--bundle", metavar="DIR", help="an exported judge (default: the bundled)")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return int(text)


def size(text: str) -> int:
    """Bytes of `1GiB`, `500MB` or a plain number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write one like 1GiB or 500MB")
    power = " KMG".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value


def tell(sentence: str) -> None:
    """To whoever watches, beside the results."""
    print(printable(sentence), file=sys.stderr, flush=True)


@contextmanager
def libraries_on_stderr() -> Iterator[None]:
    """Vendors' libraries print to the process's standard output, which may be a JSON stream: it
    goes to standard error meanwhile, and what Python prints goes where it always went.
    """
    before = sys.stdout
    before.flush()
    try:
        mine, direct = os.dup(1), before.fileno() == 1
    except (OSError, ValueError):  # it is closed, or not the process's: there is nothing to keep
        yield
        return
    with open(mine, "w", encoding=before.encoding, errors=before.errors, buffering=1) as own:
        os.dup2(2, 1)
        if direct:
            sys.stdout = own
        try:
            yield
        finally:
            with suppress(OSError):  # the reader may have left
                own.flush()
            sys.stdout = before
            os.dup2(mine, 1)
