"""A virtual clock over the dispatcher: what a plan would take, and what becomes of it when devices
are not as measured.

Takes a graph on devices and how devices behave; gives a `Timeline`. The dispatcher is the one that
an executor uses. Runs no model.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from edgejudge.runtime.scheduling.costs import Placed
from edgejudge.runtime.scheduling.dispatch import Dispatcher
from edgejudge.runtime.scheduling.drift import Replanner
from edgejudge.runtime.scheduling.graph import TaskGraph
from edgejudge.runtime.scheduling.limits import Limits

__all__ = ["Event", "Ran", "Slow", "Timeline", "energy_mj", "simulate"]


@dataclass(frozen=True, slots=True)
class Ran:
    """`task` is its place in the graph."""

    task: int
    device: str
    begin_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class Event:
    """What was noticed, and what was done about it."""

    at_ms: float
    text: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Runs in the order in which they began."""

    runs: tuple[Ran, ...]
    events: tuple[Event, ...] = ()

    @property
    def makespan_ms(self) -> float:
        return max((run.end_ms for run in self.runs), default=0.0)


@dataclass(frozen=True, slots=True)
class Slow:
    """From `at_ms` on a device takes `factor` times as long for what it begins."""

    device: str
    at_ms: float
    factor: float


def simulate(
    graph: TaskGraph,
    placed: Placed,
    limits: Limits | None = None,
    ranks: Sequence[float] | None = None,
    unlocking: bool = True,
    slow: Sequence[Slow] = (),
    jitter: float = 0.0,
    seed: int = 0,
    replanner: Replanner | None = None,
) -> Timeline:
    """`jitter` is the standard deviation of what a task takes, as a share of it; the same seed
    gives the same timeline.
    """
    chance = random.Random(seed)
    dispatcher = Dispatcher(limits, unlocking)
    dispatcher.submit(graph, placed.devices, placed.ms, ranks)
    devices = list(dict.fromkeys([*placed.devices, *(replanner.devices if replanner else ())]))
    where = list(placed.devices)
    runs: list[Ran] = []
    events: list[Event] = []
    ends: list[tuple[float, int, float]] = []
    free = dict.fromkeys(devices)
    now = 0.0
    while True:
        for device in list(free):
            number = dispatcher.next_for(device)
            if number is None:
                continue
            del free[device]
            where[number] = device
            took = dispatcher.ms(number) * _factor(slow, device, now)
            if jitter:
                took *= max(0.05, chance.gauss(1.0, jitter))
            heappush(ends, (now + took, number, took))
            runs.append(Ran(number, device, now, now + took))
        if not ends:
            break
        now = ends[0][0]
        while ends and ends[0][0] <= now:
            _, number, took = heappop(ends)
            predicted = dispatcher.ms(number)
            free[where[number]] = None
            dispatcher.finished(number)
            if replanner is not None:
                found = replanner.finished(dispatcher, where, where[number], predicted, took)
                events += [Event(now, text) for text in found]
    assert dispatcher.done, "what is ready runs, and what waits becomes ready"
    return Timeline(tuple(runs), tuple(events))


def _factor(slow: Sequence[Slow], device: str, now: float) -> float:
    factor = 1.0
    for one in slow:
        if one.device == device and now >= one.at_ms:
            factor = one.factor
    return factor


def energy_mj(
    busy: Mapping[str, float], makespan_ms: float, watts: Mapping[str, tuple[float, float]]
) -> float:
    """Millijoules: each device that is used draws its busy watts while it works and its idle watts
    else; one that is not used is off.
    """
    return sum(
        own * watts[device][0] + max(makespan_ms - own, 0.0) * watts[device][1]
        for device, own in busy.items()
    )
