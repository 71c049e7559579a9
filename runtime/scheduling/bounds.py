"""What no schedule can be shorter than.

Takes what each task waits for and milliseconds; gives lower bounds of the makespan: of one
placement, or of all of them at once. None looks at limits on memory, which only make schedules
longer.
"""

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from math import exp

from edgejudge.runtime.scheduling.order import tails_ms

__all__ = ["critical_path_ms", "linear_bound_ms", "placement_bound_ms"]

_ROUNDS = 200  # of the dual; any number of them gives a bound
_After = Sequence[Sequence[int]]


def critical_path_ms(after: _After, ms: Sequence[float]) -> float:
    """The longest chain of tasks that wait for one another."""
    return max(tails_ms(after, ms), default=0.0)


def placement_bound_ms(after: _After, devices: Sequence[str], ms: Sequence[float]) -> float:
    """Where tasks have their devices: the longest chain, and for each device the shortest
    preemptive schedule of its tasks alone, none before what leads to it and with what follows it
    behind (Jackson's rule, after Carlier, 1982), which is never below its load.
    """
    tails = tails_ms(after, ms)
    heads = [0.0] * len(ms)
    for i, befores in enumerate(after):
        heads[i] = max((heads[before] + ms[before] for before in befores), default=0.0)
    bound = max(tails, default=0.0)
    for device in dict.fromkeys(devices):
        own = [i for i, where in enumerate(devices) if where == device]
        jobs = [(heads[i], ms[i], tails[i] - ms[i]) for i in own]
        bound = max(bound, _preemptive(jobs))
    return bound


def _preemptive(jobs: list[tuple[float, float, float]]) -> float:
    """Of (from when on, how long, how much behind it), the longest rest first."""
    jobs.sort(reverse=True)
    open_: list[tuple[float, float]] = []
    now = best = 0.0
    while jobs or open_:
        if not open_:
            now = max(now, jobs[-1][0])
        while jobs and jobs[-1][0] <= now:
            _, own, rest = jobs.pop()
            heappush(open_, (-rest, own))
        rest, own = heappop(open_)
        until = jobs[-1][0] if jobs else float("inf")
        if now + own <= until:
            now += own
            best = max(best, now - rest)
        else:
            heappush(open_, (rest, own - (until - now)))
            now = until
    return best


def linear_bound_ms(works: Mapping[str, Mapping[str, float]]) -> float:
    """Over all placements: the least greatest load where units may be cut between devices.

    `works` has for each unit its milliseconds on each device that can do it. This is the dual of
    the linear programme min T, sum of unit u's share on device d times its work <= T: for weights
    of devices that sum to 1, no placement's greatest load is below the units' cheapest weighted
    works together. It is climbed by Newton-like steps and exact with two devices.
    """
    devices = sorted({device for work in works.values() for device in work})
    if len(devices) == 1:
        return sum(work[devices[0]] for work in works.values())
    weights = {device: 1.0 / len(devices) for device in devices}
    best = _dual(works, weights)[0]
    if len(devices) == 2:
        return max(best, *(_dual(works, w)[0] for w in _breaks(works, devices)))
    for number in range(1, _ROUNDS + 1):
        value, loads = _dual(works, weights)
        best = max(best, value)
        most = max(loads.values())
        if most <= 0:
            break
        step = 1.0 / number**0.5
        raised = {d: weights[d] * exp(step * loads[d] / most) for d in devices}
        total = sum(raised.values())
        weights = {device: weight / total for device, weight in raised.items()}
    return best


def _dual(
    works: Mapping[str, Mapping[str, float]], weights: Mapping[str, float]
) -> tuple[float, dict[str, float]]:
    loads = dict.fromkeys(weights, 0.0)
    total = 0.0
    for work in works.values():
        cheapest = min(work, key=lambda device: weights[device] * work[device])
        total += weights[cheapest] * work[cheapest]
        loads[cheapest] += work[cheapest]
    return total, loads


def _breaks(
    works: Mapping[str, Mapping[str, float]], devices: Sequence[str]
) -> list[dict[str, float]]:
    """The weights of two devices at which some unit is as cheap on the one as on the other: the
    dual is straight between them.
    """
    first, second = devices
    shares = {0.0, 1.0}
    for work in works.values():
        if first in work and second in work and work[first] + work[second] > 0:
            shares.add(work[second] / (work[first] + work[second]))
    return [{first: share, second: 1.0 - share} for share in shares]
