"""Spans nest, last and survive an exception."""

import time

import pytest

from edgejudge.runtime.trace import Trace


def test_spans_nest_and_add_up() -> None:
    trace = Trace()
    with trace.span("screen"):
        for _ in range(2):
            with trace.span("decoder", "cpu", tokens=3):
                time.sleep(0.002)
    outer, first, second = trace.spans
    assert (outer.parent, first.parent, second.parent) == (None, 0, 0)
    assert first.device == "cpu" and first.counts == {"tokens": 3}
    assert first.ms >= 2 and second.start_ms >= first.start_ms + first.ms
    totals = trace.totals()
    assert totals["decoder"] == pytest.approx(first.ms + second.ms)
    assert totals["screen"] >= totals["decoder"]


def test_a_span_that_raises_is_closed() -> None:
    trace = Trace()
    with pytest.raises(RuntimeError), trace.span("vision"):
        raise RuntimeError("no")
    with trace.span("next"):
        pass
    assert [s.parent for s in trace.spans] == [None, None]
    trace.clear()
    assert trace.spans == ()
