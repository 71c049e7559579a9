"""Pictures made of encoded views: what the text model is trained on once the tower stands still.

The family's tower sees every tile and the global view by itself, so any views it has encoded once
may stand side by side as a new picture. A few thousand of them give the text model endless
pictures for its own arithmetic alone. Takes a model and a Stage; gives visual tokens with what they
show. Does not know questions or losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from losses import Losses
from scene import Item, Scene, Stage, ensemble, views_of

VIEW_COUNTS = (0.42, 0.3, 0.14, 0.08, 0.06)  # probability of 0, 1, 2 ... stickers in a pool's view
OTHER_GROUND = 0.3  # of the bare tiles of a whole picture are exchanged for others
AT_ONCE = 64


@torch.no_grad()
def encode(losses: Losses, scenes: list[Scene]) -> torch.Tensor:
    """Visual tokens of scenes of one layout, float16 [N, V, T, D]."""
    pixels = torch.from_numpy(np.stack([views_of(s) for s in scenes]))
    tokens = [losses.visual_tokens(p) for p in torch.split(pixels.flatten(0, 1), AT_ONCE)]
    whole = torch.cat(tokens).half()
    return whole.reshape(*pixels.shape[:2], *whole.shape[1:])


def places(rows: int, cols: int, side: int, pictures: int) -> torch.Tensor:
    """Of each visual token of some pictures of one layout: in which it lies, as 0 for the first to
    1 for the last, and where in it, down and across in 0..1; float32 [N, 3]. A tile has side x side
    tokens, as has the view of the whole.
    """
    number = torch.arange(side * side)
    y, x = (number // side + 0.5) / side, (number % side + 0.5) / side
    tiles = [
        torch.stack([(r + y) / rows, (c + x) / cols], 1) for r in range(rows) for c in range(cols)
    ]
    one = torch.cat([*tiles, torch.stack([y, x], 1)])
    which = torch.linspace(0, 1, pictures).repeat_interleave(len(one))
    return torch.cat([which[:, None], one.repeat(pictures, 1)], 1)


class Whole(NamedTuple):
    """Encoded pictures of one layout, with what each shows, on which of its visual tokens, and
    which of its tiles show nothing.
    """

    tokens: torch.Tensor  # float16 [M, V, T, D]
    shown: np.ndarray  # int8 [M, C]
    bare: np.ndarray  # bool [M, V]
    lies: np.ndarray  # bool [M, V, T, C]
    items: list[tuple[Item, ...]]  # of each


class Known(NamedTuple):
    """One of them: tokens [V, T, D], what it shows [C], on which of its tokens [V, T, C], its
    items, and its bare tiles in any order.
    """

    tokens: torch.Tensor
    shown: np.ndarray
    lies: np.ndarray
    items: tuple[Item, ...]
    bare: np.ndarray


@dataclass(slots=True)
class Pool:
    """Encoded views and pictures, each with what it shows (int8 [.., C]: 1, 0, -1 unclear)."""

    views: torch.Tensor  # float16 [N, T, D]
    shown: np.ndarray  # int8 [N, C]
    pictures: dict[tuple[int, int], Whole]
    _full: np.ndarray = field(init=False)  # views that show something
    _bare: np.ndarray = field(init=False)  # views that show nothing, and are clear about it

    def __post_init__(self) -> None:
        self._full = np.flatnonzero((self.shown == 1).any(1))
        self._bare = np.flatnonzero((self.shown == 0).all(1))

    @classmethod
    def fill(
        cls,
        losses: Losses,
        stage: Stage,
        rng: np.random.Generator,
        views: int,
        pictures: dict[tuple[int, int], int],
    ) -> Pool:
        """Draws and encodes `views` single views and so many whole pictures of each layout."""
        tokens, shown = [], []
        for _ in range(-(-views // AT_ONCE)):
            counts = rng.choice(len(VIEW_COUNTS), AT_ONCE, p=VIEW_COUNTS)
            scenes = [stage.view(rng, int(n)) for n in counts]
            tokens.append(encode(losses, scenes)[:, 0])
            shown.append(np.stack([s.present for s in scenes]))
        whole = {}
        for (rows, cols), count in pictures.items():
            encoded, present, bare, lies, items = [], [], [], [], []
            for nth in range(-(-count // 4)):
                scenes = []
                for _ in range(4):  # every other four as they are sent, the rest for what relates
                    show = ensemble(rng, stage.weights) if nth % 2 else None
                    scenes.append(stage.scene(rng, rows, cols, show=show))
                items += [s.items for s in scenes]
                encoded.append(encode(losses, scenes))
                present.append(np.stack([s.present for s in scenes]))
                lies.append(np.stack([s.dense == 1 for s in scenes]))
                bare.append(np.stack([(s.sprite == 0).all(axis=1) for s in scenes]))
            clear = np.concatenate(bare)
            clear[:, -1] = False  # the global view
            shows, on = np.concatenate(present), np.concatenate(lies)
            whole[rows, cols] = Whole(torch.cat(encoded), shows, clear, on, items)
        return cls(torch.cat(tokens), np.concatenate(shown), whole)

    def mosaic(
        self, rng: np.random.Generator, rows: int, cols: int
    ) -> tuple[torch.Tensor, np.ndarray]:
        """A picture of rows x cols tiles and a global view, put together from views that never met:
        tokens [V, T, D] and what they show.

        The global view mostly repeats something of a tile, as a real one would.
        """
        count = rows * cols + 1
        picks = rng.choice(self._bare, count)
        tiles = rng.permutation(max(1, count - 1))[: int(rng.integers(0, 6))]
        if len(tiles) and rng.random() < 0.9:
            picks[tiles] = rng.choice(self._full, len(tiles))
            if count > 1 and rng.random() < 0.6:
                repeated = rng.choice(np.flatnonzero((self.shown[picks] == 1).any(0)))
                picks[-1] = rng.choice(np.flatnonzero(self.shown[:, repeated] == 1))
        shown = _union(self.shown[picks])
        return self.views[torch.from_numpy(picks)], shown

    def known(self, rng: np.random.Generator, rows: int, cols: int) -> Known:
        """One of the whole pictures of a layout, some of its bare tiles exchanged for other
        ground.
        """
        whole = self.pictures[rows, cols]
        pick = int(rng.integers(len(whole.tokens)))
        tokens = whole.tokens[pick].clone()
        bare = rng.permutation(np.flatnonzero(whole.bare[pick]))
        ground = bare[rng.random(len(bare)) < OTHER_GROUND]
        tokens[ground] = self.views[rng.choice(self._bare, len(ground))]
        return Known(tokens, whole.shown[pick], whole.lies[pick], whole.items[pick], bare)

    def picture(
        self, rng: np.random.Generator, rows: int, cols: int
    ) -> tuple[torch.Tensor, np.ndarray]:
        """As `known`, with views that show something in some of the bare tiles: the same few
        thousand pictures come back every few hundred steps.
        """
        tokens, present, _, _, bare = self.known(rng, rows, cols)
        shown = present[None]
        pasted = bare[: int(rng.integers(0, 4))]
        views = rng.choice(self._full, len(pasted))
        tokens[pasted] = self.views[views]
        return tokens, _union(np.concatenate([shown, self.shown[views]]))


def _union(shown: np.ndarray) -> np.ndarray:
    """What views show together, int8 [C]. shown [N, C]."""
    unclear = np.where((shown == -1).any(0), -1, 0)
    return np.where((shown == 1).any(0), 1, unclear).astype(np.int8)
