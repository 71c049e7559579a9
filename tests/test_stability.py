"""Judging with changed copies: the mean decides, and how far copies lie apart is said."""

import json
from collections.abc import Mapping
from math import fsum
from pathlib import Path
from statistics import pstdev
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgejudge.cascade import Cascade
from edgejudge.copies import CHANGES, MOST_COPIES, changed, copies
from edgejudge.errors import InputError, ProviderError
from edgejudge.judge import Judge
from edgejudge.policy import Policy
from edgejudge.report import reason
from edgejudge.stability import mean_answers
from fake_judge import FakeEngine, fake_judge, manifest
from made_pictures import encoded, moving

POLICY = Policy.from_yaml("""\
name: two
version: 1
rules:
  - {id: gun, text: t, category: c, conditions: [a gun]}
  - {id: fire, text: t, category: c, conditions: [fire]}
""")


class Moody(FakeEngine):
    """Gives the next of `moods` for every picture that is put into it; 0.01 of fire."""

    def __init__(self, *moods: float) -> None:
        super().__init__()
        self.moods = list(moods)
        self.seen: list[NDArray[Any]] = []

    def encode_image(self, feeds: Mapping[str, NDArray[Any]], trace: Any = None) -> Any:
        self.seen.append(feeds["pixel_values"].copy())
        return super().encode_image(feeds, trace)

    def prefill(
        self, ids: Any, visual: Any = None, positions: Any = None, after: Any = None
    ) -> Any:
        if visual is not None:
            mood = self.moods.pop(0)
            if mood < 0:
                raise ProviderError("the engine broke down")
            self.answers = {"a gun": mood}
        return super().prefill(ids, visual, positions, after)

    def score_blind(self, prompts: Any) -> NDArray[np.float32]:
        return np.tile(np.log(np.array([0.8, 0.2], np.float32)), (len(prompts), 1))


