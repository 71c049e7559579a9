"""What is measured on: the machine's card, what else it does, and what this process takes of it.

Takes nothing; gives names and numbers of the operating system, absent where it does not tell.
"""

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgejudge.energy import Watts, meters
from edgejudge.runtime.session import default_threads
from edgejudge.runtime.settings import processor

__all__ = ["Beside", "Usage", "available_bytes", "card", "peak_rss_mib", "usage"]

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_MIB = 1 << 20


def card() -> dict[str, str | int]:
    import onnxruntime

    found: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": default_threads(),
        "python": platform.python_version(),
        "edgejudge": importlib.metadata.version("edgejudge"),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
    if (total := _meminfo("MemTotal")) is not None:
        found["memory_mib"] = total // _MIB
    if _GOVERNOR.exists():
        found["governor"] = _GOVERNOR.read_text().strip()
    return found


def available_bytes() -> int | None:
    """What may still be allocated before the machine swaps."""
    return _meminfo("MemAvailable")


def peak_rss_mib() -> float:
    """The most memory this process has had resident, mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource  # not on Windows, where the figure is absent

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024


@dataclass(frozen=True, slots=True)
class Beside:
    """`load` is the mean number of processes that wanted a core during the last minute,
    `available_mib` what was free.
    """

    load: float | None
    available_mib: int | None

    @classmethod
    def now(cls) -> "Beside":
        free = available_bytes()
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        return cls(load, None if free is None else free // _MIB)


@dataclass(slots=True)
class Usage:
    """Of a stretch of time: seconds of a core that this process had, the share of all cores that
    others had, and watts by what they are of, where counters tell. Filled when the stretch is
    over.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    others: float | None = None
    watts: dict[str, float] = field(default_factory=dict)
    _cores: int = field(default_factory=lambda: os.cpu_count() or 1)


@contextmanager
def usage() -> Iterator[Usage]:
    found, told = Usage(), dict[str, Watts]()
    began, own, busy = time.perf_counter(), _own_seconds(), _busy_seconds()
    try:
        with ExitStack() as stack:
            for name, counter in meters().items():
                told[name] = stack.enter_context(counter.watts())
            yield found
    finally:
        found.seconds = time.perf_counter() - began
        found.cpu_seconds = _own_seconds() - own
        known = {name: watts.value for name, watts in told.items()}
        found.watts = {name: round(w, 3) for name, w in known.items() if w is not None}
        after = _busy_seconds()
        if busy is not None and after is not None and found.seconds > 0:
            others = (after - busy - found.cpu_seconds) / (found.seconds * found._cores)
            found.others = round(min(1.0, max(0.0, others)), 4)


def _own_seconds() -> float:
    return sum(os.times()[:4])


def _busy_seconds() -> float | None:
    """Seconds that all cores of the machine were at work."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq = (int(v) for v in first[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _meminfo(name: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
