"""`edgejudge tune`: what it keeps, who uses it, and what it survives."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tiny
from edgejudge.bundle import Bundle
from edgejudge.cli import main
from edgejudge.energy import Watts
from edgejudge.export import export
from edgejudge.placement_plan import placement_plan
from edgejudge.runtime import Engine, Settings
from edgejudge.runtime.scheduling import keep_profile, kept_profile, read_workload
from edgejudge.runtime.session import default_threads
from edgejudge.runtime.settings import keep_settings, kept_settings
from edgejudge.tuning import tune
from edgejudge.unit_costs import measure_costs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tuning")
    return export(tiny.make_checkpoint(root / "checkpoint"), root / "bundle", "exact")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path))
    return tmp_path


def test_every_value_is_measured_and_one_of_the_best_is_taken(folder: Path) -> None:
    found = tune(Bundle.open(folder, unsealed=True), rounds=2)
    for setting in ("threads", "chunk", "pack_tokens"):
        trials = [t for t in found.trials if t.setting == setting]
        assert all(t.n == 2 and 0 < t.min_ms <= t.p50_ms <= t.max_ms for t in trials)
        chosen = next(t for t in trials if t.value == getattr(found.settings, setting))
        assert chosen.p50_ms <= 1.02 * min(t.p50_ms for t in trials) + 1e-3
    assert {t.value for t in found.trials if t.setting == "threads"} >= {1, default_threads()}


def test_engines_take_what_was_kept(folder: Path) -> None:
    bundle = Bundle.open(folder, unsealed=True)
    assert kept_settings(bundle) is None
    engine = Engine.open(bundle)
    assert (engine.threads, engine.chunk) == (default_threads(), Settings(1).chunk)
    keep_settings(bundle, Settings(1, 96, 40))
    engine = Engine.open(bundle)
    assert (engine.threads, engine.chunk, engine.pack_tokens) == (1, 96, 40)
    assert Engine.open(bundle, threads=2).threads == 2, "who asks for threads has them"
    assert Engine.open(bundle, Settings(1)).chunk == Settings(1).chunk


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: b"not json",
        lambda value: json.dumps([]).encode(),
        lambda value: json.dumps(value | {"machine": {"processor": "another"}}).encode(),
        lambda value: json.dumps(value | {"settings": {"threads": 0}}).encode(),
        lambda value: json.dumps(value | {"settings": {"threads": 1, "more": 2}}).encode(),
        lambda value: json.dumps(value | {"settings": {"threads": "many"}}).encode(),
    ],
)
def test_a_record_that_does_not_fit_is_no_record(folder: Path, spoil: object) -> None:
    assert callable(spoil)
    bundle = Bundle.open(folder, unsealed=True)
    file = keep_settings(bundle, Settings(1, 96, 40))
    file.write_bytes(spoil(json.loads(file.read_bytes())))
    assert kept_settings(bundle) is None
    assert Engine.open(bundle).chunk == Settings(1).chunk


def test_the_command_keeps_what_it_prints(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "nano", "--rounds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kept = Path(found["kept_in"])
    assert kept.is_relative_to(cache)
    assert json.loads(kept.read_bytes())["settings"] == found["settings"]
    assert main(["tune", "nano", "--rounds", "1"]) == 0
    assert "chosen" in capsys.readouterr().out


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(tmp_path / "nothing")]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert main(["tune", "nano", "--rounds", "0"]) == 2
    assert "--rounds must be at least 1" in capsys.readouterr().err


def test_costs_of_stages_and_parts_are_measured_kept_and_planned_with(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(folder, unsealed=True)
    monkeypatch.setattr("edgejudge.unit_costs._PASTS", (0, 8))
    monkeypatch.setattr("edgejudge.unit_costs._TOKENS", (1, 8))
    measured = measure_costs(bundle, rounds=2)
    rows = {(row.unit, row.tokens, row.past): row for row in measured.profile.rows}
    parts = [f"decoder.{part.index}" for part in bundle.manifest.parts]
    shapes = {(part, tokens, past) for part in parts for tokens in (1, 8) for past in (0, 8)}
    assert shapes <= rows.keys()
    assert {("verdict_head", 1, 0), ("verdict_head", 24, 0)} <= rows.keys()
    assert {unit for unit, *_ in rows} >= {"vision", *parts}
    assert all(row.n >= 2 and row.p50_ms > 0 for row in rows.values())
    assert not measured.left_out and not measured.profile.links, "there is one device"
    keep_profile(bundle, measured.profile)
    kept = kept_profile(bundle)
    assert kept is not None and kept.rows == measured.profile.rows
    plan = placement_plan(bundle, Settings(1), read_workload("screen"), kept, "latency")
    assert set(plan["placement"].values()) == {"cpu:CPUExecutionProvider"}
    assert main(["tune", "nano", "--place", "vision=gpu"]) == 2
    assert "--costs" in capsys.readouterr().err
    assert main(["tune", "nano", "--costs", "--rounds", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_the_processors_watts_are_measured_where_counters_tell(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting:
        told = iter((2.5, 11.0))  # while it idles, while it works

        @contextmanager
        def watts(self) -> Iterator[Watts]:
            found = Watts()
            yield found
            found.value = next(self.told)

    bundle = Bundle.open(folder, unsealed=True)
    for name, value in (("_PASTS", (0,)), ("_TOKENS", (1,)), ("_IDLE_S", 0.0)):
        monkeypatch.setattr(f"edgejudge.unit_costs.{name}", value)
    stated = measure_costs(bundle, rounds=1).profile
    assert "watts are a stated model's" in stated.source
    monkeypatch.setattr("edgejudge.unit_costs.meter", Counting)
    measured = measure_costs(bundle, rounds=1).profile
    (device,) = measured.devices
    assert (device.busy_watts, device.idle_watts) == (11.0, 2.5)
    assert "watts of the CPU by its counters" in measured.source
