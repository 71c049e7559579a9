"""A file of verdicts, added to, looked up in and gone on with: JSON lines, Parquet or SQLite.

Takes a path, whose suffix says which, and the `Identity` of its verdicts; gives a `Store`, or one
sentence why there is none. Knows nothing of judging. A store holds one row per path: a row that is
put takes the place of an earlier one of its path.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from edgejudge.bulk.files import telling
from edgejudge.bulk.identity import Identity
from edgejudge.bulk.lock import Lock
from edgejudge.errors import InputError

__all__ = ["SUFFIXES", "Found", "Store", "check_out", "open_store", "other_run"]

SUFFIXES = (".jsonl", ".parquet", ".sqlite")


@dataclass(frozen=True, slots=True)
class Found:
    """What the row of a path is about (rows.content_key), and how it ended: safe, unsafe, uncertain
    or failed.
    """

    content: bytes | None
    outcome: str


class Store(ABC):
    """Use as a context: leaving it finishes the file, but for a KeyboardInterrupt, which leaves it
    as it is. Every method may be called from any thread, but by one at a time.

    `repairs` are sentences about what was mended when it was opened.
    """

    def __init__(self, file: str, identity: Identity) -> None:
        """`file` is as check_out gave it."""
        self.file = file
        self.identity = identity
        self.repairs: list[str] = []
        self._lock = Lock(file)
        try:
            with suppress(OSError):  # of a rewrite that was killed
                os.unlink(f"{file}.part")
            with telling(file):
                self._open()
        except BaseException:
            self._lock.release()
            raise

    @abstractmethod
    def _open(self) -> None:
        """Reads what is there, mends it and makes ready to write; on errors it leaves nothing open
        and the file as it was.
        """

    @abstractmethod
    def find(self, path: str) -> Found | None:
        """What there is of a path."""

    @abstractmethod
    def same(self, content: bytes) -> dict[str, Any] | None:
        """Some row about the same content that has a verdict."""

    @abstractmethod
    def put(self, row: Mapping[str, Any]) -> None:
        """Adds a row of rows.make_row or rows.shared_row. When this returns a kill cannot take it.
        Raises InputError "unwritable"; the rows before stand.
        """

    @abstractmethod
    def sync(self) -> None:
        """When this returns a power cut cannot take the rows so far."""

    @abstractmethod
    def _finish(self) -> None:
        """Brings the file into the form in which it is left."""

    @abstractmethod
    def _close(self) -> None: ...

    def close(self, finish: bool = True) -> None:
        """Finishes the file, or leaves what the next run goes on from. Raises InputError."""
        try:
            if finish:
                self._finish()
        finally:
            self._close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(InputError):  # the first error is the one to tell
                self.close(finish=not issubclass(kind, KeyboardInterrupt))


def form_of(path: str) -> str:
    """The suffix of a results file. Raises InputError for one that is none of ours."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SUFFIXES:
        return suffix
    raise InputError(
        "out",
        f"{path} ends in '{suffix}', and a results file in {', '.join(SUFFIXES[:-1])} or "
        f"{SUFFIXES[-1]}; give it one of these endings",
    )


def check_out(path: str) -> str:
    """The real file behind the path of a results file, before anything is done for it. Raises
    InputError for a suffix that is none of ours, a folder that is not there and what is no regular
    file, and ProviderError where the form needs a package that is not installed.
    """
    suffix = form_of(path)
    file = os.path.realpath(path)
    if not os.path.isdir(os.path.dirname(file)):
        raise InputError("unwritable", f"{path} cannot be written: there is no such folder")
    if os.path.exists(file) and not os.path.isfile(file):
        raise InputError("unwritable", f"{path} cannot be written: it is no regular file")
    if suffix == ".parquet":
        from edgejudge.evaluation.extra import require

        require("pyarrow")
    return file


def open_store(path: str | os.PathLike[str], identity: Identity) -> Store:
    """The results file at `path`, made or gone on with, after what a kill left undone is mended.

    Raises InputError "out" for a file that is no results file, "other_run" for one of another
    identity, "in_use" where another process writes to it, "unwritable" where the system refuses;
    and ProviderError where the suffix needs a package that is missing. A file that is refused is
    left as it is.
    """
    file = check_out(os.fspath(path))
    suffix = form_of(os.fspath(path))
    if suffix == ".jsonl":
        from edgejudge.bulk.jsonl import JsonlStore

        return JsonlStore(file, identity)
    if suffix == ".sqlite":
        from edgejudge.bulk.sqlite import SqliteStore

        return SqliteStore(file, identity)
    from edgejudge.bulk.parquet import ParquetStore

    return ParquetStore(file, identity)


def other_run(file: str, theirs: Identity, ours: Identity, where: str = "") -> InputError | None:
    """The sentence for rows that this run cannot go on with; None where it can."""
    differ = theirs.difference(ours)
    if differ is None:
        return None
    return InputError(
        "other_run",
        f"{file}{where} has verdicts of {differ[0]}, and this run is of {differ[1]}; give another "
        "--out, or remove it",
    )


def read_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The rows of a results file of any form, also of one that a kill left behind or that is being
    written to; changes nothing. Raises InputError for what is none.
    """
    file = os.path.realpath(path)
    suffix = form_of(os.fspath(path))
    if suffix == ".jsonl":
        from edgejudge.bulk.jsonl import rows_of
    elif suffix == ".sqlite":
        from edgejudge.bulk.sqlite import rows_of
    else:
        from edgejudge.bulk.parquet import rows_of
    return rows_of(file)
