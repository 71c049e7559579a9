"""How long one picture may take: what its next step is predicted to cost, and whether it fits.

Takes a budget in milliseconds and the spans of a trace; gives predictions, kept from picture to
picture, and leave to go on. Knows no questions, rules or engines.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgejudge.errors import InputError

__all__ = ["Pace", "TimeBudget", "Watch"]

# Guesses until something was measured.
_TOKEN_MS = 0.5  # where no picture was prefilled, from whose tokens it would be known
_PASS_TOKENS = 32  # what beginning a pass costs, in tokens of a prompt
_GUESSES = (0, 256)  # tokens of two passes that were guessed
_GUESS_WEIGHT = 0.1  # of these against 1 of a measured one
_MEMORY = 0.9  # by which a measured pass counts less with each later one
_MEMORY_OF_ONE = 0.7  # the same, of what is a single number


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """`ms` for everything about a picture but waiting for a turn. `first_broken` stops asking when
    a rule is broken. `order` are ids of rules, the first to be asked first; None lets the expected
    information per millisecond decide.
    """

    ms: float = math.inf
    first_broken: bool = False
    order: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raises InputError for what is no time."""
        if not self.ms > 0:
            raise InputError(
                "time_budget", f"a time budget is milliseconds above 0, got {self.ms:g}"
            )


class Pace:
    """How fast one engine works with one bundle: a pass of t tokens takes a + b * t ms.

    a and b are the least-squares line through the passes so far, which count less the longer ago
    they were. Before the first one b is that of the latest prompt's tokens and a that of 32 of
    them; the guess stays in the fit with little weight, since passes of one size tell no slope.
    """

    def __init__(self) -> None:
        self._prefix_ms = math.inf
        self._reason_ms: float | None = None
        self._token_ms = _TOKEN_MS
        self._passes: list[tuple[float, int, float]] = []  # weight, tokens, ms

    def learn(self, spans: Sequence[Any]) -> None:
        """From spans that were not learned from before."""
        ms = {name: 0.0 for name in ("preprocess", "vision", "prefill", "score", "verdict_head")}
        tokens = dict.fromkeys(ms, 0)
        for span in spans:
            if span.name in ms:
                ms[span.name] += span.ms
                tokens[span.name] += span.counts.get("tokens", 0)
            elif span.name == "reason":
                known = span.ms if self._reason_ms is None else self._reason_ms
                self._reason_ms = _MEMORY_OF_ONE * known + (1 - _MEMORY_OF_ONE) * span.ms
        if ms["vision"] and tokens["prefill"]:  # else the picture was found in the cache
            self._token_ms = ms["prefill"] / tokens["prefill"]
            self._prefix_ms = ms["preprocess"] + ms["vision"] + ms["prefill"]
        if tokens["score"]:
            faded = [(_MEMORY * w, t, m) for w, t, m in self._passes if w > _GUESS_WEIGHT]
            self._passes = [*faded, (1.0, tokens["score"], ms["score"] + ms["verdict_head"])]

    def line(self) -> tuple[float, float]:
        """a and b, neither below 0."""
        a, b = _PASS_TOKENS * self._token_ms, self._token_ms
        if not self._passes:
            return a, b
        points = [*self._passes, *((_GUESS_WEIGHT, t, a + b * t) for t in _GUESSES)]
        weight = sum(w for w, _, _ in points)
        mean_t = sum(w * t for w, t, _ in points) / weight
        mean_ms = sum(w * ms for w, _, ms in points) / weight
        spread = sum(w * (t - mean_t) ** 2 for w, t, _ in points)
        b = sum(w * (t - mean_t) * (ms - mean_ms) for w, t, ms in points) / spread
        b = min(max(b, 0.0), mean_ms / mean_t)
        return mean_ms - b * mean_t, b

    def pass_ms(self, tokens: int) -> float:
        a, b = self.line()
        return a + b * tokens

    def beside_ms(self, tokens: int) -> float:
        """For another picture in the place of this one and a pass over it; endless while none was
        measured.
        """
        return self._prefix_ms + self.pass_ms(tokens)

    def reason_ms(self, most: int) -> float:
        """For reasoning about one question; before the first time, as if it wrote all of the `most`
        tokens that it may.
        """
        return most * self.pass_ms(1) if self._reason_ms is None else self._reason_ms


class Watch:
    """One picture's time, read off its trace: it is what its verdict's `stages_ms` add up to."""

    def __init__(self, budget: TimeBudget | None, pace: Pace, trace: Any) -> None:
        """`budget` None is all the time there is."""
        self._budget, self._pace, self._trace = budget, pace, trace

    @property
    def left_ms(self) -> float:
        if self._budget is None:
            return math.inf
        spent: float = sum(span.ms for span in self._trace.spans if span.parent is None)
        return self._budget.ms - spent

    def fits_pass(self, tokens: int) -> bool:
        return self._pace.pass_ms(tokens) <= self.left_ms

    def fits_beside(self, tokens: int) -> bool:
        return self._pace.beside_ms(tokens) <= self.left_ms

    def fits_reasoning(self, most: int) -> bool:
        return self._pace.reason_ms(most) <= self.left_ms
