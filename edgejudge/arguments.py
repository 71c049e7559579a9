"""Values of the command line that several commands take.

Takes an argument's text; gives its value, or an error that argparse shows.
"""

import argparse
import re

__all__ = ["positive", "size"]


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
