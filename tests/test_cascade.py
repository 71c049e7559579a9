"""Two bundles: what the first leaves open is asked of the second, and nothing else is."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgejudge import InputError, Judge, Policy, ProviderError, Verdict
from edgejudge.calibrating.recorded import recorded
from edgejudge.cascade import Cascade
from edgejudge.plan import only
from edgejudge.report import reason
from edgejudge.screening import Screening
from edgejudge.stage_report import Stages, percentile, read_rows
from edgejudge.verdict import InputFailure
from fake_judge import FakeEngine, fake_judge, manifest
from timed_engine import TimedEngine

PICTURE = np.full((16, 16, 3), 200, np.uint8)
POLICY = Policy.from_yaml("""\
name: arms
version: 1
rules:
  - {id: guns, text: t, category: c, conditions: [[a gun, a knife]]}
  - {id: fire, text: t, category: c, conditions: [fire]}
  - {id: beer, text: t, category: c, conditions: [beer, a glass]}
""")


@pytest.fixture
def engines() -> tuple[FakeEngine, FakeEngine]:
    """The first is in doubt about guns, the second is not."""
    first = FakeEngine({"a gun": 0.5, "fire": 0.9})
    return first, FakeEngine({"a gun": 0.99, "fire": 0.001})


@pytest.fixture
def cascade(tmp_path: Path, engines: tuple[FakeEngine, FakeEngine]) -> Cascade:
    judges = []
    for name, engine in zip(("small", "big"), engines, strict=True):
        (tmp_path / name).mkdir()
        judges.append(fake_judge(tmp_path / name, replace(manifest(), name=name), engine))
    return Cascade(*judges)


def verdicts(verdict: Verdict) -> dict[str, str]:
    return {rule.id: rule.verdict for rule in verdict.rules}


def test_only_what_is_open_is_asked_again(
    cascade: Cascade, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    alone = cascade.first.screen(PICTURE, POLICY)
    assert verdicts(alone) == {"guns": "uncertain", "fire": "unsafe", "beer": "safe"}
    verdict = cascade.screen(PICTURE, POLICY)
    assert verdicts(verdict) == {"guns": "unsafe", "fire": "unsafe", "beer": "safe"}
    assert engines[1].asked == [["a gun", "a knife"]], "all questions of the rule, no other"
    assert [rule.bundle for rule in verdict.rules] == ["big", None, None]
    escalated = verdict.escalated
    assert escalated is not None and escalated.error is None
    assert escalated.before == (alone.rules[0],) and escalated.stages_used == ("tokens",)
    assert "score" in escalated.stages_ms and "score" in verdict.stages_ms
    row: Any = json.loads(json.dumps(verdict.to_json()))
    assert [rule["bundle"] for rule in row["rules"]] == ["big", "small", "small"]
    assert row["rules"][0]["conditions"][0]["test"] == "threshold"
    assert row["bundle"]["name"] == "small" and row["escalated"]["bundle"]["name"] == "big"
    assert row["escalated"]["before"][0]["probability"] == pytest.approx(0.5)
    assert reason(verdict) == "guns 0.99 (a gun, by big), fire 0.90 (fire)"
    own = sum(verdict.stages_ms.values())
    assert verdict.total_ms == own + sum(escalated.stages_ms.values()) > own
    # Its numbers are of two bundles, so that no calibration is fitted to them.
    with pytest.raises(InputError, match="two bundles were asked"):
        recorded(row | {"path": "a"}, verdict.bundle_sha256, verdict.policy_sha256)


def test_what_the_second_leaves_open_stays_open(
    cascade: Cascade, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    engines[0].answers = {"a gun": 0.5}
    engines[1].answers = {"a gun": 0.52}
    verdict = cascade.screen(PICTURE, POLICY)
    assert verdict.verdict == "uncertain" and verdict.rules[0].probability == pytest.approx(0.52)
    engines[1].answers = {}
    assert cascade.screen(PICTURE, POLICY).verdict == "safe"


def test_nothing_open_asks_nothing(
    cascade: Cascade, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    engines[0].answers = {"fire": 0.9}
    verdict = cascade.screen(PICTURE, POLICY)
    assert verdict == replace(
        cascade.first.screen(PICTURE, POLICY),
        stages_ms=verdict.stages_ms,
        prefix_cache=verdict.prefix_cache,
        reused_tokens=verdict.reused_tokens,
    )
    assert verdict.escalated is None and engines[1].asked == []
    failed = cascade.screen(b"no picture", POLICY)
    assert failed.verdict is None and engines[1].asked == []


@pytest.mark.parametrize(
    "failure", [ProviderError("it broke"), InputError("timeout", "no verdict within 1 s")]
)
def test_a_second_that_fails_leaves_it_uncertain(
    cascade: Cascade, engines: tuple[FakeEngine, FakeEngine], failure: Exception
) -> None:
    engines[0].answers = {"a gun": 0.5}
    engines[1].failure = failure
    verdict = cascade.screen(PICTURE, POLICY)
    assert verdict.verdict == "uncertain" and verdict.rules[0].bundle is None
    assert [note.code for note in verdict.notes] == ["second_failed"]
    assert "big decided nothing" in verdict.notes[0].message
    assert verdict.escalated is not None and verdict.escalated.error is not None
    assert verdict.escalated.error.code in ("engine_failed", "timeout")
    stages = Stages()
    stages.add(verdict.to_json())
    assert stages.to_json()["rules"]["by"]["uncertain"]["count"] == 1


def test_a_file_that_changed_in_between_is_not_mixed_up(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(file)
    screen = cascade.second.screen

    def later(image: Any, *more: Any, **named: Any) -> Any:
        Image.new("RGB", (16, 16), (9, 9, 9)).save(file)
        return screen(image, *more, **named)

    monkeypatch.setattr(cascade.second, "screen", later)
    verdict = cascade.screen(file, POLICY)
    assert verdict.rules[0].verdict == "uncertain"
    assert verdict.escalated is not None
    assert verdict.escalated.error == InputFailure("changed", "the picture is another one by now")


def test_a_stream_keeps_pictures_and_verdicts_together(
    cascade: Cascade, engines: tuple[FakeEngine, FakeEngine], tmp_path: Path
) -> None:
    files = []
    for place in range(4):
        files.append(tmp_path / f"{place}.png")
        Image.new("RGB", (8 + place, 8), (place, 0, 0)).save(files[-1])
    files[2].write_bytes(b"no picture")
    made = list(cascade.stream(iter(files), cascade.plan(POLICY)))
    assert [verdict.path for verdict in made] == list(map(str, files))
    assert [verdict.verdict for verdict in made] == ["unsafe", "unsafe", None, "unsafe"]
    assert len(engines[1].asked) == 3
    assert [v.rules for v in cascade.screen([PICTURE, PICTURE], POLICY)] == [made[0].rules] * 2


def test_what_the_second_sees_too_is_told_once(cascade: Cascade, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    verdict = cascade.screen(tmp_path / "a.gif", POLICY)
    assert [note.code for note in verdict.notes] == ["animated"]
    assert verdict.escalated is not None and verdict.verdict == "unsafe"


def test_a_concept_that_only_the_second_knows(
    tmp_path: Path, engines: tuple[FakeEngine, FakeEngine]
) -> None:
    for name in ("small", "big"):
        (tmp_path / name).mkdir()
    known = replace(manifest(concepts=("fire", "beer", "glass", "knife")), name="small")
    first = fake_judge(tmp_path / "small", known, engines[0])
    cascade = Cascade(first, fake_judge(tmp_path / "big", manifest(), engines[1]))
    assert cascade.plan(POLICY).notes == (), "the second knows them all"
    verdict = cascade.screen(PICTURE, POLICY)
    assert verdicts(verdict)["guns"] == "unsafe"
    assert [note.code for note in verdict.notes] == ["unknown_concept"]
    with pytest.raises(InputError, match="a plan is for one bundle"):
        cascade.plan(first.plan(POLICY))


def test_a_budget_is_not_spent_on_a_second_that_takes_longer(tmp_path: Path) -> None:
    for name in ("small", "big"):
        (tmp_path / name).mkdir()
    small, big = TimedEngine({"a gun": 0.5}), TimedEngine({"a gun": 0.99}, vision_ms=500)
    first = fake_judge(tmp_path / "small", manifest(), small)
    judge = fake_judge(tmp_path / "big", replace(manifest(), name="big"), big)
    cascade = Cascade(first, judge)
    plans = cascade.plan(POLICY, budget_ms=300.0)
    assert plans.second.budget is None
    assert cascade.screen(PICTURE, plans).verdict == "unsafe", "how long it takes is not known yet"
    tight = cascade.screen(PICTURE, plans)
    assert tight.verdict == "uncertain" and len(big.passes) == 1
    assert [note.code for note in tight.notes] == ["over_time"]
    assert "big was not asked: it takes about" in tight.notes[0].message
    wide = cascade.plan(POLICY, budget_ms=3000.0)
    assert cascade.screen(PICTURE, wide).verdict == "unsafe"
    # What the first had no time for is not asked of a slower one.
    assert cascade.screen(PICTURE, cascade.plan(POLICY, budget_ms=20.0)).escalated is None
    small.answers = {"fire": 0.99, "a gun": 0.5}
    ended = cascade.screen(PICTURE, cascade.plan(POLICY, first_broken=True))
    assert ended.verdict == "unsafe" and ended.escalated is None


def test_a_plan_for_some_of_its_rules(tmp_path: Path) -> None:
    engine = FakeEngine({"beer": 0.97, "a glass": 0.95})
    known = ("fire", "beer", "gun", "knife")
    judge = fake_judge(tmp_path, manifest(concepts=known), engine)
    plan = judge.plan(POLICY)
    assert len(plan.branches) == 5 and [note.code for note in plan.notes] == ["unknown_concept"]
    some = only(plan, {"guns", "fire"})
    assert len(some.branches) == 3 and some.notes == ()
    assert [rule.id for rule in some.rules] == ["guns", "fire"]
    last = only(plan, {"beer"})
    assert last.notes == plan.notes
    assert judge.screen(PICTURE, last).rules == (judge.screen(PICTURE, plan).rules[2],)
    assert engine.asked[0] == ["beer", "a glass"]
    whole = judge.plan("llavaguard")
    assert only(whole, {"O1"}) is whole


CLUE = Policy.from_yaml("""\
name: arms
version: 1
method: clue
rules:
  - {id: guns, text: t, category: c, conditions: [[a gun, a knife]]}
  - {id: fire, text: t, category: c, conditions: [fire]}
  - {id: beer, text: t, category: c, conditions: [beer, a glass]}
