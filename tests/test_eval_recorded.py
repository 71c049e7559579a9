"""Recorded outputs measured without a model, whole runs of them, and the page that shows them."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sklearn import metrics as sk

from edgejudge.cli import main
from edgejudge.errors import InputError
from edgejudge.evaluation.page import page
from edgejudge.evaluation.plots import drawn
from edgejudge.evaluation.rows import read_rows
from edgejudge.evaluation.run import evaluate
from edgejudge.evaluation.terminal import plain


def lines(path: Path, *values: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), "utf-8")
    return path


def recipe(folder: Path, scenario: str, inferencer: str = "", metrics: str = "accuracy") -> Path:
    path = folder / "r.yaml"
    path.write_text(
        f"scenario: {{path: t.jsonl, {scenario}}}\n"
        f"inferencer: {{name: recorded{inferencer and ', '}{inferencer}}}\n"
        f"metrics: [{metrics}]\n",
        "utf-8",
    )
    return path


def values(found: Any) -> dict[str, float | None]:
    return {each.name: each.value for each in found.estimates}


def problem(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        evaluate(path)
    return str(caught.value)


# --- beside the truths ----------------------------------------------------------------------------


def test_predictions_beside_the_truths(tmp_path: Path) -> None:
    lines(
        tmp_path / "t.jsonl",
        {"id": 1, "label": "no", "said": "no", "p": 0.2},
        {"id": 2, "label": "yes", "said": "yes", "p": 0.9},
        {"id": 3, "label": "yes", "said": "no", "p": 0.4},
        {"id": 4, "label": "no", "said": "", "p": 0.5},
        {"id": 5, "label": "no", "said": "uncertain", "p": 0.5},
    )
    columns = "loader: table, columns: {prediction: said, probability: p}"
    found = evaluate(recipe(tmp_path, columns, metrics="accuracy, f1, auroc, ece, unscored"))
    assert found.counts["unscored"] == 1 and found.counts["undecided"] == 1
    assert found.counts["unscored_reasons"] == {"no prediction": 1}
    by_name = values(found)
    assert by_name["accuracy of scored"] == 0.5 and by_name["accuracy over all"] == 0.4
    truth, p = [0, 1, 1, 0], [0.2, 0.9, 0.4, 0.5]
    assert by_name["AUROC"] == pytest.approx(sk.roc_auc_score(truth, p))
    assert by_name["F1 of scored"] == pytest.approx(2 / 3)
    worst = found.worst
    assert [each["example"] for each in worst] == ["3", "5", "4"]


@pytest.mark.parametrize("p", [1.2, -0.1, "high"])
def test_a_probability_outside_0_to_1_is_one_sentence(tmp_path: Path, p: Any) -> None:
    lines(
        tmp_path / "t.jsonl",
        {"id": 1, "label": "no", "prediction": "no", "probability": 0.2},
        {"id": 2, "label": "yes", "prediction": "yes", "probability": p},
    )
    assert problem(recipe(tmp_path, "loader: table")).startswith(
        f"{tmp_path / 't.jsonl'}, line 2: 'probability' is "
    )


def test_more_labels_need_more_probabilities(tmp_path: Path) -> None:
    row = {"prediction": "a", "probability": 0.2}
    lines(tmp_path / "t.jsonl", *({"id": k, "label": k} | row for k in "abc"))
    assert "there are 3 labels" in problem(recipe(tmp_path, "loader: table"))
    several = [{"id": k, "label": k, "prediction": k, "probabilities": {k: 0.7}} for k in "abc"]
    lines(tmp_path / "t.jsonl", *several)
    assert values(evaluate(recipe(tmp_path, "loader: table", metrics="ece")))["ECE"] == (
        pytest.approx(0.3)
    )


def test_nothing_recorded_is_told(tmp_path: Path) -> None:
    lines(tmp_path / "t.jsonl", {"id": 1, "label": "no"}, {"id": 2, "label": "yes"})
    assert "no column 'prediction'" in problem(recipe(tmp_path, "loader: table"))


def test_metrics_that_do_not_fit_are_refused_before_anything(tmp_path: Path) -> None:
    lines(tmp_path / "t.jsonl", {"id": 1, "label": "no", "prediction": "no"})
    out = tmp_path / "out"
    path = recipe(tmp_path, "loader: table", metrics="accuracy, levenshtein")
    with pytest.raises(InputError, match=r"line 3: metrics\[1\]: levenshtein is for answers"):
        evaluate(path, out=out)
    assert not out.exists()
    assert "which these recorded outputs do not have" in problem(
        recipe(tmp_path, "loader: table", metrics="latency")
    )


def test_every_kind_is_read(tmp_path: Path) -> None:
    lines(
        tmp_path / "t.jsonl",
        {"id": 1, "label": 4, "prediction": "[[4]]", "repeats": [4, "4", 3]},
        {"id": 2, "label": 2, "prediction": 2.4, "repeats": [2, None, None]},
        {"id": 3, "label": 5, "prediction": "I think 5", "repeats": []},
    )
    score = recipe(
        tmp_path, "loader: table, kind: score", metrics="accuracy, majority_consistency, unscored"
    )
    found = evaluate(score)
    assert values(found)["accuracy of scored"] == 1.0
    assert values(found)["majority consistency"] == 0.5
    assert found.counts["unscored_reasons"] == {"unreadable": 1}
    lines(
        tmp_path / "t.jsonl",
        {"id": 1, "label": "A", "prediction": "[[A]]", "orders": ["A", "A"]},
        {"id": 2, "label": "C", "prediction": "tie", "orders": ["B", "A"]},
        {"id": 3, "label": "B", "prediction": "inconclusive", "orders": ["B", "A"]},
    )
    pair = recipe(
        tmp_path,
        "loader: table, kind: pair",
        metrics="accuracy, accuracy_with_tie, accuracy_without_tie, order_consistency",
    )
    by_name = values(evaluate(pair))
    assert by_name["accuracy of scored"] == pytest.approx(2 / 3)
    assert by_name["order consistency"] == pytest.approx(1 / 3)
    assert by_name["accuracy without tie of scored"] == 1.0
    lines(tmp_path / "t.jsonl", {"id": 1, "label": "ABC", "prediction": "C > B > A"})
    order = recipe(tmp_path, "loader: table, kind: order", metrics="levenshtein")
    assert values(evaluate(order))["Levenshtein distance of scored"] == pytest.approx(2 / 3)


# --- in a file of their own -----------------------------------------------------------------------


def verdict(path: str, said: str | None, p: float = 0.9) -> dict[str, Any]:
    error = None if said else {"code": "truncated", "message": "the image ends early"}
    rules = [
        {"id": "weapons", "verdict": said, "probability": p},
        {"id": "gore", "verdict": "safe", "probability": 0.1},
    ]
    return {
        "path": path,
        "verdict": said,
        "rules": rules if said else [],
        "error": error,
        "bundle": {"name": "nano", "sha256": "ab12"},
        "stages_ms": {"decode": 2.0, "decoder": 8.0} if said else {},
        "image_prefixes": 1,
        "reasoning_calls": 0,
    }


def test_rows_of_a_screening(tmp_path: Path) -> None:
    lines(
        tmp_path / "t.jsonl",
        {"image": "1.png", "weapons": 1, "gore": 0},
        {"image": "2.png", "weapons": 0, "gore": 0},
        {"image": "3.png", "weapons": 0, "gore": 1},
        {"image": "4.png", "weapons": 0, "gore": 0},
    )
    lines(
        tmp_path / "out.jsonl",
        verdict("pictures/1.png", "unsafe"),
        verdict("pictures/2.png", "unsafe"),
        verdict("pictures/3.png", None),
        verdict("pictures/other.png", "unsafe"),
    )
    scenario = "loader: table, rules: [weapons, gore]"
    metrics = "accuracy, recall, cost, latency"
    found = evaluate(recipe(tmp_path, scenario, "outputs: out.jsonl", metrics))
    assert found.counts["rows"] == 8 and found.counts["unscored"] == 4
    assert found.counts["unscored_reasons"] == {"truncated": 2, "no output": 2}
    assert found.notes == ("1 outputs of out.jsonl are of no example: pictures/other.png",)
    by_name = values(found)
    assert by_name["accuracy of scored"] == 0.75 and by_name["accuracy over all"] == 3 / 8
    assert by_name["recall over all"] == 0.5  # the truncated picture breaks a rule
    assert by_name["image prefixes per example"] == 1.0
    assert by_name["latency p50, ms"] == 10.0
    assert found.about["bundle"] == {"name": "nano", "sha256": "ab12"}
    # The picture as a whole, with truths as 0 and 1.
    lines(tmp_path / "t.jsonl", *({"image": f"{i}.png", "label": int(i == 1)} for i in (1, 2)))
    found = evaluate(recipe(tmp_path, "loader: table", "outputs: out.jsonl", "f1, auroc"))
    assert values(found) == {
        "F1 of scored": pytest.approx(2 / 3),
        "F1 over all": pytest.approx(2 / 3),
        "AUROC": 0.5,
    }
    lines(tmp_path / "t.jsonl", {"image": "1.png", "label": "cat"})
    assert "the truth of 1.png is 'cat'" in problem(
        recipe(tmp_path, "loader: table", "outputs: out.jsonl")
    )
    lines(tmp_path / "t.jsonl", {"image": "1.png", "alcohol": 1})
    assert "there is no rule 'alcohol'" in problem(
        recipe(tmp_path, "loader: table, rules: [alcohol]", "outputs: out.jsonl")
    )


def test_outputs_with_columns_of_their_own_and_asked_again(tmp_path: Path) -> None:
    lines(tmp_path / "t.jsonl", {"id": "a", "label": "x"}, {"id": "b", "label": "y"})
    outputs = [{"key": key, "answer": said} for key, said in (("a", "x"), ("a", "x"), ("a", "y"))]
    lines(tmp_path / "o.jsonl", *outputs)
    settings = "outputs: o.jsonl, columns: {id: key, prediction: answer}"
    found = evaluate(recipe(tmp_path, "loader: table", settings, "accuracy, majority_consistency"))
    assert values(found)["accuracy over all"] == 0.5
    assert values(found)["majority consistency"] == 1.0
    lines(tmp_path / "o.jsonl", {"key": "z", "answer": "x"})
    assert "none of 1 outputs is of an example: z" in problem(
        recipe(tmp_path, "loader: table", settings)
    )
    lines(tmp_path / "o.jsonl", {"answer": "x"})
    assert "expected a column of id, image, path" in problem(
        recipe(tmp_path, "loader: table", "outputs: o.jsonl")
    )


def test_rows_of_a_run_are_outputs_too(tmp_path: Path) -> None:
    seen = {"flip": {"prediction": "y", "probabilities": {"x": 0.4, "y": 0.6}}, "resize": "x"}
    change = {"change": "x: allowed", "expected": "x", "prediction": "y"}
    lines(
        tmp_path / "t.jsonl",
        {
            "id": "a",
            "label": "x",
            "prediction": "x",
            "probabilities": {"x": 0.8, "y": 0.2},
            "perturbed": seen,
            "exceptions": [change],
            "cost": {"image_prefixes": 2},
            "milliseconds": 12,
        },
        {"id": "b", "label": "y", "prediction": None},
    )
    metrics = "accuracy, stability, exception_recall, cost, latency, unscored"
    first = evaluate(recipe(tmp_path, "loader: table", "", metrics), out=tmp_path / "out")
    assert values(first)["unchanged under flip"] == 0.0
    assert values(first)["unchanged under resize"] == 1.0
    assert values(first)["mean change of probability under flip"] == pytest.approx(0.4)
    assert values(first)["exception recall, x: allowed"] == 0.0
    again = recipe(
        tmp_path, "loader: table", "outputs: out/rows.jsonl, columns: {id: example}", metrics
    )
    assert values(evaluate(again)) == values(first)


# --- what is written ------------------------------------------------------------------------------

EVIL = '<script>alert("1")</script> $x^2$ & [bold]red[/bold] \x1b[31m'


class Checked(HTMLParser):
    """Every element that is opened is closed, in order; nothing comes from the network."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.seen: set[str] = set()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                assert value is not None and value.startswith(("#", "data:"))
            if name == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def evil_run(folder: Path, out: Path | None) -> Any:
    lines(
        folder / "t.jsonl",
        {"id": EVIL, "label": EVIL, "prediction": "other", "probabilities": {"other": 0.9}},
        {"id": "2", "label": "other", "prediction": "other", "probabilities": {"other": 0.8}},
        {"id": "3", "label": "other", "prediction": None, "unscored": f"broken: {EVIL}"},
    )
    metrics = "{name: accuracy, by_target: true}, ece, risk_coverage, unscored"
    return evaluate(recipe(folder, "loader: table", "", metrics), out=out)


