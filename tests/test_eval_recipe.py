"""Recipes: what is read, and errors that name the file, the line and the key."""

from pathlib import Path

import pytest

from edgejudge.errors import InputError
from edgejudge.evaluation.metrics import METRICS
from edgejudge.evaluation.recipe import read_recipe

GOOD = """\
# a comment
scenario:
  loader: table
  path: data/labels.csv
  columns: {image: file}
  rules: [weapons, gore]
  subset: 10
instruction:
  policy: stickers
inferencer:
  name: screen
  repeats: 6
  perturbations: [resize, flip]
  exceptions:
    - {name: violence, strictness: allowed}
  reasoning: false
metrics:
  - accuracy
  - {name: f1, by_target: true, positive: unsafe}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, "utf-8")
    return path


def problem(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        read_recipe(write(folder, text))
    assert caught.value.code == "recipe"
    message = str(caught.value)
    assert message.startswith(str(folder / "r.yaml")) and "\n" not in message
    return message.removeprefix(str(folder / "r.yaml"))


def test_a_recipe_is_read_as_written(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD))
    assert recipe.scenario.path == tmp_path / "data" / "labels.csv"
    assert recipe.scenario.column("image") == "file" and recipe.scenario.column("id") == "id"
    assert (recipe.scenario.rules, recipe.scenario.subset) == (("weapons", "gore"), 10)
    how = recipe.inferencer
    assert (how.repeats, how.perturbations) == (6, ("resize", "flip"))
    assert (how.reasoning, how.method, how.relevance_gate) == (False, None, False)
    assert how.exceptions[0].title == "violence: allowed"
    assert [each.name for each in recipe.metrics] == ["accuracy", "f1"]
    assert recipe.metrics[1].by_target and recipe.metrics[1].positive == "unsafe"
    assert recipe.place(1).endswith("r.yaml, line 19: metrics[1]")


def test_hashes_follow_what_is_said(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD))
    layout = read_recipe(write(tmp_path, GOOD.replace("# a comment", "").replace("10", "10 # ten")))
    assert (layout.sha256, layout.judged_sha256) == (recipe.sha256, recipe.judged_sha256)
    metrics = read_recipe(write(tmp_path, GOOD.replace("- accuracy", "- f2")))
    assert metrics.sha256 != recipe.sha256 and metrics.judged_sha256 == recipe.judged_sha256
    other = read_recipe(write(tmp_path, GOOD.replace("subset: 10", "subset: 11")))
    assert other.judged_sha256 != recipe.judged_sha256


def test_an_unknown_metric_lists_the_known_ones(tmp_path: Path) -> None:
    said = problem(tmp_path, GOOD.replace("- accuracy", "- acuracy"))
    assert said.startswith(", line 18: metrics[0]: 'acuracy' is none of ")
    assert all(name in said for name in METRICS)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("loader: table", "loader: tabel", ", line 3: scenario.loader: 'tabel' is none of table"),
        ("name: screen", "name: scren", ", line 11: inferencer.name: 'scren' is none of screen"),
        ("loader: table", "lodaer: table", ", line 3: scenario.loader: missing"),
        ("repeats: 6", "repeat: 6", ", line 12: inferencer.repeat: unknown key; the keys here"),
        ("repeats: 6", "repeats: 2.5", ", line 12: inferencer.repeats: expected a whole number"),
        ("repeats: 6", "repeats: 0", ", line 12: inferencer.repeats: expected a number from 1"),
        ("repeats: 6", "outputs: x.jsonl", ", line 12: inferencer.outputs: unknown key"),
        ("resize, flip", "resize, blur", ", line 13: inferencer.perturbations[1]: 'blur' is none"),
        ("allowed", "relaxed", ", line 15: inferencer.exceptions[0].strictness: 'relaxed'"),
        ("policy: stickers", "question: x", ", line 9: instruction.question: unknown key"),
        ("{image: file}", "{picture: file}", ", line 5: scenario.columns.picture: unknown key"),
        ("subset: 10", "subset: 10\n  subset: 11", ", line 8: scenario.subset: given twice"),
        ("metrics:", "metric:", ", line 17: metric: unknown key; the keys here are scenario"),
        ("positive: unsafe", "postive: x", ", line 19: metrics[1].postive: unknown key"),
        ("name: f1", "name: ece, bins: 10", ", line 19: metrics[1].bins: unknown key"),
        ("name: f1", "name: kendall", ", line 19: metrics[1].positive: goes with f1, f2"),
        ("- accuracy", "- *all", ", line 18: not valid YAML: anchors and aliases"),
        ("  repeats", "\trepeats", ", line 12: not valid YAML"),
    ],
)
def test_errors_name_the_line_and_the_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    assert problem(tmp_path, GOOD.replace(old, new, 1)).startswith(said)


@pytest.mark.parametrize("text", ["", "  \n", "# nothing\n", "[]", "a: b", "scenario: 1\n"])
def test_what_is_no_recipe(tmp_path: Path, text: str) -> None:
    assert problem(tmp_path, text)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "no.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"scenario:\n  loader: \xff\n")
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_recipe(tmp_path / "bytes.yaml")


def test_labels_may_look_like_truth_values(tmp_path: Path) -> None:
    text = """
scenario: {loader: folders, path: x}
instruction: {question: "Is it?", labels: [no, yes]}
inferencer: {name: ask}
metrics: [accuracy]
"""
    assert read_recipe(write(tmp_path, text)).instruction.labels == ("no", "yes")
    said = problem(tmp_path, text.replace("[no, yes]", "[no, no]"))
    assert "expected two or more, each once" in said
