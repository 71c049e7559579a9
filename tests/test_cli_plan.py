"""`edgejudge plan`: text, JSON, a picture, and what it says of bad input."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgejudge.cli import main
from edgejudge.runtime.placement import read_places
from edgejudge.runtime.scheduling.scenarios import invented

_PARTS = ("decoder.0",)  # nano's


def costs(names: dict[str, float], watts: dict[str, tuple[float, float]] | None = None) -> str:
    rows: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for device, speed in names.items():
        for unit in _PARTS:
            rows[unit, device] = {(n, p): (5 + n / 20) * speed for n in (1, 384) for p in (0, 512)}
        rows["vision", device] = {(1, 0): 20 * speed}
        rows["verdict_head", device] = {(1, 0): 0.01}
    return json.dumps(invented(rows, (0.3, 0.2), watts=watts, source="made up").to_json())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    path.write_text(costs({"npu": 1.0, "gpu": 1.6}, {"npu": (2, 0.1), "gpu": (9, 0.2)}))
    return path


def test_a_plan_as_text(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "nano", "--device-profile", str(file), "--workload", "screen:images=4,crops=1"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "latency:" in out and "no placement and no order is below" in out
    assert "vision" in out and "decoder.0" in out and "V" in out and "why it lost" in out
    assert "all on gpu" in out and "costs: made up" in out


def test_a_plan_as_one_json_document(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "nano", "--device-profile", str(file), "--workload", "screen:images=4,crops=1"]
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["schema_version"] == 1 and plan["proven"]
    assert set(plan["placement"]) == {"vision", "decoder.0", "verdict_head"}
    assert plan["bound"] <= plan["value"] == plan["makespan_ms"]
    assert max(run["end_ms"] for run in plan["timeline"]) == plan["makespan_ms"]
    assert {run["request"] for run in plan["timeline"]} == {0, 1, 2, 3}
    assert plan["place"] == "vision=gpu,decoder.0=npu" and read_places(plan["place"])
    lost = [a["value"] for a in plan["alternatives"] if a["value"] is not None]
    assert lost == sorted(lost) and all(value >= plan["value"] for value in lost)
    assert all(a["why"] for a in plan["alternatives"])
    assert main([*words, "--json", "--objective", "energy"]) == 0
    lean = json.loads(capsys.readouterr().out)
    assert lean["unit"] == "mJ" and lean["placement"] != plan["placement"]
    assert lean["energy_mj"] < plan["energy_mj"]


def test_a_picture_is_escaped_and_whole(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = '<script>"&\x1b[31m'
    file.write_text(costs({hostile: 1.0, "cpu": 2.0}))
    drawn = tmp_path / "plan.svg"
    words = ["plan", "nano", "--device-profile", str(file), "--picture", str(drawn)]
    assert main(words) == 0
    assert "\x1b[31m" not in capsys.readouterr().out
    root = ElementTree.fromstring(drawn.read_text())
    boxes = [e for e in root.iter() if e.tag.endswith("rect") and e.get("y", "").isdigit()]
    assert len(boxes) > 4 and "<script>" not in drawn.read_text()
    assert "prefers-color-scheme: dark" in drawn.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.svg", "profile.json"]
    assert main([*words[:-1], str(tmp_path / "missing" / "plan.svg")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workload", "judge"], "no workload 'judge'"),
        (["--workload", "screen:images=0"], "from 1 to"),
        (["--device-profile", "missing.json"], "cannot be read"),
        (["--objective", "beauty"], "invalid choice"),
        ([], "run `edgejudge tune nano --costs`"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path))
    try:
        code = main(["plan", "nano", *words])
    except SystemExit as stop:
        code = int(str(stop.code))
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and says in last


def test_a_broken_profile_ends_with_its_field(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(file.read_text())
    document["rows"][2]["tokens"] = 0
    file.write_text(json.dumps(document))
    assert main(["plan", "nano", "--device-profile", str(file)]) == 2
    assert "rows[2].tokens: 0 is not from 1" in capsys.readouterr().err
