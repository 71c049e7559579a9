"""The dispatcher, whatever the graph, the costs and the order in which tasks end."""

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgejudge.runtime.scheduling import Dispatcher, Edge, Limits, Task, TaskGraph

DEVICES = ("cpu", "gpu", "npu")


@st.composite
def graphs(draw: st.DrawFn, most: int = 18, requests: int = 3) -> TaskGraph:
    tasks: list[Task] = []
    for place in range(draw(st.integers(1, most))):
        request = draw(st.integers(0, requests - 1))
        own = [i for i, task in enumerate(tasks) if task.request == request]
        before = draw(st.lists(st.sampled_from(own), max_size=3, unique=True)) if own else []
        least = max((tasks[i].chunk for i in before), default=0)
        unit = draw(st.sampled_from(DEVICES))
        task = Task(
            *(f"t{place}", unit, 1, 0, tuple(Edge(i) for i in before), request),
            chunk=least + draw(st.integers(0, 1)),
            cached=draw(st.booleans()),
        )
        tasks.append(task)
    return TaskGraph(tuple(tasks), {})


limits = st.builds(
    Limits,
    requests=st.integers(1, 3),
    caches=st.integers(1, 2),
    chunks=st.none() | st.integers(1, 2),
    lag_ms=st.sampled_from([0.0, 5.0, float("inf")]),
)


class Run:
    """Plays a dispatcher with a random device's task ending next, and checks each step."""

    def __init__(self, graph: TaskGraph, limits: Limits, seed: int, unlocking: bool = True) -> None:
        self.graph, self.limits, self.chance = graph, limits, random.Random(seed)
        self.dispatcher = Dispatcher(limits, unlocking)
        ms = [self.chance.uniform(0, 9) for _ in graph.tasks]
        ranks = [self.chance.random() for _ in graph.tasks]
        units = [task.unit for task in graph.tasks]
        assert self.dispatcher.submit(graph, units, ms, ranks) == range(len(units))
        self.begun: list[int] = []
        self.ended: set[int] = set()
        self.running: dict[str, int] = {}
        self.cancelled: set[int] = set()

    def step(self) -> bool:
        """False where nothing runs and nothing could begin."""
        for device in DEVICES:
            number = self.dispatcher.next_for(device)
            if number is not None:
                self._begins(device, number)
        if not self.running:
            return False
        device = self.chance.choice(sorted(self.running))
        number = self.running.pop(device)
        self.dispatcher.finished(number)
        self.ended.add(number)
        return True

    def cancel(self, request: int) -> None:
        self.dispatcher.cancel(request)
        self.cancelled.add(request)

    def _begins(self, device: str, number: int) -> None:
        task = self.graph.tasks[number]
        assert device not in self.running, "one at a time"
        assert number not in self.begun, "once"
        assert task.request not in self.cancelled, "not after it was cancelled"
        assert {edge.before for edge in task.after} <= self.ended, "not before what it waits for"
        self.begun.append(number)
        self.running[device] = number
        assert len(self._open(lambda t: t.request)) <= self.limits.requests
        for unit in DEVICES:
            held = self._open(lambda t: t.request, lambda t, u=unit: t.cached and t.unit == u)
            assert len(held) <= self.limits.caches
        if self.limits.chunks is not None:
            mine = self._open(lambda t: t.chunk, lambda t: t.request == task.request)
            assert len(mine) <= self.limits.chunks

    def _open(self, key, among=lambda _: True) -> set[int]:  # type: ignore[no-untyped-def]
        """What has begun and not ended, of requests that go on."""
        tasks = [(i, t) for i, t in enumerate(self.graph.tasks) if among(t)]
        tasks = [(i, t) for i, t in tasks if t.request not in self.cancelled]
        some = {key(t) for i, t in tasks if i in self.begun}
        return {k for k in some if any(key(t) == k and i not in self.ended for i, t in tasks)}


@settings(max_examples=150, deadline=None)
@given(graphs(), limits, st.integers(0, 999), st.booleans())
def test_every_task_runs_once_in_an_order_that_is_allowed(
    graph: TaskGraph, limits: Limits, seed: int, unlocking: bool
) -> None:
    run = Run(graph, limits, seed, unlocking)
    while run.step():
        pass
    assert sorted(run.begun) == list(range(len(graph.tasks)))
    assert run.dispatcher.done and run.dispatcher.requests == ()


@settings(max_examples=150, deadline=None)
@given(graphs(), limits, st.integers(0, 999), st.integers(0, 20), st.integers(0, 2))
def test_cancelled_anywhere_a_request_ends_and_the_others_run(
    graph: TaskGraph, limits: Limits, seed: int, at: int, request: int
) -> None:
    run = Run(graph, limits, seed)
    for _ in range(at):
        run.step()
    run.cancel(request)
    run.cancel(request)
    while run.step():
        pass
    assert run.dispatcher.done, "nothing is left that would run for ever"
    others = {i for i, task in enumerate(graph.tasks) if task.request != request}
    assert others <= set(run.begun)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 999), st.integers(0, 12))
