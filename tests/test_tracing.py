"""`judge.trace()`: every request of the block and no other, for Perfetto and for OpenTelemetry."""

import builtins
import json
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from edgejudge import Judge, Tracing
from edgejudge.errors import EdgeJudgeError
from edgejudge.judge import default_bundle
from edgejudge.runtime.trace import Trace

SAMPLES = sorted((default_bundle().parent / "samples").glob("*.jpg"))[:2]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(prefix_cache_bytes=0)


@pytest.fixture(scope="module")
def seen(judge: Judge) -> Tracing:
    with judge.trace() as found:
        verdicts = judge.screen(list(SAMPLES))
    assert [v.error for v in verdicts] == [None, None]
    judge.screen(SAMPLES[0])  # which nobody watches
    return found


def test_each_request_of_the_block_and_no_other(judge: Judge, seen: Tracing) -> None:
    assert len(seen.requests) == len(SAMPLES)
    names = [{span.name for span in seen if span.request == n} for n in range(2)]
    for own in names:
        assert {"decode", "preprocess", "vision", "score", "verdict_head"} <= own
    assert seen.totals()["vision"] > 0
    assert not judge.engine.watchers  # type: ignore[union-attr]
    with judge.trace() as outer, judge.trace() as inner:
        judge.screen(SAMPLES[0])
    assert outer.requests == inner.requests and len(outer.requests) == 1
    with pytest.raises(ZeroDivisionError), judge.trace():
        raise ZeroDivisionError
    assert not judge.engine.watchers  # type: ignore[union-attr]


def test_children_lie_within_their_parents(seen: Tracing) -> None:
    for number in range(2):
        own = [span for span in seen if span.request == number]
        for span in own:
            assert span.ms > 0 and span.start_ms >= 0
            if span.parent is not None:
                parent = own[span.parent]
                assert parent.start_ms <= span.start_ms + 1e-3
                assert span.end_ms <= parent.end_ms + 1e-3


def test_threads_share_one_trace(judge: Judge) -> None:
    with judge.trace() as seen:
        threads = [threading.Thread(target=judge.screen, args=(SAMPLES[0],)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(seen.requests) == 3
    nested(seen.to_chrome())


def nested(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The events of each row, none of which crosses another one there."""
    events = document["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in (e for e in events if e["ph"] == "X"):
        rows[names[event["tid"]]].append(event)
    for own in rows.values():
        open_until: list[float] = []
        for event in sorted(own, key=lambda e: (e["ts"], -e["dur"])):
            while open_until and open_until[-1] <= event["ts"] + 0.01:
                open_until.pop()
            end = event["ts"] + event["dur"]
            assert not open_until or end <= open_until[-1] + 0.01
            open_until.append(end)
    return rows


def test_perfetto_gets_a_row_for_each_device(seen: Tracing, tmp_path: Path) -> None:
    document = json.loads(seen.save(tmp_path / "trace.json").read_text(encoding="utf-8"))
    rows = nested(document)
    assert {"cpu", "host"} <= rows.keys()
    assert sum(map(len, rows.values())) == len(seen.spans)
    score = next(e for e in rows["host"] if e["name"] == "score")
    assert score["args"]["branches"] > 1 and score["args"]["request"] in (0, 1)


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 20), st.sampled_from(["cpu", "gpu"])),
        max_size=25,
    )
)
def test_spans_that_cross_get_rows_of_their_own(drawn: list[tuple[int, int, str]]) -> None:
    trace = Trace()
    for start, length, device in drawn:
        with trace.span("x", device):
            pass
        last = trace._spans[-1]
        trace._spans[-1] = type(last)("x", float(start), float(length), None, device, {})
    seen = Tracing()
    seen.requests.append(trace)
    rows = nested(seen.to_chrome())
    assert sum(map(len, rows.values())) == len(drawn)
    assert all(event["cat"] == name.split(" ")[0] for name, own in rows.items() for event in own)


def test_what_to_know_of_a_request_stands_at_its_end() -> None:
    trace = Trace([("device_failed", "gpu failed")])
    with trace.span("vision", "cpu"):
        pass
    seen = Tracing()
    seen.requests.append(trace)
    (event,) = [e for e in seen.to_chrome()["traceEvents"] if e["ph"] == "i"]
    assert event["name"] == "device_failed" and event["args"]["message"] == "gpu failed"
    assert event["ts"] == pytest.approx(seen.spans[0].end_ms * 1e3, abs=0.01)
    assert seen.marks == [(0, "device_failed", "gpu failed")]


def test_opentelemetry_gets_the_same_spans(seen: Tracing) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    assert seen.to_opentelemetry(provider.get_tracer("test")) == len(seen.spans) + 2
    found = kept.get_finished_spans()
    by_id = {span.context.span_id: span for span in found}
    roots = [span for span in found if span.parent is None]
    assert [root.name for root in roots] == ["edgejudge.request"] * 2
    assert len({span.context.trace_id for span in found}) == 2
    for span in found:
        assert span.start_time is not None and span.end_time is not None
        assert span.start_time <= span.end_time
        if span.parent is not None:
            parent = by_id[span.parent.span_id]
            assert parent.start_time <= span.start_time + 1_000  # type: ignore[operator]
            assert span.end_time <= parent.end_time + 1_000  # type: ignore[operator]
    score = next(span for span in found if span.name == "score")
    assert score.attributes is not None and score.attributes["edgejudge.branches"] > 1  # type: ignore[operator]
    ours = sorted((s.name, round(s.ms, 2)) for s in seen)
    theirs = sorted(
        (s.name, round((s.end_time - s.start_time) / 1e6, 2))  # type: ignore[operator]
        for s in found
        if s.parent is not None
    )
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert all(abs(a - b) < 0.05 for (_, a), (_, b) in zip(ours, theirs, strict=True))


def test_without_the_extra_it_says_which(seen: Tracing, monkeypatch: pytest.MonkeyPatch) -> None:
    own = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return own(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EdgeJudgeError, match=r"edgejudge\[otel\]"):
        seen.to_opentelemetry()
