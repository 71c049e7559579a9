"""Recipes run with a judge: by the nano judge, by one that judges by colour, and by stand-ins."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgejudge.answering.answers import Answer, LabelAnswer, Provenance
from edgejudge.answering.comparisons import Comparison, Order
from edgejudge.answering.rubrics import Rubric
from edgejudge.errors import InputError
from edgejudge.evaluation.adapters import Adapter
from edgejudge.evaluation.examples import DataSet, Example
from edgejudge.evaluation.inferencers import adapter_for
from edgejudge.evaluation.perturbations import PERTURBED, perturbed
from edgejudge.evaluation.recipe import read_recipe
from edgejudge.evaluation.rows import Row, read_rows
from edgejudge.evaluation.run import evaluate
from edgejudge.images import decode
from edgejudge.judge import Judge
from edgejudge.policy import load_policy
from edgejudge.verdict import Table
from fake_judge import ColourEngine, compiled, fake_judge, manifest

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "models" / "nano" / "recipes"


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Every recipe is run by a judge for which red pictures show a gun."""
    (tmp_path / "bundle").mkdir()
    policy = compiled(load_policy("stickers").record())
    judge = fake_judge(tmp_path / "bundle", manifest((policy,)), ColourEngine())
    monkeypatch.setattr(Judge, "load", lambda *_, **__: judge)
    return judge


def pictures(folder: Path, *colours: tuple[int, int, int]) -> None:
    for i, colour in enumerate(colours):
        Image.new("RGB", (32, 24), colour).save(folder / f"{i}.png")


def screen_recipe(folder: Path, metrics: str, more: str = "", rows: int = 3) -> Path:
    """Red is unsafe, blue is safe."""
    pictures(folder, *[((255, 0, 0), (0, 0, 255))[i % 2] for i in range(rows)])
    table = ["image,weapons,gore", *(f"{i}.png,{(i + 1) % 2},0" for i in range(rows))]
    (folder / "t.csv").write_text("\n".join(table) + "\n", "utf-8")
    path = folder / "r.yaml"
    path.write_text(
        "scenario: {loader: table, path: t.csv, rules: [weapons, gore]}\n"
        f"inferencer: {{name: screen{more and ', '}{more}}}\n"
        f"metrics: [{metrics}]\n",
        "utf-8",
    )
    return path


def figures(found: Any) -> dict[str, float | None]:
    return {each.name: each.value for each in found.estimates}


def test_a_screening_is_measured(tmp_path: Path, colours: Judge) -> None:
    path = screen_recipe(
        tmp_path,
        "accuracy, f1, stability, majority_consistency, exception_recall, cost, latency",
        "repeats: 2, perturbations: [resize, recompress, flip],"
        " exceptions: [{name: weapons, strictness: allowed}]",
    )
    found = evaluate(path, out=tmp_path / "out")
    by_name = figures(found)
    assert by_name["accuracy over all"] == 1.0 and by_name["F1 of scored"] == 1.0
    for name in PERTURBED:
        assert by_name[f"unchanged under {name}"] == 1.0
    assert by_name["majority consistency"] == 1.0
    assert by_name["exception recall, weapons: allowed"] == 1.0
    assert by_name["question tokens per example"] > 0  # type: ignore[operator]
    assert by_name["latency p50, ms"] > 0  # type: ignore[operator]
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    assert [(r.example, r.target, r.truth) for r in rows[:2]] == [
        ("0.png", "weapons", "unsafe"),
        ("0.png", "gore", "safe"),
    ]
    assert rows[0].probabilities == {"safe": pytest.approx(0.05), "unsafe": pytest.approx(0.95)}
    assert found.about["bundle"]["name"] == "fake" and found.about["policy_sha256"]


