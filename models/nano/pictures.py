"""The pictures that ship: 64 calibration pictures with their questions, and the samples of `make
demo`.

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
from concepts import CONCEPTS, SHIPPABLE
from scene import Scene, Stage

CALIBRATION_SIZE = (256, 192)
SAMPLES = (  # name, (width, height), concepts that must be in it and no other
    ("birthday", (1280, 720), ("cake", "heart")),
    ("bar", (1080, 1080), ("beer", "cocktail")),
    ("chat", (720, 1280), ("knife", "angry face")),
    ("garden", (1280, 720), ("flower", "tree", "cat")),
    ("lab", (1080, 1080), ("biohazard sign", "syringe")),
    ("screen", (1920, 1080), ("laughing face", "gun")),
)


def calibration(stage: Stage, folder: Path, count: int) -> None:
    """`count` pictures, each asked about every concept whose answer is known."""
    questions = []
    for i in range(count):
        rng = np.random.default_rng([71, i])
        scene = stage.scene(rng, size=CALIBRATION_SIZE)
        name = f"{i:03}.png"
        scene.image.save(folder / name, optimize=True)
        asked = [
            {"text": CONCEPTS[c].phrase, "label": int(scene.present[c])}
            for c in rng.permutation(np.flatnonzero(scene.present >= 0))
        ]
        questions.append({"image": name, "conditions": asked})
    (folder / "questions.json").write_text(json.dumps(questions, indent=1) + "\n")


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
    args = parser.parse_args()
    stage = Stage("none", args.sprites, args.photos, SHIPPABLE)  # no photograph has this split
    for name in ("calibration", "samples"):
        shutil.rmtree(args.out / name, ignore_errors=True)
        (args.out / name).mkdir(parents=True)
    calibration(stage, args.out / "calibration", args.count)
    for seed, (name, size, wanted) in enumerate(SAMPLES):
        picture = sample(stage, 500 + seed, size, wanted).image
        picture.save(args.out / "samples" / f"{name}.jpg", quality=88)
    total = sum(
        f.stat().st_size for n in ("calibration", "samples") for f in (args.out / n).iterdir()
    )
    print(f"{args.count} calibration pictures, {len(SAMPLES)} samples, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
