"""Work as a graph: tasks, what each waits for, and the bytes that go from one to the next.

Takes tasks in an order in which each comes behind what it waits for; gives a `TaskGraph`, in which
a cycle cannot be written down. Knows no device and no cost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

__all__ = ["Edge", "Task", "TaskGraph", "joined"]


@dataclass(frozen=True, slots=True)
class Edge:
    """`before` is the place of a task further up in the graph, `bytes` what it hands over. They
    move only where the two tasks are on different devices.
    """

    before: int
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """One run of one graph: (chunk, part), a group of crops, a head.

    `unit` is what placement decides: all tasks of one unit run on one device. `tokens` (crops, for
    vision) and `past` tokens before them are the shape that a cost is measured for. `cached` tasks
    use the keys and values of their unit, of which a request has its own; `chunk` counts from 0
    within a request. `fixed` tasks, all of a request or none, stay where they were given to.
    """

    name: str
    unit: str
    tokens: int
    past: int = 0
    after: tuple[Edge, ...] = ()
    request: int = 0
    chunk: int = 0
    cached: bool = False
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class TaskGraph:
    """`unit_bytes` is what a device holds that runs the unit: weights, keys and values."""

    tasks: tuple[Task, ...]
    unit_bytes: dict[str, int]

    def __post_init__(self) -> None:
        for place, task in enumerate(self.tasks):
            if task.tokens < 1 or task.past < 0 or task.request < 0 or task.chunk < 0:
                raise ValueError(f"task {task.name}: {task.tokens} tokens behind {task.past}")
            for edge in task.after:
                if not 0 <= edge.before < place:
                    raise ValueError(
                        f"task {task.name} waits for place {edge.before}, which is not before its "
                        f"own, {place}"
                    )
                if edge.bytes < 0:
                    raise ValueError(f"task {task.name} takes {edge.bytes} bytes")
                before = self.tasks[edge.before]
                if before.request != task.request or before.chunk > task.chunk:
                    raise ValueError(
                        f"task {task.name} of request {task.request}, chunk {task.chunk} waits for "
                        f"{before.name} of request {before.request}, chunk {before.chunk}; "
                        "requests wait for no other one, chunks for no later one"
                    )

    @property
    def units(self) -> tuple[str, ...]:
        """In the order in which they are first needed."""
        return tuple(dict.fromkeys(task.unit for task in self.tasks))

    @property
    def requests(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(task.request for task in self.tasks))

    def after(self) -> list[tuple[int, ...]]:
        """Of each task the places of those it waits for."""
        return [tuple(edge.before for edge in task.after) for task in self.tasks]

    def renumbered(self, first: int) -> "TaskGraph":
        """The same work for other requests, the first of which has the number `first`."""
        number = {request: first + i for i, request in enumerate(self.requests)}
        tasks = tuple(replace(task, request=number[task.request]) for task in self.tasks)
        return TaskGraph(tasks, self.unit_bytes)


def joined(graphs: Iterable[TaskGraph]) -> TaskGraph:
    """Several requests' work as one graph, each with numbers of its own."""
    tasks: list[Task] = []
    unit_bytes: dict[str, int] = {}
    first = 0
    for graph in graphs:
        own = graph.renumbered(first)
        tasks += _shifted(own.tasks, len(tasks))
        unit_bytes |= graph.unit_bytes
        first += len(own.requests)
    return TaskGraph(tuple(tasks), unit_bytes)


def _shifted(tasks: Sequence[Task], by: int) -> list[Task]:
    return [
        replace(task, after=tuple(replace(edge, before=edge.before + by) for edge in task.after))
        for task in tasks
    ]
