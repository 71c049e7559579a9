"""The order of one placement's tasks: every rule is simulated, the best is kept.

Takes a graph on devices; gives a `Schedule`, with the ranks that a dispatcher takes to play it.
Knows no other placement.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from edgejudge.runtime.scheduling.bounds import placement_bound_ms
from edgejudge.runtime.scheduling.costs import Placed
from edgejudge.runtime.scheduling.graph import TaskGraph
from edgejudge.runtime.scheduling.limits import Limits, waits_for
from edgejudge.runtime.scheduling.order import RULES, justified, ranks
from edgejudge.runtime.scheduling.simulator import Timeline, simulate

__all__ = ["Schedule", "scheduled"]

_ROUNDS = 3  # of packing from both ends
_TIGHT = 1.0005  # of the bound: not worth another rule


@dataclass(frozen=True, slots=True)
class Schedule:
    """`ranks` and `unlocking` are what the dispatcher was given, `rule` their name."""

    rule: str
    ranks: tuple[float, ...]
    unlocking: bool
    timeline: Timeline
    bound_ms: float

    @property
    def makespan_ms(self) -> float:
        return self.timeline.makespan_ms


def scheduled(
    graph: TaskGraph, placed: Placed, limits: Limits | None = None, quick: bool = False
) -> Schedule:
    """`quick` tries one rule alone, as a search does for each of its placements."""
    limits = limits or Limits()
    after = waits_for(graph, limits)
    bound = placement_bound_ms(after, placed.devices, placed.ms)
    best: Schedule | None = None
    for rule, order, unlocking in _orders(after, placed, quick):
        timeline = simulate(graph, placed, limits, order, unlocking)
        best = _better(best, Schedule(rule, tuple(order), unlocking, timeline, bound))
        if best.makespan_ms <= _TIGHT * bound:
            return best
    assert best is not None
    for _ in range(0 if quick else _ROUNDS):
        begins = [0.0] * len(graph.tasks)
        for run in best.timeline.runs:
            begins[run.task] = run.begin_ms
        order = justified(after, placed.devices, placed.ms, begins)
        timeline = simulate(graph, placed, limits, order, unlocking=False)
        packed = Schedule("packed", tuple(order), False, timeline, bound)
        if packed.makespan_ms >= best.makespan_ms:
            break
        best = packed
    return best


def _orders(
    after: list[tuple[int, ...]], placed: Placed, quick: bool
) -> Iterator[tuple[str, list[float], bool]]:
    for rule in ("feed",) if quick else RULES:
        order = ranks(rule, after, placed.devices, placed.ms)
        yield f"{rule}, unlocking first", order, True
        if not quick:
            yield rule, order, False


def _better(best: Schedule | None, other: Schedule) -> Schedule:
    return other if best is None or other.makespan_ms < best.makespan_ms else best
