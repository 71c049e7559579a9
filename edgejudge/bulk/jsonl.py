"""A results file of JSON lines: one self-contained row a line, for jq and every reader of rows.

Rows are added at the end, each by one write. A row that replaces another one is added too, and
where there are such the whole file is written anew without the old ones when it is closed: beside
it, synced, and renamed into its place. A kill at any point leaves either file whole, and the later
line of a path counts in both.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from edgejudge.bulk.files import must_exist, telling
from edgejudge.bulk.index import Index
from edgejudge.bulk.journal import Journal, index_lines
from edgejudge.bulk.names import key_of
from edgejudge.bulk.store import Found, Store

__all__ = ["JsonlStore", "rows_of"]


class JsonlStore(Store):
    def _open(self) -> None:
        self._index = Index()
        self._journal = Journal(self.file, self.identity, self._index)
        self.repairs += self._journal.repairs

    def find(self, path: str) -> Found | None:
        found = self._index.get(key_of(path))
        return None if found is None else Found(*found)

    def same(self, content: bytes) -> dict[str, Any] | None:
        place = self._index.same(content)
        return None if place is None else self._journal.row(place)

    def put(self, row: Mapping[str, Any]) -> None:
        with telling(self.file):
            self._journal.put(row)

    def sync(self) -> None:
        with telling(self.file):
            self._journal.sync()

    def _finish(self) -> None:
        with telling(self.file):
            if self._journal.stale:
                self._journal.rewrite()
            else:
                self._journal.sync()

    def _close(self) -> None:
        self._journal.close()
        self._index.close()


def rows_of(file: str) -> Iterator[dict[str, Any]]:
    must_exist(file)
    index = Index()
    index_lines(file, index, None)
    with open(file, "rb") as stream:
        for place in index.places():
            stream.seek(place)
            yield json.loads(stream.readline())
