"""What tests of hostile files share: JSON with something wrong in it, and bundles made to hold it.

`mutated` is a hypothesis strategy: a copy of a document in which one thing is deleted, doubled,
swapped or replaced with what does not belong there. `Strange` is a bundle's folder whose manifest
can be replaced; the new one is signed again, or only its checksum would be tested.
"""

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

NANO = Path(__file__).parent.parent / "models" / "nano" / "bundle"
HUGE = 10**400
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 7, 2**31, 2**53, 2**63 - 1, 2**63, HUGE, -HUGE),
    *(0.5, -0.5, 1e308, -1e308, 5e-324, 1e-30, float("inf"), float("-inf"), float("nan")),
)
TEXTS: tuple[Any, ...] = (
    *("", "x", "\0", "\ud800", "a\nb", "\x1b[2J\x1b[31m", "\u202ex", "é" * 3, "y" * 100_000),
    *("../x", "/etc/passwd", "..", "C:\\x", "/dev/zero", "CON", "bundle.json", "{condition}"),
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"x": 1}, [None], [1, "x"])
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]

Path_ = tuple[Any, ...]


def fixed(examples: int) -> settings:
    """Every run of a test tries the same examples, and takes as long as it takes."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def places(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Every place in a document, its own first."""
    yield at
    inner = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else inner:
        yield from places(item, (*at, key))


def kind_of(at: Path_) -> Path_:
    """Places that differ in the index of a list only are of one kind."""
    return tuple("*" if isinstance(key, int) else key for key in at)


def get(value: Any, at: Path_) -> Any:
    for key in at:
        value = value[key]
    return value


def put(value: Any, at: Path_, item: Any) -> Any:
    """The document with another thing at that place; what is not on the way there is shared."""
    if not at:
        return item
    out = copy.copy(value)
    out[at[0]] = put(value[at[0]], at[1:], item)
    return out


def drop(value: Any, at: Path_) -> Any:
    inner = copy.copy(get(value, at[:-1]))
    del inner[at[-1]]
    return put(value, at[:-1], inner)


def double(value: Any, at: Path_) -> Any:
    """The list with the item at that place twice."""
    inner = list(get(value, at[:-1]))
    inner.insert(at[-1], inner[at[-1]])
    return put(value, at[:-1], inner)


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> tuple[Path_, Any]:
    """(place, document): the place is drawn evenly among kinds, so that short lists count too."""
    kinds: dict[Path_, list[Path_]] = {}
    for at in places(value):
        if at:
            kinds.setdefault(kind_of(at), []).append(at)
    kind = draw(st.sampled_from(sorted(kinds, key=str)))
    at = draw(st.sampled_from(kinds[kind]))
    old = get(value, at)
    how = draw(st.sampled_from(("delete", "double", "number", "text", "other", "swap", "shuffle")))
    if how == "delete":
        return at, drop(value, at)
    if how == "double" and isinstance(at[-1], int):
        return at, double(value, at)
    if how == "shuffle" and isinstance(old, list) and len(old) > 1:
        return at, put(value, at, draw(st.permutations(old)))
    if how == "swap":  # with another thing of the same kind, like the name of another file
        others = [p for p in places(value) if p and type(get(value, p)) is type(old) and p != at]
        if others:
            return at, put(value, at, get(value, draw(st.sampled_from(others))))
    if how == "text":
        return at, put(value, at, draw(st.sampled_from(TEXTS)))
    if how == "other":
        return at, put(value, at, draw(st.sampled_from((*OTHERS, DEEP))))
    return at, put(value, at, draw(st.sampled_from(NUMBERS)))


def canonical(value: Any) -> bytes:
    """As strict_json writes it, also for what it would refuse to write."""
    if not isinstance(value, dict):
        return json.dumps(value).encode()
    lines = [f"{json.dumps(k)}: {json.dumps(value[k], sort_keys=True)}" for k in sorted(value)]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def signed(value: Any) -> bytes:
    """The bytes of a manifest that carries the hash of what it says."""
    if not isinstance(value, dict) or "sha256" not in value:
        return canonical(value)
    empty = canonical({**value, "sha256": ""})
    return canonical({**value, "sha256": hashlib.sha256(empty).hexdigest()})


class Strange:
    """A copy of nano's bundle in a folder of its own."""

    def __init__(self, folder: Path, source: Path = NANO) -> None:
        self.folder = Path(shutil.copytree(source, folder))
        self.manifest: dict[str, Any] = json.loads((folder / "bundle.json").read_bytes())

    def write(self, value: Any) -> None:
        (self.folder / "bundle.json").write_bytes(signed(value))

    def replace(self, name: str, data: bytes) -> None:
        """Another file under this name, with the size and hash that the manifest then has."""
        value = copy.deepcopy(self.manifest)
        (record,) = (file for file in value["files"] if file["name"] == name)
        record["bytes"], record["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        path = self.folder / name
        path.unlink()  # never written through a link
        path.write_bytes(data)
        self.write(value)

    def restore(self) -> None:
        for file in NANO.iterdir():
            target = self.folder / file.name
            if os.path.lexists(target):
                target.unlink()
            shutil.copyfile(file, target)
