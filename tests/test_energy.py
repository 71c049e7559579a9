"""Energy counters, as Linux shows them in files."""

from pathlib import Path

import pytest

from edgejudge import energy
from edgejudge.energy import meter


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
