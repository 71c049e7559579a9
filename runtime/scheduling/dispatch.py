"""Which task a device does next: a state machine without a clock and without threads.

Takes graphs whose tasks have devices, predicted milliseconds and ranks; gives a free device its
next task and is told when one has finished. A simulator and an executor use it alike; who calls it
from several threads holds a lock. Does not run tasks, and does not choose devices.

Of the ready tasks the first is the one that unlocks most work on the device with most left to do
(after Xu et al., llm.npu, ASPLOS 2025, whose two processors are here any number), then the one of
the lowest rank. Where one request lies too far behind the others on a device, its task comes first.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from edgejudge.runtime.scheduling.graph import Task, TaskGraph
from edgejudge.runtime.scheduling.limits import Limits

__all__ = ["Dispatcher"]


_Slot = tuple[str, int, int]  # what is held, by which request, for which chunk


@dataclass(slots=True, eq=False)
class _Live:
    """A task that has not ended."""

    task: Task
    device: str
    ms: float
    rank: float
    befores: list[int]
    slots: list[_Slot]
    nexts: list[int] = field(default_factory=list)
    waits: int = 0  # for so many tasks
    last: int = 0  # sum of their numbers: with one left, it is that one's
    gates: int = 0  # and so many slots
    unlocks_ms: float = 0.0
    state: str = "waiting"  # ready, running, ended, dropped

    @property
    def key(self) -> tuple[float, float]:
        return (-self.unlocks_ms, self.rank)


@dataclass(slots=True)
class _Gate:
    """As many holders at once as there is room for, by request and then by chunk in the order in
    which they came. What a task waits for is never behind it in that order, so the first request,
    and in it the first chunk, always goes on.
    """

    room: int | None
    inside: set[_Slot] = field(default_factory=set)
    outside: deque[_Slot] = field(default_factory=deque)


@dataclass(slots=True)
class _Queue:
    """Ready tasks of one device by request, (key, number), and how long each was served."""

    heaps: dict[int, list[tuple[tuple[float, float], int]]] = field(default_factory=dict)
    served_ms: dict[int, float] = field(default_factory=dict)
    floor_ms: float = 0.0  # who comes now was served as little as this at least


class Dispatcher:
    """`unlocking` False leaves order to the ranks alone."""

    def __init__(self, limits: Limits | None = None, unlocking: bool = True) -> None:
        self.limits = limits or Limits()
        self._unlocking = unlocking
        self._live: dict[int, _Live] = {}
        self._count = 0  # of all tasks that ever came
        self._running: dict[str, int] = {}
        self._queues: dict[str, _Queue] = {}
        self._left_ms: dict[str, float] = {}
        self._gates: dict[tuple[str, int], _Gate] = {}
        self._holders: dict[_Slot, dict[int, None]] = {}  # tasks that have not ended
        self._requests: dict[int, set[int]] = {}  # what has not ended

    @property
    def done(self) -> bool:
        return not self._live

    @property
    def requests(self) -> tuple[int, ...]:
        """Those with work that has not ended."""
        return tuple(self._requests)

    def task(self, number: int) -> Task:
        return self._live[number].task

    def ms(self, number: int) -> float:
        return self._live[number].ms

    def befores(self, number: int) -> list[int]:
        """What it waits or waited for, in the order of its edges."""
        return self._live[number].befores

    def device(self, number: int) -> str:
        return self._live[number].device

    def waiting(self) -> dict[int, Task]:
        """Tasks that have not begun, in order."""
        return {n: live.task for n, live in self._live.items() if live.state in _UNBEGUN}

    def submit(
        self,
        graph: TaskGraph,
        devices: Sequence[str],
        ms: Sequence[float],
        ranks: Sequence[float] | None = None,
    ) -> range:
        """Numbers of the graph's tasks. Without ranks they are taken in the graph's order. Raises
        ValueError for a request that is there already.
        """
        if again := set(graph.requests) & set(self._requests):
            raise ValueError(f"request {min(again)} is there already")
        first = self._count
        numbers = range(first, first + len(graph.tasks))
        order = {request: i for i, request in enumerate(graph.requests)}
        slots: list[_Slot] = []
        for number, task in zip(numbers, graph.tasks, strict=True):
            place = number - first
            befores = [first + edge.before for edge in task.after]
            rank = float(number) if ranks is None else ranks[place]
            live = _Live(task, devices[place], ms[place], rank, befores, self._slots(task))
            live.waits, live.last = len(befores), sum(befores)
            for before in befores:
                self._live[before].nexts.append(number)
            live.gates = len(live.slots)
            for slot in live.slots:
                if slot not in self._holders:
                    slots.append(slot)
                self._holders.setdefault(slot, {})[number] = None
            self._live[number] = live
            self._requests.setdefault(task.request, set()).add(number)
            self._left_ms[live.device] = self._left_ms.get(live.device, 0.0) + live.ms
        self._count = numbers.stop
        # All gates see requests in one order, and none lets anybody in before all have come.
        for slot in sorted(slots, key=lambda slot: (order[slot[1]], slot[2])):
            self._gate(slot).outside.append(slot)
        for gate in list(self._gates.values()):
            self._admit(gate)
        return numbers

    def next_for(self, device: str) -> int | None:
        """The task that the device begins now; None where it has one, or none is ready."""
        queue = self._queues.get(device)
        if device in self._running or queue is None or not queue.heaps:
            return None
        served = queue.served_ms
        for request in list(queue.heaps):
            self._refresh(queue, request)
        if not queue.heaps:
            return None
        least = min(queue.heaps, key=lambda r: (served[r], r))
        best = min(queue.heaps, key=lambda r: queue.heaps[r][0])
        number = queue.heaps[best][0][1]
        if served[best] + self._live[number].ms - served[least] > self.limits.lag_ms:
            best, number = least, queue.heaps[least][0][1]
        heappop(queue.heaps[best])
        live = self._live[number]
        live.state = "running"
        served[best] += live.ms
        queue.floor_ms = max(queue.floor_ms, min(served[r] for r in queue.heaps))
        if not queue.heaps[best]:
            del queue.heaps[best]
        self._running[device] = number
        return number

    def finished(self, number: int) -> None:
        """Also for a task that failed: who cannot go on then cancels its request first."""
        live = self._live.get(number)
        if live is None or live.state != "running":
            raise ValueError(f"task {number} is not running")
        self._end(number)

    def cancel(self, request: int) -> None:
        """What has not begun never does; what runs ends as it would have, and is told by
        `finished`. A request that is not there any more is none to cancel.
        """
        for number in sorted(self._requests.get(request, ())):
            if self._live[number].state in _UNBEGUN:
                self._live[number].state = "dropped"
                self._end(number)

    def move(self, changes: Mapping[int, tuple[str, float]]) -> None:
        """Other devices and milliseconds for tasks that have not begun."""
        for number, (device, ms) in changes.items():
            live = self._live[number]
            if live.state not in _UNBEGUN:
                raise ValueError(f"task {number} has begun")
            self._left_ms[live.device] -= live.ms
            self._left_ms[device] = self._left_ms.get(device, 0.0) + ms
            was_ready = live.state == "ready" and device != live.device
            live.device, live.ms = device, ms
            if was_ready:  # its entry in the other queue has no meaning any more
                self._push(number)

    def rerank(self, ranks: Mapping[int, float]) -> None:
        """Another order for tasks that have not begun."""
        for number, rank in ranks.items():
            self._live[number].rank = rank
            if self._live[number].state == "ready":
                self._push(number)

    def _slots(self, task: Task) -> list[_Slot]:
        slots = [("request", task.request, 0)]
        if task.cached:
            slots.append((f"cache {task.unit}", task.request, 0))
        if self.limits.chunks is not None:
            slots.append(("chunk", task.request, task.chunk))
        return slots

    def _gate(self, slot: _Slot) -> _Gate:
        what, request, _ = slot
        key = (what, request if what == "chunk" else 0)  # chunks wait for those of their request
        if key not in self._gates:
            limits = self.limits
            room = {"request": limits.requests, "chunk": limits.chunks}.get(what, limits.caches)
            self._gates[key] = _Gate(room)
        return self._gates[key]

    def _admit(self, gate: _Gate) -> None:
        while gate.outside and (gate.room is None or len(gate.inside) < gate.room):
            slot = gate.outside.popleft()
            gate.inside.add(slot)
            for number in self._holders[slot]:
                self._live[number].gates -= 1
                self._consider(number)

    def _consider(self, number: int) -> None:
        """After it waits for one thing less."""
        live = self._live[number]
        if live.state != "waiting" or live.gates:
            return
        if not live.waits:
            live.state = "ready"
            self._push(number)
        elif live.waits == 1 and self._unlocking:
            opener = self._live[live.last]
            if self._left_ms[live.device] > self._left_ms[opener.device]:
                opener.unlocks_ms += live.ms
                if opener.state == "ready":
                    self._push(live.last)

    def _push(self, number: int) -> None:
        live = self._live[number]
        queue = self._queues.setdefault(live.device, _Queue())
        request = live.task.request
        if request not in queue.heaps:
            served = queue.served_ms
            served[request] = max(served.get(request, 0.0), queue.floor_ms)
            queue.heaps[request] = []
        heappush(queue.heaps[request], (live.key, number))

    def _refresh(self, queue: _Queue, request: int) -> None:
        """Takes entries off the top that say what is not so any more."""
        heap = queue.heaps[request]
        while heap:
            key, number = heap[0]
            live = self._live.get(number)
            if live is not None and live.state == "ready" and live.key == key:
                if self._queues[live.device] is queue:
                    return
            heappop(heap)
        del queue.heaps[request]

    def _end(self, number: int) -> None:
        live = self._live[number]
        request = live.task.request
        self._left_ms[live.device] -= live.ms
        if live.state == "running":
            del self._running[live.device]
            live.state = "ended"
        del self._live[number]
        self._requests[request].discard(number)
        for place in live.nexts:
            after = self._live.get(place)
            if after is not None:
                after.waits -= 1
                after.last -= number
                self._consider(place)
        for slot in live.slots:
            self._leave(slot, number)
        if not self._requests[request]:
            del self._requests[request]
            for queue in self._queues.values():
                queue.served_ms.pop(request, None)
                queue.heaps.pop(request, None)

    def _leave(self, slot: _Slot, number: int) -> None:
        holders = self._holders[slot]
        del holders[number]
        if holders:
            return
        del self._holders[slot]
        gate = self._gate(slot)
        if slot in gate.inside:
            gate.inside.discard(slot)
        else:
            gate.outside.remove(slot)
        self._admit(gate)
        if not gate.inside and not gate.outside:
            what, request, _ = slot
            del self._gates[what, request if what == "chunk" else 0]


_UNBEGUN = frozenset({"waiting", "ready"})