def picture(size: tuple[int, int] = (40, 20)) -> Image.Image:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    return Image.fromarray(
        np.stack([x * 255 // size[0], y * 255 // size[1], x % 7], 2).astype("u1")
    )


def judged(folder: Path, *moods: float, **how: Any) -> tuple[Any, Moody]:
    engine = Moody(*moods)
    judge = fake_judge(folder, manifest(), engine)
    return judge.screen(picture(), POLICY, **how), engine


def test_the_mean_of_probabilities_decides(tmp_path: Path) -> None:
    moods = (0.9, 0.2, 0.7, 0.4, 0.6)
    verdict, engine = judged(tmp_path, *moods, stable=4)
    gun, fire = verdict.rules
    assert gun.probability == pytest.approx(fsum(moods) / 5, abs=1e-6)
    assert gun.verdict == "unsafe" and fire.verdict == "safe"
    found = gun.stability
    assert (found.pictures, found.least, found.most) == (
        *(5, pytest.approx(0.2, abs=1e-6), pytest.approx(0.9, abs=1e-6)),
    )
    assert found.deviation == pytest.approx(pstdev(moods), abs=1e-6)
    assert found.unsafe_in == ("original", "recompress", "flip")
    assert found.safe_in == ("resize", "crop")
    assert gun.to_json()["stability"] == {
        "pictures": 5,
        "min": pytest.approx(0.2, abs=1e-5),
        "max": pytest.approx(0.9, abs=1e-5),
        "sd": pytest.approx(pstdev(moods), abs=1e-5),
        "unsafe_in": ["original", "recompress", "flip"],
        "safe_in": ["resize", "crop"],
    }
    json.dumps(verdict.to_json(), allow_nan=False)
    assert verdict.image_prefixes == 5 and verdict.stages_used == ("tokens", "stability")
    assert reason(verdict) == "gun 0.56 (a gun, 0.20 to 0.90 in copies)"
    assert fire.stability.least == fire.stability.most and not engine.moods


def test_a_copy_that_breaks_a_rule_keeps_a_picture_from_being_safe(tmp_path: Path) -> None:
    verdict, _ = judged(tmp_path, 0.1, 0.1, 0.9, stable=2)
    assert verdict.rules[0].verdict == "safe" and verdict.verdict == "uncertain"
    (note,) = verdict.notes
    assert (note.code, note.doubtful) == ("unstable", True)
    assert note.message.startswith("gun is 0.10 to 0.90") and "recompress alone" in note.message


def test_a_change_within_the_band_is_no_news(tmp_path: Path) -> None:
    verdict, _ = judged(tmp_path, 0.4, 0.52, 0.3, stable=2)
    assert verdict.verdict == "safe" and verdict.notes == ()
    broken, _ = judged(tmp_path, 0.9, 0.9, 0.1, stable=2)
    assert broken.verdict == "unsafe"
    assert [(note.code, note.doubtful) for note in broken.notes] == [("unstable", False)]


def test_without_copies_nothing_is_different(tmp_path: Path) -> None:
    verdict, engine = judged(tmp_path, 0.9)
    assert verdict.rules[0].stability is None and len(engine.seen) == 1
    assert verdict.rules[0].to_json()["stability"] is None


def test_a_copy_that_cannot_be_judged_is_a_failure(tmp_path: Path) -> None:
    verdict, _ = judged(tmp_path, 0.1, 0.1, -1.0, stable=2)
    assert verdict.verdict is None and verdict.error is not None


def test_copies_are_of_the_worst_variant(tmp_path: Path) -> None:
    engine = Moody(0.1, 0.7, 0.3, 0.2, 0.3)
    judge = fake_judge(tmp_path, manifest(), engine)
    frames = [picture(size) for size in ((40, 20), (30, 20), (20, 20))]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    verdict = judge.screen(data, POLICY, stable=2)
    gun = verdict.rules[0]
    # 0.7 of the second becomes 0.4 with its copies, which is still the worst of the three.
    assert gun.probability == pytest.approx(0.4, abs=1e-6) and gun.seen_in.frame == 2
    assert gun.stability.pictures == 3 and verdict.verdict == "uncertain"
    engine.moods = [0.1, 0.7, 0.6, 0.2, 0.3]
    gun = judge.screen(data, POLICY, stable=2).rules[0]
    assert gun.probability == pytest.approx(0.6, abs=1e-6) and gun.seen_in.frame == 3
    assert gun.stability is None


def test_with_clue_the_mean_is_debiased(tmp_path: Path) -> None:
    judge = fake_judge(tmp_path, manifest(), Moody(0.95, 0.95, 0.2))
    plan = judge.plan(POLICY, method="clue", reasoning=False, stable=2)
    gun = judge.screen(picture(), plan).rules[0]
    assert gun.verdict == "uncertain" and gun.probability == pytest.approx(0.7, abs=1e-6)
    assert gun.stability is not None and gun.stability.unsafe_in == ("original", "resize")


def test_streams_and_cascades(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = Moody(0.9, 0.8, 0.1, 0.1), Moody(0.99)
    judges = [
        fake_judge(tmp_path / name, manifest(), engine)
        for name, engine in (("a", first), ("b", second))
    ]
    made = list(judges[0].stream([picture(), picture()], POLICY, stable=1))
    assert [verdict.verdict for verdict in made] == ["unsafe", "safe"]
    cascade = Cascade(*judges)
    first.moods = [0.9, 0.1]
    verdict = cascade.screen(picture(), cascade.plan(POLICY, stable=1))
    assert verdict.rules[0].bundle == "fake" and verdict.verdict == "unsafe"


def test_what_it_does_not_go_with(tmp_path: Path) -> None:
    judge: Judge = fake_judge(tmp_path, manifest(), Moody())
    for wrong in (-1, MOST_COPIES + 1):
        with pytest.raises(InputError, match="1 to 8") as caught:
            judge.plan(POLICY, stable=wrong)
        assert caught.value.code == "stable"
    with pytest.raises(InputError, match="time budget"):
        judge.plan(POLICY, stable=1, budget_ms=100)
    with pytest.raises(InputError, match="as a whole"):
        judge.plan("llamaguard", stable=1)


# --- the copies -----------------------------------------------------------------------------------


def test_copies_are_always_the_same_and_all_different() -> None:
    rgb = np.asarray(picture((80, 60)))
    made = dict(copies(rgb, MOST_COPIES))
    assert list(made)[:4] == list(CHANGES) and len(made) == MOST_COPIES == 8
    for name, again in copies(rgb, MOST_COPIES):
        assert again.dtype == np.uint8 and np.array_equal(made[name], again)
        assert made[name].shape != rgb.shape or not np.array_equal(made[name], rgb)
    assert [name for name, _ in copies(rgb, 3)] == ["resize", "recompress", "crop"]
    assert made["crop"].shape == (54, 72, 3) and np.array_equal(made["crop"], rgb[3:57, 4:76])
    assert np.array_equal(made["flip"], rgb[:, ::-1])


@given(width=st.integers(1, 40), height=st.integers(1, 40))
def test_copies_of_small_pictures_have_pixels(width: int, height: int) -> None:
    rgb = np.zeros((height, width, 3), np.uint8)
    for name in CHANGES:
        assert min(changed(rgb, name).size) >= 1


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=9))
def test_the_mean_lies_between(each: list[list[float]]) -> None:
    found = mean_answers([dict(enumerate(one)) for one in each])
    for branch, mean in found.items():
        values = [one[branch] for one in each]
        assert min(values) - 1e-12 <= mean <= max(values) + 1e-12


def test_an_animated_picture_costs_a_bounded_number_of_prefixes(tmp_path: Path) -> None:
    judge = fake_judge(tmp_path, manifest(), Moody(*[0.1] * 100))
    frames = [Image.new("RGB", (16, 16), (i * 5, 0, 0)) for i in range(30)]
    verdict = judge.screen(moving(frames, "PNG"), POLICY, stable=MOST_COPIES)
    assert verdict.image_prefixes == 8 + MOST_COPIES
