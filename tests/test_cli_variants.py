"""Limits and changed copies on the command line of `edgejudge screen`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgejudge import Judge
from edgejudge.cli import main
from edgejudge.images import DEFAULT_LIMITS, Limits
from fake_judge import ColourEngine, fake_judge, manifest
from made_pictures import encoded, moving

POLICY = (
    "name: arms\nversion: 1\nrules:\n  - {id: guns, text: t, category: c, conditions: [a gun]}\n"
)
GREEN, RED = (10, 250, 40), (250, 10, 10)


@pytest.fixture
def edgejudge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str, Limits]]:
    """The command line over an engine that judges by colour; gives the limits that it chose too."""
    opened = fake_judge(tmp_path, manifest(), ColourEngine())
    chosen: list[Limits] = []

    def load(cls: type[Judge], *_: Any, limits: Limits = DEFAULT_LIMITS, **__: Any) -> Judge:
        chosen.append(limits)
        return Judge(opened.bundle, ColourEngine(), limits)

    monkeypatch.setattr(Judge, "load", classmethod(load))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arms.yaml").write_text(POLICY)

    def run(*arguments: str) -> tuple[int, str, str, Limits]:
        code = main(["screen", *arguments, "--policy", "arms.yaml"])
        said = capsys.readouterr()
        return code, said.out, said.err, chosen[-1] if chosen else DEFAULT_LIMITS

    return run


def write_frames(path: Path, count: int, red: int | None = None) -> None:
    frames = [Image.new("RGB", (8, 8), (10, 250, 40 + place)) for place in range(count)]
    if red is not None:
        frames[red] = Image.new("RGB", (8, 8), RED)
    path.write_bytes(moving(frames, "PNG"))


def test_limits(edgejudge: Any, tmp_path: Path) -> None:
    write_frames(tmp_path / "a.png", 12, 1)
    assert edgejudge("a.png")[3] == DEFAULT_LIMITS
    code, out, _, limits = edgejudge(
        *("a.png", "--json", "--frames", "2", "--max-frames", "10", "--max-frame-pixels", "9000"),
        *("--max-pixels", "800", "--max-bytes", "2MB"),
    )
    assert limits == Limits(2_000_000, 800, 65_535, 2, 10, 9000)
    row = json.loads(out)
    assert code == 3 and row["verdict"] == "uncertain"
    assert [note["code"] for note in row["notes"]] == ["animated", "unseen", "unseen"]
    code, out, _, _ = edgejudge("a.png", "--json", "--frames", "12")
    row = json.loads(out)
    assert code == 1 and row["rules"][0]["seen_in"] == {"frame": 2} and len(row["notes"]) == 1
    code, out, _, _ = edgejudge("a.png", "--json", "--max-pixels", "63")
    assert code == 3 and json.loads(out)["error"]["code"] == "too_many_pixels"


def test_the_table_names_the_frame(edgejudge: Any, tmp_path: Path) -> None:
    write_frames(tmp_path / "a.png", 3, 1)
    code, out, _, _ = edgejudge("a.png")
    assert code == 1 and "guns 0.95 (a gun, in frame 2)" in out


def test_stable(edgejudge: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (30, 30), RED), "PNG"))
    code, out, _, _ = edgejudge("a.png", "--json", "--stable", "8")
    found = json.loads(out)["rules"][0]["stability"]
    assert code == 1 and found["pictures"] == 9 and found["sd"] == 0 and found["safe_in"] == []
    for wrong in ("9", "-1"):
        code, _, err, _ = edgejudge("a.png", "--stable", wrong)
        assert code == 2 and "1 to 8" in err
    code, _, err, _ = edgejudge("a.png", "--stable", "1", "--time-budget", "100")
    assert code == 2 and "not both" in err


def test_a_stream_of_all_kinds(edgejudge: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_frames(folder / "1.jpg", 3)
    (folder / "2.gif").write_bytes(encoded(Image.new("RGB", (8, 8), GREEN), "PNG"))
    (folder / "3.png").write_bytes(moving([Image.new("RGB", (8, 8), RED)] * 2, "TIFF"))
    (folder / "4.png").write_bytes(b"")
    code, out, _, _ = edgejudge("in", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [row["verdict"] for row in rows] == ["safe", "safe", "unsafe", None]
    assert [row["image_prefixes"] for row in rows] == [3, 1, 1, 0]
