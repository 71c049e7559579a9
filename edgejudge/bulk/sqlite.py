"""A results file of SQLite: a table `verdicts` with a row per path, and what they are of in `run`.

Each row is a transaction of its own. In write-ahead mode it is one write at the end of FILE-wal,
and others can read meanwhile; SQLite itself brings a file in order that a kill left behind. The log
is brought into the file, and both are synced, every few seconds and at the end, when FILE-wal goes.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from edgejudge.bulk.files import SYNC_S, must_exist, sync_folder, telling
from edgejudge.bulk.identity import Identity
from edgejudge.bulk.names import key_of
from edgejudge.bulk.rows import broken, content_of, key_of_row, outcome_of
from edgejudge.bulk.store import Found, Store, other_run
from edgejudge.errors import InputError

__all__ = ["SqliteStore", "rows_of"]

_APPLICATION_ID = 0x656A7631  # "ejv1", by which `file` and we know it
_WAIT_S = 30.0  # for another program that is reading or writing just now
_SCHEMA = """
CREATE TABLE run (identity TEXT NOT NULL);
CREATE TABLE verdicts (
    key BLOB PRIMARY KEY,
    path TEXT NOT NULL,
    path_hex TEXT,
    sha256 TEXT,
    verdict TEXT,
    error TEXT,
    broken TEXT NOT NULL,
    row TEXT NOT NULL,
    content BLOB
);
CREATE INDEX contents ON verdicts (content);
"""
_PUT = """
INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    path = excluded.path, path_hex = excluded.path_hex, sha256 = excluded.sha256,
    verdict = excluded.verdict, error = excluded.error, broken = excluded.broken,
    row = excluded.row, content = excluded.content
"""


class SqliteStore(Store):
    def _open(self) -> None:
        is_new = not os.path.exists(self.file)
        _check_head(self.file)
        with telling(self.file):
            self._database = sqlite3.connect(
                self.file, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
            )
        try:
            with telling(self.file):
                self._prepare()
        except BaseException:
            self._database.close()
            raise
        if is_new:
            sync_folder(self.file)
        self._synced_s = time.monotonic()

    def _prepare(self) -> None:
        database = self._database
        if _is_empty(database):
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.strip().split(";\n"):
                database.execute(statement)
            text = json.dumps(self.identity.to_json())
            database.execute("INSERT INTO run VALUES (?)", (text,))
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute("COMMIT")
            return
        theirs = _identity(database, self.file)
        if (problem := other_run(self.file, theirs, self.identity)) is not None:
            raise problem
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")

    def find(self, path: str) -> Found | None:
        with telling(self.file):
            row = self._database.execute(
                "SELECT content, verdict FROM verdicts WHERE key = ?", (key_of(path),)
            ).fetchone()
        return None if row is None else Found(row[0], row[1] or "failed")

    def same(self, content: bytes) -> dict[str, Any] | None:
        with telling(self.file):
            found = self._database.execute(
                "SELECT row FROM verdicts WHERE content = ? AND verdict IS NOT NULL LIMIT 1",
                (content,),
            ).fetchone()
        return None if found is None else dict(json.loads(found[0]))

    def put(self, row: Mapping[str, Any]) -> None:
        outcome_of(row)
        error = row["error"]
        values = (
            key_of_row(row),
            row["path"],
            row["path_hex"],
            row["sha256"],
            row["verdict"],
            None if error is None else error["code"],
            json.dumps(broken(row)),
            json.dumps(row, allow_nan=False),
            content_of(row),
        )
        with telling(self.file):
            self._database.execute(_PUT, values)
        if time.monotonic() - self._synced_s >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        with telling(self.file):
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._synced_s = time.monotonic()

    def _finish(self) -> None:
        self.sync()

    def _close(self) -> None:
        self._database.close()


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    _check_head(file)
    must_exist(file)
    with telling(file), closing(sqlite3.connect(file, timeout=_WAIT_S)) as database:
        if _is_empty(database):  # a kill while it was made; a screening goes on from there
            return
        _identity(database, file)
        for (text,) in database.execute("SELECT row FROM verdicts ORDER BY rowid"):
            yield json.loads(text)


def _check_head(file: str) -> None:
    """SQLite would take a file of a few bytes for an empty database, and write over it."""
    if os.path.exists(file):
        with open(file, "rb") as stream:
            head = stream.read(16)
        if head not in (b"", b"SQLite format 3\0"):
            raise _not_ours(file)


def _is_empty(database: sqlite3.Connection) -> bool:
    return not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _identity(database: sqlite3.Connection, file: str) -> Identity:
    (application,) = database.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION_ID:
        raise _not_ours(file)
    try:
        (text,) = database.execute("SELECT identity FROM run").fetchone()
        return Identity.of_row(json.loads(text))
    except (ValueError, KeyError, TypeError):
        raise _not_ours(file) from None


def _not_ours(file: str) -> InputError:
    return InputError(
        "out",
        f"{file} is no database of `edgejudge screen --out`; give another --out, or remove it",
    )
