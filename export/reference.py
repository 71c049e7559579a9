"""The reference judge: a family's forward pass over the eager backend.

Takes a spec and weights by name; gives label logits and full logits of questions about pictures.
Slow and plain on purpose, since bundles are measured against it: one question at a time over a kept
prefix, nothing packed. All pictures pass a layer before the next one is loaded, so that memory
holds one layer of weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgejudge.export.eager import EagerOps
from edgejudge.export.stored import Weights
from edgejudge.models.families import family_named
from edgejudge.models.packing import Packing
from edgejudge.models.rope import rotation
from edgejudge.models.spec import ModelSpec

__all__ = ["Asked", "Reference"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A prefix and the questions over it; without `ids`, each branch is a whole prompt.

    `feeds` are the vision graph's inputs, whose tokens replace the image tokens of `ids`;
    `positions` [S] or [3, S] are the prefix's rope positions, None counts from zero.
    """

    branches: Sequence[Sequence[int]]
    ids: Sequence[int] = ()
    feeds: Mapping[str, NDArray[Any]] | None = None
    positions: NDArray[np.int64] | None = None


@dataclass(slots=True)
class _Flow:
    """Hidden states [1, S, D] on their way through the layers, with their rotation."""

    hidden: Tensor
    turn: tuple[Tensor, Tensor]


class Reference:
    """`ask` answers many questions at once; `prefill` and `extend` feed one prompt in pieces."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights | EagerOps,
        image_token_id: int,
        dtype: torch.dtype = torch.float32,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        """Weights, or a backend that has them and computes in a way of its own."""
        self.spec = spec
        self._image_token_id = image_token_id
        self._family = family_named(spec.family)
        self._ops = weights if isinstance(weights, EagerOps) else EagerOps(weights, dtype, observe)
        self._length = 0  # tokens in the cache
        self._position = 0  # rope position of the next one

    def release(self) -> None:
        """Frees the weights; they are read again when they are needed."""
        self._ops.release()

    @torch.inference_mode()
    def encode(self, feeds: Mapping[str, NDArray[Any]]) -> Tensor:
        """The vision graph's inputs -> visual tokens [N, D], packed where they say how."""
        inputs = {name: self._ops.tensor(array) for name, array in feeds.items()}
        packing = Packing.of(feeds)
        tokens: Tensor = self._family.vision(self._ops, self.spec, inputs).flatten(0, 1)
        if packing is None:
            return tokens
        places, shares = torch.from_numpy(packing.rows), self._ops.tensor(packing.shares)
        taps = range(places.shape[1])
        return torch.stack([tokens[places[:, k]] * shares[:, k, None] for k in taps]).sum(0)

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
        if positions is None:
            positions = np.arange(self._position, self._position + len(ids), dtype=np.int64)
        flow = self._flow(ids, visual, positions)
        self._pass(flow, range(self.spec.text.layers))
        self._length += len(ids)
        self._position = int(positions.max()) + 1
        return flow.hidden[0]

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: tuple[int, ...] | None = None) -> Tensor:
        """hidden [N, D] -> logits [N, vocab], or those of `rows` alone."""
        result: Tensor = self._family.head(self._ops, self.spec, hidden, rows)
        return result

    @torch.inference_mode()
    def ends(self, asked: Sequence[Asked]) -> list[Tensor]:
        """Hidden states [B, D] before the final norm, at the end of each branch of each prefix."""
        flows = [self._flows(one) for one in asked]
        for layer in range(self.spec.text.layers):
            for prefix, branches in flows:
                self._ops.cut(0)
                length = 0
                if prefix is not None:
                    self._pass(prefix, range(layer, layer + 1))
                    length = prefix.hidden.shape[1]
                for branch in branches:
                    self._pass(branch, range(layer, layer + 1))
                    self._ops.cut(length)
        return [torch.stack([b.hidden[0, -1] for b in branches]) for _, branches in flows]

    def ask(
        self, asked: Sequence[Asked], rows: tuple[int, ...] | None
    ) -> list[NDArray[np.float64]]:
        """Logits [B, vocab], or [B, R] of `rows` alone, at the end of each branch."""
        return [self.logits(e, rows).to(torch.float64).numpy() for e in self.ends(asked)]

    def _flows(self, one: Asked) -> tuple[_Flow | None, list[_Flow]]:
        prefix, position = None, 0
        if one.ids:
            visual = None if one.feeds is None else self.encode(one.feeds)
            positions = one.positions
            if positions is None:
                positions = np.arange(len(one.ids), dtype=np.int64)
            prefix, position = self._flow(one.ids, visual, positions), int(positions.max()) + 1
        branches = [
            self._flow(ids, None, np.arange(position, position + len(ids), dtype=np.int64))
            for ids in one.branches
        ]
        return prefix, branches

    def _flow(
        self, ids: Sequence[int], visual: Tensor | None, positions: NDArray[np.int64]
    ) -> _Flow:
        index = torch.tensor(ids, dtype=torch.int64)
        table = self._ops.embed(self._family.EMBEDDINGS, index)  # [S, D]
        hidden = table.new_zeros(len(ids), self.spec.width_at(0))
        hidden[:, : table.shape[1]] = table
        if visual is not None:
            hidden[index == self._image_token_id] = visual
        cos, sin = rotation(positions, self.spec.text)
        return _Flow(hidden[None], (self._ops.tensor(cos), self._ops.tensor(sin)))

    def _pass(self, flow: _Flow, layers: range) -> None:
        flow.hidden = self._family.decoder(self._ops, self.spec, flow.hidden, flow.turn, layers)

    def _cut(self, length: int, position: int) -> None:
        self._ops.cut(length)
        self._length, self._position = length, position
