"""`edgejudge calibrate`: from labels and pictures to verdicts that name the calibration."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import edgejudge.judge
from edgejudge import Judge
from edgejudge.calibration import Calibration
from edgejudge.cli import main
from edgejudge.judge import default_bundle
from fake_judge import ColourEngine, fake_judge, manifest

PICTURES = default_bundle().parent / "calibration"
POLICY = """
name: beasts
version: 1
rules:
  - id: animal
    text: The picture shows an animal.
    category: animals
    conditions: [[a dog, a cat, a horse, a rat, a snake, a spider]]
"""
GUNS = """
name: guns
version: 1
rules:
  - {id: armed, text: A gun is seen., category: arms, conditions: [a gun]}
  - {id: disarmed, text: A knife is seen., category: arms, conditions: [a knife]}
"""
Run = Callable[..., tuple[str, str]]


@pytest.fixture
def calibrate(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process; gives what it printed."""

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        assert main(["calibrate", *map(str, arguments)]) == code, capsys.readouterr()
        printed = capsys.readouterr()
        assert code != 2 or printed.err.count("error: ") == 1
        return printed.out, printed.err

    return run


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "guns.yaml"
    file.write_text(GUNS, encoding="utf-8")
    return file


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A bundle without graphs in `tmp_path / "bundle"`; gives the names of what it judged."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    judge = fake_judge(folder, manifest(), ColourEngine())
    judged: list[str] = []
    stream = Judge.stream

    def noted(self: Judge, images: Any, *more: Any, **named: Any) -> Iterator[Any]:
        for verdict in stream(self, images, *more, **named):
            judged.append(Path(verdict.path or "").name)
            yield verdict

    monkeypatch.setattr(edgejudge.judge.Judge, "load", lambda *_, **__: judge)
    monkeypatch.setattr(edgejudge.judge.Judge, "stream", noted)
    yield judged


def pictures(folder: Path, reds: int, greens: int) -> list[str]:
    """Red ones are said to show a gun, green ones nothing; no two are the same."""
    names = []
    for count in range(reds + greens):
        colour = (250, count, 9) if count < reds else (9, 250, count)
        names.append(f"{count:02}.png")
        Image.new("RGB", (8, 8), colour).save(folder / names[-1])
    return names


def labels(folder: Path, names: list[str], reds: int, wrong: int = 0) -> Path:
    """As they are, but for some at either end."""
    lines = [f"{n},armed,{int((c < reds) != (c < wrong))}" for c, n in enumerate(names)]
    file = folder / "labels.csv"
    file.write_text("\n".join(["path,rule,label", *lines]) + "\n", encoding="utf-8")
    return file


def test_labels_become_a_calibration_that_verdicts_name(tmp_path: Path, calibrate: Run) -> None:
    known = json.loads((PICTURES / "questions.json").read_text(encoding="utf-8"))
    beasts = {"a dog", "a cat", "a horse", "a rat", "a snake", "a spider"}
    shown = [
        (each["image"], int(any(c["label"] for c in each["conditions"] if c["text"] in beasts)))
        for each in known
    ]
    chosen = [[name for name, label in shown if label == kind][:10] for kind in (0, 1)]
    assert [len(names) for names in chosen] == [10, 10]
    file = tmp_path / "labels.jsonl"
    file.write_text(
        "".join(
            json.dumps({"path": name, "animal": kind}) + "\n"
            for kind, names in enumerate(chosen)
            for name in names
        ),
        encoding="utf-8",
    )
    (tmp_path / "beasts.yaml").write_text(POLICY, encoding="utf-8")
    root = tmp_path / "pictures"
    root.mkdir()
    for name in chosen[0] + chosen[1]:
        shutil.copy(PICTURES / name, root)
    arguments = ["--labels", file, root, "--policy", tmp_path / "beasts.yaml"]
    out, err = calibrate(*arguments, "--out", tmp_path / "c.json")
    assert "animal" in out and "10 + 10" in out and "(N 20)" in out
    assert "more labels" in err  # 10 decisions bound nothing
    made = Calibration.read(tmp_path / "c.json")
    assert made.short_id in err
    (rule,) = made.record.rules
    assert (rule.positives, rule.negatives) == (10, 10)
    assert set(rule.log_likelihood) == {"none", "temperature", "platt", "isotonic"}
    assert rule.log_likelihood["platt"] is None
    assert rule.guarantee.broken is None and len(rule.guarantee.missing) == 2

    judge = Judge.load(calibration=tmp_path / "c.json")
    verdict = judge.screen(PICTURES / chosen[1][0], tmp_path / "beasts.yaml")
    assert verdict.calibration == made.id
    (judged,) = verdict.rules
    fitted = made.rule("animal")
    assert fitted is not None and judged.raw_probability is not None
    assert judged.probability == pytest.approx(fitted.apply(judged.raw_probability, "a dog"))
    assert judged.threshold == fitted.threshold
    assert judged.uncertain_between == fitted.uncertain

    # Fitting again needs neither the judge nor the pictures, and another aim is another file.
    scores = tmp_path / "c.scores.jsonl"
    before = scores.read_bytes()
    shutil.rmtree(root)
    again = [*arguments, "--scores", scores]
    calibrate(*again, "--out", tmp_path / "same.json")
    assert (tmp_path / "same.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    calibrate(*again, "--out", tmp_path / "other.json", "--aim", "recall=0.5")
    assert Calibration.read(tmp_path / "other.json").id != made.id
    assert scores.read_bytes() == before


def test_a_stopped_run_goes_on_where_it_was(
    tmp_path: Path, policy: Path, fake: list[str], calibrate: Run
) -> None:
    names = pictures(tmp_path, 15, 15)
    file = labels(tmp_path, names, 15, wrong=2)
    judge = Judge.load()
    engine = judge.engine
    assert isinstance(engine, ColourEngine)
    seen = 0

    def stopping() -> None:
        nonlocal seen
        seen += 1
        if seen == 20:
            raise KeyboardInterrupt

    honest, engine.prefill = engine.prefill, lambda *a, **k: (stopping(), honest(*a, **k))[1]  # type: ignore[method-assign,misc]
    arguments = ["--bundle", tmp_path / "bundle", "--policy", policy, "--labels", file]
    arguments += ["--out", tmp_path / "c.json"]
    calibrate(*arguments, code=130)
    done = len(fake)
    assert 0 < done < 30 and not (tmp_path / "c.json").exists()
    scores = tmp_path / "c.scores.jsonl"
    assert len(scores.read_text(encoding="utf-8").splitlines()) == done
    with scores.open("a", encoding="utf-8") as stream:
        stream.write('{"path": "half a r')  # as a killed process leaves it
    out, _ = calibrate(*arguments)
    assert sorted(fake) == names  # nothing lost, and nothing judged twice
    assert [json.loads(line)["verdict"] is not None for line in scores.open()] == [True] * 30
    assert "13 + 17" in out


def test_pictures_that_do_not_decode_are_counted_and_named(
    tmp_path: Path, policy: Path, fake: list[str], calibrate: Run
) -> None:
    names = pictures(tmp_path, 12, 12)
    (tmp_path / names[3]).write_bytes(b"\x89PNG\r\n\x1a\n")
    file = labels(tmp_path, names, 12)
    arguments = ["--bundle", tmp_path / "bundle", "--policy", policy, "--labels", file]
    _, err = calibrate(*arguments, "--out", tmp_path / "c.json")
    assert "1 labelled pictures could not be judged and count for nothing: 03.png" in err
    record = Calibration.read(tmp_path / "c.json").record
    assert (record.fitted_on.pictures, record.fitted_on.not_judged) == (23, 1)
    assert (record.rules[0].positives, record.rules[0].negatives) == (11, 12)


def test_rows_of_screen_serve_and_those_without_labels_are_proposed(
    tmp_path: Path, policy: Path, fake: list[str], calibrate: Run
) -> None:
    names = pictures(tmp_path, 14, 14)
    file = labels(tmp_path, names[1:-1], 13)
    bundle, rows = tmp_path / "bundle", tmp_path / "rows.jsonl"
    files = [str(tmp_path / name) for name in names]
    screened = ["screen", *files, "--bundle", str(bundle), "--policy", str(policy)]
    assert main([*screened, "--out", str(rows)]) == 1
    fake.clear()
    arguments = ["--bundle", bundle, "--policy", policy, "--labels", file, "--scores", rows]
    _, err = calibrate(*arguments, "--out", tmp_path / "c.json")
    assert fake == []
    assert "armed: label next " in err and names[0] in err and names[-1] in err
    assert names[1] not in err


def test_a_rule_with_few_labels_is_left_as_it_was(
    tmp_path: Path, policy: Path, fake: list[str], calibrate: Run
) -> None:
    names = pictures(tmp_path, 12, 12)
    file = labels(tmp_path, names, 12)
    with file.open("a", encoding="utf-8") as stream:
        stream.write("00.png,disarmed,1\n01.png,disarmed,0\n")
    arguments = ["--bundle", tmp_path / "bundle", "--policy", policy, "--labels", file]
    _, err = calibrate(*arguments, "--out", tmp_path / "c.json")
    assert "disarmed: not fitted, 1 pictures that break it and 1 that do not" in err
    made = Calibration.read(tmp_path / "c.json")
    assert made.rule("armed") is not None and made.rule("disarmed") is None


@pytest.mark.parametrize(
    "text, more, said",
    [
        (
            "path,rule,label\n00.png,arms,1\n",
            [],
            "'arms' is no rule of the policy, which has",
        ),
        ("path,rule,label\n00.png,armed,1\n01.png,armed,1\n", [], "has 2 labels, all 1"),
        ("path,rule,label\n00.png,armed,0.5\n", [], "'0.5'; write 0 or 1"),
        ("path,rule,label\n00.png,armed,1\n00.png,armed,0\n", [], "keep the one that is right"),
        ("", [], "is empty"),
        ("path,rule,label\n00.png,armed,1\nx.png,armed,0\n", [], "1 of 2 pictures are missing: "),
        ("path,rule,label\n00.png,armed,1\n23.png,armed,0\n", [], "too few labels for any rule"),
        (None, ["--aim", "accuracy"], "aim 'accuracy' is none; write precision=0.95"),
        (None, ["--alpha", "1.5"], "expected a number between 0 and 1, got '1.5'"),
        (None, ["--out", "no/folder.json"], "there is no folder no to write no/folder.json in"),
        (None, ["--out", "labels.csv"], "labels.csv is there already"),
        (None, ["--policy", "nothing"], "policy 'nothing' not found"),
        (None, ["--scores", "labels.csv"], "line 1: it is no JSON"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path,
    policy: Path,
    fake: list[str],
    calibrate: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    more: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = labels(tmp_path, pictures(tmp_path, 12, 12), 12)
    if text is not None:
        file.write_text(text, encoding="utf-8")
    arguments = ["--bundle", "bundle", "--policy", policy, "--labels", "labels.csv"]
    if "--alpha" in more:  # argparse leaves by itself
        with pytest.raises(SystemExit) as left:
            main(["calibrate", *map(str, arguments), "--out", "c.json", *more])
        assert left.value.code == 2 and said in capsys.readouterr().err
        return
    out, err = calibrate(*arguments, "--out", "c.json", *more, code=2)
    assert said in err and out == "" and "Traceback" not in err
    assert not (tmp_path / "c.json").exists()


def test_probabilities_that_are_none_are_refused_with_their_line(
    tmp_path: Path, policy: Path, fake: list[str], calibrate: Run
) -> None:
    names = pictures(tmp_path, 12, 12)
    file = labels(tmp_path, names, 12)
    arguments = ["--bundle", tmp_path / "bundle", "--policy", policy, "--labels", file]
    calibrate(*arguments, "--out", tmp_path / "c.json")
    scores = tmp_path / "c.scores.jsonl"
    for wrong in ("1.5", "NaN", "-0.1"):
        lines = scores.read_text(encoding="utf-8").splitlines()
        row = json.loads(lines[4])
        row["rules"][0]["conditions"][0]["alternatives"][0]["probability"] = float(wrong)
        bad = tmp_path / "bad.jsonl"
        bad.write_text("\n".join([*lines[:4], json.dumps(row)]) + "\n", encoding="utf-8")
        _, err = calibrate(*arguments, "--out", tmp_path / "d.json", "--scores", bad, code=2)
        assert "line 5: 'a gun' has probability" in err and "not in 0..1" in err
