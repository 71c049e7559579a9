"""Named, nested spans of time.

Takes `with trace.span("prefill", tokens=22):`, gives Span records in milliseconds since the trace
began. Does not know what is measured. One trace belongs to one engine; it costs about a microsecond
a span, so it is never switched off.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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
    _open: list[int] = field(default_factory=list)

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(self._spans)

    def _now_ms(self) -> float:
        return (time.perf_counter() - self._began) * 1e3

    @contextmanager
    def span(self, name: str, device: str = "host", **counts: int) -> Iterator[None]:
        """Times the block; spans opened inside it become its children, also when it raises."""
        index, start = len(self._spans), self._now_ms()
        parent = self._open[-1] if self._open else None
        self._spans.append(Span(name, start, 0.0, parent, device, counts))
        self._open.append(index)
        try:
            yield
        finally:
            self._open.pop()
            self._spans[index] = Span(name, start, self._now_ms() - start, parent, device, counts)

    def totals(self) -> dict[str, float]:
        """Milliseconds per span name, children counted in their parent too."""
        out: dict[str, float] = {}
        for s in self._spans:
            out[s.name] = out.get(s.name, 0.0) + s.ms
        return out

    def clear(self) -> None:
        """Forgets finished spans; only between requests, when none is open."""
        assert not self._open, "a span is open"
        self._spans.clear()
        self._began = time.perf_counter()
