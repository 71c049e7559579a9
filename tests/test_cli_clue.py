"""`edgejudge screen` with CLUE, regions, a calibration or the gate: flags reach the judge."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgejudge.cli import main
from edgejudge.judge import Judge
from fake_judge import fake_judge, manifest
from test_clue_screening import POLICY, Mind, RedEngine, fitted, picture

Lines = list[dict[str, Any]]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy, a picture of a gun in the grey zone, and a judge in place of the bundled one."""
    (tmp_path / "arms.yaml").write_text(POLICY)
    Image.fromarray(picture()).save(tmp_path / "red.png")
    (tmp_path / "bundle").mkdir()
    bundle = fake_judge(tmp_path / "bundle", manifest(), RedEngine()).bundle

    def load(_: object, *args: object, calibration: str | None = None, **more: object) -> Judge:
        from edgejudge.plan_options import open_calibration

        opened = None if calibration is None else open_calibration(calibration, bundle.fingerprint)
        return Judge(bundle, RedEngine(), calibration=opened)

    monkeypatch.setattr(Judge, "load", classmethod(load))
    return tmp_path


def screen(files: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, Lines, str]:
    policy = str(files / "arms.yaml")
    code = main(["screen", str(files / "red.png"), "--policy", policy, "--json", *flags])
    shown = capsys.readouterr()
    return code, [json.loads(line) for line in shown.out.splitlines()], shown.err


def decided_by(row: dict[str, Any]) -> list[str]:
    return [condition["test"] for rule in row["rules"] for condition in rule["conditions"]]


def test_method_and_reasoning(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mind = Mind(monkeypatch, a_gun=True)
    code, (row,), _ = screen(files, capsys)
    assert code == 1 and row["policy"]["method"] == "clue" and row["reasoning_calls"] == 1
    assert "reasoning" in decided_by(row)
    code, (row,), _ = screen(files, capsys, "--no-reasoning")
    assert code == 3 and row["verdict"] == "uncertain" and "undecided" in decided_by(row)
    code, (row,), _ = screen(files, capsys, "--method", "thresholds")
    assert code == 1 and set(decided_by(row)) == {"threshold"} and len(mind.asked) == 1
    code, rows, error = screen(files, capsys, "--method", "thresholds", "--reasoning")
    assert (code, rows) == (2, []) and "give the method clue" in error


def test_regions_of_a_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = files / "regions.json"
    box = {"label": "a gun", "box": [10, 10, 20, 20]}
    file.write_text(json.dumps({str(files / "red.png"): [box], "other.png": [box]}))
    flags = ("--no-reasoning", "--regions", str(file))
    code, (row,), error = screen(files, capsys, *flags)
    assert code == 1 and "region" in decided_by(row) and row["image_prefixes"] == 2
    assert "names 1 pictures that are not judged" in error
    file.write_text(json.dumps({"red.png": [box]}))
    code, rows, error = screen(files, capsys, *flags)
    assert (code, rows) == (2, []) and "names none of the pictures" in error
    file.write_text(json.dumps({str(files / "red.png"): [box]}))
    code, rows, error = screen(files, capsys, "--method", "thresholds", "--regions", str(file))
    assert (code, rows) == (2, []) and "regions are for clue" in error


def test_a_calibration_and_the_gate(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = Judge.load()
    calibration = fitted(judge, ("guns", 0.6, (0.55, 0.62)))
    file = files / "calibration.json"
    file.write_bytes(calibration.to_bytes())
    code, (row,), _ = screen(files, capsys, "--no-reasoning", "--calibration", str(file))
    assert code == 1 and row["calibration"] == calibration.id
    assert row["rules"][0]["raw_probability"] == pytest.approx(0.75)
    file.write_text("{}")
    code, rows, error = screen(files, capsys, "--calibration", str(file))
    assert (code, rows) == (2, []) and "calibrate" in error
    code, rows, error = screen(files, capsys, "--relevance-gate")
    assert (code, rows) == (2, []) and "no relevance encoder" in error
