"""The reference judge: a family's forward pass over the eager backend.

Takes a spec and weights by name; gives label logits and full logits of questions about pictures.
Slow and plain on purpose, since bundles are measured against it: one question at a time over a kept
prefix, and nothing packed but for what only chooses. All pictures pass a layer before the next one
is loaded, so that memory holds one layer of weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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

__all__ = ["Asked", "Flows", "Reference"]


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


@dataclass(frozen=True, slots=True)
class Flows:
    """A prefix and the questions over it, between two layers."""

    prefix: _Flow | None
    branches: list[_Flow]
    packed: tuple[int, ...] = ()  # lengths of the questions, where one branch is all of them

    def copy(self) -> "Flows":
        """Another way through the layers, from here on."""
        prefix = None if self.prefix is None else replace(self.prefix)
        return Flows(prefix, [replace(branch) for branch in self.branches], self.packed)

    def ends(self) -> Tensor:
        """Hidden states [B, D] of each question's last token."""
        if self.packed:
            return self.branches[0].hidden[0, np.cumsum(self.packed) - 1]
        return torch.stack([branch.hidden[0, -1] for branch in self.branches])


class Reference:
    """`ask` answers many questions at once; `prefill` and `extend` feed one prompt in pieces."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights | EagerOps,
        image_token_id: int,
        dtype: torch.dtype = torch.float32,
        observe: Callable[[str, Tensor], None] | None = None,
        packed: bool = False,
    ) -> None:
        """Weights, or a backend that has them and computes in a way of its own. `packed` takes all
        questions over a prefix in one pass.
        """
        self.spec = spec
        self._image_token_id = image_token_id
        self._family = family_named(spec.family)
        self._ops = weights if isinstance(weights, EagerOps) else EagerOps(weights, dtype, observe)
        self._packed = packed
        self._length = 0  # tokens in the cache
        self._position = 0  # rope position of the next one

    def release(self) -> None:
        """Frees the weights; they are read again when they are needed."""
        self._ops.release()

    @torch.inference_mode()
    def encode(self, feeds: Mapping[str, NDArray[Any]], layers: range | None = None) -> Tensor:
        """The vision graph's inputs -> visual tokens [N, D], packed where they say how. Of a run of
        `layers`, as the family's forward pass takes it, what it hands on, until the last one gives
        the tokens.
        """
        inputs = {name: self._ops.tensor(array) for name, array in feeds.items()}
        made: Tensor = self._family.vision(self._ops, self.spec, inputs, layers)
        if layers is not None and layers.stop < self.spec.vision.layers:
            return made
        tokens, packing = made.flatten(0, 1), Packing.of(feeds)
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
        flows = [self.flows(one) for one in asked]
        for layer in range(self.spec.text.layers):
            for each in flows:
                self.step(each, layer)
        return [each.ends() for each in flows]

    @torch.inference_mode()
    def step(self, flows: Flows, layer: int) -> None:
        """Takes one picture's prompts through one layer."""
        self._ops.cut(0)
        length = 0
        if flows.prefix is not None:
            self._pass(flows.prefix, range(layer, layer + 1))
            length = flows.prefix.hidden.shape[1]
        self._ops.apart = flows.packed
        for branch in flows.branches:
            self._pass(branch, range(layer, layer + 1))
            self._ops.cut(length)
        self._ops.apart = ()

    def ask(
        self, asked: Sequence[Asked], rows: tuple[int, ...] | None
    ) -> list[NDArray[np.float64]]:
        """Logits [B, vocab], or [B, R] of `rows` alone, at the end of each branch."""
        return [self.logits(e, rows).to(torch.float64).numpy() for e in self.ends(asked)]

    @torch.inference_mode()
    def flows(self, one: Asked, visual: Tensor | None = None) -> Flows:
        """Prompts before the first layer; `visual` tokens [N, D] where they are known already."""
        prefix, position = None, 0
        if one.ids:
            if visual is None and one.feeds is not None:
                visual = self.encode(one.feeds)
            positions = one.positions
            if positions is None:
                positions = np.arange(len(one.ids), dtype=np.int64)
            prefix, position = self._flow(one.ids, visual, positions), int(positions.max()) + 1
        places = [np.arange(position, position + len(ids)) for ids in one.branches]
        if self._packed:
            together = [token for ids in one.branches for token in ids]
            branches = [self._flow(together, None, np.concatenate(places))]
            return Flows(prefix, branches, tuple(map(len, places)))
        pairs = zip(one.branches, places, strict=True)
        return Flows(prefix, [self._flow(ids, None, place) for ids, place in pairs])

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
