"""The pictures that ship: calibration pictures, clear and hard ones, with their questions, and the
samples of `make demo`.

Takes sprites.npz; gives PNG files, questions.json and JPEG samples. Draws only by artists whose
licence lets pictures ship, on drawn backgrounds; nothing of the training or test pictures is in
them. Does not know the model.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import tasks
from concepts import CONCEPTS, SHIPPABLE
from PIL import Image, ImageEnhance
from scene import Scene, Stage
from words import TEMPLATE

RELATED = 6  # questions of each kind how often something is there, and how two things lie
CALIBRATION_SIZE = (256, 192)
SAMPLES = (  # name, (width, height), concepts that must be in it and no other
    ("birthday", (1280, 720), ("cake", "heart")),
    ("bar", (1080, 1080), ("beer", "cocktail")),
    ("chat", (720, 1280), ("knife", "angry face")),
    ("garden", (1280, 720), ("flower", "tree", "cat")),
    ("lab", (1080, 1080), ("biohazard sign", "syringe")),
    ("screen", (1920, 1080), ("laughing face", "gun")),
)


def calibration(stage: Stage, folder: Path, count: int, hard: int) -> None:
    """`count` pictures and `hard` ones, each asked about every concept whose answer is known."""
    questions = []
    for i in range(count + hard):
        rng = np.random.default_rng([71, i])
        scene = stage.scene(rng, size=CALIBRATION_SIZE)
        name = f"{i:03}.png"
        image = scene.image if i < count else worsened(rng, scene.image)
        image.save(folder / name, optimize=True)
        asked = [
            {"text": CONCEPTS[c].phrase, "label": int(scene.present[c])}
            for c in rng.permutation(np.flatnonzero(scene.present >= 0))
        ]
        related = tasks.counts(rng, scene.items, scene.present, RELATED)
        related += tasks.relations(rng, scene.items, scene.present, RELATED)
        before, after = TEMPLATE.split("{condition}")
        asked += [
            {"text": request.removeprefix(before).removesuffix(after), "label": int(yes)}
            for request, answer in dict.fromkeys((r.request, r.answer) for r in related)
            if (yes := answer == " Yes") or answer == " No"
        ]
        questions.append({"image": name, "conditions": asked})
    (folder / "questions.json").write_text(json.dumps(questions, indent=1) + "\n")


def worsened(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """A picture that has lost so much detail and contrast that a judge must hesitate: flips happen
    near a threshold, and a clear picture is near none.
    """
    share = float(rng.uniform(0.2, 0.45))
    small = image.resize([max(8, round(v * share)) for v in image.size], Image.Resampling.BOX)
    blurred = small.resize(image.size, Image.Resampling.BICUBIC)
    return ImageEnhance.Contrast(blurred).enhance(float(rng.uniform(0.35, 0.9)))


def sample(stage: Stage, seed: int, size: tuple[int, int], wanted: tuple[str, ...]) -> Scene:
    """The first scene of a seeded sequence that shows just these concepts."""
    goal = {i for i, c in enumerate(CONCEPTS) if c.name in wanted}
    for attempt in range(1000):
        scene = stage.scene(np.random.default_rng([seed, attempt]), size=size, show=sorted(goal))
        if set(np.flatnonzero(scene.present == 1)) == goal:
            return scene
    raise SystemExit(f"no scene of 1000 has room for {', '.join(wanted)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sprites", type=Path, default=Path("work/sprites.npz"))
    parser.add_argument("--photos", type=Path, default=Path("work/photos.npz"))
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--hard", type=int, default=128)
    args = parser.parse_args()
    stage = Stage("none", args.sprites, args.photos, SHIPPABLE)  # no photograph has this split
    for name in ("calibration", "samples"):
        shutil.rmtree(args.out / name, ignore_errors=True)
        (args.out / name).mkdir(parents=True)
    calibration(stage, args.out / "calibration", args.count, args.hard)
    for seed, (name, size, wanted) in enumerate(SAMPLES):
        picture = sample(stage, 500 + seed, size, wanted).image
        picture.save(args.out / "samples" / f"{name}.jpg", quality=88)
    total = sum(
        f.stat().st_size for n in ("calibration", "samples") for f in (args.out / n).iterdir()
    )
    counts = f"{args.count} + {args.hard} calibration pictures, {len(SAMPLES)} samples"
    print(f"{counts}, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
