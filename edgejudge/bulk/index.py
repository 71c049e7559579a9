"""Where in a results file each path's row is, in little memory.

Takes keys of 16 bytes; gives what is known of them. Both tables are temporary databases of SQLite,
which keeps so many KiB of each in memory and the rest on disk. Knows no file format and no verdict.
"""

import sqlite3
from collections.abc import Iterator

__all__ = ["Index", "Keys", "temporary_database"]

_CACHE_KIB = 16 << 10


def temporary_database() -> sqlite3.Connection:
    """Private to this process and gone with it, so nothing in it is ever committed or synced."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    database.execute("BEGIN")
    return database


class Keys:
    """A set of keys."""

    def __init__(self) -> None:
        self._database = temporary_database()
        self._database.execute("CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, key: bytes) -> bool:
        """Whether it is a new one."""
        made = self._database.execute("INSERT OR IGNORE INTO keys VALUES (?)", (key,))
        return made.rowcount == 1


class Index:
    """Of each path its latest row: what was judged (`content`), how that ended (`outcome`), and
    where the row is (`place`, a number that its file understands).
    """

    def __init__(self) -> None:
        self._database = temporary_database()
        self._database.execute(
            "CREATE TABLE rows (key BLOB PRIMARY KEY, content BLOB, outcome TEXT, place INTEGER) "
            "WITHOUT ROWID"
        )
        self._database.execute("CREATE INDEX contents ON rows (content)")

    def put(self, key: bytes, content: bytes | None, outcome: str, place: int) -> bool:
        """Whether it took the place of an earlier row."""
        replaced = self.get(key) is not None
        self._database.execute(
            "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", (key, content, outcome, place)
        )
        return replaced

    def get(self, key: bytes) -> tuple[bytes | None, str] | None:
        """Content and outcome."""
        found = self._database.execute("SELECT content, outcome FROM rows WHERE key = ?", (key,))
        row: tuple[bytes | None, str] | None = found.fetchone()
        return row

    def same(self, content: bytes) -> int | None:
        """The place of some row with this content and a verdict."""
        found = self._database.execute(
            "SELECT place FROM rows WHERE content = ? AND outcome != 'failed' LIMIT 1", (content,)
        ).fetchone()
        return None if found is None else int(found[0])

    def places(self) -> Iterator[int]:
        """Those from 0 on, ascending."""
        for (place,) in self._database.execute(
            "SELECT place FROM rows WHERE place >= 0 ORDER BY place"
        ):
            yield place

    def places_below(self) -> Iterator[int]:
        """Those below 0, descending."""
        for (place,) in self._database.execute(
            "SELECT place FROM rows WHERE place < 0 ORDER BY place DESC"
        ):
            yield place

    def close(self) -> None:
        self._database.close()
