"""The ruler: distributions, workloads, the record of a real tiny bundle, and the command."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import tiny
from edgejudge.bundle import Bundle
from edgejudge.cli import main
from edgejudge.errors import BundleError, EdgeJudgeError, InputError
from edgejudge.fidelity import export_bundle
from edgejudge.models.spec import ModelSpec
from edgejudge.policy import load_policy
from edgejudge.profiling import (
    Distribution,
    Profile,
    Ratio,
    peak_rss_mib,
    profile,
    read_workload,
)
from edgejudge.profiling.limits import operations_of
from edgejudge.profiling.machine import Beside, card, usage
from edgejudge.profiling.records import compared
from edgejudge.profiling.workloads import KINDS
from edgejudge.runtime.operators import profiled

TIMES = st.lists(st.floats(0.01, 1e5), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("profiling")
    checkpoint = tiny.make_checkpoint(root / "checkpoint", card=tiny.make_card())
    export_bundle(checkpoint, root / "bundle", "exact")
    return root / "bundle"


@pytest.fixture(scope="module")
def result(bundle: Path) -> Profile:
    return profile(str(bundle), "screen:images=2", runs=3)[0]


@given(TIMES)
def test_percentiles_are_numpys_and_lie_in_their_intervals(values: list[float]) -> None:
    found = Distribution.of(values)
    assert found.n == len(values) and found.min == pytest.approx(min(values), abs=1e-3)
    assert found.max == pytest.approx(max(values), abs=1e-3)
    for q, mine in ((50, found.p50), (90, found.p90), (95, found.p95), (99, found.p99)):
        assert mine == pytest.approx(float(np.percentile(values, q)), abs=1e-3)
    if len(values) == 1:
        assert found.intervals == {}
        return
    for low, high in found.intervals.values():
        assert found.min <= low <= high <= found.max
    low, high = found.intervals["p50"]
    assert low <= found.p50 + 1e-3 and found.p50 <= high + 1e-3
    again = Distribution.from_json(json.loads(json.dumps({"values": found.values})))
    assert again.intervals == found.intervals, "the same runs, the same intervals"


def test_an_interval_holds_the_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        low, high = Distribution.of(list(rng.lognormal(3, 0.3, 30))).intervals["p50"]
        inside += low <= np.exp(3) <= high
    assert 178 <= inside <= 200, "95 % of 200, and three sigma below"


def test_what_is_not_to_be_relied_on_says_so() -> None:
    steady = Distribution.of([100 + 0.1 * i for i in range(20)])
    assert steady.doubts == ()
    assert "only 3 runs" in Distribution.of([1.0, 2.0, 3.0]).doubts[0]
    wild = Distribution.of([10, 400, 15, 300, 20, 200] * 2)
    assert any("run more" in text for text in wild.doubts)
    slowing = Distribution.of([100.0] * 10 + [150.0] * 10)
    assert any("1.50 times as slow" in text for text in slowing.doubts)
    with pytest.raises(ValueError, match="no run"):
        Distribution.of([])


def test_a_ratio_is_of_medians_with_its_interval() -> None:
    old = Distribution.of([100.0 + i % 3 for i in range(20)])
    new = Distribution.of([150.0 + i % 3 for i in range(20)])
    found = Ratio.of(new, old)
    assert found is not None and found.low is not None and found.high is not None
    assert found.value == pytest.approx(1.495, abs=0.02) and found.low <= found.value <= found.high
    assert 1.4 < found.low and found.high < 1.6
    assert Ratio.of(Distribution.of([1.0]), old) == Ratio(0.0099, None, None)
    assert Ratio.of(new, Distribution.of([0.0])) is None


def test_peak_rss_grows_with_what_is_held() -> None:
    before = peak_rss_mib()
    held = np.ones(int((before + 64) * (1 << 20)) // 8)
    assert peak_rss_mib() > before + 32 and held.sum() > 0


def test_the_machine_says_what_it_is_and_what_else_it_does() -> None:
    found = card()
    assert found["cores"] == len(os.sched_getaffinity(0)) and found["onnxruntime"]
    with usage() as used:
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass
    assert 0.05 < used.cpu_seconds <= used.seconds * 1.1 + 0.05
    assert used.others is None or 0 <= used.others <= 1
    assert Beside.now().available_mib is not None


def test_stages_are_part_of_a_run(result: Profile) -> None:
    assert result.run.n == 3 and 0 < result.run.min <= result.run.p50 <= result.run.max
    assert result.first is not None and result.first.max < result.run.max
    assert result.kept is not None and result.kept.n == 3 and result.cache_hits == 1.0
    assert {"decode", "preprocess", "vision", "prefill", "score"} <= set(result.stages)
    assert result.rates["images"].p50 == pytest.approx(2e3 / result.run.p50, rel=0.5)
    rules = load_policy("stickers").rules
    assert result.rates["answers"].p50 == pytest.approx(
        result.rates["images"].p50 * len(rules), rel=1e-3
    )
    assert result.rates["prompt tokens"].p50 > 0 and result.rates["question tokens"].p50 > 0
    assert (
        0 < result.load_ms < result.first_verdict_ms
        and sum(result.opened_ms.values()) > 0
        and result.compiled == 0
    )
    assert set(result.placement.values()) == {"CPUExecutionProvider"}
    assert len(result.timeline) == 3 and result.timeline[0][0] < result.timeline[2][0]
    assert {"start", "loaded", "first run", "warm runs"} <= result.memory.resident.keys()
    assert result.memory.stages["decoder"] > 0 and (result.memory.kv or 0) > 0
    assert any("only 3 runs" in text for text in result.warnings)


@pytest.mark.parametrize(
    ("workload", "answers", "spans"),
    [
        ("screen:rules=5", 5, {"score"}),
        ("library:images=3", 3 * len(load_policy("stickers").rules), {"score"}),
        ("score", 1, {"prefill"}),
        ("compare", 1, {"prefill"}),
        ("rank:images=2", 1, {"prefill"}),
        ("rationale:tokens=4", 1, {"write", "lm_head"}),
        ("prefill:tokens=24", 0, {"prefill"}),
        ("decode:tokens=3,past=8", 0, {"write", "lm_head"}),
    ],
)
def test_every_workload_runs_what_it_says(
    bundle: Path, workload: str, answers: int, spans: set[str]
) -> None:
    found, seen = profile(str(bundle), workload, runs=2, warmup=0)
    assert found.run.n == 2 and spans <= found.stages.keys()
    assert {s.name for s in seen} >= spans
    rate = found.rates.get("answers")
    assert (rate is None) == (answers == 0)
    if rate is not None:
        assert rate.max == pytest.approx(1e3 * answers / found.run.min, rel=0.01)
    if workload.startswith("decode"):
        assert sum(s.name == "write" for s in seen) == 3
    if workload.startswith("prefill"):
        assert found.rates["prompt tokens"].max == pytest.approx(
            24e3 / found.stages["prefill"].min, rel=0.01
        )


def test_operators_are_those_of_one_run(bundle: Path) -> None:
    found, seen = profile(str(bundle), "screen:rules=3", runs=1, operators=True)
    assert found.operators and sum(r.share for r in found.operators) <= 1 + 1e-3
    assert {r.provider for r in found.operators} == {"CPUExecutionProvider"}
    assert found.operators[0].ms == max(r.ms for r in found.operators)
    work = [s for s in seen if s.name in ("vision", "decoder", "verdict_head")]
    spent = sum(s.ms for s in work)
    assert 0 < sum(ran.ms for ran in seen.operators) <= spent * 1.05
    for ran in seen.operators:
        at = (ran.start - seen._began) * 1e3
        assert any(s.start_ms - 1 <= at and at + ran.ms <= s.end_ms + 1 for s in work), ran
    rows = {e["args"]["name"] for e in seen.to_chrome()["traceEvents"] if e["ph"] == "M"}
    assert any(name.endswith(", operators") for name in rows)
    with profiled(), pytest.raises(RuntimeError, match="already"), profiled():
        pass
    assert profile(str(bundle), "prefill:tokens=8", runs=1)[1].operators == []


def test_within_a_memory_budget_pictures_are_screened_and_nothing_else(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgejudge.runtime.sliced.fits", lambda *_: False)
    found, seen = profile(str(bundle), "screen:images=2", runs=2, memory_budget=1 << 36)
    assert found.memory.kv is None and found.kept is None and found.run.n == 2
    assert {"load", "vision", "decoder"} <= {span.name for span in seen}
    with pytest.raises(InputError, match="profile it without a budget"):
        profile(str(bundle), "rank", memory_budget=1 << 36)
    with pytest.raises(InputError, match="has no room for"):
        profile(str(bundle), memory_budget=1 << 36, operators=True)


def test_shares_are_of_what_numpy_does(bundle: Path) -> None:
    found, _ = profile(str(bundle), "rationale:tokens=6", runs=2)
    limits = found.limits
    assert limits is not None and limits.read_gb_s > 0.1 and limits.gflops > 0.1
    prompt, written = (found.rates[name].p50 for name in ("prompt tokens", "written tokens"))
    assert limits.prompt_share == pytest.approx(
        prompt * limits.operations / (limits.gflops * 1e9), rel=0.02, abs=1e-4
    )
    assert limits.written_share == pytest.approx(
        written * limits.token_mb / (limits.read_gb_s * 1e3), rel=0.02, abs=1e-4
    )
    spec = ModelSpec.from_json(Bundle.open(bundle).manifest.spec)
    assert operations_of(spec) == 2 * tiny_matrices(bundle.parent / "checkpoint")


def tiny_matrices(checkpoint: Path) -> int:
    """Elements of the matrices of a checkpoint's decoder layers."""
    held = load_file(checkpoint / "model.safetensors")
    return sum(
        value.size
        for name, value in held.items()
        if "text_model.layers" in name and value.ndim == 2
    )