def test_a_picture_that_cannot_be_decoded_is_unscored(tmp_path: Path, colours: Judge) -> None:
    path = screen_recipe(tmp_path, "accuracy, unscored", "repeats: 3, perturbations: [flip]")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    found = evaluate(path, out=tmp_path / "out")
    assert found.counts["unscored"] == 2
    by_name = figures(found)
    assert by_name["accuracy of scored"] == 1.0
    assert by_name["accuracy over all"] == pytest.approx(2 / 3)
    row = read_rows(tmp_path / "out" / "rows.jsonl")[2]
    assert row.prediction is None and row.unscored is not None
    assert row.unscored.split(":")[0] in ("truncated", "undecodable")
    assert row.repeats == (None, None, None) and row.perturbed is None


def test_missing_pictures_stop_it_before_anything_runs(tmp_path: Path, colours: Judge) -> None:
    path = screen_recipe(tmp_path, "accuracy")
    (tmp_path / "1.png").unlink()
    with pytest.raises(InputError, match=r"1 of 3 pictures are missing: .*1\.png; put them"):
        evaluate(path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        ("exceptions: [{name: weapon, strictness: allowed}]", "no category or rule 'weapon'"),
        ("exceptions: [{name: gore, strictness: sensitive}]", "name the column that says so"),
        ("reasoning: true", "thresholds decide without reasoning"),
    ],
)
def test_settings_that_do_not_go_together(
    tmp_path: Path, colours: Judge, more: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(screen_recipe(tmp_path, "accuracy", more))


def test_unknown_rules_are_named(tmp_path: Path, colours: Judge) -> None:
    path = screen_recipe(tmp_path, "accuracy")
    path.write_text(path.read_text("utf-8").replace("[weapons, gore]", "[weapns]"), "utf-8")
    table = tmp_path / "t.csv"
    table.write_text(table.read_text("utf-8").replace("weapons", "weapns"), "utf-8")
    with pytest.raises(InputError, match="has no rule weapns; its rules are weapons, "):
        evaluate(path)


def test_a_stated_label_under_a_changed_policy(tmp_path: Path, colours: Judge) -> None:
    """Grey pictures are near a rule; whether they break it depends on how strict it is."""
    pictures(tmp_path, (255, 0, 0), (128, 128, 128), (0, 0, 255))
    table = "image,label,strict\n0.png,unsafe,unsafe\n1.png,safe,unsafe\n2.png,safe,\n"
    (tmp_path / "t.csv").write_text(table, "utf-8")
    path = tmp_path / "r.yaml"
    path.write_text(
        "scenario: {loader: table, path: t.csv}\n"
        "inferencer:\n  name: screen\n  exceptions:\n"
        "    - {name: weapons, strictness: sensitive, label: strict}\n"
        "metrics: [exception_recall]\n",
        "utf-8",
    )
    (found,) = evaluate(path).estimates
    assert (found.name, found.n) == ("exception recall, weapons: sensitive", 1)
    assert found.value == 1.0


# --- stopped, and gone on with --------------------------------------------------------------------

SCRIPT = """if True:
    import os, sys, time
    sys.path.insert(0, os.environ["FAKE_TESTS"])
    from pathlib import Path
    import edgejudge.judge
    from edgejudge.bundle import Bundle
    from fake_judge import ColourEngine
    class Slow(ColourEngine):
        def score(self, prefix, branches):
            with open(os.environ["FAKE_LOG"], "a") as log:
                log.write("asked\\n")
            time.sleep(float(os.environ["FAKE_SECONDS"]))
            return super().score(prefix, branches)
    def load(cls, *_, **__):
        return cls(Bundle.open(os.environ["FAKE_BUNDLE"]), Slow())
    edgejudge.judge.Judge.load = classmethod(load)
    from edgejudge.cli import main
    sys.exit(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_is_gone_on_with(tmp_path: Path, colours: Judge, how: signal.Signals) -> None:
    path = screen_recipe(tmp_path, "accuracy", rows=6)
    out, log = tmp_path / "out", tmp_path / "log"
    env = {
        **os.environ,
        "FAKE_TESTS": str(Path(__file__).parent),
        "FAKE_BUNDLE": str(tmp_path / "bundle"),
        "FAKE_LOG": str(log),
        "FAKE_SECONDS": "0.4",
    }
    command = [sys.executable, "-c", SCRIPT, "eval", str(path), "--out", str(out)]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not log.exists() or len(log.read_text().split()) < 3:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    process.send_signal(how)
    error = process.communicate(timeout=60)[1].decode()
    if how == signal.SIGINT:
        assert process.returncode == 130 and "stopped by Ctrl-C" in error
    kept = {row.example for row in read_rows(out / "rows.jsonl")}
    assert 2 <= len(kept) < 6 and not (out / "results.json").exists()
    # What a kill in the middle of writing leaves: half of an example, and half a line.
    with (out / "rows.jsonl").open("a", encoding="utf-8") as file:
        row = Row("5.png", "weapons", "5.png", "label", "safe", "unsafe", None)
        file.write(json.dumps(row.to_json()) + "\n" + '{"example": "5.p')
    log.unlink()
    env["FAKE_SECONDS"] = "0"
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(log.read_text().split()) == 6 - len(kept)  # nothing is judged twice
    rows = read_rows(out / "rows.jsonl")
    assert sorted((r.example, r.target) for r in rows) == sorted(
        (f"{i}.png", rule) for i in range(6) for rule in ("weapons", "gore")
    )
    assert json.loads((out / "results.json").read_text("utf-8"))["metrics"][0]["value"] == 1.0


def test_a_run_of_another_recipe_or_bundle_is_refused(
    tmp_path: Path, colours: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = screen_recipe(tmp_path, "accuracy"), tmp_path / "out"
    evaluate(path, out=out)
    before = (out / "rows.jsonl").read_bytes()
    screen_recipe(tmp_path, "accuracy, f1, unscored")  # other metrics of the same rows
    assert len(evaluate(path, out=out).estimates) == 6
    screen_recipe(tmp_path, "accuracy", "repeats: 2")
    with pytest.raises(InputError, match="rows of another run: recipe differ"):
        evaluate(path, out=out)
    screen_recipe(tmp_path, "accuracy")
    (tmp_path / "other").mkdir()
    other = fake_judge(tmp_path / "other", manifest(band=0.01), ColourEngine())
    monkeypatch.setattr(Judge, "load", lambda *_, **__: other)
    with pytest.raises(InputError, match="rows of another run: bundle differ"):
        evaluate(path, out=out)
    assert (out / "rows.jsonl").read_bytes() == before


# --- the other inferencers ------------------------------------------------------------------------

MADE = Provenance("fake", "00", (), 2, (), Table({"score": 3.0}), Table({}), "off", 0)


class StandIn:
    """Answers as a judge would, and remembers what it was asked."""

    def __init__(self, *wins: float) -> None:
        self.asked: list[Any] = []
        self.wins = list(wins)

    def ask(self, images: Any, question: str, labels: Sequence[str], **how: Any) -> Answer:
        self.asked.append((images, question, tuple(labels), how))
        shares = [0.7, *[0.3 / (len(labels) - 1)] * (len(labels) - 1)]
        each = tuple(LabelAnswer(n, p, 0.0) for n, p in zip(labels, shares, strict=True))
        return Answer(question, labels[0], each, None, "lm_head", False, 1, 1, MADE)

    def score(self, images: Any, criterion: Any) -> Any:
        from edgejudge.answering.answers import Level, Score

        self.asked.append((images, criterion))
        levels = tuple(Level(str(k), float(k), p) for k, p in ((1, 0.1), (4, 0.9)))

        class Task:
            pass

        task: Any = Task()
        task.levels = levels
        return Score("x", 3.7, 0.675, None, (task,), MADE)

    def compare_answers(self, images: Any, instruction: str, a: str, b: str, **how: Any) -> Any:
        self.asked.append((a, b, how))
        p = {"x": 3, "y": 2, "z": 1}.get(a, 0) - {"x": 3, "y": 2, "z": 1}.get(b, 0)
        p_a = 0.5 + p / 8
        orders = (Order("a", p_a, "a", None), Order("b", p_a, "b" if p == 0 else "a", None))
        return Comparison(
            "c", "a" if p > 0 else "inconclusive", p_a, 1 - p_a, 0.0, 0.02, orders, MADE
        )


def adapter(folder: Path, judge: Any, inferencer: str, instruction: str, data: DataSet) -> Adapter:
    path = folder / "r.yaml"
    path.write_text(
        "scenario: {loader: folders, path: x}\n"
        f"instruction: {instruction}\ninferencer: {{name: {inferencer}}}\nmetrics: [accuracy]\n",
        "utf-8",
    )
    return adapter_for(read_recipe(path), judge, data)


def one(kind: Any, truth: Any, labels: tuple[str, ...] = (), **fields: Any) -> DataSet:
    example = Example("1", "1", (Path("1.png"),), {"": truth}, **fields)
    return DataSet((example,), kind, labels, "")


def test_ask_with_labels_and_with_options(tmp_path: Path) -> None:
    judge = StandIn()
    data = one("label", "dog", ("cat", "dog"))
    made = adapter(tmp_path, judge, "ask", '{question: "Which is it?"}', data)
    judged = made.judge(data.examples[0], ["1.png"])
    assert judge.asked[0][1:3] == ("Which is it?", ("cat", "dog"))
    assert judged.said[""].prediction == "cat"
    assert judged.said[""].probabilities == pytest.approx({"cat": 0.7, "dog": 0.3})
    assert judged.cost == {"questions": 2.0} and judged.stages_ms == {"score": 3.0}
    choice = one("label", "B", tuple("ABC"), text="What?", options=("a hat", "a cat"))
    judged = adapter(tmp_path, judge, "ask", "{}", choice).judge(choice.examples[0], ["1.png"])
    assert judge.asked[1][1:3] == ("What?", ("a hat", "a cat"))
    assert judge.asked[1][3]["choices"] is True
    assert judged.said[""].prediction == "A"
    assert judged.said[""].probabilities == pytest.approx({"A": 0.7, "B": 0.3})
    with pytest.raises(InputError, match=r"ask needs instruction\.question"):
        adapter(tmp_path, judge, "ask", "{}", data)
    with pytest.raises(InputError, match="the truth dog is none of the labels no, yes"):
        adapter(tmp_path, judge, "ask", '{question: "?", labels: [no, yes]}', data)


def test_scores_of_pictures_and_of_answers(tmp_path: Path) -> None:
    judge = StandIn()
    data = one("score", 4.0)
    made = adapter(tmp_path, judge, "score", "{criterion: crowded}", data)
    said = made.judge(data.examples[0], ["1.png"]).said[""]
    assert said.prediction == 3.7 and said.probabilities == {"1": 0.1, "4": 0.9}
    assert judge.asked[0][1].question().text == "How crowded is it, from 1 to 5?"
    answered = one("score", 4.0, text="Say {it}.", answers=("A {thing}.",))
    made = adapter(tmp_path, judge, "score", "{criterion: helpful}", answered)
    made.judge(answered.examples[0], ["1.png"])
    rubric = judge.asked[1][1]
    assert isinstance(rubric, Rubric)
    text = rubric.question().text  # braces of an answer are text
    assert "Say {it}." in text and "A {thing}." in text and "How helpful is the answer" in text
    with pytest.raises(InputError, match=r"score needs instruction\.criterion"):
        adapter(tmp_path, judge, "score", "{}", data)
    with pytest.raises(InputError, match="score answers with kind score"):
        adapter(tmp_path, judge, "score", "{criterion: x}", one("pair", "A"))


def test_comparing_and_ranking_answers(tmp_path: Path) -> None:
    judge = StandIn()
    data = one("pair", "A", ("A", "B", "C"), text="?", answers=("x", "y"))
    made = adapter(tmp_path, judge, "compare", "{}", data)
    said = made.judge(data.examples[0], ["1.png"]).said[""]
    assert (said.prediction, said.orders) == ("A", ("A", "A"))
    assert said.probabilities == pytest.approx({"A": 0.625, "B": 0.375})
    assert "criterion" not in judge.asked[0][2]  # the judge's own
    same = one("pair", "A", text="?", answers=("x", "x"))
    said = (
        adapter(tmp_path, judge, "compare", "{}", same).judge(same.examples[0], ["1.png"]).said[""]
    )
    assert (said.prediction, said.orders) == ("inconclusive", ("A", "B"))
    batch = one("order", "BCA", text="?", answers=("z", "x", "y"))
    made = adapter(tmp_path, judge, "rank", "{criterion: is better}", batch)
    assert made.judge(batch.examples[0], ["1.png"]).said[""].prediction == "BCA"
    assert judge.asked[-1][2]["criterion"] == "is better"
    with pytest.raises(InputError, match="1 has 3 answers; compare takes 2"):
        adapter(tmp_path, judge, "compare", "{}", one("pair", "A", answers=("x", "y", "z")))
    with pytest.raises(InputError, match=r"compare needs instruction\.criterion"):
        adapter(tmp_path, judge, "compare", "{}", one("pair", "A"))


def test_what_an_example_makes_impossible_is_said_of_it(tmp_path: Path) -> None:
    class Failing(StandIn):
        def ask(self, *_: Any, **__: Any) -> Answer:
            raise InputError("truncated", "the image ends early")

    data = one("label", "dog", ("cat", "dog"))
    made = adapter(tmp_path, Failing(), "ask", '{question: "?"}', data)
    said = made.judge(data.examples[0], ["1.png"]).said[""]
    assert (said.prediction, said.why) == (None, "truncated: the image ends early")


def test_perturbations_change_what_they_say() -> None:
    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 0, 0), (0, 0, 20, 20))
    rgb = decode(picture).rgb
    assert perturbed(rgb, "resize").size == (30, 15)
    flipped = perturbed(rgb, "flip")
    assert flipped.getpixel((39, 5)) == (255, 0, 0) and flipped.getpixel((0, 5)) == (0, 0, 0)
    again = perturbed(rgb, "recompress")
    assert again.size == (40, 20) and again.getpixel((2, 5)) != (255, 0, 0)
    assert perturbed(rgb[:1, :1], "resize").size == (1, 1)


# --- the judge that ships -------------------------------------------------------------------------


def test_the_recipes_that_ship_are_read_and_their_data_is_there() -> None:
    found = sorted(RECIPES.glob("*.yaml"))
    assert len(found) >= 2
    from edgejudge.evaluation.examples import missing_pictures
    from edgejudge.evaluation.loaders import load

    for path in found:
        missing_pictures(load(read_recipe(path).scenario))


def test_nano_screens_and_answers(tmp_path: Path) -> None:
    """The recipes that ship, over few pictures."""
    for name in ("screen", "ask"):
        text = (RECIPES / f"{name}.yaml").read_text("utf-8")
        assert "subset: " in text
        text = "\n".join(
            line for line in text.split("\n") if not line.lstrip().startswith("subset:")
        )
        text = text.replace("scenario:\n", "scenario:\n  subset: 4\n")
        for key in ("path: ", "images: "):
            text = text.replace(f"  {key}", f"  {key}{RECIPES}/")
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, "utf-8")
        found = evaluate(path, out=tmp_path / name)
        assert found.counts["examples"] == 4 and found.counts["unscored"] == 0
        by_name = figures(found)
        accuracy = by_name["accuracy over all"]
        assert accuracy is not None and accuracy > 0.7, name
        assert (tmp_path / name / "report.html").stat().st_size > 5000
