"""Budgets, second bundles, stages and the risk curve on the command line."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgejudge import InputError, Judge, Policy
from edgejudge.cli import main
from edgejudge.evaluation.calibration_metrics import clopper_pearson
from edgejudge.policy import load_policy
from edgejudge.risk_curve import Labelled, Point, between, measure, table
from fake_judge import fake_judge, manifest
from timed_engine import TimedEngine

NANO = Path(__file__).parent.parent / "models" / "nano"
POLICY = """\
name: arms
version: 1
rules:
  - {id: guns, text: t, category: c, conditions: [[a gun, a knife, a very large bomb]]}
  - {id: fire, text: t, category: c, conditions: [fire]}
"""


@pytest.fixture
def engines() -> dict[str, TimedEngine]:
    return {"small": TimedEngine({"a gun": 0.5}), "big": TimedEngine({"a gun": 0.99})}


@pytest.fixture
def edgejudge(
    tmp_path: Path,
    engines: dict[str, TimedEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """The command line over made-up engines: exit code, stdout, stderr."""
    judges = {}
    for name, engine in engines.items():
        (tmp_path / name).mkdir()
        judges[name] = fake_judge(tmp_path / name, replace(manifest(), name=name), engine)
    real = Judge.load

    def load(cls: type[Judge], path: Any = None, *more: Any, **named: Any) -> Judge:
        name = "small" if path is None else Path(path).name
        return judges[name] if name in judges else real(path)

    monkeypatch.setattr(Judge, "load", classmethod(load))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arms.yaml").write_text(POLICY)
    (tmp_path / "pictures").mkdir()
    for place in range(6):
        rgb = np.full((16, 16, 3), 40 * place, np.uint8)
        Image.fromarray(rgb).save(tmp_path / "pictures" / f"{place}.png")

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(list(arguments))
        except SystemExit as exit:
            code = int(str(exit.code))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def screen(*more: str) -> tuple[str, ...]:
    return ("screen", "pictures", "--policy", "arms.yaml", "--json", *more)


def test_a_time_budget(edgejudge: Any, engines: dict[str, TimedEngine]) -> None:
    code, out, _ = edgejudge(*screen("--time-budget", "41"))
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 3 and {row["verdict"] for row in rows} == {"uncertain"}
    assert {note["code"] for row in rows for note in row["notes"]} == {"over_time"}
    code, out, _ = edgejudge(*screen("--time-budget", "inf"))
    again = edgejudge(*screen())[1]
    for one, other in zip(out.splitlines(), again.splitlines(), strict=True):
        assert json.loads(one)["rules"] == json.loads(other)["rules"]
    engines["small"].answers["fire"] = 0.99
    code, out, _ = edgejudge(*screen("--first-broken"))
    assert code == 1 and all(len(row) == 1 for row in engines["small"].asked[-6:])


def test_a_second_bundle_and_the_stages(edgejudge: Any, tmp_path: Path) -> None:
    code, out, err = edgejudge(
        *screen(
            "--escalate", "big", "--stages", "--stages-out", "stages.json", "--out", "rows.jsonl"
        )
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and len(rows) == 6
    assert [rule["bundle"] for rule in rows[0]["rules"]] == ["big", "small"]
    assert "second bundle" in err and "6 (50.0%)" in err
    found = json.loads((tmp_path / "stages.json").read_text())
    assert found["rules"]["by"]["second"] == {"count": 6, "share": 0.5}
    assert json.loads(edgejudge("stages", "rows.jsonl", "--json")[1]) == found
    assert edgejudge("stages", "rows.jsonl")[1].startswith("stage ")
    code, _, err = edgejudge(*screen("--stages-out", "stages.json"))
    assert code == 2 and "is there already" in err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (screen("--time-budget", "0"), "expected milliseconds above 0, got '0'"),
        (screen("--time-budget", "nan"), "expected milliseconds above 0"),
        (screen("--escalate", "nowhere"), "nowhere"),
        (screen("--escalate-calibration", "c.json"), "name it by --escalate"),
        (screen("--escalate", "big", "--memory-budget", "1GiB"), "give it or --escalate"),
        (screen("--stages-out", "no/where.json"), "no folder"),
        (("screen", "pictures", "--policy", "llavaguard", "--time-budget", "9"), "as a whole"),
        (("stages", "nothing.jsonl"), "cannot be read"),
        (("risk-curve", "labels.csv", "--budgets", "5,0"), "expected milliseconds above 0"),
        (("risk-curve", "labels.csv", "--budgets", "5,inf"), "leave inf out"),
        (("risk-curve", "labels.csv"), "labels.csv cannot be read"),
        (("risk-curve", "labels.csv", "--policy", "llavaguard"), "no rules to order"),
        (("risk-curve", "labels.csv", "--bundle", "nowhere"), "nowhere"),
    ],
)
def test_what_stops_it(edgejudge: Any, arguments: tuple[str, ...], wanted: str) -> None:
    code, out, err = edgejudge(*arguments)
    last = err.splitlines()[-1]
    assert code == 2 and out == "" and last.startswith("error: ") and wanted in last


def test_labels_that_are_of_no_use(edgejudge: Any, tmp_path: Path) -> None:
    def error(text: str) -> str:
        (tmp_path / "labels.csv").write_text(text)
        code, out, err = edgejudge(*curve)
        assert code == 2 and out == ""
        return str(err.splitlines()[-1])

    curve = ("risk-curve", "labels.csv", "--policy", "arms.yaml", "--pictures", "pictures")
    assert "line 2: 'swords' is no rule of the policy, which has 'fire', 'guns'" in error(
        "path,rule,label\n0.png,swords,1\n"
    )
    assert "1 of 2 pictures are missing: pictures/9.png" in error(
        "path,rule,label\n0.png,guns,1\n9.png,guns,0\n"
    )
    assert "settle no rule" in error("path,question,label\n0.png,a gun,0\n")
    assert "write 0 or 1" in error("path,rule,label\n0.png,guns,0.5\n")
    (tmp_path / "pictures" / "7.png").write_bytes(b"no picture")
    assert "settle no rule" in error("path,rule,label\n7.png,guns,1\n")


def test_the_risk_curve(edgejudge: Any, engines: dict[str, TimedEngine], tmp_path: Path) -> None:
    engines["small"].answers = {"a gun": 0.99}
    rows = [f"{place}.png,guns,{int(place < 4)}\n" for place in range(6)]
    rows += [f"{place}.png,fire,{int(place < 1)}\n" for place in range(6)]
    (tmp_path / "labels.csv").write_text("path,rule,label\n" + "".join(rows))
    (tmp_path / "pictures" / "7.png").write_bytes(b"no picture")
    (tmp_path / "labels.csv").open("a").write("7.png,fire,1\n")
    curve = ("risk-curve", "labels.csv", "--policy", "arms.yaml", "--pictures", "pictures")
    code, out, err = edgejudge(*curve, "--budgets", "200,20,50", "--json")
    found = json.loads(out)
    assert code == 0 and found["not_judged"] == {"7.png": "not_an_image"}
    assert "7.png (not_an_image)" in err
    points = {(each["budget_ms"], each["order"]): each for each in found["points"]}
    assert list(points) == [
        *((ms, order) for ms in (20.0, 50.0, 200.0) for order in ("information", "random")),
        (None, "information"),
    ]
    none, all_of_it = points[20.0, "information"], points[None, "information"]
    assert none["coverage"] == {"value": 0.0, "n": 12}
    assert none["risk"] == {"value": None, "wrong": 0, "n": 0, "interval": None, "confidence": 0.95}
    assert none["late"] == 6 and none["mean_ms"] >= 30
    # Guns are called broken everywhere, wrongly twice; fire nowhere, wrongly once.
    low, high = clopper_pearson(3, 12)
    assert all_of_it["risk"] == {
        "value": 0.25,
        "wrong": 3,
        "n": 12,
        "interval": [low, high],
        "confidence": 0.95,
    }
    assert all_of_it["false_safes"] == 1 and all_of_it["coverage"]["value"] == 1.0
    assert points[200.0, "information"]["risk"] == points[200.0, "random"]["risk"]
    # 50 ms hold the prefix and the short rule; a random order often begins with the long one.
    short, other = points[50.0, "information"], points[50.0, "random"]
    assert short["coverage"]["value"] == 0.5 and short["late"] == 0
    assert other["coverage"]["value"] < 0.5
    assert (
        found["points"]
        == json.loads(edgejudge(*curve, "--budgets", "20,50,200", "--json")[1])["points"]
    )
    code, out, err = edgejudge(*curve)
    assert code == 0 and "wrong of decided (95 %)" in out and "all asked" in out
    assert len(out.splitlines()) == 12 and "6 pictures with 12 labelled pairs" in err


def test_budgets_that_matter() -> None:
    assert between([10.0, 20.0, 30.0], [40.0, 50.0, 60.0]) == [20.0, 30.0, 40.0, 50.0, 60.0]
    point = Point(5.0, "random", ms=[4.0, 6.0])
    assert point.late == 1


def test_a_picture_that_fails_decides_nothing(tmp_path: Path) -> None:
    engine = TimedEngine()
    judge = fake_judge(tmp_path, manifest(), engine)
    plan = judge.plan(Policy.from_yaml(POLICY))
    seen: list[tuple[int, int]] = []
    engine.failure = InputError("too_long", "no room")
    (tmp_path / "a.png").write_bytes(b"")
    points = measure(
        lambda path, timed: judge.screen(path, timed),
        plan,
        [Labelled(str(tmp_path / "a.png"), {"guns": 1})],
        [30.0],
        0,
        lambda *at: seen.append(at),
    )
    assert [(p.pairs, p.decided, p.failed) for p in points] == [(1, 0, 1)] * 3
    assert math.isinf(points[-1].budget_ms) and seen == [(1, 1)]
    assert "none" in table(points)


def test_the_curve_of_nano(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = json.loads((NANO / "calibration" / "questions.json").read_text())[:3]
    asked = {
        text
        for rule in load_policy("stickers").rules
        for either in rule.conditions
        for text in either
    }
    labels = [
        {"path": row["image"], "question": each["text"], "label": each["label"]}
        for row in rows
        for each in row["conditions"]
        if each["text"] in asked
    ]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    command = ["risk-curve", str(tmp_path / "labels.jsonl"), "--pictures"]
    command += [str(NANO / "calibration"), "--threads", "1", "--budgets", "1,100000", "--json"]
    assert main(command) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [point["coverage"]["value"] for point in points[:2]] == [0.0, 0.0]
    assert all(point["risk"] == points[4]["risk"] for point in points[2:])
    assert points[4]["coverage"]["n"] == 30