def test_the_kinds_are_those_that_are_tested() -> None:
    assert KINDS.keys() == {
        *("screen", "library", "score", "compare"),
        *("rank", "rationale", "prefill", "decode"),
    }
    assert str(read_workload("screen:images=4")) == "screen:rules=0,images=4"


def test_seconds_instead_of_runs(bundle: Path) -> None:
    found, _ = profile(str(bundle), "prefill:tokens=8", seconds=0.3)
    assert found.run.n >= 2 and found.timeline[-1][0] <= 0.3 <= found.timeline[-1][0] + 0.3


def test_the_command_prints_one_json_document(bundle: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    command = ["profile", str(bundle), "--runs", "1", "--cold", "1", "--json", "--trace"]
    done = subprocess.run(
        [sys.executable, "-m", "edgejudge", *command, str(trace)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["schema_version"] == 4 and value["run"]["n"] == 1
    assert value["cold_process"]["n"] == 1 and value["memory"]["peak"] > 10
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert {"vision", "score"} <= {event["name"] for event in events}


def test_the_command_prints_card_table_and_a_line_of_json(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(bundle), "--runs", "2"]) == 0
    text = capsys.readouterr().out
    assert "onnxruntime" in text and "p50 ms" in text and "prefill" in text
    assert json.loads(text.splitlines()[-1])["run"]["n"] == 2


def written(folder: Path, result: Profile, name: str = "old.json", **changes: Any) -> str:
    file = folder / name
    file.write_text(json.dumps(result.to_json() | changes), encoding="utf-8")
    return str(file)


def test_a_comparison_finds_what_became_slower_and_nothing_else(
    result: Profile, tmp_path: Path
) -> None:
    steady = replace(result, run=Distribution.of([100.0 + i % 3 for i in range(12)]))
    slower = replace(result, run=Distribution.of([120.0 + i % 3 for i in range(12)]))
    file = written(tmp_path, steady)
    same = compared(steady, file, 0.05)
    assert same.slower == () and same.differs == () and same.ratios["run"].value == 1.0
    found = compared(slower, file, 0.05)
    assert found.slower == ("run",) and "  prefill" in found.ratios
    assert compared(slower, file, 0.25).slower == ()
    other = written(tmp_path, steady, machine={**steady.machine, "cores": 99})
    assert compared(steady, other, 0.05).differs == ("machine",)


def test_a_regression_is_the_exit_status(
    bundle: Path, result: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["profile", str(bundle), "--workload", "screen:images=2", "--runs", "3", "--json"]
    for ms, code in ((1e7, 0), (1e-2, 4)):
        values = [ms * (1 + 0.01 * i) for i in range(5)]
        old = replace(result, run=Distribution.of(values), first=None, kept=None)
        assert main([*command, "--compare", written(tmp_path, old)]) == code
        document = json.loads(capsys.readouterr().out)
        assert document["compared"]["slower"] == (["run"] if code else [])


def test_records_that_are_none_are_named(result: Profile, tmp_path: Path) -> None:
    cases = {
        "not JSON": ("{", "is no record"),
        "no record": ("[]", "no schema_version"),
        "older": (json.dumps({"schema_version": 3}), "profile the old one again"),
        "another": (json.dumps(result.to_json() | {"workload": "rank:images=4"}), "rank:images=4"),
        "cut": (json.dumps({"schema_version": 4, "workload": result.workload}), "is no record"),
        "words": (json.dumps(result.to_json() | {"run": {"values": ["x"]}}), "is no record"),
    }
    for name, (text, expected) in cases.items():
        file = tmp_path / f"{name}.json"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=expected):
            compared(result, file, 0.05)
    with pytest.raises(InputError, match="cannot be read"):
        compared(result, tmp_path / "gone.json", 0.05)


def test_ctrl_c_prints_what_was_measured(bundle: Path) -> None:
    command = [sys.executable, "-m", "edgejudge", "profile", str(bundle), "--seconds", "600"]
    with subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        for line in process.stderr:
            if "warm runs" in line:
                break
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        value = json.loads(process.stdout.read())
        assert process.wait(60) == 130
    assert value["stopped"] is True and value["run"]["n"] >= 1


def test_bad_input_is_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        profile(str(tmp_path))
    with pytest.raises(InputError, match="is no file"):
        profile(str(bundle), picture=str(tmp_path / "gone.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(EdgeJudgeError, match="give another picture"):
        profile(str(bundle), picture=str(broken))
    for arguments, expected in (
        (["--runs", "0"], "runs must be at least 1"),
        (["--workload", "chat"], "those known are screen:rules=0,images=1; library"),
        (["--workload", "decode:token=3"], "it has tokens, past"),
        (["--workload", "decode:tokens=60000"], "this bundle holds"),
        (["--workload", "rank:images=1"], "at least 2"),
        (["--place", "vision=tpu"], "tpu"),
        (["--allowed", "-1"], "--allowed"),
    ):
        assert main(["profile", str(bundle), *arguments]) == 2
        assert expected in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr("edgejudge.profiling.measuring.available_bytes", lambda: 1 << 20)
    with pytest.raises(BundleError, match="MiB that are free"):
        profile(str(bundle))


def test_a_preset_is_made_once_and_profiled(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path))
    made: list[str] = []

    def make(checkpoint: Any, out: Path, progress: Any, **_: Any) -> None:
        made.append(checkpoint.card.name)
        assert checkpoint.random_weights and checkpoint.spec.text.layers == 24
        for share in (0.0, 0.5):
            progress("writing", share)
        out.symlink_to(bundle, target_is_directory=True)

    # All but the export itself, which takes minutes.
    monkeypatch.setattr("edgejudge.fidelity.export_bundle", make)
    told = False
    for _ in range(2):
        arguments = ["profile", "smolvlm2-2.2b", "--runs", "1", "--json"]
        assert main([*arguments, "--workload", "prefill:tokens=8"]) == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out)["run"]["n"] == 1
        assert shown.err.count("writing") == (not told)
        told = True
    assert made == ["smolvlm2-2.2b"]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_numbers_are_never_cut_on_a_narrow_terminal(
    bundle: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["profile", str(bundle), "--runs", "2"]) == 0
    (heading,) = [line for line in capsys.readouterr().out.splitlines() if "p50 ms" in line]
    assert "…" not in heading and ("p95" in heading) == (width == 200)
