"""Rubrics and checklists as files: what they mean, and what is wrong with one by file and line."""

import json
from pathlib import Path

import pytest

from edgejudge.answering.rubric_files import read_checklist, read_rubric
from edgejudge.answering.rubrics import METHODS, Rubric, Tasks
from edgejudge.errors import PolicyError

SHARP = """\
name: sharp
criterion: sharpness
labels: {poor: 0, fair: 2.5, good: 5}
wording: |
  Look closely.
  Rate the {criterion} from {first} to {last}.
lead: The {criterion} is
temperature: 3
"""
EDIT = """\
name: edit
combination: viescore
tasks:
  - {criterion: faithful, method: reward, group: SC}
  - {criterion: natural, labels: [1, 2, 3], group: PQ, name: looks}
"""
PAGE = """\
name: page
band: 0.1
wording: Does it show {criterion}?
criteria:
  - a cat
  - {id: clean, text: written text, weight: 4, wanted: no}
"""


def write(folder: Path, text: str) -> Path:
    (folder / "file.yaml").write_text(text)
    return folder / "file.yaml"


def test_a_rubric(tmp_path: Path) -> None:
    found = read_rubric(write(tmp_path, SHARP))
    assert isinstance(found, Rubric)
    assert (found.name, found.criterion) == ("sharp", "sharpness")
    assert (found.labels, found.values) == (("poor", "fair", "good"), (0.0, 2.5, 5.0))
    asked = found.question()
    assert asked.text == "Look closely.\nRate the sharpness from poor to good."
    assert (asked.lead, found.temperature) == ("The sharpness is", 3.0)
    plain = read_rubric(write(tmp_path, "criterion: crowded"))
    assert isinstance(plain, Rubric) and plain.name == "crowded"
    assert plain.question().text == "How crowded is it, from 1 to 5?"
    assert plain.labels == METHODS["rubric"].labels


def test_tasks(tmp_path: Path) -> None:
    found = read_rubric(write(tmp_path, EDIT))
    assert isinstance(found, Tasks) and found.combination == "viescore"
    assert [(r.name, r.group) for r in found.rubrics] == [("faithful", "SC"), ("looks", "PQ")]
    assert found.rubrics[0].labels == METHODS["reward"].labels
    assert found.rubrics[1].values == (1.0, 2.0, 3.0)


def test_a_checklist_and_json(tmp_path: Path) -> None:
    found = read_checklist(write(tmp_path, PAGE))
    assert (found.name, found.band, found.wording) == ("page", 0.1, "Does it show {criterion}?")
    assert [(c.id, c.text, c.weight, c.wanted) for c in found.criteria] == [
        ("a cat", "a cat", 1.0, True),
        ("clean", "written text", 4.0, False),
    ]
    file = tmp_path / "page.json"
    document = {"name": "page", "criteria": ["a cat", {"text": "a dog", "weight": 2}]}
    file.write_text(json.dumps(document, indent=1))
    assert [c.weight for c in read_checklist(file).criteria] == [1.0, 2.0]


WRONG_RUBRICS = [
    ("", "line 1: the file is empty"),
    ("name: x\n", "line 1: criterion: missing; add it"),
    (SHARP + "scale: 5\n", "line 9: scale: unknown key"),
    (SHARP.replace("sharpness", "[sharpness]"), "line 2: criterion: expected text, got a list"),
    (SHARP.replace("fair: 2.5", "fair: high"), "line 3: labels.fair: expected a number"),
    (SHARP.replace("fair", "poor"), "line 3: labels.poor: given twice"),
    (SHARP.replace("{criterion} from", "{criteria} from"), r"must contain \{criterion\}"),
    (SHARP.replace("{last}", "{end}"), r"has \{end\}; it may have"),
    (SHARP.replace("temperature: 3", "temperature: 0"), "line 8: temperature: expected a number"),
    (SHARP.replace("{poor: 0, fair: 2.5, good: 5}", "[good]"), "line 1: .*two different values"),
    (SHARP + "method: best\n", "line 9: method: 'best' is none of rubric, reward"),
    (SHARP + "group: SC\n", "line 9: group: unknown key"),
    (EDIT.replace("viescore", "sum"), "line 2: combination: 'sum' is none of mean"),
    (EDIT.replace(", group: SC", ""), "line 1: tasks 'edit': viescore needs two groups"),
    (EDIT.replace("criterion: natural", "text: natural"), r"line 5: tasks\[1\].text: unknown key"),
    ("a: [", "not valid YAML"),
    ("a: &x 1\nb: *x\n", "line 2: not valid YAML: anchors"),
]
WRONG_CHECKLISTS = [
    ("name: page\n", "line 1: criteria: missing"),
    ("name: page\ncriteria: []\n", "line 2: criteria: the list is empty"),
    (PAGE.replace("weight: 4", "weight: 0"), r"line 6: criteria\[1\].weight: expected a number"),
    (PAGE.replace("wanted: no", "wanted: maybe"), r"criteria\[1\].wanted: expected true or false"),
    (PAGE.replace("id: clean", "id: a b"), r"criteria\[1\].id: 'a b' is no name"),
    (PAGE + "  - a cat\n", "line 1: checklist 'page': 'a cat' is given twice"),
    (PAGE.replace("band: 0.1", "band: 0.7"), "line 2: band: expected a number from 0 to 0.5"),
]


@pytest.mark.parametrize("text,message", WRONG_RUBRICS)
def test_a_bad_rubric_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message) as error:
        read_rubric(write(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "file.yaml"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text,message", WRONG_CHECKLISTS)
def test_a_bad_checklist_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        read_checklist(write(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot be read \(No such file"):
        read_rubric(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: x\ncriterion: \xe9\n")
    with pytest.raises(PolicyError, match="line 2: not UTF-8"):
        read_rubric(tmp_path / "latin.yaml")
    (tmp_path / "long.yaml").write_text("a" * (1 << 20) + "b")
    with pytest.raises(PolicyError, match="more than"):
        read_checklist(tmp_path / "long.yaml")
