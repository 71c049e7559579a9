"""Data sets as people write them: the quirks that are read, and the errors that name a line."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgejudge.errors import InputError
from edgejudge.evaluation.examples import missing_pictures
from edgejudge.evaluation.loaders import load
from edgejudge.evaluation.scenario import Scenario
from edgejudge.evaluation.tables import Line, read_table


def lines(path: Path, *values: dict[str, Any]) -> Path:
    text = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    path.write_text("\ufeff" + text + "\n\n", "utf-8")  # a mark and a blank line, as tools leave
    return path


def problem(scenario: Scenario) -> str:
    with pytest.raises(InputError) as caught:
        load(scenario)
    assert caught.value.code == "data"
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- MLLM-as-a-Judge ------------------------------------------------------------------------------

SCORE = {
    "score_id": 7,
    "name": "llava",
    "answer": "Eine Katze {auf} einem Stuhl.",
    "id": 1,
    "instruction": "Describe it.",
    "image_path": "100.jpg",
    "original_dataset": "coco",
    "human": "4",
}


def test_human_scores_are_numbers_or_text(tmp_path: Path) -> None:
    path = lines(tmp_path / "score.jsonl", SCORE, SCORE | {"human": 2, "score_id": 8})
    data = load(Scenario("mllm_judge_score", path))
    assert data.kind == "score"
    assert [each.truths for each in data.examples] == [{"": 4.0}, {"": 2.0}]
    assert [each.id for each in data.examples] == ["7", "8"]
    first = data.examples[0]
    assert (first.answers, first.text) == (("Eine Katze {auf} einem Stuhl.",), "Describe it.")
    assert first.group == "100.jpg"  # answers about one picture are no independent rows


@pytest.mark.parametrize("human", ["five", 6, 0, None, "", float("nan")])
def test_a_score_outside_the_scale_is_named(tmp_path: Path, human: Any) -> None:
    path = lines(tmp_path / "score.jsonl", SCORE, SCORE | {"human": human})
    assert problem(Scenario("mllm_judge_score", path)).startswith(f"{path}, line 2: 'human' is ")


def test_pairs_and_their_ties(tmp_path: Path) -> None:
    pair = {
        "id": 3,
        "pair_id": 3,
        "image_path": "image/200.jpg",
        "instruction": "什么在图中？",
        "answer1": {"name": "a", "answer": "一只猫"},
        "answer2": {"name": "b", "answer": "A dog"},
    }
    (tmp_path / "200.jpg").touch()  # the prefix is not there
    wanted = ["A", "b", "C", "tie", "[[B]]"]
    path = lines(tmp_path / "pair.jsonl", *(pair | {"human_answer": each} for each in wanted))
    data = load(Scenario("mllm_judge_pair", path))
    assert [each.truths[""] for each in data.examples] == ["A", "B", "C", "C", "B"]
    assert data.labels == ("A", "B", "C")
    assert [each.id for each in data.examples] == ["3", "3#2", "3#3", "3#4", "3#5"]
    assert data.examples[0].answers == ("一只猫", "A dog")
    assert data.examples[0].images == (tmp_path / "200.jpg",)
    missing_pictures(data)
    lines(path, pair | {"human_answer": "D"})
    assert "expected A, B, or C for a tie" in problem(Scenario("mllm_judge_pair", path))
    lines(path, {key: value for key, value in pair.items() if key != "answer2"})
    assert "human_answer" in problem(Scenario("mllm_judge_pair", path))


def test_letters_of_a_batch_are_places_of_answers(tmp_path: Path) -> None:
    batch = {
        "id": 9,
        "instruction": "x",
        "image_path": "image/1.jpg",
        "answers": [{"name": "m", "answer": f"answer {i}"} for i in range(4)],
    }
    orders = ["CDAB", "[[C]], [[D]], [[A]], [[B]]", ["C", "D", "A", "B"], "c>d>a>b"]
    path = lines(tmp_path / "batch.jsonl", *(batch | {"human_answer": each} for each in orders))
    data = load(Scenario("mllm_judge_batch", path))
    assert data.kind == "order"
    assert {each.truths[""] for each in data.examples} == {"CDAB"}
    assert data.examples[0].answers[2] == "answer 2"
    for wrong in ("CDA", "CDAA", "CDABE", None):
        lines(path, batch | {"human_answer": wrong})
        assert "expected each of A, B, C, D once" in problem(Scenario("mllm_judge_batch", path))


# --- multiple choice ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, right",
    [
        ({"options": ["cat", "dog", "bird"], "answer": "B"}, "B"),
        ({"options": ["cat", "dog", "bird"], "answer": "(b)."}, "B"),
        ({"options": ["cat", "dog", "bird"], "answer": 2}, "C"),
        ({"options": ["cat", "dog", "bird"], "answer": "dog"}, "B"),
        ({"options": {"A": "cat", "B": "dog"}, "answer": "A"}, "A"),
        ({"A": "cat", "B": "dog", "C": "", "answer": 0}, "A"),
    ],
)
def test_the_right_option(tmp_path: Path, fields: dict[str, Any], right: str) -> None:
    path = lines(tmp_path / "q.jsonl", {"image": "1.png", "question": "What?"} | fields)
    data = load(Scenario("multiple_choice", path))
    (example,) = data.examples
    assert example.truths == {"": right} and example.text == "What?"
    assert example.options[0] == "cat" and data.labels == tuple("ABC"[: len(example.options)])


@pytest.mark.parametrize("answer", ["D", 3, -1, "fish", ""])
def test_an_answer_that_is_no_option(tmp_path: Path, answer: Any) -> None:
    line = {"image": "1.png", "question": "What?", "options": ["a cat", "a dog"], "answer": answer}
    path = lines(tmp_path / "q.jsonl", line)
    assert problem(Scenario("multiple_choice", path)).startswith(f"{path}, line 1: 'answer' is")


def test_choices_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text('picture,q,options,answer\n1.png,"What, then?",cat;dog,1\n', "utf-8")
    columns = {"image": "picture", "question": "q"}
    (example,) = load(Scenario("multiple_choice", path, columns=columns)).examples
    assert (example.text, example.options) == ("What, then?", ("cat", "dog"))
    assert example.truths == {"": "B"}


# --- tables ---------------------------------------------------------------------------------------


def write_csv(path: Path, *rows: list[Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_column_per_rule(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "t.csv",
        ["image", "weapons", "gore"],
        ["1.png", 1, "no"],
        ["2.png", "", "TRUE"],
        ["3.png", "", ""],
    )
    data = load(Scenario("table", path, rules=("weapons", "gore")))
    assert [each.truths for each in data.examples] == [
        {"weapons": "unsafe", "gore": "safe"},
        {"gore": "unsafe"},
    ]
    assert data.notes == ("1 lines say nothing of any rule and are left out",)
    assert data.labels == ("safe", "unsafe")
    assert "no column 'alcohol'" in problem(Scenario("table", path, rules=("alcohol",)))
    write_csv(path, ["image", "weapons"], ["1.png", "maybe"])
    said = problem(Scenario("table", path, rules=("weapons",)))
    assert said.startswith(f"{path}, line 2: 'weapons' is 'maybe'")


def test_a_line_per_rule(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "t.csv",
        ["path", "rule", "label"],
        ["1.png", "weapons", 1],
        ["1.png", "gore", 0],
        ["2.png", "gore", 1],
    )
    columns = {"image": "path", "target": "rule"}
    data = load(Scenario("table", path, columns=columns))
    assert [(e.id, e.truths) for e in data.examples] == [
        ("1.png", {"weapons": "1", "gore": "0"}),
        ("2.png", {"gore": "1"}),
    ]
    write_csv(path, ["path", "rule", "label"], ["1.png", "gore", 1], ["1.png", "gore", 0])
    said = problem(Scenario("table", path, columns=columns))
    assert said.startswith(f"{path}, line 3: '1.png' is there already ({path}, line 2)")


def test_the_same_table_in_every_form(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": i % 2, "group": f"g{i // 2}"} for i in range(4)]
    forms = [
        write_csv(tmp_path / "t.csv", list(rows[0]), *(list(row.values()) for row in rows)),
        lines(tmp_path / "t.jsonl", *rows),
        tmp_path / "t.json",
        tmp_path / "t.parquet",
    ]
    forms[2].write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), forms[3])
    first, *others = [load(Scenario("table", form)) for form in forms]
    for other in others:
        assert [(e.id, e.group, e.truths) for e in other.examples] == [
            (e.id, e.group, e.truths) for e in first.examples
        ]
    assert first.labels == ("0", "1") and first.examples[3].group == "g1"


def test_kinds_of_a_table(tmp_path: Path) -> None:
    def read(kind: Any, label: Any) -> Any:
        path = lines(tmp_path / "t.jsonl", {"images": ["1.png", "2.png"], "label": label})
        (example,) = load(Scenario("table", path, kind=kind)).examples
        assert len(example.images) == 2
        return example.truths[""]

    assert read("score", "3.5") == 3.5
    assert read("pair", "tie") == "C"
    assert read("order", "ba") == "BA"
    for kind, label in (("score", "good"), ("pair", "D"), ("order", "AC"), ("label", "")):
        with pytest.raises(InputError, match="line 1: 'label'"):
            read(kind, label)


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("t.txt", b"image,label\n", "none of .csv"),
        ("t.csv", b"image,label\n", "no rows"),
        ("t.csv", b"image,image\n1,2\n", "column 'image' is there twice"),
        ("t.csv", b"image,label\n1.png,a,b\n", "line 2: 3 cells under 2 columns"),
        ("t.csv", b'image,label\n"1.png,a\n', "no CSV"),
        ("t.csv", b"image,label\n1.png,\xff\n", "line 2: not UTF-8"),
        ("t.jsonl", b'{"image": "1.png"}\n{"image"\n', "line 2: not JSON"),
        ("t.jsonl", b'{"a": 1}\n[1]\n', "line 2: expected an object, got list"),
        ("t.json", b"[1]", "entry 1: expected an object, got int"),
        ("t.parquet", b"nothing of the kind", "is no Parquet file"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert said in problem(Scenario("table", path))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no.csv") in problem(Scenario("table", tmp_path / "no.csv"))


@pytest.mark.parametrize("value", [-0.1, 1.2, float("nan"), "x", None])
def test_probabilities_are_from_0_to_1(value: Any) -> None:
    with pytest.raises(InputError, match="here: 'p' is"):
        Line("here", {"p": value}).probability("p")


def test_lists_in_cells() -> None:
    assert Line("", {"x": "a;b"}).several("x") == ["a", "b"]
    assert Line("", {"x": '["a;b", 1]'}).several("x") == ["a;b", 1]
    with pytest.raises(InputError, match="no JSON"):
        Line("", {"x": "[1"}).several("x")
    with pytest.raises(InputError, match="expected a mapping"):
        Line("", {"x": [1]}).pairs("x")


# --- calibration sets -----------------------------------------------------------------------------


def test_rules_and_questions_of_a_calibration_set(tmp_path: Path) -> None:
    def shown(**labels: Any) -> list[dict[str, Any]]:
        return [{"text": text.replace("_", " "), "label": k} for text, k in labels.items()]

    entries = [
        {"image": "0.png", "conditions": shown(a_knife=0, an_axe=1, a_cat=1)},
        {"image": "1.png", "conditions": shown(a_knife=0, an_axe=1, a_cat=0)},
        {"image": "2.png", "conditions": shown(a_knife=0, a_cat=1)},  # of an axe nothing is known
        {"image": "3.png", "conditions": shown(a_knife=0, an_axe=None, a_cat=0)},
    ]
    (tmp_path / "questions.json").write_text(json.dumps(entries), "utf-8")
    policy = tmp_path / "p.yaml"
    policy.write_text(
        "name: p\nversion: 1\nrules:\n"
        "  - {id: both, text: t, category: c, conditions: [[a knife, an axe], a cat]}\n",
        "utf-8",
    )
    data = load(Scenario("calibration_set", tmp_path, policy=str(policy)))
    assert [(e.id, e.truths) for e in data.examples] == [
        ("0.png", {"both": "unsafe"}),
        ("1.png", {"both": "safe"}),
        ("3.png", {"both": "safe"}),
    ]
    asked = load(Scenario("calibration_set", tmp_path, question="Is {condition} there?"))
    assert [(e.id, e.text, e.truths[""]) for e in asked.examples[:2]] == [
        ("0.png a knife", "Is a knife there?", "no"),
        ("0.png an axe", "Is an axe there?", "yes"),
    ]
    assert len(asked.examples) == 10 and asked.labels == ("no", "yes")
    policy.write_text(policy.read_text("utf-8").replace("a cat", "a zebra"), "utf-8")
    (tmp_path / "questions.json").write_text(json.dumps(entries[1:2]), "utf-8")
    unknown = Scenario("calibration_set", tmp_path, policy=str(policy))
    assert "does not ask what any rule of policy" in problem(unknown)
    (tmp_path / "questions.json").write_text('[{"image": "0.png", "conditions": ["x"]}]')
    said = problem(Scenario("calibration_set", tmp_path))
    assert "entry 1: 'conditions' has something else than objects" in said


# --- folders, pictures, subsets -------------------------------------------------------------------


def test_a_folder_per_class(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/more/2.png", "gun/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = load(Scenario("folders", tmp_path))
    assert [(e.id, e.truths[""]) for e in data.examples] == [
        ("cat/1.png", "cat"),
        ("cat/more/2.png", "cat"),
        ("gun/1.png", "gun"),
    ]
    assert data.labels == ("cat", "gun")
    screened = load(Scenario("folders", tmp_path, unsafe=("gun",)))
    assert [e.truths[""] for e in screened.examples] == ["safe", "safe", "unsafe"]
    assert screened.labels == ("safe", "unsafe")
    assert "no folder 'bomb'" in problem(Scenario("folders", tmp_path, unsafe=("bomb",)))
    assert "fewer than two folders" in problem(Scenario("folders", tmp_path / "gun"))
    assert "cannot be read" in problem(Scenario("folders", tmp_path / "no"))


def test_missing_pictures_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    table = lines(tmp_path / "t.jsonl", *({"image": f"{i}.png", "label": "a"} for i in range(6)))
    data = load(Scenario("table", table))
    with pytest.raises(InputError) as caught:
        missing_pictures(data)
    assert caught.value.code == "missing"
    said = str(caught.value)
    assert said.startswith("5 of 6 pictures are missing: ") and "and 2 more" in said


def test_pictures_lie_below_another_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "1.png").touch()
    table = lines(tmp_path / "t.jsonl", {"image": "data/deep/1.png", "label": "a"})
    (example,) = load(Scenario("table", table, images=tmp_path)).examples
    assert example.images == (tmp_path / "deep" / "1.png",)


def test_a_subset_is_drawn_the_same_way_again(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": "ab"[i % 2]} for i in range(30)]
    table = lines(tmp_path / "t.jsonl", *rows)
    one, same, other = (
        [e.id for e in load(Scenario("table", table, subset=10, seed=seed)).examples]
        for seed in (1, 1, 2)
    )
    assert one == same != other and len(one) == 10
    assert one == sorted(one, key=lambda name: int(name.split(".")[0]))
    everything = load(Scenario("table", table, subset=99))
    assert len(everything.examples) == 30 and everything.notes == ()


def test_a_table_knows_where_each_line_is(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,"two\nlines"\n\n3,4\n', "utf-8")
    found = read_table(path)
    assert [line.where for line in found.lines] == [f"{path}, line 3", f"{path}, line 5"]
    assert found.lines[0].values["b"] == "two\nlines"
