"""Pictures for the nano judge: stickers on backgrounds, with what is where.

`Stage(split, sprites, photos)` gives `scene(rng, rows, cols)`: the views the vision tower sees, the
concepts present, and which visual token lies on which sticker; `view(rng)` gives one view as the
tower meets it, tile or global, crowded with stickers. Does not know questions, words or the model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import backgrounds
import numpy as np
from concepts import CONCEPTS
from PIL import Image, ImageEnhance, ImageFilter

VIEW = 144  # edge of one view in pixels
CELL = 36  # edge of what one visual token covers: patch 12 x pixel shuffle 3
COUNTS = (
    0.10,
    0.30,
    0.25,
    0.17,
    0.10,
    0.05,
    0.03,
)  # probability of 0, 1, 2 ... stickers in a picture
DISTRACTOR_SHARE = 0.2
GREY = 0.1  # of the pictures to train on have no colour
FAVOUR = 2.5  # how much more often a tower's weak concepts are drawn
IGNORE = 2  # dense label of a token that is neither clearly on a sticker nor clearly off it
RECOGNISABLE = 0.3  # share of a sticker that a view must show before it may be asked to name it
# Width over height of the stretch a view has undergone: tiles of a 16:9 picture are 4:3 too high,
# its global view is 16:9 too narrow.
STRETCHES = ((1.0, 0.5), (0.75, 0.17), (1.333, 0.13), (0.5625, 0.12), (1.778, 0.08))

_WEIGHTS = np.array([c.weight for c in CONCEPTS])
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True, slots=True)
class Item:
    """One sticker in a picture: its concept (-1 for a distractor), its middle in shares of the
    picture's width and height, and the longer edge of its box in pixels.
    """

    concept: int
    x: float
    y: float
    edge: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture. V = rows * cols + 1 views, or 1; T = 16 visual tokens a view; C concepts."""

    image: Image.Image
    present: np.ndarray  # int8 [C]: 1 shown, 0 not, -1 neither to be asked nor scored
    dense: np.ndarray  # uint8 [V, T, C]: 1, 0 or IGNORE
    sprite: np.ndarray  # int16 [V, T]: 1 + row of the drawing it lies on, 0 background, -1 unclear
    rows: int  # 0 when the picture is one global view
    cols: int
    items: tuple[Item, ...] = ()  # of a whole picture; views have none


@dataclass(slots=True)
class _Placed:
    concept: int  # -1 for a distractor
    row: int  # of the drawing in sprites.npz
    mask: Image.Image  # its visible alpha on the canvas
    share: float  # area of the whole sticker over the canvas's, hidden and cut parts included
    box: tuple[int, int, int, int]


def contents(
    rng: np.random.Generator, count: int | None = None, weights: np.ndarray = _WEIGHTS
) -> list[int]:
    """Concept index of each sticker of a picture, -1 for a distractor. `weights` [C] sum to 1."""
    if count is None:
        count = int(rng.choice(len(COUNTS), p=COUNTS))
    return [
        -1 if rng.random() < DISTRACTOR_SHARE else int(rng.choice(len(CONCEPTS), p=weights))
        for _ in range(count)
    ]


def ensemble(rng: np.random.Generator, weights: np.ndarray = _WEIGHTS) -> list[int]:
    """As `contents`, for what asks how things relate: the same concept several times, or several
    different ones, or a crowd.
    """
    kind = rng.random()
    one = int(rng.choice(len(CONCEPTS), p=weights))
    if kind < 0.4:
        return [one] * int(rng.integers(1, 6)) + contents(rng, int(rng.integers(0, 3)), weights)
    if kind < 0.8:
        return contents(rng, int(rng.integers(2, 5)), weights)
    return contents(rng, int(rng.integers(0, 11)), weights)


def base_rates(draws: int = 40_000, seed: int = 0, weights: np.ndarray = _WEIGHTS) -> np.ndarray:
    """Share of pictures that show each concept, float64 [C]; what a judge should say without an
    image.
    """
    rng = np.random.default_rng(seed)
    shown = np.zeros(len(CONCEPTS))
    for _ in range(draws):
        for index in {i for i in contents(rng, weights=weights) if i >= 0}:
            shown[index] += 1
    return shown / draws


