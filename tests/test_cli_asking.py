"""`edgejudge ask`, `score`, `checklist`, `compare` and `rank`: rows, tables, exit codes."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import edgejudge.judge
from edgejudge.bundle import Bundle
from edgejudge.cli import main
from edgejudge.judge import Judge
from fake_judge import fake_judge, manifest
from label_engine import LabelEngine

Run = Callable[..., tuple[str, str]]


def says(pictures: list[float], question: str, written: str) -> Mapping[str, float]:
    """Redder pictures are fuller, better and A."""
    if "A or B" in question and len(pictures) == 2:
        return {"A": 20 * (pictures[0] - pictures[1]), "B": 0.0}
    red = pictures[0] if pictures else 0.5
    return {**{str(i): 8 * red * i / 5 for i in range(6)}, "A": 1.0, "B": 0.0, "r": 1.0, "b": 0.0}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    fake_judge(folder, manifest(), LabelEngine(says))
    return folder


@pytest.fixture
def run(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def load(cls: Any, path: Any = None, **_: Any) -> Judge:
        engine = LabelEngine(says, **{"a cat": 0.9, "a dog": 0.52})
        return Judge(Bundle.open(bundle), engine)

    monkeypatch.setattr(edgejudge.judge.Judge, "load", classmethod(load))

    def command(*arguments: object, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        found = main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert found == code, out + err
        return out, err

    return command


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, red in (("a.png", 0.2), ("b.png", 0.9), ("c.png", 0.5)):
        Image.new("RGB", (8, 8), (round(255 * red), 0, 0)).save(folder / name)
    return folder


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_ask_gives_a_row_for_each_picture(run: Run, pictures: Path) -> None:
    (pictures / "d.png").write_bytes(b"no picture")
    asked = ("--question", "How red?", "--labels", "0", "5")
    found = lines(run("ask", pictures, "--json", *asked)[0])
    assert [Path(row["path"]).name for row in found] == ["a.png", "b.png", "c.png", "d.png"]
    assert [row["error"] and row["error"]["code"] for row in found] == [None] * 3 + ["not_an_image"]
    shares = [row["labels"][1]["probability"] for row in found[:3]]
    assert shares == pytest.approx([1 / (1 + math.exp(-8 * r)) for r in (0.2, 0.9, 0.5)], abs=0.01)
    out, err = run("ask", pictures, *asked)
    head, *table = out.splitlines()
    assert head.split() == ["path", "answer", "labels", "mass", "orders", "ms"]
    assert "5 1.00, 0 0.00" in table[1] and "failed: " in table[3] and "3 of 4 have a result" in err


def test_ask_in_every_form(run: Run, pictures: Path) -> None:
    one = pictures / "b.png"
    (row,) = lines(run("ask", one, "--count", "a cat", "--json")[0])
    assert row["question"] == "How many times is a cat visible?" and len(row["labels"]) == 5
    (row,) = lines(run("ask", "--question", "Say?", "--choices", "red", "blue", "--json")[0])
    assert row["path"] is None and row["orders"] == 2 and row["images"] == []
    (row,) = lines(run("ask", pictures, "--together", "--count", "x", "--json")[0])
    assert len(row["images"]) == 3 and row["path"].count(" + ") == 2
    some = ("--question", "Say?", "--labels", "red", "blue", "--json")
    (row,) = lines(run("ask", one, *some)[0])
    assert row["per_token"] is True
    (row,) = lines(run("ask", one, *some, "--no-per-token", "--wording", "Q: {question}")[0])
    assert row["per_token"] is False and row["question"] == "Q: Say?"


def test_score(run: Run, pictures: Path, tmp_path: Path) -> None:
    found = lines(run("score", pictures, "--criterion", "red", "--json")[0])
    assert found[0]["value"] < found[2]["value"] < found[1]["value"]
    assert found[0]["tasks"][0]["question"] == "How red is it, from 1 to 5?"
    out, _ = run("score", pictures, "--criterion", "red", "--method", "reward")
    assert out.splitlines()[0].split() == [
        "path",
        "score",
        "from",
        "0",
        "to",
        "1",
        "tasks",
        "mass",
        "ms",
    ]
    file = tmp_path / "r.yaml"
    file.write_text("name: both\ntasks: [{criterion: red}, {criterion: full, method: count}]\n")
    (row,) = lines(run("score", pictures / "a.png", "--rubric", file, "--json")[0])
    assert row["combination"] == "mean" and [t["name"] for t in row["tasks"]] == ["red", "full"]
    file.write_text("name: both\ntasks: [{text: red}]\n")
    _, err = run("score", pictures, "--rubric", file, code=2)
    assert f"error: {file}, line 2: tasks[0].text: unknown key" in err
    _, err = run("score", pictures, "--rubric", file, "--temperature", "2", code=2)
    assert "stand in the file" in err
    _, err = run("score", pictures, "--criterion", "red", "--wording", "Red?", code=2)
    assert "must contain {criterion}" in err
    _, err = run("score", pictures, "--criterion", "red", "--method", "best", code=2)
    assert "'best' is none of" in err


def test_checklist(run: Run, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: page\ncriteria: [a cat, {text: a dog, weight: 3}, a bat]\n")
    (row,) = lines(run("checklist", pictures / "a.png", "--checklist", file, "--json")[0])
    assert [each["outcome"] for each in row["criteria"]] == ["met", "uncertain", "unmet"]
    assert row["between"] == [0.2, 0.8] and row["uncertain"] == ["a dog"]
    out, _ = run("checklist", pictures, "--checklist", file)
    assert "0.20 to 0.80" in out.splitlines()[1]
    _, err = run("checklist", pictures, "--checklist", tmp_path / "no.yaml", code=2)
    assert "cannot be read" in err


def test_compare(run: Run, pictures: Path) -> None:
    a, b = pictures / "a.png", pictures / "b.png"
    out, _ = run("compare", a, b, "--criterion", "is redder", "--json")
    found = json.loads(out)
    assert found["winner"] == "b" and found["epsilon"] == 0.02
    out, _ = run("compare", a, b, "--criterion", "is redder", "--epsilon", "0.49")
    assert out.splitlines()[-1].split()[:2] == ["both", "b"] or "tie" in out
    texts = ("--instruction", "Say.", "--answers", "long", "short", "--json")
    assert json.loads(run("compare", a, *texts)[0])["winner"] == "inconclusive", "always A"
    assert json.loads(run("compare", *texts)[0])["images"] == []
    assert "give two pictures" in run("compare", a, "--criterion", "is redder", code=2)[1]
    assert "both --instruction" in run("compare", a, b, "--instruction", "x", code=2)[1]
    _, err = run("compare", a, pictures / "no.png", "--criterion", "is redder", code=2)
    assert "no.png: no such file" in err


def test_rank(run: Run, pictures: Path) -> None:
    (pictures / "d.png").write_bytes(b"no picture")
    out, err = run("rank", pictures, "--criterion", "is redder")
    order = [line.split()[-1] for line in out.splitlines()[1:4]]
    assert [Path(path).name for path in order] == ["b.png", "c.png", "a.png"]
    assert "failed" in out.splitlines()[4]
    assert "3 ranked, 1 failed, 0 groups of ties, 3 of 3 pairs compared, 0 inconclusive" in err
    found = json.loads(run("rank", pictures, "--criterion", "is redder", "--json")[0])
    assert found["groups"] == [[1], [2], [0]]
    found = json.loads(
        run("rank", pictures, "--criterion", "a cat", "--method", "yes", "--json")[0]
    )
    assert found["method"] == "yes" and found["groups"] == [[0, 1, 2]]
    wrong = ("--criterion", "a cat", "--method", "yes", "--pairs", "2")
    assert "--pairs is for" in run("rank", pictures, *wrong, code=2)[1]


def test_nothing_to_show_is_two(run: Run, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _, err = run("ask", tmp_path / "empty", "--count", "a cat", code=2)
    assert "no files in" in err
    out, _ = run("ask", tmp_path / "no.png", "--count", "a cat", "--json", code=2)
    assert lines(out)[0]["error"]["code"] == "missing"
    assert "--question with" in run("ask", pictures, "--labels", "1", "2", code=2)[1]
    for wrong in (
        ("ask", "--count", "a", "--labels", "b"),
        ("score", "x.png", "--criterion", "a", "--temperature", "0"),
        ("compare", "a", "b", "--epsilon", "0.5"),
        ("rank", "a"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(list(wrong))
        assert stopped.value.code == 2
