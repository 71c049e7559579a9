"""Levels of a whole checkpoint by second order, one layer after another.

Takes a checkpoint and a plan, and where what is decided is kept; gives levels for every matrix that
the plan stores in blocks and that calibration pictures meet. Hessians are those of activations that
the layers before give as they are stored, and of the layer's own exact weights (OPTQ's way); memory
holds those of one layer. The LM head keeps the nearest levels: calibration asks it for the answers
of verdicts alone, which its exact rows give.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgejudge.export.blocks import Plan
from edgejudge.export.calibration import CalibrationPicture
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.levels import Levels
from edgejudge.export.observe import calibration_pictures
from edgejudge.export.quantize import Quantized, lowest_level
from edgejudge.export.reround import curvature_of, reround
from edgejudge.export.smoothing import linear_weights
from edgejudge.export.stored import Exact, Stored
from edgejudge.export.walk import Place, Walk, places_of
from edgejudge.export.weights import Source, matrix_shape

__all__ = ["DECIDING", "decide"]

DECIDING = "second-order rounding"
# Of a picture, at most: with all 72 that nano's are asked, tokens of questions outnumber those of
# pictures, and levels that suit them lose more elsewhere.
_QUESTIONS = 12


def decide(
    checkpoint: Checkpoint,
    plan: Plan,
    levels: Levels,
    dtype: torch.dtype,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> Plan:
    """The plan with those levels. What `levels` holds is not decided again."""
    pictures = [_fewer(p, i) for i, p in enumerate(calibration_pictures(checkpoint))]
    source, decided = checkpoint.weights, plan.with_levels(levels.get)
    walk = Walk(checkpoint, pictures, dtype)
    places = places_of(checkpoint)
    names = set(linear_weights(checkpoint.family, checkpoint.spec, source))
    names = {n for n in names if plan.bits_of(n) is not None and not plan.integer(n)}
    # What a checkpoint has packed already stays as it is.
    names = {n for n in names if not plan.packed(source, n)}
    if all(str(place) in levels for place in places):
        return decided
    for number, place in enumerate(places):
        progress(DECIDING, number / len(places))
        if str(place) not in levels:
            levels.put(str(place), _decided(walk, place, source, plan, names))
        if place != places[-1]:
            walk.on(place, walk.reference(Stored(source, decided)))
    return decided


def _fewer(picture: CalibrationPicture, number: int) -> CalibrationPicture:
    """Asked some of its questions, of which the next picture is asked others."""
    step = max(1, -(-len(picture.conditions) // _QUESTIONS))
    return replace(picture, conditions=picture.conditions[number % step :: step])


def _decided(
    walk: Walk, place: Place, source: Source, plan: Plan, names: Collection[str]
) -> dict[str, Quantized]:
    met = _Met(names)
    walk.through(place, walk.reference(Exact(source), met))
    found: dict[str, Quantized] = {}
    while met.sites:
        site = met.sites.pop(0)
        # First, since it says which weight is not finite.
        nearest = {name: [part.q for part in plan.quantized(source, name)] for name in site.names}
        curvature = curvature_of(site.hessian.numpy())
        del site  # a matrix as large is in memory already
        for name, parts in nearest.items():
            weight = source(name).reshape(matrix_shape(source, name))
            scales = np.concatenate([part.scales for part in parts])
            bits, block = parts[0].bits, parts[0].block
            lowest = lowest_level(bits, plan.recipe.searches(bits))
            found[name] = reround(weight, scales, bits, block, lowest, curvature)
    return found


class _Site(NamedTuple):
    """One value that some matrices are multiplied with, and the sum of its X^T X."""

    names: list[str]
    hessian: Tensor


class _Met:
    """Hessians of what each of these matrices meets, which those of one value share."""

    def __init__(self, names: Collection[str]) -> None:
        self.sites: list[_Site] = []
        self._names = names
        self._by_name: dict[str, _Site] = {}
        self._last: tuple[Tensor, _Site] | None = None

    def __call__(self, name: str, x: Tensor) -> None:
        if name not in self._names:
            return
        counted = self._last is not None and self._last[0] is x
        if name not in self._by_name:
            if not counted:
                width = x.shape[-1]
                self.sites.append(_Site([], torch.zeros(width, width, dtype=x.dtype)))
                self._last = x, self.sites[-1]
            site = self._last[1] if self._last is not None else self.sites[-1]
            site.names.append(name)
            self._by_name[name] = site
        if not counted:
            site = self._by_name[name]
            rows = x.reshape(-1, x.shape[-1])
            site.hessian.addmm_(rows.T, rows)
            self._last = x, site
