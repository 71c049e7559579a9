"""What is done, what is being judged and what is left to do, of one run over a results file.

Takes paths, and verdicts of those that it says are to be judged; keeps the store. Every picture
whose row still holds is kept, one whose bytes have a verdict already shares it, and each picture is
judged once however often its bytes turn up. May be called from several threads. Knows no judge.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgejudge.bulk.rows import (
    content_key,
    content_of,
    make_row,
    outcome_of,
    regions_digest,
    shared_row,
    verdict_of,
)
from edgejudge.bulk.store import Found, Store
from edgejudge.errors import InputError
from edgejudge.images import DEFAULT_LIMITS, Limits, read_bytes
from edgejudge.regions import regions_of
from edgejudge.report import outcome
from edgejudge.verdict import Verdict

if TYPE_CHECKING:
    from edgejudge.regions import Regions

__all__ = ["Asked", "Ledger", "Summary"]


@dataclass(slots=True)
class Summary:
    """Of one run. `outcomes` counts safe, unsafe, uncertain and failed, the rows that were kept
    from earlier runs among them. `changed` and `retried` are rows that were replaced, because the
    file's bytes are others now or because it failed before. `repairs` are sentences about the
    results file.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    shared: int = 0
    kept: int = 0
    changed: int = 0
    retried: int = 0
    repairs: list[str] = field(default_factory=list)

    @property
    def written(self) -> int:
        """Rows of this run."""
        return self.judged + self.shared

    @property
    def done(self) -> int:
        """Paths that have a row."""
        return self.judged + self.shared + self.kept


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture that is to be judged: what it was when it was looked at, and its earlier row."""

    path: str
    content: bytes | None
    regions: str | None
    before: Found | None


class Ledger:
    """Without a store nothing is looked up or kept, and every path is judged."""

    def __init__(
        self,
        store: Store | None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        regions: "Regions | None" = None,
        retry_failed: bool = False,
        summary: Summary | None = None,
        each: Callable[[Verdict], None] | None = None,
        progress: Callable[[Summary], None] | None = None,
    ) -> None:
        """`limits` and `regions` are those that the pictures are judged with. `each` is called with
        the verdict of every row of this run, once the row is in the store, and `progress` whenever
        one more path is done; from whichever thread, but one call at a time.
        """
        self.summary = Summary() if summary is None else summary
        self.left: list[str] = []
        self._store = store
        self._settings = {} if store is None else store.identity.to_json()["settings"]
        self._limits, self._regions = limits, regions
        self._retry_failed = retry_failed
        self._each, self._progress = each, progress
        self._lock = threading.Lock()
        self._waiting: dict[bytes, list[tuple[str, Found | None]]] = {}
        self.over = False
        if store is not None:
            self.summary.repairs += store.repairs

    def look(self, path: str, wait: bool = True) -> Asked | None:
        """The picture if it is to be judged; None if it has a row, or will have one with the
        picture of the same bytes that is being judged (not with `wait` False).
        """
        if self._store is None:
            return Asked(path, None, None, None)
        digest = self._sha256(path)
        regions = regions_digest(regions_of(path, self._regions))
        content = content_key(digest, regions)
        with self._lock:
            if self.over:
                return None
            before = self._store.find(path)
            if before is not None and self._holds(before, content):
                self._keep(path, before)
                return None
            asked = Asked(path, content, regions, before)
            if content is None:
                return asked
            if (same := self._store.same(content)) is not None:
                self._share(same, path, before, content)
                return None
            if wait and content in self._waiting:
                self._waiting[content].append((path, before))
                return None
            self._waiting.setdefault(content, [])
            return asked

    def add(self, asked: Asked, verdict: Verdict) -> None:
        """The verdict of a picture that `look` gave, and of those that waited for it. If it is none
        or turned out to be of other bytes, those are `left` to be judged by themselves.
        """
        with self._lock:
            waiting = []
            if asked.content is not None:
                waiting = self._waiting.pop(asked.content, [])
            if self._store is None:
                self.summary.judged += 1
                self._count(verdict, None, None)
                return
            row = make_row(verdict, asked.path, self._settings, asked.regions)
            self._store.put(row)
            self.summary.judged += 1
            content = content_of(row)
            self._count(verdict, asked.before, content)
            if outcome_of(row) != "failed" and content == asked.content:
                for path, before in waiting:
                    self._share(row, path, before, content)
            else:
                self.left += [path for path, _ in waiting]

    def end(self) -> None:
        """From now on it is `over`: nothing is written any more, also by a thread that is still
        looking at a picture.
        """
        with self._lock:
            self.over = True

    def _keep(self, path: str, before: Found) -> None:
        self.summary.kept += 1
        self._outcome(before.outcome)

    def _holds(self, before: Found, content: bytes | None) -> bool:
        if self._retry_failed and before.outcome == "failed":
            return False
        return before.content == content

    def _share(
        self, row: Mapping[str, Any], path: str, before: Found | None, content: bytes | None
    ) -> None:
        assert self._store is not None
        made = shared_row(row, path)
        self._store.put(made)
        self.summary.shared += 1
        self._count(verdict_of(made), before, content)

    def _count(self, verdict: Verdict, before: Found | None, content: bytes | None) -> None:
        if before is not None and before.content != content:
            self.summary.changed += 1
        elif before is not None:
            self.summary.retried += 1
        self._outcome(outcome(verdict))
        if self._each is not None:
            self._each(verdict)

    def _outcome(self, word: str) -> None:
        self.summary.outcomes[word] += 1
        if self._progress is not None:
            self._progress(self.summary)

    def _sha256(self, path: str) -> str | None:
        """None for what cannot be read; the judge says why."""
        try:
            return hashlib.sha256(read_bytes(path, self._limits)).hexdigest()
        except (InputError, MemoryError):
            return None