def test_what_has_not_begun_moves_and_runs_there(graph: TaskGraph, seed: int, at: int) -> None:
    run = Run(graph, Limits(3), seed)
    for _ in range(at):
        run.step()
    moved = {number: ("gpu", 1.0) for number in run.dispatcher.waiting()}
    run.dispatcher.move(moved)
    run.dispatcher.rerank({number: -float(number) for number in moved})
    begun = len(run.begun)
    where: dict[int, str] = {}
    while True:
        for device in DEVICES:
            number = run.dispatcher.next_for(device)
            if number is not None:
                run._begins(device, number)
                where[number] = device
        if not run.running:
            break
        device, number = run.running.popitem()
        run.dispatcher.finished(number)
        run.ended.add(number)
    assert {where[number] for number in run.begun[begun:]} <= {"gpu"}
    assert sorted(run.begun) == list(range(len(graph.tasks)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.1, 20), min_size=1, max_size=30), min_size=2, max_size=4),
    st.sampled_from([0.0, 10.0, 50.0]),
    st.integers(0, 99),
)
def test_no_request_is_served_further_ahead_than_the_bound(
    works: list[list[float]], lag_ms: float, seed: int
) -> None:
    tasks = tuple(
        Task(f"{r}.{i}", "cpu", 1, request=r)
        for r, own in enumerate(works)
        for i in range(len(own))
    )
    ms = [one for own in works for one in own]
    dispatcher = Dispatcher(Limits(len(works), lag_ms=lag_ms))
    chance = random.Random(seed)
    dispatcher.submit(
        TaskGraph(tasks, {}), ["cpu"] * len(tasks), ms, [chance.random() for _ in tasks]
    )
    left = [len(own) for own in works]
    served = [0.0] * len(works)
    while (number := dispatcher.next_for("cpu")) is not None:
        request = tasks[number].request
        there = [r for r, n in enumerate(left) if n]  # all were there from the start
        served[request] += ms[number]
        left[request] -= 1
        ahead = served[request] - min(served[r] for r in there)
        assert ahead <= max(lag_ms, max(ms)) + 1e-6
        dispatcher.finished(number)
    assert not any(left)


def test_who_comes_late_has_no_claim_on_what_was_before() -> None:
    dispatcher = Dispatcher(Limits(2, lag_ms=0))
    long = TaskGraph(tuple(Task(str(i), "cpu", 1, request=0) for i in range(20)), {})
    dispatcher.submit(long, ["cpu"] * 20, [1.0] * 20)
    for _ in range(10):
        number = dispatcher.next_for("cpu")
        assert number is not None
        dispatcher.finished(number)
    dispatcher.submit(long.renumbered(1), ["cpu"] * 20, [1.0] * 20)
    turns = []
    for _ in range(10):
        number = dispatcher.next_for("cpu")
        assert number is not None
        turns.append(dispatcher.task(number).request)
        dispatcher.finished(number)
    assert sorted(turns) == [0] * 5 + [1] * 5, "they share from there on"


def test_threads_play_it_under_one_lock() -> None:
    """As an executor does: a thread a device, which waits until something has ended."""
    tasks = [Task("0", "cpu", 1, cached=True)]
    for i in range(1, 300):
        befores = {i - 1, i // 2} if i % 3 else {i // 3}
        unit = DEVICES[i % 3]
        tasks.append(Task(str(i), unit, 1, 0, tuple(Edge(b) for b in sorted(befores))))
    graph = TaskGraph(tuple(tasks), {})
    dispatcher, turn = Dispatcher(), threading.Condition()
    dispatcher.submit(graph, [task.unit for task in tasks], [1.0] * len(tasks))
    begun: list[int] = []
    ended: set[int] = set()

    def work(device: str) -> None:
        while True:
            with turn:
                while (number := dispatcher.next_for(device)) is None:
                    if dispatcher.done:
                        return
                    turn.wait()
                begun.append(number)
                assert {edge.before for edge in graph.tasks[number].after} <= ended
            with turn:
                ended.add(number)
                dispatcher.finished(number)
                turn.notify_all()

    workers = [threading.Thread(target=work, args=(device,)) for device in DEVICES]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert sorted(begun) == list(range(300)) and len(ended) == 300


def test_what_unlocks_work_for_the_device_with_most_to_do_comes_first() -> None:
    tasks = (
        Task("idle", "cpu", 1),
        Task("feeds", "cpu", 1),
        Task("long", "npu", 1, after=(Edge(1),)),
    )
    for unlocking, first in ((True, 1), (False, 0)):
        dispatcher = Dispatcher(unlocking=unlocking)
        dispatcher.submit(TaskGraph(tasks, {}), ["cpu", "cpu", "npu"], [1.0, 1.0, 50.0])
        assert dispatcher.next_for("cpu") == first


def test_misuse_is_named() -> None:
    dispatcher = Dispatcher()
    graph = TaskGraph((Task("a", "cpu", 1),), {})
    dispatcher.submit(graph, ["cpu"], [1.0])
    with pytest.raises(ValueError, match="request 0 is there already"):
        dispatcher.submit(graph, ["cpu"], [1.0])
    with pytest.raises(ValueError, match="task 0 is not running"):
        dispatcher.finished(0)
    assert dispatcher.next_for("gpu") is None
    assert dispatcher.next_for("cpu") == 0
    assert dispatcher.next_for("cpu") is None, "it is busy"
    with pytest.raises(ValueError, match="has begun"):
        dispatcher.move({0: ("gpu", 1.0)})
    dispatcher.cancel(0)
    assert not dispatcher.done, "what runs ends by itself"
    dispatcher.finished(0)
    assert dispatcher.done
    dispatcher.submit(graph, ["cpu"], [1.0])  # its number is free again
    with pytest.raises(ValueError, match="limits"):
        Limits(requests=0)


def test_memory_of_what_has_ended_is_given_back() -> None:
    dispatcher = Dispatcher(Limits(2, chunks=1))
    for request in range(50):
        graph = TaskGraph((Task("a", "cpu", 1, request=request, cached=True),), {})
        dispatcher.submit(graph, ["cpu"], [1.0])
        number = dispatcher.next_for("cpu")
        assert number is not None
        dispatcher.finished(number)
    assert not (dispatcher._live or dispatcher._gates or dispatcher._holders)
    assert all(not q.heaps and not q.served_ms for q in dispatcher._queues.values())
