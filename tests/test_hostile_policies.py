"""Policies, rubrics, regions, labels and calibrations of strangers: refused by name, or read."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.answering.rubric_files import read_checklist, read_rubric
from edgejudge.calibrating.label_file import read_labels
from edgejudge.calibrating.recorded import read_recorded
from edgejudge.calibration import Calibration
from edgejudge.errors import EdgeJudgeError, InputError, PolicyError
from edgejudge.policy import MAX_POLICY_BYTES, Policy, builtin_bytes, load_policy
from edgejudge.regions import read_regions
from hostile import canonical, fixed, mutated

FULL: dict[str, Any] = {
    "name": "full",
    "version": "1.10",
    "question": "Is {condition} there?",
    "method": "clue",
    "clue": {"reject": -0.2, "accept": 0.9, "reasoning": False, "turns": 1, "small_region": 0.02},
    "rules": [
        {
            "id": "r1",
            "text": "No knives.",
            "category": "weapons",
            "conditions": [["a knife", "a blade"], "fire"],
            "threshold": 0.4,
            "near_misses": ["a key"],
            "code": "O1",
            "objects": ["knife"],
            "maps_to": ["openai:violence"],
        },
        {"id": "r2", "text": "t", "category": "c", "conditions": ["beer"]},
    ],
}
HEAD = "name: a\nversion: 1\nrules:\n  - {id: r, text: t, category: c, conditions: [x]}\n"


@fixed(400)
@given(st.data())
def test_a_changed_policy_is_refused_by_name_or_is_a_policy(data: st.DataObject) -> None:
    at, value = data.draw(mutated(FULL))
    began = time.process_time()
    try:
        policy = Policy.from_yaml(canonical(value), "p.yaml")
    except PolicyError as error:
        text = str(error)
        assert text.startswith("p.yaml") and text.isprintable() and len(text) < 800, at
    else:
        assert policy.name and policy.rules and len(policy.hash) == 64
        for rule in policy.rules:
            assert all(text.isprintable() for either in rule.conditions for text in either)
            assert rule.threshold is None or 0 < rule.threshold < 1
    assert time.process_time() - began < 5, at


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LAUGHS, "anchors and aliases"),
        ("name: &a [*a]\n", "anchors and aliases"),
        ("<<: {name: x}\n" + HEAD, "unknown key"),
        (HEAD + "name: b\n", "given twice"),
        ("!!python/object/apply:os.system [id]\n", "expected a mapping, got a value tagged"),
        ("!!python/object:x.Y {name: a}\n", "expected a mapping, got a value tagged"),
        ("!!set {name, version, rules}\n", "expected a mapping, got a value tagged"),
        (HEAD.replace("name: a", "name: !!binary aGk="), "name: expected text"),
        (HEAD.replace("name: a", "name: !<x> a"), "name: expected text"),
        ("%TAG ! tag:evil,2000:\n---\n" + HEAD.replace("name: a", "name: !x a"), "expected text"),
        ("%YAML 9.9\n---\n" + HEAD, "not valid YAML"),
        (f"%YAML 1.{'9' * 5000}\n---\n" + HEAD, "not valid YAML"),
        (HEAD + "---\n" + HEAD, "not valid YAML"),
        ("[" * 300_000, "nested too deeply"),
        ("- " * 300_000 + "x", "nested too deeply"),
        ("{a: " * 100_000, "nested too deeply|unknown key"),
        ("? " * 200_000, "nested too deeply|not valid YAML|a key is text"),
        ("? {a: b}\n: c\n", "a key is text, got a mapping"),
        ("? [a]\n: c\n", "a key is text, got a list"),
        ("- a\n" * 250_000, "more than 20000 entries"),
        (f"{'k' * 500_000}: 1\n", "not valid YAML|unknown key"),
        (HEAD.replace("text: t", r'text: "\U99999999"'), "not valid YAML"),
        (HEAD.replace("text: t", r'text: "\ud800"'), "cannot be printed|not valid YAML"),
        (HEAD.replace("text: t", r'text: "\e[2J"'), "cannot be printed"),
        (HEAD.replace("text: t", 'text: "a\u202eb"'), "cannot be printed|not valid YAML"),
        (HEAD.replace("name: a", r'"\e[31mred": a'), r"x1b\[31mred: unknown key"),
        (b"\xff\xfe" + HEAD.encode("utf-16-le"), "not UTF-8"),
        (HEAD.encode("latin-1") + b"# \xe9\n", "line 5: not UTF-8"),
        (HEAD + "\0", "not valid YAML"),
        ("x" * (MAX_POLICY_BYTES + 1), "larger than"),
        ("", "the file is empty"),
        ("- a\n- b\n", "expected a mapping, got a list"),
        ("a" * 100_000 + ": " + "b" * 100_000, "not valid YAML|unknown key"),
    ],
)
def test_bombs_and_tricks_are_refused_by_name(source: str | bytes, message: str) -> None:
    began = time.process_time()
    with pytest.raises(PolicyError, match=message) as caught:
        Policy.from_yaml(source, "p.yaml")
    text = str(caught.value)
    assert text.startswith("p.yaml") and text.isprintable() and len(text) < 800
    assert time.process_time() - began < 20


def test_byte_order_marks_and_windows_lines_are_harmless() -> None:
    plain = Policy.from_yaml(HEAD)
    marked = b"\xef\xbb\xbf" * 2 + HEAD.replace("\n", "\r\n").encode()
    assert Policy.from_yaml(marked).hash == plain.hash


def test_the_largest_bomb_takes_little_memory() -> None:
    """In a process that may have no more than a gigabyte for itself."""
    pytest.importorskip("resource")
    code = (
        "import resource\n"
        "from edgejudge.errors import PolicyError\n"
        "from edgejudge.policy import MAX_POLICY_BYTES as most, Policy\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({1 << 30}, {1 << 30}))\n"
        "for piece in ('- ', '[', '{a: ', '- a\\n', 'a: b\\n', '&a ', '\"', '? ', '# '):\n"
        "    source = (piece * most)[:most]\n"
        "    try:\n"
        "        Policy.from_yaml(source)\n"
        "    except PolicyError:\n"
        "        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.stdout.split() == ["refused"] * 9, done.stderr[-2000:]


def test_every_policy_of_ours_is_well_within_the_limits() -> None:
    from edgejudge.policy import builtin_names

    for name in builtin_names():
        source = builtin_bytes(name)
        assert source is not None and len(source) < MAX_POLICY_BYTES / 10
        assert Policy.from_yaml(source).hash == load_policy(name).hash


READERS: dict[str, Callable[[Path], object]] = {
    "policy": lambda file: load_policy(str(file)),
    "rubric": read_rubric,
    "checklist": read_checklist,
    "regions": read_regions,
    "labels": lambda file: read_labels(file, ("weapons",), ("a knife",)),
    "scores": lambda file: read_recorded(file, "0" * 64, "0" * 64),
    "calibration": Calibration.read,
}


@pytest.mark.parametrize("name", list(READERS))
def test_no_reader_waits_for_a_pipe_or_drinks_from_a_device(name: str, tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    nul = Path("a\0b")
    for file in (pipe, device, tmp_path, tmp_path / "absent", nul):
        with pytest.raises(EdgeJudgeError):
            READERS[name](file)


SEEDS: dict[str, Any] = {
    "rubric": {"name": "t", "tasks": [{"criterion": "sharp", "labels": ["bad", "good"]}]},
    "checklist": {"name": "c", "band": 0.1, "criteria": ["a", {"text": "b", "weight": 2}]},
    "regions": {"a.png": [{"label": "a knife", "box": [1, 2, 3, 4], "confidence": 0.5}]},
    "labels": {"path": "a.png", "rule": "weapons", "label": 1},
}


@pytest.mark.parametrize("name", list(SEEDS))
def test_changed_files_are_refused_by_name_or_read(name: str, tmp_path: Path) -> None:
    @fixed(120)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        at, value = data.draw(mutated(SEEDS[name]))
        file = tmp_path / "file"
        # One line, which rows of labels are.
        text = json.dumps(value)
        file.write_text(text)
        try:
            READERS[name](file)
        except EdgeJudgeError as error:
            assert str(error), at

    run()


def test_a_calibration_signed_by_a_stranger_is_refused_or_stays_a_probability() -> None:
    seed = json.loads((Path(__file__).parent / "fuzz/corpus/calibration/three.json").read_bytes())

    def signed(value: Any) -> bytes:
        if not isinstance(value, dict):
            return canonical(value)
        empty = canonical({**value, "id": ""})
        return canonical({**value, "id": hashlib.sha256(empty).hexdigest()})

    @fixed(300)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        at, value = data.draw(mutated(seed))
        try:
            made = Calibration.of(signed(value), Path("c.json"))
        except InputError as error:
            assert error.code == "calibration", at
            return
        for record in made.record.rules:
            rule = made.rule(record.id)
            assert rule is not None and 0 <= rule.base_rate <= 1, at
            shares = [rule.apply(p, "a knife") for p in (0.0, 1e-9, 0.3, 0.5, 1.0)]
            assert shares == sorted(shares) and 0 <= shares[0] <= shares[-1] <= 1, at

    run()
