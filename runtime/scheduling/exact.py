"""The shortest schedule there is, by looking at all that could be it: for small graphs.

Takes what each task waits for, its device and milliseconds; gives the optimum over all orders, or
over all placements too. Schedules in which no task could begin earlier without delaying another are
enough (Giffler and Thompson, 1960). What heuristics and bounds are tested against.
"""

from collections.abc import Mapping, Sequence
from itertools import product

from edgejudge.runtime.scheduling.bounds import placement_bound_ms
from edgejudge.runtime.scheduling.costs import Costs
from edgejudge.runtime.scheduling.graph import TaskGraph
from edgejudge.runtime.scheduling.order import list_schedule, makespan_ms, tails_ms

__all__ = ["MOST_TASKS", "optimal_placement_ms", "optimum_ms"]

MOST_TASKS = 16
_EPSILON = 1e-9
_After = Sequence[Sequence[int]]


def optimum_ms(
    after: _After, devices: Sequence[str], ms: Sequence[float], below: float = float("inf")
) -> float:
    """The least makespan over all orders; `below` where none is less. Raises ValueError for more
    than MOST_TASKS tasks.
    """
    count = len(ms)
    if count > MOST_TASKS:
        raise ValueError(f"{count} tasks are too many to look at every order, at most {MOST_TASKS}")
    if placement_bound_ms(after, devices, ms) >= below - _EPSILON:
        return below
    tails = tails_ms(after, ms)
    begins = list_schedule(after, devices, ms, [-tail for tail in tails])
    best = min(below, makespan_ms(begins, ms))
    ends: list[float | None] = [None] * count
    free = dict.fromkeys(devices, 0.0)

    def go_on(left: int, longest: float) -> None:
        nonlocal best
        if not left:
            best = min(best, longest)
            return
        ready = []
        for i in range(count):
            if ends[i] is None:
                known = [ends[before] for before in after[i]]
                if None not in known:
                    begin = max([free[devices[i]], *(end for end in known if end is not None)])
                    if begin + tails[i] >= best - _EPSILON:
                        return  # whatever comes next
                    ready.append((begin + ms[i], begin, i))
        first_end, _, first = min(ready)
        device = devices[first]
        for _, begin, i in sorted(ready, key=lambda item: -tails[item[2]]):
            # One that begins when another would have ended leaves a hole that this one fills.
            if devices[i] != device or (begin >= first_end and i != first):
                continue
            was = free[device]
            ends[i] = free[device] = begin + ms[i]
            go_on(left - 1, max(longest, begin + ms[i]))
            ends[i], free[device] = None, was

    go_on(count, 0.0)
    return best


def optimal_placement_ms(graph: TaskGraph, costs: Costs) -> tuple[float, Mapping[str, str] | None]:
    """The least makespan over all placements and orders, and a placement that has it."""
    units = graph.units
    best, where = float("inf"), None
    for chosen in product(*(costs.devices_for(unit) for unit in units)):
        placement = dict(zip(units, chosen, strict=True))
        placed = costs.placed(graph, placement)
        found = optimum_ms(graph.after(), placed.devices, placed.ms, best)
        if found < best:
            best, where = found, placement
    return best, where