class Stage:
    """Sprites and photographs of one split, and the drawing of scenes from them."""

    def __init__(
        self,
        split: str,
        sprites: Path,
        photos: Path,
        artists: tuple[str, ...] | None = None,
        concepts: Collection[str] | None = None,
        favoured: Collection[str] = (),
    ) -> None:
        """`artists` and `concepts` leave out the drawings of all others; `favoured` concepts are
        drawn FAVOUR times as often.
        """
        weights = _WEIGHTS * np.where([c.name in favoured for c in CONCEPTS], FAVOUR, 1.0)
        if concepts is not None:
            weights = weights * [c.name in concepts for c in CONCEPTS]
        self.weights = weights / weights.sum()
        data = np.load(sprites)
        keep = np.ones(len(data["concept"]), bool)
        if artists is not None:
            keep = np.isin(data["artist"], artists)
        rgba = data["rgba"][keep]
        concept = data["concept"][keep]
        self._rgba = rgba
        self._wild = split == "train"
        self._rows = [np.flatnonzero(concept == i) for i in range(len(CONCEPTS))]
        self._distractors = np.flatnonzero(concept < 0)
        stored = np.load(photos, allow_pickle=True)
        mine = stored["split"] == split
        names = [c.name for c in CONCEPTS]
        self._photos = list(stored["rgb"][mine])
        self._shows = [
            [names.index(n) for n in s.split(",") if n in names] for s in stored["shows"][mine]
        ]

    def scene(
        self,
        rng: np.random.Generator,
        rows: int = 0,
        cols: int = 0,
        size: tuple[int, int] | None = None,
        busy: bool = False,
        show: list[int] | None = None,
    ) -> Scene:
        """A picture for rows x cols tiles (0 x 0: one view), or of a free `size` (width, height)
        without dense labels.

        A tiled picture is drawn square or 16:9 and then stretched to its tiles, as the family's
        preprocessing does. A busy one holds 3 to 8 stickers: not what users send, but more
        labels for the same arithmetic.
        """
        longest = max(rows, cols, 1) * VIEW
        wide = longest if rows == cols else longest * 9 // 16
        width, height = size or (
            longest if cols >= rows else wide,
            longest if rows >= cols else wide,
        )
        present = np.zeros(len(CONCEPTS), np.int8)
        canvas = self._background(rng, width, height, present)
        small = 0.0625 * longest if rows else 0.2 * VIEW
        if size is not None:
            small = 0.0625 * max(size)  # 120 px in a 1920 px screenshot
        large = (0.5 if busy or (show and len(show) > 3) else 0.8) * min(width, height)
        drawn = contents(rng, int(rng.integers(3, 9)) if busy else None, self.weights)
        placed: list[_Placed] = []
        for index in drawn if show is None else show:
            row = self._pick(rng, index)
            if row is None:
                continue
            edge = _log_uniform(rng, small, max(large, small * 1.2))
            self._place(rng, canvas, placed, index, row, edge, cut=0.06)
        for one in placed:
            if one.concept >= 0:
                present[one.concept] = 1
        items = tuple(
            Item(
                one.concept,
                (one.box[0] + one.box[2]) / 2 / width,
                (one.box[1] + one.box[3]) / 2 / height,
                float(max(one.box[2] - one.box[0], one.box[3] - one.box[1])),
            )
            for one in placed
        )
        canvas = self._degrade(rng, canvas, GREY if self._wild else 0.0)
        if size is not None:
            none = np.zeros((0, 0), np.int16)
            return Scene(canvas, present, none[..., None].astype(np.uint8), none, 0, 0, items)
        if rows:
            grid = (cols * VIEW, rows * VIEW)
            canvas = canvas.resize(grid, Image.Resampling.LANCZOS)
            for one in placed:
                one.mask = one.mask.resize(grid, Image.Resampling.BOX)
        return Scene(canvas, present, *_labels(placed, rows, cols), rows, cols, items)

    def view(self, rng: np.random.Generator, count: int | None = None) -> Scene:
        """One view as the tower meets it among tiles and global views: `count` or 1 to 7 stickers,
        stretched as the picture was, cut by the view's edge, some too close to be seen whole.

        A concept of which too little is visible is neither asked nor scored.
        """
        present = np.zeros(len(CONCEPTS), np.int8)
        canvas = self._background(rng, VIEW, VIEW, present)
        stretch = STRETCHES[int(rng.choice(len(STRETCHES), p=[p for _, p in STRETCHES]))][0]
        placed: list[_Placed] = []
        cut = 0.5 if rng.random() < 0.4 else 0.06
        count = int(rng.integers(1, 8)) if count is None else count
        for nth, index in enumerate(contents(rng, count, self.weights)):
            row = self._pick(rng, index)
            if row is None:
                continue
            near = nth == 0 and rng.random() < 0.2
            edge = _log_uniform(rng, *((100, 300) if near else (24, 100)))
            self._place(rng, canvas, placed, index, row, edge, 0.7 if near else cut, stretch)
        canvas = self._degrade(rng, canvas, GREY if self._wild else 0.0)
        dense, sprite = _labels(placed, 0, 0)
        shown = dense[0].max(axis=0, initial=0, where=dense[0] != IGNORE)
        dim = (dense[0] == IGNORE).any(axis=0)
        present = np.where(shown == 1, 1, np.where(dim | (present < 0), -1, 0)).astype(np.int8)
        return Scene(canvas, present, dense, sprite, 0, 0)

    def _pick(self, rng: np.random.Generator, index: int) -> int | None:
        pool = self._distractors if index < 0 else self._rows[index]
        return int(pool[int(rng.integers(len(pool)))]) if len(pool) else None

    def _place(
        self,
        rng: np.random.Generator,
        canvas: Image.Image,
        placed: list[_Placed],
        index: int,
        row: int,
        edge: float,
        cut: float,
        stretch: float = 1.0,
    ) -> None:
        """Draws one sticker where there is room, at most `cut` of its width or height outside."""
        sticker = self._sticker(rng, self._rgba[row], edge)
        if stretch != 1.0:
            w, h = sticker.width * stretch**0.5, sticker.height / stretch**0.5
            sticker = sticker.resize(
                (max(4, round(w)), max(4, round(h))), Image.Resampling.BILINEAR
            )
        spot = _spot(rng, [one.box for one in placed], sticker.size, canvas.size, cut)
        if spot is None:
            return
        alpha = sticker.getchannel("A")
        for one in placed:  # what lies under it is covered
            one.mask.paste(0, spot, alpha)
        canvas.paste(sticker, spot, alpha)
        mask = Image.new("L", canvas.size)
        mask.paste(alpha, spot)
        whole = float(np.asarray(alpha, np.float32).sum()) / 255
        box = (*spot, spot[0] + sticker.width, spot[1] + sticker.height)
        placed.append(_Placed(index, row, mask, whole / (canvas.width * canvas.height), box))

    def _background(
        self, rng: np.random.Generator, width: int, height: int, present: np.ndarray
    ) -> Image.Image:
        if self._photos and rng.random() < 0.45:
            pick = int(rng.integers(len(self._photos)))
            present[self._shows[pick]] = -1
            if self._wild and rng.random() < 0.6:
                # Another photograph may lie over this one: what any of them shows is unclear.
                present[[i for shows in self._shows for i in shows]] = -1
                return backgrounds.wild_crop(rng, self._photos, pick, width, height)
            return backgrounds.crop(rng, self._photos[pick], width, height)
        return backgrounds.drawn(rng, width, height)

    @staticmethod
    def _sticker(rng: np.random.Generator, rgba: np.ndarray, edge: float) -> Image.Image:
        """One drawing, scaled; mostly as its artist drew it, which is how chat apps paste them, now
        and then mirrored, turned, recoloured or outlined.
        """
        squeeze = rng.uniform(0.88, 1.12)
        image = Image.fromarray(rgba).resize(
            (max(6, int(edge * min(1.0, squeeze))), max(6, int(edge * min(1.0, 1 / squeeze)))),
            Image.Resampling.BICUBIC,
            reducing_gap=2.0,
        )
        if rng.random() < 0.15:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.25:
            turn = rng.uniform(-20, 20) if rng.random() < 0.94 else rng.uniform(-180, 180)
            image = image.rotate(turn, Image.Resampling.BICUBIC, expand=True)
        if rng.random() < 0.25:
            pixels = np.asarray(image).astype(np.float32)
            gain = rng.uniform(0.8, 1.2) * rng.uniform(0.92, 1.08, 3)
            pixels[..., :3] = np.clip(pixels[..., :3] * gain + rng.uniform(-15, 15), 0, 255)
            if rng.random() < 0.05:
                pixels[..., :3] = pixels[..., :3].mean(axis=2, keepdims=True)
            if rng.random() < 0.15:
                pixels[..., 3] *= rng.uniform(0.75, 1.0)
            image = Image.fromarray(pixels.astype(np.uint8))
        if rng.random() < 0.2:  # the white rim of a chat sticker
            rim = max(1, int(edge * rng.uniform(0.02, 0.06)))
            wide = Image.new(
                "RGBA", (image.width + 2 * rim, image.height + 2 * rim), (255, 255, 255, 0)
            )
            wide.paste(image, (rim, rim))
            halo = wide.getchannel("A").filter(ImageFilter.MaxFilter(2 * min(rim, 6) + 1))
            base = Image.new("RGBA", wide.size, (255, 255, 255, 255))
            base.putalpha(halo)
            image = Image.alpha_composite(base, wide)
        return image

    @staticmethod
    def _degrade(rng: np.random.Generator, image: Image.Image, grey: float) -> Image.Image:
        """What cameras, screens and messengers do to a picture; a share `grey` has no colour."""
        if grey and rng.random() < grey:
            image = image.convert("L").convert("RGB")
        if rng.random() < 0.25:
            image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.7, 1.25)))
        if rng.random() < 0.15:
            image = ImageEnhance.Color(image).enhance(float(rng.uniform(0.3, 1.4)))
        if rng.random() < 0.12:
            image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0))))
        if rng.random() < 0.12:
            pixels = np.asarray(image, np.int16) + rng.integers(
                -14, 15, (image.height, image.width, 1), np.int16
            )
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        if rng.random() < 0.25:
            buffer = BytesIO()
            image.save(buffer, "JPEG", quality=int(rng.integers(35, 95)))
            image = Image.open(BytesIO(buffer.getvalue())).convert("RGB")
        return image


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _spot(
    rng: np.random.Generator,
    boxes: list[tuple[int, int, int, int]],
    size: tuple[int, int],
    canvas: tuple[int, int],
    cut: float,
) -> tuple[int, int] | None:
    """Where it may lie without hiding more than a little of another; None when there is no room."""
    w, h = size
    width, height = canvas
    for _ in range(12):
        x = int(rng.uniform(-cut * w, max(1.0, width - (1 - cut) * w)))
        y = int(rng.uniform(-cut * h, max(1.0, height - (1 - cut) * h)))
        for a, b, c, d in boxes:
            overlap = max(0, min(c, x + w) - max(a, x)) * max(0, min(d, y + h) - max(b, y))
            if overlap > 0.12 * min(w * h, (c - a) * (d - b)):
                break
        else:
            return x, y
    return None


