"""An engine whose time is made up: each step moves a clock by what it is said to take."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.asking_order import token_nodes
from edgejudge.runtime.trace import Trace
from fake_judge import FakeEngine


class Clock:
    ms = 0.0


class TimedTrace(Trace):
    clock: Clock

    def _now_ms(self) -> float:
        return self.clock.ms


class TimedEngine(FakeEngine):
    """A pass of t tokens takes `begin_ms` + `token_ms` * t; `passes` has the texts, the tokens and
    when it began, by the trace.
    """

    def __init__(
        self,
        answers: dict[str, float] | None = None,
        begin_ms: float = 4.0,
        token_ms: float = 0.5,
        vision_ms: float = 30.0,
        prefill_ms: float = 10.0,
    ) -> None:
        super().__init__(answers)
        self.begin_ms, self.token_ms = begin_ms, token_ms
        self.vision_ms, self.prefill_ms = vision_ms, prefill_ms
        self.clock = Clock()
        self.passes: list[tuple[list[str], int, float]] = []
        self.prior = 0.1

    def new_trace(self) -> Trace:
        trace = TimedTrace()
        trace.clock = self.clock
        return trace

    def encode_image(
        self, feeds: Mapping[str, NDArray[Any]], trace: Any = None
    ) -> NDArray[np.float32]:
        with (trace or self.trace).span("vision"):
            self.clock.ms += self.vision_ms
            return np.zeros((len(feeds["pixel_values"]) * 4, 8), np.float32)

    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> Any:
        with self.trace.span("prefill", tokens=len(ids)):
            if visual is not None:
                self.clock.ms += self.prefill_ms
            return super().prefill(ids, visual, positions, after)

    def score(self, prefix: Any, branches: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        spent = sum(span.ms for span in self.trace.spans if span.parent is None)
        tokens = len(frozenset().union(*token_nodes(branches)))
        logits = super().score(prefix, branches)
        # Its span has no tokens, as it has no time; the one that is learned from is this.
        with self.trace.span("score", branches=len(branches), tokens=tokens):
            self.clock.ms += self.begin_ms + self.token_ms * tokens
        self.passes.append((self.asked[-1], tokens, spent))
        return logits

    def score_blind(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.clock.ms += 1000.0  # once for a policy, and no picture's
        row = [0.0, float(np.log(self.prior / (1 - self.prior)))]
        return np.array([row] * len(prompts), np.float32)
