"""`screen_files` from Python: what is kept, shared, judged again and refused."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bulk_runs import picture
from edgejudge import InputError, Judge, Region, Verdict
from edgejudge.bulk import Summary, read_rows, screen_files
from edgejudge.bulk.rows import path_of
from edgejudge.errors import ProviderError
from edgejudge.policy import load_policy
from fake_judge import ColourEngine, compiled, fake_judge, manifest

RED, GREEN, GREY = (250, 10, 10), (10, 250, 40), (128, 128, 128)
FORMS = ("jsonl", "parquet", "sqlite")


class Engine(ColourEngine):
    """Counts pictures; `before` is called with the number of each, and may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures = 0
        self.before: Any = lambda number: None

    def prefill(self, ids: Sequence[int], visual: Any = None, *more: Any) -> Any:
        if visual is not None:
            self.pictures += 1
            self.before(self.pictures)
        return super().prefill(ids, visual, *more)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def judge(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Judge:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    policy = compiled(load_policy("stickers").record())
    return fake_judge(tmp_path / "bundle", manifest((policy,)), engine)


def photo(name: str, colour: tuple[int, int, int], side: int = 8) -> str:
    path = f"photos/{name}"
    Path(path).write_bytes(picture(colour, side))
    return path


def told(summary: Summary) -> tuple[int, int, int, int, int]:
    """judged, shared, kept, changed, retried"""
    return summary.judged, summary.shared, summary.kept, summary.changed, summary.retried


def verdicts(out: str) -> dict[str, str | None]:
    rows = list(read_rows(out))
    found = {path_of(row): row["verdict"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_each_picture_is_judged_once(judge: Judge, engine: Engine, form: str) -> None:
    out = f"rows.{form}"
    photo("a", RED)
    photo("b", GREEN)
    photo("c", RED)
    Path("photos/d").write_bytes(b"no picture")
    Path("photos/e").write_bytes(b"no picture")
    shown: list[Verdict] = []
    summary = screen_files(judge, "photos", out=out, each=shown.append)
    assert told(summary) == (4, 1, 0, 0, 0) and engine.pictures == 2
    assert summary.outcomes == {"unsafe": 2, "safe": 1, "failed": 2}
    assert verdicts(out) == {
        "photos/a": "unsafe",
        "photos/b": "safe",
        "photos/c": "unsafe",
        "photos/d": None,
        "photos/e": None,
    }
    assert sorted(str(each.path) for each in shown) == sorted(verdicts(out))
    photo("f", GREEN)
    again = screen_files(judge, ["photos", "photos/a", Path("photos/b")], out=out)
    assert told(again) == (0, 1, 5, 0, 0) and engine.pictures == 2
    assert again.outcomes == {"unsafe": 2, "safe": 2, "failed": 2}
    (row,) = (row for row in read_rows(out) if row["path"] == "photos/f")
    assert (row["shared_with"], row["stages_ms"]) == ("photos/b", {})


@pytest.mark.parametrize("form", FORMS)
def test_what_changed_or_failed_is_judged_again(judge: Judge, engine: Engine, form: str) -> None:
    out = f"rows.{form}"
    photo("a", RED)
    photo("b", GREEN)
    Path("photos/c").write_bytes(b"\x89PNG")
    screen_files(judge, "photos", out=out)
    photo("a", GREY)
    assert told(screen_files(judge, "photos", out=out)) == (1, 0, 2, 1, 0)
    assert told(screen_files(judge, "photos", out=out, retry_failed=True)) == (1, 0, 2, 0, 1)
    photo("c", GREEN)
    assert told(screen_files(judge, "photos", out=out)) == (0, 1, 2, 1, 0)
    os.unlink("photos/b")
    assert told(screen_files(judge, "photos", out=out)) == (0, 0, 2, 0, 0)
    assert verdicts(out) == {"photos/a": "uncertain", "photos/b": "safe", "photos/c": "safe"}
    gone = screen_files(judge, ["photos/a", "photos/b"], out=out)
    assert told(gone) == (1, 0, 1, 1, 0)
    assert verdicts(out)["photos/b"] is None, "a file that is not there any more is not safe"


def test_a_failure_is_shared_with_nobody(judge: Judge, engine: Engine) -> None:
    for name in "abcd":
        photo(name, RED)

    def fail(number: int) -> None:
        if number == 1:
            for _ in range(100):  # until the others wait for this one
                threading.Event().wait(0.01)
            raise ProviderError("the device is gone")

    engine.before = fail
    summary = screen_files(judge, "photos", out="rows.jsonl")
    found = verdicts("rows.jsonl")
    assert found.pop("photos/a") is None
    assert set(found.values()) == {"unsafe"} and len(found) == 3
    assert summary.outcomes == {"failed": 1, "unsafe": 3}
    engine.before = lambda number: None
    assert told(screen_files(judge, "photos", out="rows.jsonl", retry_failed=True))[4] == 1
    assert set(verdicts("rows.jsonl").values()) == {"unsafe"}


def test_a_file_that_changes_while_it_is_judged(
    judge: Judge, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo("a", RED)
    photo("b", RED)
    real = judge.stream

    def stream(images: Any, *given: Any, **named: Any) -> Any:
        def changed() -> Any:
            for path in images:
                if path == "photos/a":  # it was looked at, and is another one by now
                    photo("a", GREEN)
                yield path

        return real(changed(), *given, **named)

    monkeypatch.setattr(judge, "stream", stream)
    summary = screen_files(judge, "photos", out="rows.jsonl")
    assert verdicts("rows.jsonl") == {"photos/a": "safe", "photos/b": "unsafe"}
    assert told(summary) == (2, 0, 0, 0, 0)
    assert told(screen_files(judge, "photos", out="rows.jsonl"))[2] == 2


def test_equal_bytes_with_other_regions_are_other_pictures(judge: Judge, engine: Engine) -> None:
    one, two, three = photo("a", GREY), photo("b", GREY), photo("c", GREY)
    plan = judge.plan("stickers", method="clue", reasoning=False)
    regions = {one: [Region("a gun", (0, 0, 4, 4))], two: [Region("a gun", (0, 0, 4, 4))]}
    summary = screen_files(judge, "photos", plan, out="rows.jsonl", regions=regions)
    assert told(summary)[:2] == (2, 1)
    regions[two] = [Region("a gun", (0, 0, 5, 5))]
    again = screen_files(judge, "photos", plan, out="rows.jsonl", regions=regions)
    assert told(again) == (1, 0, 2, 1, 0)
    assert verdicts("rows.jsonl").keys() == {one, two, three}


def test_a_run_stops_when_it_is_asked_to(judge: Judge, engine: Engine) -> None:
    for number in range(9):
        photo(str(number), RED, 8 + number)
    done: list[Verdict] = []
    summary = Summary()
    screen_files(
        judge,
        "photos",
        out="rows.parquet",
        each=done.append,
        stop=lambda: len(done) >= 3,
        summary=summary,
    )
    assert len(done) == summary.judged == len(verdicts("rows.parquet")) == 3
    assert os.listdir(".") and not os.path.exists("rows.parquet.journal")
    with pytest.raises(
        InputError, match="and this run is of no stable|, and this run is of stable"
    ):
        screen_files(judge, "photos", judge.plan("stickers", stable=2), out="rows.parquet")
    assert screen_files(judge, "photos", out="rows.parquet").judged == 6


def test_an_error_in_between_ends_the_run_and_keeps_the_rows(judge: Judge, engine: Engine) -> None:
    for number in range(6):
        photo(str(number), RED, 8 + number)

    def fail(number: int) -> None:
        if number == 4:
            raise RuntimeError("the engine broke")

    engine.before = fail
    summary = Summary()
    with pytest.raises(RuntimeError, match="the engine broke"):
        screen_files(judge, "photos", out="rows.sqlite", summary=summary)
    assert summary.judged == 3 and len(verdicts("rows.sqlite")) == 3
    engine.before = lambda number: None
    assert told(screen_files(judge, "photos", out="rows.sqlite"))[:3] == (3, 0, 3)


def test_without_a_file_every_path_is_judged(judge: Judge, engine: Engine) -> None:
    photo("a", RED)
    photo("b", RED)
    seen: list[tuple[int, int]] = []
    summary = screen_files(
        judge,
        ["photos", "photos/a", "./photos/b"],
        progress=lambda summary: seen.append((summary.done, summary.written)),
    )
    assert told(summary) == (2, 0, 0, 0, 0) and seen == [(1, 1), (2, 2)]
    assert sorted(os.listdir(".")) == ["bundle", "photos"]


def test_rows_serve_who_read_rows(judge: Judge, engine: Engine) -> None:
    from edgejudge.calibrating.recorded import read_recorded
    from edgejudge.evaluation.recorded_screens import screen_answer
    from edgejudge.stage_report import read_rows as read_stages

    photo("a", RED)
    photo("b", RED)
    photo("c", GREEN)
    screen_files(judge, "photos", out="rows.jsonl")
    plan = judge.plan("stickers")
    found, _ = read_recorded("rows.jsonl", judge.bundle.fingerprint, plan.sha256)
    assert [each.answers["a gun"] for each in found] == pytest.approx([0.95, 0.95, 0.01], abs=1e-3)
    for row in read_rows("rows.jsonl"):
        assert screen_answer("", row, "here")[0].prediction == row["verdict"]
    assert read_stages("rows.jsonl").counts["pictures"].total() == 3
