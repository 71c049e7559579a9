"""A file of several variants: the worst counts for each rule, and no failure makes it safe.

The judge is real, its engine reads the answers off the pictures' colours.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgejudge.cascade import Cascade
from edgejudge.errors import EdgeJudgeError, ProviderError
from edgejudge.judge import Judge
from edgejudge.policy import Policy
from edgejudge.prefix_cache import PrefixCache
from edgejudge.regions import Region
from edgejudge.runtime.trace import Trace
from edgejudge.variants import badness, worst, worst_place
from edgejudge.verdict import AlternativeVerdict, ConditionVerdict, RuleVerdict, Verdict
from fake_judge import END, FakeEngine, fake_judge, manifest
from made_pictures import encoded, moving

POLICY = Policy.from_yaml("""\
name: colours
version: 1
rules:
  - {id: red, text: t, category: c, conditions: [red]}
  - {id: green, text: t, category: c, conditions: [green]}
  - {id: both, text: t, category: c, conditions: [red, green]}
""")
RED, GREEN, GREY, BLACK = (242, 0, 0), (0, 242, 0), (128, 128, 0), (0, 0, 0)


class Colours(FakeEngine):
    """P(red) and P(green) are how much of them there is in the picture."""

    failing: float | None = None  # of red, at which the engine breaks down
    wait_s = 0.0

    def score_blind(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return np.tile(np.log(np.array([0.8, 0.2], np.float32)), (len(prompts), 1))

    def encode_image(self, feeds: Mapping[str, NDArray[Any]], trace: Any = None) -> Any:
        means = feeds["pixel_values"].mean(axis=(0, 2, 3)) / 2 + 0.5
        with trace.span("wait"):
            time.sleep(self.wait_s)
        return super().encode_image(feeds, trace) + np.resize(means[:2], 8).astype(np.float32)

    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> Any:
        if visual is not None:
            red, green = (min(max(float(p), 0.01), 0.99) for p in visual[0, :2])
            self.answers = {"red": red, "green": green}
            if self.failing is not None and abs(red - self.failing) < 0.02:
                raise ProviderError("the engine broke down")
        return super().prefill(ids, visual, positions, after)


@pytest.fixture
def engine() -> Colours:
    return Colours()


@pytest.fixture
def judge(tmp_path: Path, engine: Colours) -> Judge:
    return fake_judge(tmp_path, manifest(), engine)


def flat(*colours: tuple[int, ...]) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), colour) for colour in colours]


def rules(verdict: Verdict) -> dict[str, RuleVerdict]:
    return {rule.id: rule for rule in verdict.rules}


def codes(verdict: Verdict) -> dict[str, bool]:
    return {note.code: note.doubtful for note in verdict.notes}


def seen(verdict: Verdict) -> dict[str, Any]:
    return {rule.id: rule.to_json()["seen_in"] for rule in verdict.rules}


def test_a_frame_in_the_middle_counts_and_is_named(judge: Judge) -> None:
    frames = flat(*[(i, 0, 0) for i in range(12)])
    assert judge.screen(moving(frames, "PNG"), POLICY).verdict == "safe"
    frames[6] = flat(RED)[0]
    verdict = judge.screen(moving(frames, "PNG"), POLICY)
    assert verdict.verdict == "unsafe" and seen(verdict)["red"] == {"frame": 7}
    assert rules(verdict)["red"].probability == pytest.approx(242 / 255, abs=0.01)
    assert codes(verdict) == {"animated": False}
    assert verdict.image_prefixes == 8
    json.dumps(verdict.to_json(), allow_nan=False)


def test_every_rule_has_its_own_worst_variant(judge: Judge) -> None:
    verdict = judge.screen(moving(flat(BLACK, GREEN, RED, GREY), "PNG"), POLICY)
    assert seen(verdict) == {"red": {"frame": 3}, "green": {"frame": 2}, "both": {"frame": 4}}
    outcomes = {name: rule.verdict for name, rule in rules(verdict).items()}
    # Red in one frame and green in another break no rule that wants both.
    assert outcomes == {"red": "unsafe", "green": "unsafe", "both": "uncertain"}


def test_a_still_has_none(judge: Judge) -> None:
    verdict = judge.screen(encoded(flat(RED)[0], "PNG"), POLICY)
    assert seen(verdict) == {"red": None, "green": None, "both": None}
    assert verdict.image_prefixes == 1 and verdict.notes == ()


def test_the_worse_background_counts(judge: Judge) -> None:
    for ink, red in (((0, 0, 0), 0.5), ((255, 255, 0), 0.99)):
        image = Image.new("RGBA", (16, 16), (*ink, 0))
        image.paste((*ink, 255), (0, 0, 16, 8))
        verdict = judge.screen(encoded(image, "PNG"), POLICY)
        # White under it is half a picture of red more, black is none.
        assert rules(verdict)["red"].probability == pytest.approx(red, abs=0.01)
        assert seen(verdict)["red"] == {"background": "white"} and verdict.image_prefixes == 2


def test_drawing_in_black_and_in_white(tmp_path: Path) -> None:
    """An engine that sees the contrast, as a judge does."""

    class Contrast(Colours):
        def encode_image(self, feeds: Mapping[str, NDArray[Any]], trace: Any = None) -> Any:
            spread = float(np.ptp(feeds["pixel_values"]) / 2)
            made = FakeEngine.encode_image(self, feeds, trace)
            return made + np.float32(spread)

    judge = fake_judge(tmp_path, manifest(), Contrast())
    for ink, background in (((0, 0, 0), "white"), ((255, 255, 255), "black")):
        image = Image.new("RGBA", (16, 16), (*ink, 0))
        image.paste((*ink, 255), (4, 4, 12, 12))
        verdict = judge.screen(encoded(image, "PNG"), POLICY)
        assert verdict.verdict == "unsafe" and seen(verdict)["red"] == {"background": background}
        assert codes(verdict) == {"transparent": False}
        moved = moving([image, Image.new("RGBA", (16, 16))], "PNG")
        verdict = judge.screen(moved, POLICY)
        assert seen(verdict)["red"] == {"frame": 1, "background": background}


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return fake_judge(tmp_path_factory.mktemp("judge"), manifest(), Colours())


@settings(max_examples=40, deadline=None)
@given(
    colours=st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 255), st.just(0)), min_size=2, max_size=8
    ),
    clue=st.booleans(),
)
def test_the_worst_equals_judging_each_alone(
    lasting: Judge, colours: list[tuple[int, ...]], clue: bool
) -> None:
    judge = lasting
    plan = judge.plan(POLICY, method="clue" if clue else None, reasoning=False if clue else None)
    alone = judge.screen([encoded(frame, "PNG") for frame in flat(*colours)], plan)
    frames = flat(*colours)  # anew: Pillow does not write an image in two formats
    whole = judge.screen(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), plan)
    for place, rule in enumerate(whole.rules):
        each = [verdict.rules[place] for verdict in alone]
        assert badness(rule) == max(map(badness, each))
        assert rule.seen_in is not None and rule.seen_in.frame is not None
        first = each[rule.seen_in.frame - 1]
        assert (rule.verdict, rule.conditions) == (first.verdict, first.conditions)
        assert all(badness(one) < badness(rule) for one in each[: rule.seen_in.frame - 1])
    outcomes = [verdict.verdict for verdict in alone]
    wanted = next(word for word in ("unsafe", "uncertain", "safe") if word in outcomes)
    assert whole.verdict == wanted


# --- failures ------------------------------------------------------------------------------------


def test_a_variant_that_fails_leaves_no_file_safe(judge: Judge, engine: Colours) -> None:
    engine.failing = 100 / 255
    frames = flat(BLACK, (100, 0, 0), (20, 0, 0))
    verdict = judge.screen(moving(frames, "PNG"), POLICY)
    assert verdict.verdict == "uncertain" and verdict.error is None
    assert codes(verdict) == {"animated": False, "variant_failed": True}
    assert "in frame 2 could not be judged: the engine broke down" in verdict.notes[-1].message
    assert {rule.verdict for rule in verdict.rules} == {"safe"}
    frames.append(flat(RED)[0])
    assert judge.screen(moving(frames, "PNG"), POLICY).verdict == "unsafe"
    engine.failing = 0.01  # of the first, which stands for the file
    verdict = judge.screen(moving(frames, "PNG"), POLICY)
    assert verdict.verdict == "unsafe" and codes(verdict)["variant_failed"]


def test_a_file_whose_variants_all_fail_has_failed(judge: Judge, engine: Colours) -> None:
    engine.failure = ProviderError("no numbers")
    verdict = judge.screen(moving(flat(BLACK, RED), "PNG"), POLICY)
    assert verdict.verdict is None and verdict.rules == () and verdict.error is not None
    assert verdict.error.code == "engine_failed"


def test_a_damaged_frame_leaves_the_file_uncertain(judge: Judge) -> None:
    noise = np.random.default_rng(1).integers(0, 60, (5, 24, 24, 3), np.uint8)
    data = moving([Image.fromarray(each) for each in noise], "GIF")
    assert judge.screen(data, POLICY).verdict == "safe"
    cut = judge.screen(data[: int(len(data) * 0.8)], POLICY)
    assert cut.verdict == "uncertain" and codes(cut)["variant_failed"]


def test_a_request_that_ends_ends_all_of_it(judge: Judge, engine: Colours) -> None:
    from edgejudge.errors import InputError

    frames = moving(flat(RED, BLACK), "PNG")
    engine.failure = InputError("timeout", "no verdict within 1 s")
    verdict = judge.screen(frames, POLICY)
    assert verdict.verdict is None and verdict.error is not None
    assert verdict.error.code == "timeout" and engine.asked == []


# --- beside other ways of judging -----------------------------------------------------------------


def test_streams_keep_their_order_and_count_prefixes(judge: Judge) -> None:
    files = [
        encoded(flat(RED)[0], "PNG"),
        moving(flat(BLACK, GREEN), "PNG"),
        b"no picture",
        moving(flat(BLACK, RED, GREY), "GIF"),
    ]
    made = list(judge.stream(iter(files), POLICY))
    assert [verdict.verdict for verdict in made] == ["unsafe", "unsafe", None, "unsafe"]
    assert [verdict.image_prefixes for verdict in made] == [1, 2, 0, 3]


def test_prefixes_of_variants_are_kept(tmp_path: Path, engine: Colours) -> None:
    made = fake_judge(tmp_path, manifest(), engine)
    judge = Judge(made.bundle, engine, prefix_cache=PrefixCache(1 << 20))
    data = moving(flat(BLACK, RED), "PNG")
    first = judge.screen(data, POLICY)
    assert (first.prefix_cache, first.image_prefixes) == ("miss", 2)
    again = judge.screen(data, POLICY)
    assert (again.prefix_cache, again.image_prefixes) == ("hit", 0)
    # The keys of stills are those of their pixels, and of nothing else.
    still = judge.screen(encoded(flat(RED)[0], "PNG"), POLICY)
    assert still.prefix_cache == "hit"


def test_the_other_calls_take_the_first_frame_and_say_so(judge: Judge) -> None:
    made = judge._way.prepare(moving(flat(RED, GREEN), "PNG"), _never())  # type: ignore[union-attr]
    assert made.others == () and made.rgb is not None and made.rgb[0, 0].tolist() == list(RED)
    assert [(note.code, note.doubtful) for note in made.notes] == [("animated", True)]


def _never() -> Any:
    from edgejudge.turns import Stop

    return Stop()


def test_a_cascade_asks_the_second_about_all_variants(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    first, second = Colours(), Colours()
    judges = [fake_judge(f, manifest(), e) for f, e in zip(folders, (first, second), strict=True)]
    verdict = Cascade(*judges).screen(moving(flat(BLACK, RED, GREY), "PNG"), POLICY)
    assert rules(verdict)["red"].bundle is None and rules(verdict)["both"].bundle == "fake"
    assert seen(verdict)["both"] == {"frame": 3} and len(second.asked) == 3


def test_a_time_budget_is_for_all_variants(judge: Judge, engine: Colours) -> None:
    data = moving(flat(BLACK, GREY, RED), "PNG")
    plenty = judge.screen(data, POLICY, budget_ms=1e9)
    assert plenty.verdict == "unsafe" and "unseen" not in codes(plenty)
    engine.wait_s = 0.05
    verdict = judge.screen(data, POLICY, budget_ms=60)
    assert verdict.verdict == "uncertain" and codes(verdict)["unseen"]
    message = next(note.message for note in verdict.notes if note.code == "unseen")
    assert message == "2 of 3 variants were not looked at in time"
    engine.wait_s = 0
    early = judge.screen(moving(flat(RED, GREEN, GREY), "PNG"), POLICY, first_broken=True)
    assert early.verdict == "unsafe" and early.image_prefixes == 1


def test_regions_are_of_the_first_frame(judge: Judge) -> None:
    plan = judge.plan(POLICY, method="clue", reasoning=False)
    frames = [Image.new("RGB", size, GREY) for size in ((40, 40), (10, 10))]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    region = Region("red", (20, 20, 15, 15))
    verdict = judge.screen(data, plan, regions=[region])
    assert "region" in verdict.stages_used and "variant_failed" not in codes(verdict)
    assert verdict.image_prefixes == 3


class Slices(Colours):
    """The same, for batches of requests."""

    def ask(self, requests: Iterable[Any]) -> list[NDArray[np.float32] | EdgeJudgeError]:
        found: list[NDArray[np.float32] | EdgeJudgeError] = []
        for request in requests:
            try:
                visual = self.encode_image(request.feeds, request.trace)
                self.prefill([1] * len(visual), visual)
                found.append(self.score(None, request.branches))
            except EdgeJudgeError as error:
                found.append(error)
        return found

    def new_trace(self) -> Trace:
        return Trace()


def test_batches_judge_variants_too(tmp_path: Path) -> None:
    engine = Slices()
    judge = fake_judge(tmp_path, manifest(), engine)
    files = [
        moving(flat(BLACK, RED, GREY), "PNG"),
        b"no picture",
        encoded(flat(GREEN)[0], "PNG"),
        moving(flat(BLACK, (20, 0, 0)), "GIF"),
    ]
    made = judge.screen(files, POLICY)
    assert [verdict.verdict for verdict in made] == ["unsafe", None, "unsafe", "safe"]
    assert seen(made[0])["red"] == {"frame": 2} and seen(made[2])["green"] is None
    assert [verdict.image_prefixes for verdict in made] == [3, 0, 1, 2]
    engine.failing = 20 / 255
    failed = judge.screen(files, POLICY)[3]
    assert failed.verdict == "uncertain" and codes(failed)["variant_failed"]
    assert END not in engine.answers


# --- the order of outcomes ------------------------------------------------------------------------


def rule(verdict: Any, *probabilities: float | None, prior: float | None = None) -> RuleVerdict:
    conditions = tuple(
        ConditionVerdict("uncertain", p, (AlternativeVerdict("a", p, True, prior=prior),))
        for p in probabilities
    )
    return RuleVerdict("r", "t", "c", verdict, None, 0.5, None, conditions)


def test_the_verdict_goes_before_the_number() -> None:
    order = [
        rule("safe", None),
        rule("safe", 0.9, 0.1),
        rule("safe", 0.3),
        rule("uncertain", None),
        rule("uncertain", 0.2),
        rule("unsafe", 0.1),
        rule("unsafe", 0.8, 0.7),
    ]
    assert sorted(order, key=badness) == order
    assert worst([[each] for each in order]) == (order[-1],)
    assert worst_place([[each] for each in order]) == len(order) - 1
    assert worst([[order[1]], [rule("safe", 0.8, 0.1)]]) == (order[1],)  # of equal ones the first
    debiased = rule("safe", 0.5, prior=0.4), rule("safe", 0.3, prior=0.1)
    assert badness(debiased[0]) < badness(debiased[1])
    assert worst_place([[], []]) == 0
