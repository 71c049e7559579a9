"""Energy counters, as Linux shows them in files."""

import time
from pathlib import Path

import pytest

from edgejudge import energy
from edgejudge.energy import Sampled, battery, meter, meters, nvidia


def package(root: Path, number: int, joules: float, most: float = 1000.0, name: str = "") -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name or f"package-{number}\n")
    (folder / "max_energy_range_uj").write_text(f"{int(most * 1e6)}\n")
    count(folder, joules)
    return folder


def count(folder: Path, joules: float) -> None:
    (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(energy.time, "perf_counter", lambda: now[0])
    return now


def test_watts_are_those_of_all_packages(tmp_path: Path, clock: list[float]) -> None:
    one, two = package(tmp_path, 0, 10), package(tmp_path, 1, 990)
    package(tmp_path, 2, 0, name="dram")
    found = meter(tmp_path)
    assert found is not None and found.packages == [one, two]
    with found.watts() as watts:
        assert watts.value is None
        count(one, 30)
        count(two, 20)  # past its end, 1,000
        clock[0] += 5
    assert watts.value == pytest.approx((20 + 30) / 5)


def test_without_counters_there_are_no_watts(tmp_path: Path) -> None:
    assert meter(tmp_path / "none") is None
    assert meter(tmp_path) is None
    (package(tmp_path, 0, 1) / "energy_uj").unlink()  # as for a user who may not read it
    (package(tmp_path, 1, 1) / "energy_uj").write_text("")
    assert meter(tmp_path) is None


def supply(root: Path, name: str, **files: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text + "\n")
    return folder


def test_a_battery_tells_while_it_discharges(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    one = supply(tmp_path, "BAT0", type="Battery", status="Discharging", power_now="7500000")
    supply(
        tmp_path,
        "BAT1",
        **{"type": "Battery", "status": "Discharging"},
        **{"current_now": "-500000", "voltage_now": "9000000"},
    )
    found = battery(tmp_path)
    assert found is not None
    with Sampled(found.now, every_s=0.01).watts() as watts:
        assert watts.value is None
    assert watts.value == pytest.approx(7.5 + 4.5)
    (one / "status").write_text("Charging\n")
    assert found.now() == pytest.approx(4.5)
    assert battery(tmp_path / "AC") is None and battery(tmp_path / "none") is None


def test_nvidia_s_cards_are_asked_for_and_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia() is None
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 120.5\necho 79.5\n")
    command.chmod(0o755)
    found = nvidia()
    assert found is not None and found.now() == pytest.approx(200.0)
    assert "nvidia" in meters()
    command.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert found.now() is None and nvidia() is None
    command.write_text("#!/bin/sh\nexit 9\n")
    assert nvidia() is None


def test_a_sensor_is_looked_at_again_and_again() -> None:
    told = iter([1.0, None, 3.0])
    with Sampled(lambda: next(told, 8.0), every_s=0.005).watts() as watts:
        time.sleep(0.2)
    assert watts.value is not None and 4 < watts.value < 8
    with Sampled(lambda: None, every_s=0.005).watts() as watts:
        pass
    assert watts.value is None
