"""What a judge did while it was traced: spans of every request, for people and their tools.

Takes the traces of requests as they begin; gives their spans in one time, a file in Chrome's trace
format, which Perfetto and chrome://tracing open, and spans for OpenTelemetry. Measures nothing
itself: a trace is there whether anybody looks or not.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from edgejudge.runtime.operators import Ran
    from edgejudge.runtime.trace import Span, Trace

__all__ = ["Seen", "Traces", "Tracing"]

HOST = "host"  # where what no device does is done
_PID = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """A span of the request number `request`, which began `start_ms` after tracing did. `parent` is
    the place of another one of that request.
    """

    request: int
    name: str
    device: str
    start_ms: float
    ms: float
    parent: int | None
    counts: dict[str, int]

    @property
    def end_ms(self) -> float:
        return self.start_ms + self.ms


@dataclass(slots=True)
class Tracing:
    """Requests that began while it was on, in that order; one that goes on has spans of 0 ms."""

    requests: "list[Trace]" = field(default_factory=list)
    operators: "list[Ran]" = field(default_factory=list)  # where they were profiled
    _began: float = field(default_factory=time.perf_counter)
    _began_ns: int = field(default_factory=time.time_ns)

    @property
    def spans(self) -> list[Seen]:
        return [
            self._seen(number, trace, span)
            for number, trace in enumerate(self.requests)
            for span in trace.spans
        ]

    @property
    def marks(self) -> list[tuple[int, str, str]]:
        """What a reader should know of how results came about: request, code and sentence."""
        return [(n, *mark) for n, trace in enumerate(self.requests) for mark in trace.marks]

    def totals(self) -> dict[str, float]:
        """Milliseconds per span name over all requests, children counted in their parent too."""
        found: dict[str, float] = {}
        for span in self.spans:
            found[span.name] = found.get(span.name, 0.0) + span.ms
        return found

    def to_chrome(self) -> dict[str, Any]:
        """A row for each device, and one for what the host does for each request at once; further
        rows where spans of one would cross.
        """
        lanes: dict[str, list[list[float]]] = {}
        rows: dict[str, int] = {}
        events: list[dict[str, Any]] = []
        spans = sorted(self.spans, key=lambda s: (s.start_ms, -s.ms))
        for span in spans:
            row = _row(span.device, lanes.setdefault(span.device, []), span)
            events.append(
                {
                    "ph": "X",
                    "name": span.name,
                    "cat": span.device,
                    "pid": _PID,
                    "tid": rows.setdefault(row, len(rows) + 1),
                    "ts": round(span.start_ms * 1e3, 3),
                    "dur": round(span.ms * 1e3, 3),
                    "args": {"request": span.request, **span.counts},
                }
            )
        ends: dict[int, float] = {}
        for span in spans:
            ends[span.request] = max(ends.get(span.request, span.end_ms), span.end_ms)
        events += [
            {
                "ph": "i",
                "s": "p",
                "name": code,
                "pid": _PID,
                "tid": 0,
                "ts": round(ends.get(request, 0.0) * 1e3, 3),
                "args": {"request": request, "message": text},
            }
            for request, code, text in self.marks
        ]
        for ran in self.operators:
            events.append(
                {
                    "ph": "X",
                    "name": ran.operator,
                    "cat": "operator",
                    "pid": _PID,
                    "tid": rows.setdefault(f"{ran.graph}, operators", len(rows) + 1),
                    "ts": round((ran.start - self._began) * 1e6, 3),
                    "dur": round(ran.ms * 1e3, 3),
                    "args": {"node": ran.node, "provider": ran.provider},
                }
            )
        names = [("process_name", 0, "edgejudge")]
        names += [("thread_name", tid, row) for row, tid in rows.items()]
        told = [
            {"ph": "M", "name": kind, "pid": _PID, "tid": tid, "args": {"name": name}}
            for kind, tid, name in names
        ]
        return {"displayTimeUnit": "ms", "traceEvents": told + events}

    def save(self, path: str | Path) -> Path:
        """Writes `to_chrome`. Raises OSError."""
        file = Path(path)
        file.write_text(json.dumps(self.to_chrome()), encoding="utf-8")
        return file

    def to_opentelemetry(self, tracer: "Tracer | None" = None) -> int:
        """Hands every request and its spans to OpenTelemetry, with the times that they had; gives
        how many. None takes the tracer of the provider that the application has set. Raises
        EdgeJudgeError without the extra.
        """
        from edgejudge.errors import EdgeJudgeError

        try:
            from opentelemetry import trace as api
        except ImportError:
            raise EdgeJudgeError(
                "this needs OpenTelemetry: pip install 'edgejudge[otel]'"
            ) from None
        tracer = tracer or api.get_tracer("edgejudge")
        count = 0
        for number, request in enumerate(self.requests):
            own = [self._seen(number, request, span) for span in request.spans]
            if not own:
                continue
            first, last = min(s.start_ms for s in own), max(s.end_ms for s in own)
            root = tracer.start_span("edgejudge.request", start_time=self._ns(first))
            for code, text in request.marks:
                root.add_event(code, {"message": text}, timestamp=self._ns(last))
            inside = [api.set_span_in_context(root)]  # of the root, then of each span
            for span in own:
                parent = 0 if span.parent is None else span.parent + 1
                attributes = {"edgejudge.device": span.device}
                counts = {f"edgejudge.{name}": value for name, value in span.counts.items()}
                made = tracer.start_span(
                    span.name,
                    inside[parent],
                    attributes={**attributes, **counts},
                    start_time=self._ns(span.start_ms),
                )
                made.end(self._ns(span.end_ms))
                inside.append(api.set_span_in_context(made))
            root.end(self._ns(last))
            count += len(own) + 1
        return count

    def __iter__(self) -> Iterator[Seen]:
        return iter(self.spans)

    def _seen(self, number: int, trace: "Trace", span: "Span") -> Seen:
        start = (trace.began - self._began) * 1e3 + span.start_ms
        return Seen(number, span.name, span.device, start, span.ms, span.parent, span.counts)

    def _ns(self, ms: float) -> int:
        return self._began_ns + round(ms * 1e6)


class Traces:
    """A part of Judge."""

    engine: Any

    @contextmanager
    def trace(self) -> Iterator[Tracing]:
        """`with judge.trace() as seen:` what every request that begins in the block does, from any
        thread; `seen.save(FILE)` writes it for Perfetto.
        """
        seen = Tracing()
        watchers = getattr(self.engine, "watchers", [])  # of an engine of one's own, none
        watchers.append(seen.requests.append)
        try:
            yield seen
        finally:
            watchers.remove(seen.requests.append)


def _row(device: str, lanes: list[list[float]], span: Seen) -> str:
    """The first row where the span lies beside or within what is there; each lane has the ends of
    the spans that are open, the innermost last.
    """
    for number, ends in enumerate(lanes):
        while ends and ends[-1] <= span.start_ms:
            ends.pop()
        if not ends or span.end_ms <= ends[-1]:
            ends.append(span.end_ms)
            return device if number == 0 else f"{device} ({number + 1})"
    lanes.append([span.end_ms])
    return device if len(lanes) == 1 else f"{device} ({len(lanes)})"
