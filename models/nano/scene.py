"""Pictures for the nano judge: stickers on backgrounds, with what is where.

`Stage(split, sprites, photos)` gives `scene(rng, rows, cols)`: the views the vision tower sees, the
concepts present, and which visual token lies on which sticker. Does not know questions, words or
the model.
"""

from __future__ import annotations

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
IGNORE = 2  # dense label of a token that is neither clearly on a sticker nor clearly off it

_WEIGHTS = np.array([c.weight for c in CONCEPTS])
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture. V = rows * cols + 1 views, or 1; T = 16 visual tokens a view; C concepts."""

    image: Image.Image
    present: np.ndarray  # int8 [C]: 1 shown, 0 not, -1 neither to be asked nor scored
    dense: np.ndarray  # uint8 [V, T, C]: 1, 0 or IGNORE
    rows: int  # 0 when the picture is one global view
    cols: int


def contents(rng: np.random.Generator, count: int | None = None) -> list[int]:
    """Concept index of each sticker of a picture, -1 for a distractor."""
    if count is None:
        count = int(rng.choice(len(COUNTS), p=COUNTS))
    return [
        -1 if rng.random() < DISTRACTOR_SHARE else int(rng.choice(len(CONCEPTS), p=_WEIGHTS))
        for _ in range(count)
    ]


def base_rates(draws: int = 40_000, seed: int = 0) -> np.ndarray:
    """Share of pictures that show each concept, float64 [C]; what a judge should say without an
    image.
    """
    rng = np.random.default_rng(seed)
    shown = np.zeros(len(CONCEPTS))
    for _ in range(draws):
        for index in {i for i in contents(rng) if i >= 0}:
            shown[index] += 1
    return shown / draws


class Stage:
    """Sprites and photographs of one split, and the drawing of scenes from them."""

    def __init__(
        self, split: str, sprites: Path, photos: Path, artists: tuple[str, ...] | None = None
    ) -> None:
        data = np.load(sprites)
        keep = np.ones(len(data["concept"]), bool)
        if artists is not None:
            keep = np.isin(data["artist"], artists)
        rgba = data["rgba"][keep]
        concept = data["concept"][keep]
        self._by_concept = [rgba[concept == i] for i in range(len(CONCEPTS))]
        self._distractors = rgba[concept < 0]
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
        crowd: bool = False,
        show: list[int] | None = None,
    ) -> Scene:
        """A picture for rows x cols tiles (0 x 0: one view), or of a free `size` (width, height)
        without dense labels.

        A crowd holds 3 to 7 stickers: not what users send, but many dense labels for the
        same arithmetic.
        """
        width, height = size or (max(cols, 1) * VIEW, max(rows, 1) * VIEW)
        present = np.zeros(len(CONCEPTS), np.int8)
        canvas = self._background(rng, width, height, present)
        small = (0.22 if rows else 0.2) * VIEW
        if size is not None:
            small = 0.0625 * max(size)  # 120 px in a 1920 px screenshot
        placed: list[tuple[int, Image.Image]] = []  # (concept, visible alpha on the canvas)
        boxes: list[tuple[int, int, int, int]] = []
        large = (0.6 if crowd else 0.8) * min(width, height)
        drawn = contents(rng, int(rng.integers(3, 8)) if crowd else None)
        for index in drawn if show is None else show:
            pool = self._distractors if index < 0 else self._by_concept[index]
            if len(pool) == 0:
                continue
            sprite = self._sticker(rng, pool[int(rng.integers(len(pool)))], small, large)
            spot = self._spot(rng, boxes, sprite.size, width, height)
            if spot is None:
                continue
            boxes.append((*spot, spot[0] + sprite.width, spot[1] + sprite.height))
            alpha = sprite.getchannel("A")
            for _, mask in placed:  # what lies under it is covered
                mask.paste(0, spot, alpha)
            canvas.paste(sprite, spot, alpha)
            mask = Image.new("L", (width, height))
            mask.paste(alpha, spot)
            placed.append((index, mask))
            if index >= 0:
                present[index] = 1
        canvas = self._degrade(rng, canvas)
        dense = np.zeros((0, 0, 0), np.uint8) if size is not None else _dense(placed, rows, cols)
        return Scene(canvas, present, dense, rows, cols)

    def _background(
        self, rng: np.random.Generator, width: int, height: int, present: np.ndarray
    ) -> Image.Image:
        if self._photos and rng.random() < 0.45:
            pick = int(rng.integers(len(self._photos)))
            present[self._shows[pick]] = -1
            return backgrounds.crop(rng, self._photos[pick], width, height)
        return backgrounds.drawn(rng, width, height)

    def _sticker(
        self, rng: np.random.Generator, rgba: np.ndarray, small: float, large: float
    ) -> Image.Image:
        """One drawing, scaled (log-uniform edge), turned, recoloured, perhaps outlined."""
        edge = float(np.exp(rng.uniform(np.log(small), np.log(max(large, small * 1.2)))))
        squeeze = rng.uniform(0.88, 1.12)
        image = Image.fromarray(rgba).resize(
            (max(6, int(edge * min(1.0, squeeze))), max(6, int(edge * min(1.0, 1 / squeeze)))),
            Image.Resampling.BICUBIC,
            reducing_gap=2.0,
        )
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.35:
            turn = rng.uniform(-25, 25) if rng.random() < 0.92 else rng.uniform(-180, 180)
            image = image.rotate(turn, Image.Resampling.BICUBIC, expand=True)
        if rng.random() < 0.35:
            pixels = np.asarray(image).astype(np.float32)
            gain = rng.uniform(0.75, 1.25) * rng.uniform(0.88, 1.12, 3)
            pixels[..., :3] = np.clip(pixels[..., :3] * gain + rng.uniform(-20, 20), 0, 255)
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
    def _spot(
        rng: np.random.Generator,
        boxes: list[tuple[int, int, int, int]],
        size: tuple[int, int],
        width: int,
        height: int,
    ) -> tuple[int, int] | None:
        """Where it may lie without hiding more than a little of another; None when there is no
        room.
        """
        w, h = size
        for _ in range(12):
            x = int(rng.uniform(-0.06 * w, max(1.0, width - 0.94 * w)))
            y = int(rng.uniform(-0.06 * h, max(1.0, height - 0.94 * h)))
            for a, b, c, d in boxes:
                overlap = max(0, min(c, x + w) - max(a, x)) * max(0, min(d, y + h) - max(b, y))
                if overlap > 0.12 * min(w * h, (c - a) * (d - b)):
                    break
            else:
                return x, y
        return None

    @staticmethod
    def _degrade(rng: np.random.Generator, image: Image.Image) -> Image.Image:
        """What cameras, screens and messengers do to a picture."""
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


def _cells(placed: list[tuple[int, Image.Image]], scale: float) -> np.ndarray:
    """uint8 [H / CELL, W / CELL, C] labels of every cell of a canvas; `scale` is the view's size
    over the canvas's.
    """
    first = placed[0][1]
    labels = np.zeros((first.height // CELL, first.width // CELL, len(CONCEPTS)), np.uint8)
    for index, mask in placed:
        if index < 0:
            continue
        cover = np.asarray(mask.reduce(CELL), np.float32) / 255
        total = float(cover.sum())
        on = (cover >= 0.25) | (cover >= 0.4 * total)
        if (
            total * scale * scale < 0.15
        ):  # a speck in the small global view: nothing can be asked of it
            on = np.zeros_like(on)
        layer = labels[..., index]
        layer[(cover > 0.02) & ~on & (layer != 1)] = IGNORE
        layer[on & (cover > 0.02)] = 1
    return labels


def _dense(placed: list[tuple[int, Image.Image]], rows: int, cols: int) -> np.ndarray:
    """Labels of every visual token, view by view, tiles first and the global view last: uint8 [V,
    T, C].
    """
    side = VIEW // CELL
    views = rows * cols + 1
    if not placed:
        return np.zeros((views, side * side, len(CONCEPTS)), np.uint8)
    out = []
    if rows:
        grid = _cells(placed, 1.0)  # [rows * side, cols * side, C]
        tiles = grid.reshape(rows, side, cols, side, -1).transpose(0, 2, 1, 3, 4)
        out.append(tiles.reshape(rows * cols, side * side, -1))
        shrunk = [(i, m.resize((VIEW, VIEW), Image.Resampling.BOX)) for i, m in placed]
        out.append(_cells(shrunk, 1.0).reshape(1, side * side, -1))
    else:
        out.append(_cells(placed, 1.0).reshape(1, side * side, -1))
    return np.concatenate(out)


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
