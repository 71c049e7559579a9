"""The judge that ships, on a sticker that hides in a frame, and on ink that hides on its colour.

What it says is compared with what it says of the same pixels alone, so another nano may take its
place.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgejudge.judge import Judge
from edgejudge.policy import load_policy
from made_pictures import encoded, moving

SAMPLES = Path(__file__).parent.parent / "models" / "nano" / "samples"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(threads=1)


def sample(name: str, size: tuple[int, int]) -> Image.Image:
    return Image.open(SAMPLES / name).convert("RGB").resize(size)


def test_the_seventh_of_twelve_frames(judge: Judge) -> None:
    frames = [sample("birthday.jpg", (144, 144)) for _ in range(12)]
    for place, frame in enumerate(frames):
        frame.paste((place * 3, 0, 0), (0, 0, 4, 4))
    (weapons,) = (r for r in judge.screen(moving(frames, "GIF")).rules if r.id == "weapons")
    assert weapons.verdict == "safe"
    frames[6] = sample("screen.jpg", (144, 144))
    verdict = judge.screen(moving(frames, "GIF"))
    (weapons,) = (rule for rule in verdict.rules if rule.id == "weapons")
    assert verdict.verdict == weapons.verdict == "unsafe"
    assert weapons.seen_in is not None and weapons.seen_in.frame == 7


@pytest.mark.parametrize("ink, background", [(0, "white"), (255, "black")])
def test_ink_on_nothing(judge: Judge, ink: int, background: str) -> None:
    """A drawing whose ink is all of one colour, thicker and thinner: on white or black it looks as
    the grey picture that it was made from, and on the other one it cannot be seen.
    """
    stickers = load_policy("stickers")  # nano is less sure of what has no colour
    rules = tuple(replace(rule, threshold=0.5) for rule in stickers.rules)
    policy = replace(stickers, name="ink", rules=rules)
    grey = np.asarray(sample("lab.jpg", (576, 576)).convert("L"))
    alone = judge.screen(np.repeat(grey[:, :, None], 3, axis=2), policy)
    assert alone.verdict == "unsafe"
    alpha = grey if ink else 255 - grey
    drawn = np.dstack([np.full((*grey.shape, 3), ink, np.uint8), alpha])
    verdict = judge.screen(encoded(Image.fromarray(drawn), "PNG"), policy)
    assert verdict.verdict == "unsafe"
    for rule, wanted in zip(verdict.rules, alone.rules, strict=True):
        if wanted.verdict == "unsafe":
            assert rule.verdict == "unsafe"
            assert rule.seen_in is not None and rule.seen_in.background == background


def test_stable(judge: Judge) -> None:
    verdict = judge.screen(sample("screen.jpg", (288, 162)), stable=2)
    (weapons,) = (rule for rule in verdict.rules if rule.id == "weapons")
    found = weapons.stability
    assert found is not None and found.pictures == 3 and weapons.probability is not None
    assert found.least - 1e-6 <= weapons.probability <= found.most + 1e-6
    alone = judge.screen(sample("screen.jpg", (288, 162))).rules
    assert all(rule.stability is None for rule in alone)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 10), (10, 20_000)])
def test_any_shape_is_judged(judge: Judge, size: tuple[int, int]) -> None:
    verdict = judge.screen(encoded(Image.new("RGB", size, (90, 200, 30)), "PNG"))
    assert verdict.error is None and verdict.verdict is not None