def test_the_page_is_well_formed_and_escaped(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = evil_run(tmp_path, out)
    text = (out / "report.html").read_text("utf-8")
    assert text == page(json.loads((out / "results.json").read_text("utf-8")))
    parser = Checked()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert "script" not in parser.seen and {"svg", "table"} <= parser.seen
    assert len(parser.ids) == len(set(parser.ids))
    shown = "".join(parser.text)
    assert (
        EVIL.replace("\x1b", "\\x1b") in shown
        and "Reliability" in shown
        and "Risk against coverage" in shown
    )
    assert found.worst[0]["example"] == EVIL


def test_the_terminal_is_not_steered(tmp_path: Path) -> None:
    found = evil_run(tmp_path, None)
    text = plain([each.to_json() for each in found.estimates])
    assert "\x1b" not in text
    heading, first, *_ = text.splitlines()
    assert heading.split()[:3] == ["figure", "value", "95"]
    assert first.startswith("accuracy of scored")


def test_plots_are_the_same_every_time() -> None:
    figures = {
        "confusion": {"truth": ["a", "b"], "said": ["a", "b"], "counts": [[1, 0], [0, 2]]},
        "risk_coverage": {"coverage": [0.5, 1.0], "risk": [0.0, 0.1], "area": 0.05},
    }
    once, again = drawn(figures), drawn(figures)
    assert list(once) == ["risk_coverage", "confusion"] and once == again
    assert "<metadata" not in once["confusion"]


def test_results_name_what_made_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    evil_run(tmp_path, out)
    value = json.loads((out / "results.json").read_text("utf-8"))
    assert value["schema_version"] == 1 and value["recipe"]["inferencer"] == "recorded"
    assert len(value["recipe"]["sha256"]) == len(value["data_sha256"]) == 64
    assert {"edgejudge", "scipy", "python"} <= set(value["versions"])
    for each in value["metrics"]:
        assert {"value", "interval", "n", "unscored", "undecided", "groups"} <= set(each)
    assert [row.example for row in read_rows(out / "rows.jsonl")] == [EVIL, "2", "3"]


def test_other_metrics_need_no_other_folder_and_other_data_do(tmp_path: Path) -> None:
    out = tmp_path / "out"
    evil_run(tmp_path, out)
    evaluate(recipe(tmp_path, "loader: table", "", "accuracy"), out=out)
    assert len(read_rows(out / "rows.jsonl")) == 3
    lines(tmp_path / "t.jsonl", {"id": "2", "label": "other", "prediction": "x"})
    with pytest.raises(InputError, match="rows of another run: data differ") as caught:
        evaluate(recipe(tmp_path, "loader: table", "", "accuracy"), out=out)
    assert caught.value.code == "exists"
    (out / "run.json").unlink()
    with pytest.raises(InputError, match="nothing says what they are"):
        evaluate(recipe(tmp_path, "loader: table", "", "accuracy"), out=out)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines(tmp_path / "t.jsonl", {"id": 1, "label": "a", "prediction": "a"})
    path = recipe(tmp_path, "loader: table")
    assert main(["eval", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].startswith("accuracy of scored")
    assert "1 decisions about 1 examples: 0 unscored, 0 undecided" in printed.err
    assert main(["eval", str(path), "--json", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["metrics"][0]["value"] == 1.0
    recipe(tmp_path, "loader: table", metrics="acuracy")
    assert main(["eval", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "none of accuracy" in error


def test_no_row_that_could_be_scored_is_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines(tmp_path / "t.jsonl", {"id": 1, "label": "a", "unscored": "timeout: too slow"})
    out = tmp_path / "out"
    path = recipe(tmp_path, "loader: table", metrics="unscored")
    assert main(["eval", str(path), "--out", str(out)]) == 2
    assert "none of 1 rows could be scored: timeout (1)" in capsys.readouterr().err
    assert (out / "rows.jsonl").exists()  # with its reason


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name.split(".")[0])

    monkeypatch.setattr("edgejudge.evaluation.extra.import_module", gone)
    lines(tmp_path / "t.jsonl", {"id": 1, "label": "a", "prediction": "a"})
    assert main(["eval", str(recipe(tmp_path, "loader: table"))]) == 2
    assert "pip install 'edgejudge[eval]'" in capsys.readouterr().err
