"""The reference judge: a family's forward pass over the eager backend.

Takes a spec and weights by name; gives label logits and full logits for token ids and visual
tokens, one question at a time over a kept prefix. Slow and plain on purpose: bundles are measured
against it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgejudge.export.eager import EagerOps
from edgejudge.export.stored import Weights
from edgejudge.models.families import family_named
from edgejudge.models.rope import rotation
from edgejudge.models.spec import ModelSpec

__all__ = ["Reference"]


class Reference:
    """Holds one prefix at a time; `score` asks questions over it."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        image_token_id: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.spec = spec
        self._image_token_id = image_token_id
        self._family = family_named(spec.family)
        self._ops = EagerOps(weights, dtype)
        self._length = 0  # tokens in the cache
        self._position = 0  # rope position of the next one

    @torch.inference_mode()
    def encode(self, feeds: Mapping[str, NDArray[Any]]) -> Tensor:
        """The vision graph's inputs -> visual tokens [N, D]."""
        inputs = {name: self._ops.tensor(array) for name, array in feeds.items()}
        tokens: Tensor = self._family.vision(self._ops, self.spec, inputs)
        return tokens.flatten(0, 1)

    @torch.inference_mode()
    def prefill(
        self,
        ids: Sequence[int],
        visual: Tensor | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """Starts over with these ids; visual rows replace the image tokens. Gives hidden [S, D]."""
        self._cut(0, 0)
        return self.extend(ids, visual, positions)

    @torch.inference_mode()
    def extend(
        self,
        ids: Sequence[int],
        visual: Tensor | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """Appends ids to the cache; gives their hidden states before the final norm, [S, D].

        `positions` [S] or [3, S] are rope positions; None goes on from the last one.
        """
        index = torch.tensor(ids, dtype=torch.int64)
        hidden = self._ops.embed(self._family.EMBEDDINGS, index)  # [S, D]
        if visual is not None:
            hidden[index == self._image_token_id] = visual
        if positions is None:
            positions = np.arange(self._position, self._position + len(ids), dtype=np.int64)
        text = self.spec.text
        cos, sin = rotation(positions, text.rope_theta, text.head_dim, text.rope_sections)
        turn = (self._ops.tensor(cos), self._ops.tensor(sin))
        layers = range(text.layers)
        out: Tensor = self._family.decoder(self._ops, self.spec, hidden[None], turn, layers)[0]
        self._length += len(ids)
        self._position = int(positions.max()) + 1
        return out

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: tuple[int, ...] | None = None) -> Tensor:
        """hidden [N, D] -> logits [N, vocab], or those of `rows` alone."""
        result: Tensor = self._family.head(self._ops, self.spec, hidden, rows)
        return result

    @torch.inference_mode()
    def score(
        self, branches: Sequence[Sequence[int]], rows: tuple[int, ...] | None
    ) -> NDArray[np.float64]:
        """Logits [B, R] at the end of each branch over the cached prefix, which stays."""
        length, position, ends = self._length, self._position, []
        for branch in branches:
            ends.append(self.extend(branch)[-1])
            self._cut(length, position)
        return self.logits(torch.stack(ends), rows).to(torch.float64).numpy()

    def score_blind(
        self, prompts: Sequence[Sequence[int]], rows: tuple[int, ...] | None
    ) -> NDArray[np.float64]:
        """The same for whole prompts, each on its own."""
        self._cut(0, 0)
        return self.score(prompts, rows)

    def _cut(self, length: int, position: int) -> None:
        self._ops.cut(length)
        self._length, self._position = length, position
