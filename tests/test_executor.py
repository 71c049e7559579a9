"""The executor: every step once, none before what it waits for, whatever takes how long."""

import gc
import signal
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgejudge.runtime.executor import Executor, Step
from edgejudge.runtime.scheduling import Costs, Edge, Limits, Replanner, Task
from edgejudge.runtime.scheduling.scenarios import invented

DEVICES = ("cpu", "gpu", "npu")


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[str, tuple[int, ...], float]]:
    """Of each step its device, what it waits for, and how long it takes, in milliseconds."""
    found: list[tuple[str, tuple[int, ...], float]] = []
    for place in range(draw(st.integers(1, 12))):
        after = draw(st.sets(st.integers(0, place - 1), max_size=3)) if place else set()
        took = draw(st.sampled_from([0.0, 0.0, 0.5, 2.0]))
        found.append((draw(st.sampled_from(DEVICES)), tuple(sorted(after)), took))
    return found


class Played:
    """A request's steps, which note when they begin and end, and by whom."""

    def __init__(self, some: list[tuple[str, tuple[int, ...], float]], fails: int = -1) -> None:
        self.some, self.fails = some, fails
        self.began: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.by: dict[int, str] = {}
        self.steps = [
            Step(
                Task(str(i), device, 1, after=tuple(Edge(b) for b in after), chunk=i),
                self._does(i, took),
                device,
                1.0,
            )
            for i, (device, after, took) in enumerate(some)
        ]

    def _does(self, place: int, took: float) -> Callable[[str], None]:
        def run(device: str) -> None:
            assert place not in self.began
            self.began[place], self.by[place] = time.perf_counter(), device
            time.sleep(took / 1e3)
            if place == self.fails:
                raise RuntimeError(f"step {place}")
            self.ended[place] = time.perf_counter()

        return run

    def check(self) -> None:
        """What began was all that it waited for behind, and on its device alone."""
        for place in self.began:
            device, after, _ = self.some[place]
            assert self.by[place] == device
            assert all(self.ended[before] <= self.began[place] for before in after)
        for device in DEVICES:
            own = sorted(p for p in self.ended if self.by[p] == device)
            times = sorted((self.began[p], self.ended[p]) for p in own)
            assert all(a[1] <= b[0] for a, b in zip(times, times[1:], strict=False))


def at_once(*does: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def trying(do: Callable[[], None]) -> None:
        try:
            do()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=trying, args=(do,)) for do in does]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4), st.sampled_from([None, 1, 2]))
def test_every_step_once_and_behind_what_it_waits_for(
    some: list[list[tuple[str, tuple[int, ...], float]]], chunks: int | None
) -> None:
    executor = Executor(Limits(chunks=chunks))
    played = [Played(request) for request in some]
    at_once(*(lambda one=one: executor.run(one.steps) for one in played))  # type: ignore[misc]
    for one in played:
        assert len(one.ended) == len(one.steps)
        one.check()
    assert executor.requests == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(), min_size=2, max_size=3), st.data())
def test_an_error_ends_its_request_and_no_other(
    some: list[list[tuple[str, tuple[int, ...], float]]], data: st.DataObject
) -> None:
    executor = Executor()
    fails = data.draw(st.integers(0, len(some[0]) - 1))
    bad, *others = Played(some[0], fails), *(Played(request) for request in some[1:])

    def failing() -> None:
        with pytest.raises(RuntimeError, match=f"step {fails}"):
            executor.run(bad.steps)
        ran = len(bad.began)
        time.sleep(0.005)
        assert len(bad.began) == ran  # nothing of it goes on behind the caller's back

    at_once(failing, *(lambda one=one: executor.run(one.steps) for one in others))  # type: ignore[misc]
    bad.check()
    reach = {fails}
    for place, (_, after, _) in enumerate(bad.some):
        if reach.intersection(after):
            reach.add(place)
    assert not (reach - {fails}).intersection(bad.began)
    for one in others:
        assert len(one.ended) == len(one.steps)
    assert executor.requests == 0


def test_devices_work_at_once() -> None:
    """Each waits for the other to have begun."""
    meet = threading.Barrier(2, timeout=10)
    steps = [Step(Task(d, d, 1), lambda _: meet.wait() and None, d, 1.0) for d in ("cpu", "npu")]
    Executor().run(steps)


