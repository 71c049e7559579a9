"""Nothing is reported to anybody: the telemetry of ONNX Runtime stays off, and writes no file."""

import os
import subprocess
import sys
from pathlib import Path

SAMPLE = Path(__file__).parent.parent / "models" / "nano" / "samples" / "screen.jpg"
SCREEN = (
    f"from edgejudge import Judge; print(Judge.load().screen({str(SAMPLE)!r}, 'stickers').verdict)"
)
# What ONNX Runtime takes for reasons of its own to stay quiet.
LOUD = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY")


def test_screening_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in LOUD and not k.startswith("XDG_")}
    found = subprocess.run(
        [sys.executable, "-c", SCREEN],
        env={**clean, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "unsafe"
    left = [p for p in tmp_path.rglob("*") if p.is_file() and "edgejudge" not in str(p)]
    assert left == [], "files that are not the judge's own"


def test_the_choice_of_a_user_stands() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import edgejudge, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"],
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "0"
