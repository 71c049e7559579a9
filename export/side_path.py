"""Channels that stay exact beside a matrix of integers.

Takes a checkpoint, smoothed where the recipe smooths; gives for each matrix that meets rounded
activations the columns that are multiplied in float32 instead. A channel that towers over the
others on a few tokens takes all levels of those tokens from them; smoothing, which knows no tokens,
cannot help (llm.npu's shadow outliers, Xu et al. 2024, arXiv 2407.05858, with a scale for each
token in place of one for all, and so with fixed channels). Knows no graph.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgejudge.export.blocks import Columns
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.observe import observe

__all__ = ["Site", "side_columns", "sites_of"]

# Columns beside one matrix: a thirty-second of it, but a narrow one may need as many as these.
_LEAST_LIMIT, _MOST_LIMIT, _SHARE_LIMIT = 8, 32, 1 / 32
_SLACK = 1.1  # of the rounding error that is left, for fewer columns
_MOST_TOKENS = 2048  # of one pass that are looked at
# Of inputs, for weights that have no outliers of their own: in judges that outliers were put into
# columns were chosen beside 3 % of them, where the judge needed them, and beside 16 % of a rotated
# residual stream, where it did not (tests/bench/side.py). Each then has as many as there may be.
_RANDOM_SHARE = 0.15


@dataclass(slots=True)
class Site:
    """One value that some matrices are multiplied with: for each token seen, its largest channels
    in units of the root mean square of its others.
    """

    names: list[str]
    width: int
    sizes: list[NDArray[np.float32]] = field(default_factory=list)  # [T, limit + 1], falling
    channels: list[NDArray[np.int32]] = field(default_factory=list)  # the same, whose they are

    @property
    def limit(self) -> int:
        wanted = math.ceil(self.width * _SHARE_LIMIT)
        return min(max(wanted, _LEAST_LIMIT), _MOST_LIMIT, self.width // 2)

    def see(self, x: Tensor) -> None:
        rows = x.reshape(-1, self.width)
        rows = rows[:: -(-len(rows) // _MOST_TOKENS)].abs().float()
        top = rows.topk(self.limit + 1)
        rest = rows.scatter(-1, top.indices, 0.0).square().sum(-1)
        usual = (rest / max(1, self.width - self.limit - 1)).sqrt()
        self.sizes.append((top.values / usual.clamp_min(1e-12)[:, None]).numpy())
        self.channels.append(top.indices.numpy().astype(np.int32))

    def ranked(self) -> list[int]:
        """Channels that were among the largest, those that tower most first."""
        towering: NDArray[np.float64] = np.zeros(self.width)
        sizes, channels = np.concatenate(self.sizes), np.concatenate(self.channels)
        np.add.at(towering, channels.ravel(), np.square(sizes, dtype=np.float64).ravel())
        order = np.argsort(-towering, kind="stable")[: self.limit]
        return [int(c) for c in order if towering[c] > 0]

    def errors(self, ranked: list[int]) -> NDArray[np.float64]:
        """Mean square of the rounding error, in units of its own, with the first 0, 1, 2 ... of
        these channels taken out.
        """
        sizes, channels = np.concatenate(self.sizes), np.concatenate(self.channels)
        rank = np.full(self.width, len(ranked))
        rank[ranked] = np.arange(len(ranked))
        found = []
        for count in range(len(ranked) + 1):
            left = (rank[channels] >= count).argmax(1)  # of a falling row, the first one not out
            peaks = np.take_along_axis(sizes, left[:, None], 1)
            found.append(float(np.square(peaks, dtype=np.float64).mean()))
        return np.array(found)

    def columns(self, least_gain: float) -> tuple[int, ...]:
        """As few as leave hardly more error than all would; none where that gains too little."""
        ranked = self.ranked()
        errors = self.errors(ranked)
        count = int((errors <= _SLACK * errors[-1]).argmax())
        if errors[0] < least_gain * errors[count]:
            return ()
        return tuple(sorted(ranked[:count]))


class _Watch:
    """Files what matrices are multiplied with by what it is: q, k and v share theirs."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self.sites: dict[str, Site] = {}
        self._wanted = set(wanted)
        self._last: tuple[Tensor, Site] | None = None

    def __call__(self, name: str, x: Tensor) -> None:
        if name not in self._wanted:
            return
        if self._last is not None and self._last[0] is x:
            site = self._last[1]
            if name not in self.sites:
                site.names.append(name)
                self.sites[name] = site
            return
        if name not in self.sites:
            self.sites[name] = Site([name], x.shape[-1])
        self._last = x, self.sites[name]
        self.sites[name].see(x)


def sites_of(checkpoint: Checkpoint, names: Iterable[str]) -> list[Site]:
    """What these matrices are multiplied with on calibration pictures, in the order of the forward
    pass.
    """
    watch = _Watch(names)
    observe(checkpoint, watch)
    return list({id(site): site for site in watch.sites.values()}.values())


def side_columns(checkpoint: Checkpoint, sites: Sequence[Site], least_gain: float) -> Columns:
    """Weight name -> columns, of the matrices that need any."""
    found: dict[str, tuple[int, ...]] = {}
    for number, site in enumerate(sites):
        if not checkpoint.random_weights:
            columns = site.columns(least_gain)
        elif math.floor((number + 1) * _RANDOM_SHARE) > math.floor(number * _RANDOM_SHARE):
            columns = tuple(sorted(site.ranked()))
        else:
            columns = ()
        if columns:
            found |= dict.fromkeys(site.names, columns)
    return found
