"""A fake engine that answers with labels: what it would write is a function of the pictures and the
question, so that biases can be given to it on purpose.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fake_judge import END, START, FakeEngine, Length

VOCABULARY = 128

# (redness of each picture, question, what was written so far) -> logit of each next character.
Says = Callable[[list[float], str, str], Mapping[str, float]]


class LabelEngine(FakeEngine):
    """Characters that `says` does not name have a logit of `floor`."""

    def __init__(self, says: Says, floor: float = -30.0, **answers: float) -> None:
        super().__init__(answers)
        self.says, self.floor = says, floor
        self.prompts: list[tuple[list[float], str, str]] = []
        self.passes = 0
        self._shown: list[float | None] = []

    def encode_image(
        self, feeds: Mapping[str, NDArray[Any]], trace: Any = None
    ) -> NDArray[np.float32]:
        red = (feeds["pixel_values"][:, 0].mean() + 1) / 2
        return super().encode_image(feeds, trace) + np.float32(red)

    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> Any:
        prefix = super().prefill(ids, visual, positions, after)
        del self._shown[len(self.prefixes) - 1 :]
        self._shown.append(None if visual is None else float(visual[0, 0]))
        return prefix

    def ends(self, prefix: Any, branches: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if self.interrupt is not None:
            self.interrupt()
        pictures = [] if prefix is None else [r for r in self._shown if r is not None]
        self.passes += 1
        first = len(self.prompts)
        with self.trace.span("score"):
            for ids in branches:
                question, written = "".join(map(chr, ids)).replace(chr(START), "").split(chr(END))
                self.prompts.append((pictures, question, written))
        return np.arange(first, len(self.prompts), dtype=np.float32)[:, None]

    def full_logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = np.full((len(hidden), VOCABULARY), self.floor, np.float32)
        for row, place in zip(logits, hidden[:, 0].astype(int), strict=True):
            for char, logit in self.says(*self.prompts[place]).items():
                row[ord(char)] = logit
        return logits

    def score_blind(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return self.score(Length(0), [list(ids)[1:] for ids in prompts])
