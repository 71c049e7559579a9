"""What is to be judged: examples with their truths, as every loader gives them.

Takes what loaders read; gives records. Pictures are paths until they are judged: opening them is
the judge's work. Knows no file format.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgejudge.errors import InputError
from edgejudge.evaluation.rows import Kind
from edgejudge.evaluation.tables import Line

__all__ = [
    "SAFE_UNSAFE",
    "DataSet",
    "Example",
    "Pictures",
    "missing_pictures",
    "named",
    "subset",
    "unique",
]

_MOST_NAMED = 3
SAFE_UNSAFE = ("safe", "unsafe")


@dataclass(frozen=True, slots=True)
class Example:
    """`truths` are by target, with the one target "" where there is no other. `text` is the request
    or question that the pictures go with, `answers` what is judged where that is not the pictures,
    `options` those of a multiple choice. `lines` is where each target was read from, for outputs
    that stand beside the truths.
    """

    id: str
    group: str
    images: tuple[Path, ...]
    truths: dict[str, Any]
    text: str = ""
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    lines: dict[str, Line] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataSet:
    """`labels` are those of kind label, in order; `sha256` is of what the truths were read from."""

    examples: tuple[Example, ...]
    kind: Kind
    labels: tuple[str, ...]
    sha256: str
    notes: tuple[str, ...] = ()


class Pictures:
    """Paths of pictures as data sets write them: below a folder, sometimes with a prefix that is
    not there, and never fetched.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, written: str) -> Path:
        """Where it lies; where it should, if it is missing."""
        there = self.root / written
        if there.is_file():
            return there
        parts = Path(written.replace("\\", "/")).parts
        for first in range(1, len(parts)):
            if (found := self.root.joinpath(*parts[first:])).is_file():
                return found
        return there


def subset(data: DataSet, count: int, seed: int) -> DataSet:
    """`count` of the examples, drawn at random and kept in their order; all if there are fewer."""
    if count >= len(data.examples):
        return data
    drawn = sorted(random.Random(seed).sample(range(len(data.examples)), count))
    note = f"{count} of {len(data.examples)} examples, drawn with seed {seed}"
    examples = tuple(data.examples[i] for i in drawn)
    return replace(data, examples=examples, notes=(*data.notes, note))


def missing_pictures(data: DataSet) -> None:
    """Raises InputError "missing" that counts and names what is not there."""
    paths = dict.fromkeys(path for example in data.examples for path in example.images)
    lost = [path for path in paths if not path.is_file()]
    if lost:
        raise InputError(
            "missing",
            f"{len(lost)} of {len(paths)} pictures are missing: {named(lost)}; put them there, or "
            "set scenario.images to their folder",
        )


def unique(names: Sequence[str]) -> list[str]:
    """The same names, those that come again with #2, #3 behind them."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return made


def named(things: Iterable[object]) -> str:
    """The first few, and how many more."""
    listed = list(map(str, things))
    more = len(listed) - _MOST_NAMED
    shown = ", ".join(listed[:_MOST_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown
