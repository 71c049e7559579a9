"""Pictures on their way through a judge, one layer after another.

Takes a checkpoint, pictures and weights as they will be stored; shows what the matrices of a layer
are multiplied with, and takes all pictures through it. Memory holds one layer of weights and what
the pictures hand on. Knows no recipe.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from edgejudge.export.calibration import CalibrationPicture
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.compile import asked_of
from edgejudge.export.reference import Flows, Reference
from edgejudge.export.stored import Weights

__all__ = ["Place", "Walk", "places_of"]


class Place(NamedTuple):
    """A layer of the tower or of the decoder; the connector belongs to the tower's last."""

    group: str
    layer: int

    def __str__(self) -> str:
        return f"{self.group}-{self.layer}"


def places_of(checkpoint: Checkpoint) -> list[Place]:
    """In the order of the forward pass."""
    spec = checkpoint.spec
    layers = (("vision", spec.vision.layers), ("decoder", spec.text.layers))
    return [Place(group, layer) for group, count in layers for layer in range(count)]


class Walk:
    """`through` may be asked again about a place; `on` may not."""

    def __init__(
        self, checkpoint: Checkpoint, pictures: Sequence[CalibrationPicture], dtype: torch.dtype
    ) -> None:
        self._checkpoint, self._dtype = checkpoint, dtype
        self._asked = asked_of(checkpoint, pictures)
        self._seen: list[dict[str, NDArray[Any]]] = [dict(a.feeds or {}) for a in self._asked]
        self._flows: list[Flows] = []

    def reference(self, weights: Weights, observe: Any = None) -> Reference:
        image = self._checkpoint.tokens.image
        return Reference(self._checkpoint.spec, weights, image, self._dtype, observe, packed=True)

    def through(self, place: Place, reference: Reference) -> None:
        """All pictures through the place, of which nothing is kept."""
        for _ in self._made(place, reference, [flows.copy() for flows in self._flows]):
            pass

    def on(self, place: Place, reference: Reference) -> None:
        """All pictures past the place."""
        made = list(self._made(place, reference, self._flows))
        if place.group == "decoder":
            return
        if place.layer < self._checkpoint.spec.vision.layers - 1:
            for feeds, hidden in zip(self._seen, made, strict=True):
                # What the first layer alone takes is not needed any more.
                feeds["hidden"] = hidden.numpy()
            return
        self._seen = []
        asked = zip(self._asked, made, strict=True)
        self._flows = [reference.flows(one, tokens) for one, tokens in asked]

    def _made(self, place: Place, reference: Reference, flows: list[Flows]) -> Iterator[Tensor]:
        if place.group == "vision":
            layers = range(place.layer, place.layer + 1)
            for feeds in self._seen:
                yield reference.encode(feeds, layers)
        for each in flows if place.group == "decoder" else []:
            reference.step(each, place.layer)
            yield torch.empty(0)
