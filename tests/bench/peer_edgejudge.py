"""edgejudge itself: a bundle of the same decoder, label rows instead of the LM head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from peer import serve

from edgejudge.bundle import Bundle
from edgejudge.runtime import Engine


class EdgeJudge:
    ways = ("tree", "again")

    def __init__(self, bundle: str, threads: str) -> None:
        opened = Bundle.open(Path(bundle), unsealed=True)
        self.engine = Engine.open(opened, threads=int(threads))
        self.about = {"engine": "edgejudge", "precision": opened.manifest.recipe}
        self._last: tuple[Any, np.ndarray] | None = None

    def prefill(self, ids: list[int]) -> None:
        prefix, hidden = self.engine.append(ids)
        self.engine.label_logits(hidden[None])
        self._last = prefix, hidden

    def logits(self, ids: list[int]) -> np.ndarray:
        return self.engine.full_logits(self.engine.append(ids)[1][None])[0]

    def decode(self, tokens: int) -> None:
        assert self._last is not None
        prefix, hidden = self._last
        for _ in range(tokens):
            token = int(self.engine.full_logits(hidden[None])[0].argmax())
            prefix, hidden = self.engine.step(token, prefix)

    def rules(self, prefix: list[int], questions: list[list[int]], way: str) -> Any:
        if way == "tree":
            return self.engine.score(self.engine.prefill(prefix), questions)
        return [self.engine.score(self.engine.prefill(prefix), [q]) for q in questions]


serve(EdgeJudge)
