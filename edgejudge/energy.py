"""What the processor's own counters say of energy: Linux's powercap, Intel's and AMD's RAPL.

Takes nothing; gives watts of a stretch of time, or None where there is no counter or nobody may
read it (most kernels allow it to root alone). Counts whole packages, whatever runs there.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Meter", "Watts", "meter"]

_ROOT = Path("/sys/class/powercap")


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
