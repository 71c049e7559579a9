"""A device that other programs make slow, noticed and planned around: `make bench-contention`.

Takes a bundle with graphs for the gpu or npu target and a picture; puts the decoder on such a
device, whose one thread is kept on one core, and the processor's on another. Measures costs,
judges, has that core loaded by other processes, judges, and lets it go. Prints who decoded in each
phase, what was noticed and what a verdict took, beside a judge that has no costs to go by. One JSON
line ends it. Linux alone: elsewhere threads cannot be kept on a core.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgejudge import Judge
from edgejudge.bundle import Bundle
from edgejudge.runtime import Engine, Trace
from edgejudge.runtime.scheduling import keep_profile
from edgejudge.runtime.settings import processor
from edgejudge.unit_costs import measure_costs

_SPIN = "while True: pass"


def keep_apart(device: str, cores: tuple[int, int]) -> None:
    """The device's thread on the first core, the processor's on the second."""
    for thread in threading.enumerate():
        if thread.native_id is not None and thread.name in (device, "edgejudge cpu"):
            os.sched_setaffinity(thread.native_id, {cores[thread.name != device]})


@contextmanager
def loaded(core: int, processes: int) -> Iterator[None]:
    """Other programs want so many shares of a core."""
    spinning = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(processes)]
    for one in spinning:
        os.sched_setaffinity(one.pid, {core})
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()


class Watched:
    """A judge that says of each picture who decoded it."""

    def __init__(self, judge: Judge, picture: Path) -> None:
        self.judge, self.picture = judge, picture
        engine = judge.engine
        assert isinstance(engine, Engine)
        self.traces: list[Trace] = []
        own = type(engine).new_trace
        traces = self.traces

        class Traced(type(engine)):  # type: ignore[misc]
            __slots__ = ()

            def new_trace(self) -> Trace:
                traces.append(own(self))
                return traces[-1]

        engine.__class__ = Traced

    def screen(self) -> tuple[float, Counter[str], list[str]]:
        """Milliseconds, spans of the decoder by device, and what was noticed."""
        self.traces.clear()
        began = time.perf_counter()
        verdict = self.judge.screen(self.picture)
        ms = (time.perf_counter() - began) * 1e3
        spans = [span for trace in self.traces for span in trace.spans if span.name == "decoder"]
        notes = [note.message for note in verdict.notes if note.code == "device_drift"]
        return ms, Counter(span.device for span in spans), notes


def phase(name: str, watched: Watched, times: int) -> dict[str, Any]:
    took, ran = [], Counter[str]()
    for number in range(times):
        ms, devices, notes = watched.screen()
        took.append(ms)
        ran += devices
        for note in notes:
            print(f"  {name}, verdict {number + 1}: {note}")
    passes = ", ".join(f"{device} {count}" for device, count in ran.most_common())
    last = ", ".join(devices)
    print(f"| {name} | {statistics.median(took):.0f} | {passes} | {last} |", flush=True)
    return {"phase": name, "ms": took, "passes": dict(ran), "last": dict(devices)}


def until(true: Callable[[], bool], seconds: float) -> float | None:
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        if true():
            return time.monotonic() - began
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--place", default="decoder=gpu:cpu,writer=gpu:cpu")
    parser.add_argument("--times", type=int, default=12, help="verdicts in each phase")
    parser.add_argument("--processes", type=int, default=8, help="that want the device's core")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this needs two cores: one to load, one to go on")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGEJUDGE_CACHE"] = folder
        rows = measured(args, (cores[0], cores[1]))
    print(
        f"\n{args.times} verdicts in each phase, {args.processes} processes on the device's core; "
        f"{processor()}, Python {sys.version.split()[0]}"
    )
    print(json.dumps(rows))


def measured(args: argparse.Namespace, cores: tuple[int, int]) -> list[dict[str, Any]]:
    bundle = Bundle.open(args.bundle)
    judges = {}
    for costs in (False, True):
        if costs:
            keep_profile(bundle, measure_costs(bundle, args.place, threads=1).profile)
        judge = Judge.load(args.bundle, place=args.place, threads=1, prefix_cache_bytes=0)
        judges[costs] = Watched(judge, args.picture)
    engine = judges[True].judge.engine
    assert isinstance(engine, Engine) and engine.stages.predicted is not None
    (device,) = {a.device.name for a in engine.fleet.accelerators}
    told: list[str] = []
    measuring = judges[True].judge.remeasure(on_drift=True, told=told.append)
    for watched in judges.values():
        watched.screen()  # opens, and begins its threads
    keep_apart(device, cores)
    rows = []
    print("| phase | ms a verdict | passes through a part | in the last verdict |")
    print("|---" * 4 + "|")
    rows.append(phase("alone, no costs", judges[False], args.times))
    rows.append(phase("alone", judges[True], args.times))
    with loaded(cores[0], args.processes):
        rows.append(phase("loaded, no costs", judges[False], args.times))
        rows.append(phase("loaded", judges[True], args.times))
        keep_apart(device, cores)  # the processor's thread began with its first work
        rows.append(phase("still loaded", judges[True], args.times))
    back = until(lambda: device in judges[True].screen()[1], 180)
    text = "not within 180 s" if back is None else f"after {back:.0f} s"
    print(f"  let go: the device is used again {text}")
    rows.append({"phase": "back", "s": back})
    rows.append(phase("let go", judges[True], args.times))
    for sentence in told:
        print(f"  {sentence}")
    measuring.stop()
    return rows


if __name__ == "__main__":
    main()
