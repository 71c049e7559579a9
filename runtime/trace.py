"""Named, nested spans of time.

Takes `with trace.span("prefill", tokens=22):`, gives Span records in milliseconds since the trace
began. Does not know what is measured. One trace belongs to one request, whose work may be on
several threads; it costs a few microseconds a span, so it is never switched off.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, get_ident

__all__ = ["Span", "Trace"]


@dataclass(frozen=True, slots=True)
class Span:
    """`parent` is the index of the enclosing span, or None; `device` says where the work ran."""

    name: str
    start_ms: float
    ms: float
    parent: int | None
    device: str
    counts: dict[str, int]


@dataclass(slots=True)
class Trace:
    """Spans in the order in which they began. An unfinished span has `ms` 0. `marks` are what a
    reader of the result should know of how it came about: a code and a sentence each.
    """

    marks: list[tuple[str, str]] = field(default_factory=list)
    ran: dict[str, str] = field(
        default_factory=dict
    )  # stage, or part of it -> where, the last time

    _began: float = field(default_factory=time.perf_counter)
    _spans: list[Span] = field(default_factory=list)
    # What is open in each thread, the innermost last.
    _open: dict[int, list[int]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(self._spans)

    @property
    def began(self) -> float:
        """When, by time.perf_counter."""
        return self._began

    @property
    def innermost(self) -> int | None:
        """The index of the span that the caller's thread is in, for `within`."""
        return next(iter(self._open.get(get_ident(), [])[-1:]), None)

    def _now_ms(self) -> float:
        return (time.perf_counter() - self._began) * 1e3

    @contextmanager
    def within(self, parent: int | None) -> Iterator[None]:
        """Spans of this thread become children of one that is open in another."""
        if parent is None:
            yield
            return
        with self._opened(parent):
            yield

    @contextmanager
    def span(self, name: str, device: str = "host", **counts: int) -> Iterator[None]:
        """Times the block; spans opened inside it become its children, also when it raises."""
        start, parent = self._now_ms(), self.innermost
        with self._lock:
            index = len(self._spans)
            self._spans.append(Span(name, start, 0.0, parent, device, counts))
        with self._opened(index):
            try:
                yield
            finally:
                took = self._now_ms() - start
                self._spans[index] = Span(name, start, took, parent, device, counts)

    @contextmanager
    def _opened(self, index: int) -> Iterator[None]:
        thread = get_ident()
        stack = self._open.setdefault(thread, [])
        stack.append(index)
        try:
            yield
        finally:
            stack.pop()
            if not stack:
                self._open.pop(thread, None)

    def totals(self) -> dict[str, float]:
        """Milliseconds per span name, children counted in their parent too."""
        out: dict[str, float] = {}
        for s in self._spans:
            out[s.name] = out.get(s.name, 0.0) + s.ms
        return out

    def spent(self, name: str, device: str) -> dict[int | None, float]:
        """Milliseconds of a device's spans of one name, by the part that they are of."""
        out: dict[int | None, float] = {}
        for s in self._spans:
            if (s.name, s.device) == (name, device):
                part = s.counts.get("part")
                out[part] = out.get(part, 0.0) + s.ms
        return out

    def clear(self) -> None:
        """Forgets finished spans; only between requests, when none is open."""
        assert not self._open, "a span is open"
        self._spans.clear()
        self._began = time.perf_counter()
