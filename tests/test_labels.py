"""Labels files, recorded rows, and both together; what is wrong is told with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgejudge.calibrating.label_file import Label, Labels, read_labels
from edgejudge.calibrating.labelled import Joined, Lookup, check_classes, join
from edgejudge.calibrating.recorded import Recorded, read_recorded
from edgejudge.errors import InputError

RULES = {"weapons": (("a gun", "a knife"),), "armed_dog": (("a gun", "a knife"), ("a dog",))}
QUESTIONS = ("a gun", "a knife", "a dog")
BUNDLE, POLICY = "b" * 64, "p" * 64


def read(folder: Path, text: str | bytes, name: str = "labels.csv") -> Labels:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_labels(file, RULES, QUESTIONS)


# --- labels ---------------------------------------------------------------------------------------


def test_long_and_wide_csv_and_json_say_the_same(tmp_path: Path) -> None:
    long = read(
        tmp_path,
        "path,rule,question,label\na.png,weapons,,1\nb.png,weapons,,0\na.png,,a gun,1\n",
    )
    wide = read(tmp_path, "path,weapons,a gun\na.png,1,1\nb.png, 0 ,\n")
    lines = read(
        tmp_path,
        '{"path": "a.png", "weapons": 1, "a gun": 1}\n\n{"path": "b.png", "weapons": "0"}\n',
        "labels.jsonl",
    )
    named = read(
        tmp_path,
        '{"path": "a.png", "rule": "weapons", "label": 1}\n'
        '{"path": "b.png", "rule": "weapons", "label": 0}\n'
        '{"path": "a.png", "question": "a gun", "label": 1}\n',
        "labels.jsonl",
    )
    tabs = read(tmp_path, b"\xef\xbb\xbfpath\tweapons\ta gun\r\na.png\t1\t1\r\nb.png\t0\t\r\n")
    for labels in (long, wide, lines, named, tabs):
        values = {p: each.value for p, each in labels.rules["weapons"].items()}
        assert values == {"a.png": 1, "b.png": 0}
        assert {p: each.value for p, each in labels.questions["a gun"].items()} == {"a.png": 1}
        assert labels.pictures == ["a.png", "b.png"] and labels.repeated == 0
    assert long.rules["weapons"]["b.png"] == Label(0, 3)


def test_the_same_label_twice_is_counted(tmp_path: Path) -> None:
    assert read(tmp_path, "path,rule,label\n" + "a.png,weapons,1\n" * 3).repeated == 2


def test_names_with_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    labels = read(tmp_path, 'path,rule,label\n"a, ""b""\nc.png",weapons,1\nd.png,weapons,0\n')
    assert labels.pictures == ['a, "b"\nc.png', "d.png"]
    assert labels.rules["weapons"]["d.png"].line == 4


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is empty"),
        ("path,rule,label\n", "has no label"),
        ("path\na.png\n", "line 1: begin with a header"),
        ("a.png,weapons,1\n", "line 1: begin with a header"),
        ("path,weapons,weapons\na.png,1,1\n", "line 1: column 'weapons' is there twice"),
        (
            "path,rule,label\na.png,arms,1\n",
            "line 2: 'arms' is no rule of the policy, which has 'a",
        ),
        ("path,question,label\na.png,a cat,1\n", "line 2: 'a cat' is no question of the policy"),
        ("path,arms\na.png,1\n", "line 2: 'arms' is no rule"),
        ("path,rule,label\na.png,weapons,2\n", "line 2: the label of 'weapons' is '2'; write 0 or"),
        ("path,rule,label\na.png,weapons,\n", "line 2: the label of 'weapons' is ''"),
        ("path,rule,label\na.png,weapons,yes\n", "'yes'; write 0 or 1"),
        ("path,rule,label\na.png,weapons,nan\n", "'nan'; write 0 or 1"),
        ("path,rule,label\na.png,,1\n", "line 2: not exactly one of them"),
        ("path,rule,question,label\na.png,weapons,a gun,1\n", "line 2: not exactly one of them"),
        ("path,rule,label,more\na.png,weapons,1,2\n", "unknown key 'more'"),
        ("path,rule,label\n,weapons,1\n", "line 2: it names no picture"),
        ("path,rule,label\na.png,weapons\n", "line 2: 2 cells under a header of 3"),
        ('path,rule,label\n"a.png,weapons,1\n', "line 2: it is no CSV"),
        (b"path,rule,label\n\xff.png,weapons,1\n", "line 2: it is not UTF-8"),
        ('{"path": "a.png"\n', "line 1: it is no JSON"),
        ('{"path": "a.png", "weapons": 1}\n[1]\n', "line 2: it is no JSON object"),
        ('{"path": "a.png", "weapons": true}\n', "is 'True'; write 0 or 1"),
        ('{"path": "a.png", "weapons": NaN}\n', "is 'nan'; write 0 or 1"),
        ('{"path": 1, "weapons": 1}\n', "line 1: it names no picture"),
        ("{" * 100_000, "line 1: it is no JSON"),
        (
            "path,rule,label\na.png,weapons,1\nb.png,weapons,1\na.png,weapons,0\n",
            "line 4: rule 'weapons' of 'a.png' is 0 here and 1 in line 2; keep",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value) and str(tmp_path / "labels.csv") in str(caught.value)
    assert caught.value.code == "labels" and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_labels(tmp_path / "absent.csv", RULES, QUESTIONS)


def test_labels_of_one_kind_are_told_before_anything_is_judged(tmp_path: Path) -> None:
    labels = read(tmp_path, "path,weapons,armed_dog\na.png,1,0\nb.png,1,1\n")
    with pytest.raises(InputError, match="rule 'weapons' has 2 labels, all 1") as caught:
        check_classes(labels, RULES)
    assert caught.value.code == "one_class" and "armed_dog" not in str(caught.value)
    # Labels of its questions may bring the other kind.
    check_classes(read(tmp_path, "path,weapons,a gun\na.png,1,\nb.png,,0\n"), RULES)


# --- recorded rows --------------------------------------------------------------------------------


def row(path: str, gun: Any = 0.9, knife: Any = 0.1, dog: Any = 0.5, **more: Any) -> dict[str, Any]:
    def alternatives(**said: Any) -> dict[str, Any]:
        return {
            "alternatives": [{"text": f"a {name}", "probability": p} for name, p in said.items()]
        }

    arms = alternatives(gun=gun, knife=knife)
    return {
        "path": path,
        "sha256": path,
        "verdict": "safe",
        "rules": [{"conditions": [arms]}, {"conditions": [arms, alternatives(dog=dog)]}],
        "error": None,
        "bundle": {"name": "nano", "sha256": BUNDLE},
        "policy": {"name": "kitchen", "sha256": POLICY},
        **more,
    }


def rows(folder: Path, *each: Any, end: str = "\n") -> tuple[list[Recorded], int]:
    file = folder / "scores.jsonl"
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in each) + end
    file.write_text(text, encoding="utf-8")
    return read_recorded(file, BUNDLE, POLICY)


def test_rows_are_read_and_the_last_of_a_picture_counts(tmp_path: Path) -> None:
    failed = row("b.png") | {"verdict": None, "rules": [], "error": {"code": "damaged"}}
    found, size = rows(tmp_path, row("a.png", gun=0.2), failed, row("a.png", gun=0.7))
    assert size == (tmp_path / "scores.jsonl").stat().st_size
    assert [(each.path, each.failure) for each in found] == [("b.png", "damaged"), ("a.png", None)]
    assert found[1].answers == {"a gun": 0.7, "a knife": 0.1, "a dog": 0.5}


def test_what_a_calibration_changed_is_undone(tmp_path: Path) -> None:
    one = row("a.png")
    one["rules"][0]["conditions"][0]["alternatives"][0]["raw_probability"] = 0.3
    assert rows(tmp_path, one)[0][0].answers["a gun"] == 0.3


def test_a_row_that_was_not_finished_is_left_out(tmp_path: Path) -> None:
    whole = json.dumps(row("a.png"))
    found, size = rows(tmp_path, whole, whole[:40], end="")
    assert [each.path for each in found] == ["a.png"] and size == len(whole) + 1
    found, size = rows(tmp_path, whole, json.dumps(row("b.png")), end="")
    assert [each.path for each in found] == ["a.png", "b.png"]
    assert size == (tmp_path / "scores.jsonl").stat().st_size


@pytest.mark.parametrize(
    "bad, said",
    [
        ("nonsense", "it is no JSON"),
        ("[]", "no row of `edgejudge screen --out`"),
        ({"path": "a.png"}, "no row of `edgejudge screen --out`"),
        (row("b.png", gun=1.5), "'a gun' has probability 1.5, which is not in 0..1"),
        (row("b.png", gun=-0.1), "'a gun' has probability -0.1"),
        (row("b.png", gun=float("nan")), "'a gun' has probability nan"),
        (row("b.png", gun=float("inf")), "'a gun' has probability inf"),
        (row("b.png", gun="0.5"), "'a gun' has probability 0.5"),
        (row("b.png", gun=True), "'a gun' has probability True"),
        (row("b.png", gun=None), "'a gun' was not asked"),
        (row("b.png") | {"path": None}, "the picture has no path"),
        (row("b.png", bundle={"name": "x", "sha256": "c" * 64}), "of bundle x cccccccccccc, and"),
        (row("b.png", policy={"name": "x", "sha256": "c" * 64}), "of policy x cccccccccccc, and"),
        (row("b.png", stages_used=["tokens", "region"]), "a part of the picture was asked"),
    ],
)
def test_rows_that_are_of_no_use_are_told_with_their_line(
    tmp_path: Path, bad: Any, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        rows(tmp_path, row("a.png"), bad)
    assert f"{tmp_path / 'scores.jsonl'}, line 2: " in str(caught.value)
    assert said in str(caught.value) and caught.value.code == "scores"


# --- both together --------------------------------------------------------------------------------


def recorded(path: str, sha256: str | None = None, failure: str | None = None) -> Recorded:
    answers = {} if failure else {"a gun": 0.9, "a knife": 0.2, "a dog": 0.4}
    return Recorded(path, sha256 or path, answers, failure)


def joined(folder: Path, text: str, *found: Recorded) -> Joined:
    return join(read(folder, text), Lookup(found, "pictures"), RULES)


def test_rows_are_found_however_their_path_is_written(tmp_path: Path) -> None:
    found = Lookup([recorded("pictures/./a.png"), recorded("b.png")], "pictures/")
    one, other = found.row("a.png"), found.row("b.png")
    assert one is not None and one.path == "pictures/./a.png"
    assert other is not None and other.path == "b.png"
    absolute = found.row(str(Path("pictures/a.png").absolute()))
    assert absolute is not None and absolute.path == "pictures/./a.png"
    assert found.row("c.png") is None


def test_a_picture_is_known_by_its_content(tmp_path: Path) -> None:
    import hashlib

    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    first = recorded(str(old / "a.png"), hashlib.sha256(b"1").hexdigest())

    def found(root: Path) -> Recorded | None:
        return Lookup([first], str(root)).row("a.png")

    assert found(old) == first  # it is gone, but what it was is recorded
    assert found(new) is None
    (new / "a.png").write_bytes(b"1")
    assert found(new) == first  # it was moved
    old.mkdir()
    (old / "a.png").write_bytes(b"2")
    assert found(old) is None  # it is another one by now


def test_failures_are_named_and_the_rest_is_put_together(tmp_path: Path) -> None:
    made = joined(
        tmp_path,
        "path,weapons\na.png,1\nb.png,0\nc.png,0\n",
        recorded("a.png"),
        recorded("b.png"),
        recorded("c.png", failure="damaged"),
        recorded("d.png"),
    )
    assert made.not_judged == {"c.png": "damaged"} and made.pictures == 2
    (rule,) = made.rules
    assert (rule.id, rule.pictures, rule.labels) == ("weapons", ("a.png", "b.png"), (1, 0))
    assert [each.path for each in made.unlabelled["weapons"]] == ["d.png"]


def test_one_content_counts_once_and_must_not_contradict_itself(tmp_path: Path) -> None:
    twins = (recorded("a.png", "same"), recorded("b.png", "same"), recorded("c.png"))
    made = joined(tmp_path, "path,weapons\na.png,1\nb.png,1\nc.png,0\n", *twins)
    assert made.rules[0].pictures == ("same", "c.png") and made.repeated == 1
    with pytest.raises(InputError, match=r"line 3: .*'b.png' is 0, and of 'a.png', the same pic"):
        joined(tmp_path, "path,weapons\na.png,1\nb.png,0\nc.png,0\n", *twins)


def test_labels_of_questions_imply_those_of_rules(tmp_path: Path) -> None:
    made = joined(
        tmp_path,
        "path,a gun,a knife,a dog,weapons\n"
        "a.png,1,,1,\n"  # any alternative breaks a condition, all conditions the rule
        "b.png,0,0,,\n"  # one condition fails, so both rules hold
        "c.png,0,,,\n"  # nothing follows
        "d.png,,,0,\n"
        "e.png,0,0,,1\n",  # what is said of the rule itself goes first
        *(recorded(f"{name}.png") for name in "abcde"),
    )
    by_id = {rule.id: dict(zip(rule.pictures, rule.labels, strict=True)) for rule in made.rules}
    assert by_id["weapons"] == {"e.png": 1, "a.png": 1, "b.png": 0}
    assert by_id["armed_dog"] == {"a.png": 1, "b.png": 0, "d.png": 0, "e.png": 0}
    assert made.rules[0].questions["a gun"] == {"a.png": 1, "b.png": 0, "c.png": 0, "e.png": 0}