""")


def test_shares_and_times_of_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("small", "big"):
        (tmp_path / name).mkdir()
    small = TimedEngine({"a gun": 0.95, "a knife": 0.01, "fire": 0.5, "beer": 0.01, "a glass": 0.5})
    first = fake_judge(tmp_path / "small", manifest(), small)
    big = TimedEngine({"fire": 0.95}, vision_ms=100)
    cascade = Cascade(first, fake_judge(tmp_path / "big", replace(manifest(), name="big"), big))
    monkeypatch.setattr(
        "edgejudge.screening.reason",
        lambda *_: SimpleNamespace(holds=False, rationale="none", steps=""),
    )
    monkeypatch.setattr(Screening, "_open_grammar", lambda _: None)
    rows = [
        cascade.screen(PICTURE, cascade.plan(CLUE, reasoning=False)).to_json(),
        first.screen(PICTURE, CLUE).to_json(),
        first.screen(PICTURE, first.plan(CLUE, reasoning=False)).to_json(),
        first.screen(PICTURE, POLICY).to_json(),
        first.screen(b"nothing", CLUE).to_json(),
    ]
    stages = Stages()
    for row in rows:
        stages.add(row)
    found = stages.to_json()
    by = {
        unit: {k: v["count"] for k, v in found[unit]["by"].items()}
        for unit in found
        if "by" in found[unit]
    }
    # Guns hold by score, knives and beer fail by the prior, fire and glasses are open.
    assert by["questions"] == {
        "language_prior": 6,
        "score": 3,
        "threshold": 3,
        "reasoning": 1,
        "second": 1,
        "uncertain": 6,
    }
    assert by["rules"] == {
        "language_prior": 3,
        "score": 3,
        "threshold": 2,
        "reasoning": 1,
        "second": 1,
        "uncertain": 2,
    }
    assert by["pictures"] == {"score": 3, "threshold": 1, "failed": 1}
    assert sum(by["questions"].values()) == found["questions"]["n"] == 20
    assert found["pictures"]["by"]["score"]["share"] == pytest.approx(3 / 5)
    assert found["left_uncertain_by"] == {"undecided": 4, "threshold": 2}
    assert found["ms"]["second bundle"] == {
        "n": 1,
        "mean": pytest.approx(114 + 0.5 * 5),
        "median": pytest.approx(114 + 0.5 * 5),
        "p95": pytest.approx(114 + 0.5 * 5),
        "most": pytest.approx(114 + 0.5 * 5),
    }
    assert found["ms"]["whole picture"]["n"] == 5
    text = stages.table()
    assert "second bundle" in text and "questions left uncertain: 4 undecided" in text
    assert "failed" in text and "p95" in text
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"path": "half')
    assert read_rows(file).to_json() == found


def test_stages_of_what_is_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for text, wanted in (
        ("", "has no rows"),
        ('{"a": 1}\n', "line 1: it is no row"),
        ("[]\n", "line 1: it is no row"),
        ("nonsense\n", "line 1: it is no row"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=wanted) as caught:
            read_rows(file)
        assert caught.value.code == "rows"
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(20, 0, -1)]
    assert percentile(values, 0.95) == 19.0 and percentile(values, 0.5) == 10.0
    assert percentile([3.0], 0.95) == percentile([3.0], 0.0) == 3.0


def test_nano_behind_a_judge_that_knows_nothing(tmp_path: Path) -> None:
    nano = Judge.load(threads=1)
    folder = Path(__file__).parent.parent / "models" / "nano" / "samples"
    unsure = fake_judge(tmp_path, replace(manifest(), name="unsure"), FakeEngine(default=0.5))
    cascade = Cascade(unsure, nano)
    verdict = cascade.screen(folder / "screen.jpg")
    plain = nano.screen(folder / "screen.jpg")
    assert verdict.verdict == plain.verdict == "unsafe"
    assert tuple(replace(rule, bundle=None) for rule in verdict.rules) == plain.rules
    assert {rule.bundle for rule in verdict.rules} == {"nano"}
    assert verdict.bundle == "unsure" and len(verdict.rules) == 10
