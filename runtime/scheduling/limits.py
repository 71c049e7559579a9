"""What bounds memory and keeps requests together, and what follows from it for any order.

Takes a task graph; gives what tasks wait for when limits are kept. Knows no device.
"""

from dataclasses import dataclass

from edgejudge.runtime.scheduling.graph import TaskGraph

__all__ = ["Limits", "waits_for"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds memory, and how far requests may drift apart. Of `requests` at once pictures and
    hidden states are in memory; of `caches` at once keys and values of a unit; of one request
    `chunks` at once have begun and not ended. None is without end.

    `lag_ms`: while two requests both have ready tasks on a device, neither is given more than this,
    or one task where that is longer, ahead of the other since both were there.
    """

    requests: int = 2
    caches: int = 1
    chunks: int | None = None
    lag_ms: float = float("inf")

    def __post_init__(self) -> None:
        if min(self.requests, self.caches, self.chunks or 1) < 1 or not self.lag_ms >= 0:
            raise ValueError(f"limits are from 1 on, lag_ms from 0 on: {self}")


def waits_for(graph: TaskGraph, limits: Limits) -> list[tuple[int, ...]]:
    """Of each task what it waits for, with what one cache of a unit at once adds: a request's
    first tasks of the unit wait for the last ones of the request before. Further limits are not
    among them, so that a bound over these is below what any order takes.
    """
    after = graph.after()
    if limits.caches > 1:
        return after
    place = {request: i for i, request in enumerate(graph.requests)}
    own: dict[tuple[str, int], list[int]] = {}
    for i, task in enumerate(graph.tasks):
        if task.cached:
            own.setdefault((task.unit, place[task.request]), []).append(i)
    for (unit, request), tasks in own.items():
        inside = set(tasks)
        before = own.get((unit, request - 1), [])
        follow = {b for i in before for b in after[i]}
        lasts = [i for i in before if i not in follow]
        for i in tasks:
            if not inside.intersection(after[i]):
                after[i] = (*after[i], *(last for last in lasts if last < i))
    return after
