"""A results file of Parquet: a row per path, and what they are of in the file's metadata.

A Parquet file cannot be added to. Rows are JSON lines in FILE.parquet.journal as they come, and
when the store is closed the file is written anew from the old one and the journal: beside it,
synced, and renamed into its place, before the journal is removed. What a kill leaves is a whole
file, or none, and a journal; rows that are in both are the same ones, or the journal's are newer.
"""

import json
import os
from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from typing import Any

from edgejudge.bulk.files import must_exist, replacing, sync_folder, telling
from edgejudge.bulk.identity import Identity
from edgejudge.bulk.index import Index
from edgejudge.bulk.journal import Journal, index_lines
from edgejudge.bulk.names import key_of
from edgejudge.bulk.rows import broken, content_of, key_of_row, outcome_of
from edgejudge.bulk.store import Found, Store, other_run
from edgejudge.errors import InputError
from edgejudge.evaluation.extra import needed

__all__ = ["ParquetStore", "rows_of"]

_METADATA = b"edgejudge"
_GROUP_ROWS = 512  # of 10 KB each, as the bundled judge's are: 5 MB in memory


class ParquetStore(Store):
    def _open(self) -> None:
        self._journal_file = f"{self.file}.journal"
        self._index = Index()
        self._group: tuple[int, list[str]] = (-1, [])
        self._old: Any = None
        if os.path.exists(self.file):
            self._old = _opened(self.file)
            try:
                self._read_old()
            except BaseException:
                self._old.close()
                raise
        try:
            self._journal = Journal(self._journal_file, self.identity, self._index)
        except BaseException:
            if self._old is not None:
                self._old.close()
            raise
        self.repairs += self._journal.repairs

    def _read_old(self) -> None:
        theirs = _identity(self._old, self.file)
        if (problem := other_run(self.file, theirs, self.identity)) is not None:
            raise problem
        columns = ["path", "path_hex", "sha256", "verdict", "regions"]
        with _reading(self.file):
            for group in range(self._old.num_row_groups):
                rows = self._old.read_row_group(group, columns=columns).to_pylist()
                for number, row in enumerate(rows):
                    place = _place(group, number)
                    self._index.put(key_of_row(row), content_of(row), outcome_of(row), place)

    def find(self, path: str) -> Found | None:
        found = self._index.get(key_of(path))
        return None if found is None else Found(*found)

    def same(self, content: bytes) -> dict[str, Any] | None:
        place = self._index.same(content)
        if place is None:
            return None
        if place >= 0:
            return self._journal.row(place)
        group, number = _group_of(place)
        if self._group[0] != group:
            with _reading(self.file):
                column = self._old.read_row_group(group, columns=["row"]).column("row")
            self._group = group, column.to_pylist()
        return dict(json.loads(self._group[1][number]))

    def put(self, row: Mapping[str, Any]) -> None:
        with telling(self._journal_file):
            self._journal.put(row)

    def sync(self) -> None:
        with telling(self._journal_file):
            self._journal.sync()

    def _finish(self) -> None:
        self.sync()
        if next(self._journal.lines(), None) is not None:
            with telling(self.file):
                self._write()
        self._journal.close()
        os.unlink(self._journal_file)
        sync_folder(self.file)

    def _write(self) -> None:
        pyarrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
        metadata = {_METADATA: json.dumps(self.identity.to_json()).encode()}
        schema = _schema(pyarrow).with_metadata(metadata)
        with replacing(self.file) as part:
            with parquet.ParquetWriter(part, schema, compression="zstd") as writer:
                for table in self._kept(pyarrow):
                    writer.write_table(table)
                lines = self._journal.lines()
                while rows := [_flat(json.loads(line)) for line in islice(lines, _GROUP_ROWS)]:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            self._close_old()

    def _kept(self, pyarrow: Any) -> Iterator[Any]:
        """Groups of the old file without the rows that the journal replaces."""
        places = map(_group_of, self._index.places_below())
        for group, kept in groupby(places, key=lambda place: place[0]):
            with _reading(self.file):
                table = self._old.read_row_group(group)
            yield table.take(pyarrow.array([number for _, number in kept]))

    def _close_old(self) -> None:
        if self._old is not None:
            self._old.close()
            self._old = None

    def _close(self) -> None:
        self._close_old()
        self._journal.close()
        self._index.close()


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    journal = f"{file}.journal"
    index = Index()
    if os.path.exists(journal):
        index_lines(journal, index, None)
    else:
        must_exist(file)
    if os.path.exists(file):
        old = _opened(file)
        _identity(old, file)
        with _reading(file):
            for batch in old.iter_batches(_GROUP_ROWS, columns=["row"]):
                for text in batch.column("row").to_pylist():
                    row = json.loads(text)
                    if index.get(key_of_row(row)) is None:
                        yield row
    if os.path.exists(journal):
        with open(journal, "rb") as stream:
            for place in index.places():
                stream.seek(place)
                yield json.loads(stream.readline())


def _place(group: int, number: int) -> int:
    """Below zero, where the journal has none."""
    return -1 - (group * _MOST_IN_GROUP + number)


def _group_of(place: int) -> tuple[int, int]:
    return divmod(-1 - place, _MOST_IN_GROUP)


_MOST_IN_GROUP = 1 << 24


def _schema(pyarrow: Any) -> Any:
    text = pyarrow.string()
    return pyarrow.schema(
        [
            pyarrow.field("path", text, nullable=False),
            ("path_hex", text),
            ("sha256", text),
            ("verdict", text),
            ("error", text),
            ("broken", pyarrow.list_(text)),
            ("regions", text),
            pyarrow.field("row", text, nullable=False),
        ]
    )


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    error = row["error"]
    return {
        **{key: row[key] for key in ("path", "path_hex", "sha256", "verdict", "regions")},
        "error": None if error is None else error["code"],
        "broken": broken(row),
        "row": json.dumps(row, allow_nan=False),
    }


def _opened(file: str) -> Any:
    with _reading(file):
        return needed("pyarrow.parquet").ParquetFile(file)


def _identity(old: Any, file: str) -> Identity:
    try:
        return Identity.of_row(json.loads((old.schema_arrow.metadata or {})[_METADATA]))
    except (ValueError, KeyError, TypeError):
        raise InputError(
            "out",
            f"{file} is no Parquet file of `edgejudge screen --out`; give another --out, or "
            "remove it",
        ) from None


class _reading:
    """Errors of pyarrow as one sentence."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, needed("pyarrow.lib").ArrowException):
            why = " ".join(str(error).split())
            raise InputError(
                "out",
                f"{self._file} cannot be read: {why}; give another --out, or remove it",
            ) from None
