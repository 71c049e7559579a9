"""The ruler: percentiles, the figures of a real tiny bundle, and the command around them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny
from edgejudge.cli import main
from edgejudge.errors import BundleError, EdgeJudgeError
from edgejudge.fidelity import export_bundle
from edgejudge.policy import load_policy
from edgejudge.profiling import Percentiles, peak_rss_mib, profile


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("profiling")
    checkpoint = tiny.make_checkpoint(root / "checkpoint", card=tiny.make_card())
    export_bundle(checkpoint, root / "bundle", "exact")
    return root / "bundle"


def test_percentiles_are_numpys() -> None:
    values = [3.0, 1.0, 2.0, 10.0]
    result = Percentiles.of(values)
    assert (result.n, result.min_ms, result.max_ms) == (4, 1.0, 10.0)
    assert result.p50_ms == 2.5
    assert result.p95_ms == pytest.approx(float(np.percentile(values, 95)))


def test_peak_rss_grows_with_what_is_held() -> None:
    before = peak_rss_mib()
    held = np.ones(int((before + 64) * (1 << 20)) // 8)
    assert peak_rss_mib() > before + 32 and held.sum() > 0


def test_stages_are_part_of_the_verdict(bundle: Path) -> None:
    result = profile(str(bundle), runs=3, images=2)
    assert result.warm.n == 3 and 0 < result.warm.min_ms <= result.warm.p50_ms <= result.warm.max_ms
    assert result.kept.n == 3 and result.kept.min_ms > 0
    assert {"decode", "preprocess", "vision", "prefill", "score"} <= set(result.stages)
    assert sum(s.min_ms for s in result.stages.values()) <= result.warm.max_ms
    assert result.first_verdict_ms > 0 and result.cold_process is None
    assert result.library_images == 2 and (result.library_images_per_s or 0) > 0
    assert result.questions == sum(
        len(group) for rule in load_policy("stickers").rules for group in rule.conditions
    )
    assert set(result.placement.values()) == {"CPUExecutionProvider"}


def test_the_command_prints_one_json_document(bundle: Path) -> None:
    command = ["profile", str(bundle), "--runs", "1", "--cold", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "edgejudge", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["schema_version"] == 3 and value["warm"]["n"] == 1
    assert value["cold_process"]["n"] == 1 and value["peak_rss_mib"] > 10


def test_the_command_prints_a_table(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(bundle), "--runs", "1"]) == 0
    assert "warm verdict" in capsys.readouterr().out


def test_bad_input_is_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        profile(str(tmp_path))
    missing = tmp_path / "gone.png"
    with pytest.raises(EdgeJudgeError, match="give another picture"):
        profile(str(bundle), picture=str(missing))
    assert main(["profile", str(bundle), "--runs", "0"]) == 2
    assert "--runs must be at least 1" in capsys.readouterr().err