def _view_labels(
    placed: list[_Placed], covers: list[np.ndarray], tiles: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of one view, a `tiles`-th of the canvas, from the share of each of its cells that each
    sticker covers, float [S, S] each: dense uint8 [T, C] and sprite int16 [T].
    """
    tokens = (VIEW // CELL) ** 2
    dense = np.zeros((tokens, len(CONCEPTS)), np.uint8)
    sprite = np.zeros(tokens, np.int16)
    best = np.zeros(tokens, np.float32)
    for one, grid in zip(placed, covers, strict=True):
        cover = grid.ravel()
        total = float(cover.sum())
        on = (cover >= 0.25) | ((cover >= 0.4 * total) & (cover > 0.02))
        # a speck, or a part too small to tell what it belongs to
        if total < 0.15 or total < RECOGNISABLE * one.share * tiles * tokens:
            on = np.zeros_like(on)
        sprite[(cover > 0.02) & (best == 0)] = -1
        take = on & (cover > best)
        sprite[take], best[take] = one.row + 1, cover[take]
        if one.concept >= 0:
            layer = dense[:, one.concept]
            layer[(cover > 0.02) & ~on & (layer != 1)] = IGNORE
            layer[on] = 1
    return dense, sprite


def _labels(placed: list[_Placed], rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of every visual token, view by view, tiles first and the global view last: dense uint8
    [V, T, C] and sprite int16 [V, T].
    """
    side = VIEW // CELL
    grids = [np.asarray(one.mask.reduce(CELL), np.float32) / 255 for one in placed]
    views = []
    for r in range(rows):
        for c in range(cols):
            part = np.s_[r * side : (r + 1) * side, c * side : (c + 1) * side]
            views.append(_view_labels(placed, [g[part] for g in grids], rows * cols))
    shrunk = [one.mask.resize((side, side), Image.Resampling.BOX) for one in placed]
    covers = [np.asarray(m, np.float32) / 255 for m in shrunk]
    views.append(_view_labels(placed, covers, 1))
    return np.stack([d for d, _ in views]), np.stack([s for _, s in views])


def views_of(scene: Scene) -> np.ndarray:
    """The picture as the family's preprocessing would cut it: uint8 [V, 3, VIEW, VIEW], tiles then
    global.
    """
    pixels = np.asarray(scene.image)
    out = []
    for r in range(scene.rows):
        for c in range(scene.cols):
            out.append(pixels[r * VIEW : (r + 1) * VIEW, c * VIEW : (c + 1) * VIEW])
    if scene.rows:
        whole = scene.image.resize((VIEW, VIEW), Image.Resampling.LANCZOS)
        out.append(np.asarray(whole))
    else:
        out.append(pixels)
    return np.stack(out).transpose(0, 3, 1, 2)