def test_requests_of_one_device_share_it() -> None:
    """With a lag of two steps neither is more than three ahead of the other."""
    executor, order = Executor(Limits(lag_ms=2.0)), []
    here = threading.Barrier(2, timeout=10)

    def steps(name: str) -> list[Step]:
        def one(_: str) -> None:
            order.append(name)
            time.sleep(0.002)

        return [Step(Task(f"{name}{i}", "u", 1), one, "cpu", 1.0) for i in range(12)]

    def ask(name: str) -> Callable[[], None]:
        def run() -> None:
            own = steps(name)
            here.wait()
            executor.run(own)

        return run

    at_once(ask("a"), ask("b"))
    both = [order[:n] for n in range(1, 1 + max(order.index("a"), order.index("b")), 1)]
    first = len(both)  # that ran before the other one had come
    for n in range(first + 1, 20):
        assert abs(order[first:n].count("a") - order[first:n].count("b")) <= 3


def test_what_is_ahead_comes_last() -> None:
    executor, order, here = Executor(), [], threading.Event()

    def steps(name: str) -> list[Step]:
        def one(_: str) -> None:
            order.append(name)
            assert here.wait(10)

        return [Step(Task(f"{name}{i}", "u", 1), one, "cpu", 1.0) for i in range(3)]

    def later() -> None:
        executor.run(steps("ahead"), ahead=True)

    def now() -> None:
        while not order:
            time.sleep(0.001)
        threading.Timer(0.05, here.set).start()
        executor.run(steps("now"))

    at_once(later, now)
    assert order == ["ahead", "now", "now", "now", "ahead", "ahead"]


def test_chunks_bound_what_is_in_flight() -> None:
    """Of a request no more chunks at once are begun and not ended than the limit allows."""
    executor, inside, most = Executor(Limits(chunks=2)), set(), []
    lock = threading.Lock()

    def first(chunk: int) -> Callable[[str], None]:
        def run(_: str) -> None:
            with lock:
                inside.add(chunk)
                most.append(len(inside))

        return run

    def last(chunk: int) -> Callable[[str], None]:
        def run(_: str) -> None:
            time.sleep(0.002)
            with lock:
                inside.discard(chunk)

        return run

    steps = []
    for chunk in range(10):
        steps.append(Step(Task(f"a{chunk}", "a", 1, chunk=chunk), first(chunk), "gpu", 1.0))
        edge = (Edge(len(steps) - 1),)
        steps.append(Step(Task(f"b{chunk}", "b", 1, 0, edge, 0, chunk), last(chunk), "cpu", 1.0))
    executor.run(steps)
    assert max(most) == 2


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals")
def test_ctrl_c_drops_what_has_not_begun_and_waits_for_what_runs() -> None:
    executor, ran = Executor(), []

    def slow(_: str) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        ran.append("slow")

    def never(_: str) -> None:
        ran.append("never")

    steps = [Step(Task("a", "u", 1), slow, "cpu", 1.0), Step(Task("b", "u", 1), never, "cpu", 1.0)]
    with pytest.raises(KeyboardInterrupt):
        executor.run(steps)
    assert ran == ["slow"] and executor.requests == 0
    executor.run([Step(Task("c", "u", 1), never, "cpu", 1.0)])
    assert ran == ["slow", "never"]


def test_what_hangs_is_given_up() -> None:
    executor, stop = Executor(), threading.Event()

    def hangs(_: str) -> None:
        signal.raise_signal(signal.SIGINT)
        assert stop.wait(30)
        raise RuntimeError("given up")

    with pytest.raises(KeyboardInterrupt):
        executor.run([Step(Task("a", "u", 1), hangs, "cpu", 1.0)], give_up=stop.set)


def test_threads_end_with_the_executor() -> None:
    before = threading.active_count()
    for _ in range(20):
        Executor().run([Step(Task(d, d, 1), lambda _: None, d, 1.0) for d in DEVICES])
    gc.collect()
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_device_that_became_slow_is_left() -> None:
    """What is left goes to the device that is quicker now, and the caller is told."""
    rows = {("u", "cpu"): {(1, 0): 4.0}, ("u", "npu"): {(1, 0): 2.0}}
    executor, by, told = Executor(), [], []
    executor.replan(Replanner(Costs(invented(rows, (0.0, 0.0)))))

    def run(device: str) -> None:
        by.append(device)
        time.sleep(0.02 if device == "npu" else 0.004)

    executor.run([Step(Task(f"t{i}", "u", 1), run, "npu", 2.0) for i in range(20)], told.append)
    assert by[0] == "npu" and by[-1] == "cpu" and by.count("npu") <= 7
    assert "npu takes" in told[0] and "u goes on on cpu" in told[0]
