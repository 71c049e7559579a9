"""What counters say of energy: the processor's (Linux's powercap, Intel's and AMD's RAPL), a
battery's, and those of NVIDIA's cards.

Takes nothing; gives watts of a stretch of time, or nothing where there is no counter or nobody may
read it (most kernels allow the processor's to root alone). Counts whole packages, cards and
machines, whatever runs there.
"""

import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["Meter", "Sampled", "Watts", "battery", "meter", "meters", "nvidia"]

_ROOT = Path("/sys/class/powercap")
_SUPPLIES = Path("/sys/class/power_supply")
_EVERY_S = 0.5  # between two looks at a sensor that tells watts and no energy
_PATIENCE_S = 5.0  # for nvidia-smi


@dataclass(slots=True)
class Watts:
    """Of the stretch that was measured; `value` is None until it is over."""

    value: float | None = None


@dataclass(slots=True)
class Meter:
    """`packages` are folders with a counter of microjoules and the most that it counts to."""

    packages: list[Path] = field(default_factory=list)

    @contextmanager
    def watts(self) -> Iterator[Watts]:
        """Of the block, all packages together. A counter that went round was past its end once."""
        found, began, before = Watts(), time.perf_counter(), self._read()
        yield found
        took, after = time.perf_counter() - began, self._read()
        joules = [
            (b - a if b >= a else b - a + most) / 1e6
            for (a, most), (b, _) in zip(before, after, strict=True)
        ]
        if joules and took > 0:
            found.value = sum(joules) / took

    def _read(self) -> list[tuple[int, int]]:
        return [
            (_number(package / "energy_uj"), _number(package / "max_energy_range_uj"))
            for package in self.packages
        ]


class Measures(Protocol):
    """What tells watts of a block."""

    def watts(self) -> AbstractContextManager[Watts]: ...


@dataclass(slots=True)
class Sampled:
    """A sensor of the moment's watts, looked at again and again; None where it does not tell."""

    now: Callable[[], float | None]
    every_s: float = _EVERY_S

    @contextmanager
    def watts(self) -> Iterator[Watts]:
        """The mean of what was seen in the block; nothing where nothing was."""
        found, seen, over = Watts(), list[float](), threading.Event()

        def look() -> None:
            while True:
                if (value := self.now()) is not None:
                    seen.append(value)
                if over.wait(self.every_s):
                    return

        thread = threading.Thread(target=look, name="edgejudge watts", daemon=True)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()
            found.value = statistics.fmean(seen) if seen else None


def meters() -> dict[str, Measures]:
    """All that can be read here, by what they are of."""
    found = {"cpu": meter(), "battery": battery(), "nvidia": nvidia()}
    return {name: one for name, one in found.items() if one is not None}


def battery(root: Path = _SUPPLIES) -> Sampled | None:
    """What the machine draws from its batteries, while it is not plugged in."""

    def now() -> float | None:
        drawn = [_drawn(folder) for folder in sorted(root.glob("*"))]
        known = [watts for watts in drawn if watts is not None]
        return sum(known) if known else None

    return Sampled(now) if now() is not None else None


def _drawn(supply: Path) -> float | None:
    with suppress(OSError, ValueError):
        if (supply / "type").read_text().strip() != "Battery":
            return None
        if (supply / "status").read_text().strip() != "Discharging":
            return None
        if (supply / "power_now").exists():
            return abs(_number(supply / "power_now")) / 1e6
        amperes, volts = (_number(supply / name) / 1e6 for name in ("current_now", "voltage_now"))
        return abs(amperes * volts)
    return None


def nvidia() -> Sampled | None:
    """All cards that nvidia-smi knows, where it is."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]

    def now() -> float | None:
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            done = subprocess.run(
                query, capture_output=True, text=True, timeout=_PATIENCE_S, check=True
            )
            return sum(float(line) for line in done.stdout.split())
        return None

    return Sampled(now) if now() is not None else None


def meter(root: Path = _ROOT) -> Meter | None:
    """Of all packages here; their cores and memory, which are counted again within them, are left
    out. None where no counter can be read.
    """
    packages = []
    for folder in sorted(root.glob("*:*")) if root.is_dir() else []:
        try:
            name = (folder / "name").read_text().strip()
            if name.startswith("package") and _number(folder / "energy_uj") >= 0:
                packages.append(folder)
        except (OSError, ValueError):
            continue
    return Meter(packages) if packages else None


def _number(file: Path) -> int:
    return int(file.read_text())
