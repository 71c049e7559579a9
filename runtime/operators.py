"""What each operator of a graph took, by ONNX Runtime's own profile.

Takes sessions that are opened while it is on; gives their operators' runs, in the time that traces
have. It slows sessions down, so it is for looking at where time goes, not for how much. Does not
know what a graph computes.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

__all__ = ["Operators", "Ran", "listening", "note", "profiled"]

_KERNEL = "_kernel_time"


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of one node. `start` is a time of time.perf_counter."""

    graph: str
    node: str
    operator: str
    provider: str
    start: float
    ms: float


@dataclass(slots=True)
class Operators:
    """Of the sessions that were opened within the block."""

    folder: Path
    _sessions: list[tuple[str, Any]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)  # no two files have one name
    # ONNX Runtime's profile begins at a time of day.
    _offset_ns: int = field(default_factory=lambda: time.time_ns() - time.perf_counter_ns())

    def read(self) -> list[Ran]:
        """All runs until now, once: it ends the profile of every session."""
        found = [ran for graph, inner in self._sessions for ran in self._of(graph, inner)]
        self._sessions.clear()
        return found

    def _of(self, graph: str, inner: Any) -> Iterator[Ran]:
        began = (inner.get_profiling_start_time_ns() - self._offset_ns) / 1e9
        events = json.loads(Path(inner.end_profiling()).read_text(encoding="utf-8"))
        for event in events:
            if event.get("cat") != "Node" or not event["name"].endswith(_KERNEL):
                continue
            told = event["args"]
            start, node = began + event["ts"] / 1e6, event["name"].removesuffix(_KERNEL)
            yield Ran(graph, node, told["op_name"], told["provider"], start, event["dur"] / 1e3)


_on: Operators | None = None  # sessions are opened by whatever thread needs them first


@contextmanager
def profiled() -> Iterator[Operators]:
    """Sessions that are opened in the block are profiled; `read` before its end. One block at a
    time in a process.
    """
    global _on
    if _on is not None:
        raise RuntimeError("operators are profiled already")
    with tempfile.TemporaryDirectory(prefix="edgejudge-") as folder:
        _on = Operators(Path(folder))
        try:
            yield _on
        finally:
            _on = None


def listening(options: Any) -> None:
    """Has a session that is about to be opened with these options profiled, if that is wanted."""
    if _on is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(_on.folder / f"session-{next(_on._numbers)}")


def note(graph: str, inner: Any) -> None:
    """It was opened."""
    if _on is not None:
        _on._sessions.append((graph, inner))
