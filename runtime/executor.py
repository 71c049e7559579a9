"""Work on devices, one thread for each: what is ready goes on, whatever came first.

Takes requests as graphs of steps, each a function and a task that says what it waits for; does
them in the order of a `Dispatcher`, and raises what failed. Does not know what a step computes. The
same executor serves one device and several, one request and many at once.
"""

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgejudge.runtime.scheduling.dispatch import Dispatcher
from edgejudge.runtime.scheduling.graph import Task, TaskGraph
from edgejudge.runtime.scheduling.limits import Limits

if TYPE_CHECKING:
    from edgejudge.runtime.scheduling.drift import Replanner

__all__ = ["Executor", "Step"]

_SLICE_S = 0.25  # how often a waiting thread looks up: Windows lets Ctrl-C through only then
_PATIENCE_S = 1.0  # for a step of a request that was called off
_LAST_S = 5.0  # how long a program that ends waits for what runs
_MANY = 1e6  # ranks of one request lie this far from those of the next
_LATER = 1e15  # and those of work ahead behind all others


@dataclass(frozen=True, slots=True)
class Step:
    """`run` is told the device that it is done by; `task.request` and its edges' places count
    within the request.
    """

    task: Task
    run: Callable[[str], None]
    device: str
    ms: float  # predicted there


@dataclass(slots=True, eq=False)
class _Call:
    """A request, and who waits for it."""

    number: int
    waiting: set[int]
    running: set[int]
    ended: threading.Condition
    told: Callable[[str], None]
    where: dict[int, str] = field(default_factory=dict)  # each task ran, or runs
    error: BaseException | None = None

    @property
    def over(self) -> bool:
        return not self.waiting and not self.running


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Board:
    """What the threads share with the Executor, whose end ends them."""

    dispatcher: Dispatcher
    replanner: "Replanner | None" = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    more: threading.Condition = field(init=False)  # there may be something ready
    steps: dict[int, tuple[Step, _Call]] = field(default_factory=dict)  # that have not begun
    calls: int = 0
    closed: bool = False
    threads: dict[str, threading.Thread] = field(default_factory=dict)
    ran: set[tuple[str, str]] = field(default_factory=set)  # units, and where

    def __post_init__(self) -> None:
        self.more = threading.Condition(self.lock)


class Executor:
    """Threads begin with the first step for their device, and end with the Executor."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._board = _Board(Dispatcher(limits))
        weakref.finalize(self, _close, self._board).atexit = False
        _boards.add(self._board)

    @property
    def requests(self) -> int:
        """How many have not ended."""
        with self._board.lock:
            return len(self._board.dispatcher.requests)

    def replan(self, replanner: "Replanner | None") -> None:
        """From now on compares what steps take with what was predicted, and moves what has not
        begun where that ends sooner; None does not.
        """
        with self._board.lock:
            self._board.replanner = replanner

    def run(
        self,
        steps: Sequence[Step],
        told: Callable[[str], None] = lambda _: None,
        give_up: Callable[[], None] = lambda: None,
        ahead: bool = False,
    ) -> None:
        """Returns when all are done. The first error of a step is raised when what runs of the
        request has ended; what has not begun never does. `told` gets sentences about devices that
        are slower or faster than predicted. Of what is ready the older request comes first, and all
        that is done `ahead` last.

        Ctrl-C calls the request off likewise; where a step goes on for long, `give_up` is to make
        it end, and a second Ctrl-C does not wait. From any thread, but not from within a step.
        """
        board = self._board
        if not steps:
            return
        with board.lock:
            call = self._submit(steps, told, ahead)
            try:
                while not call.over:
                    call.ended.wait(_SLICE_S)
            except BaseException:
                _call_off(board, call)
                if not call.ended.wait_for(lambda: call.over, _PATIENCE_S):
                    give_up()
                while not call.over:
                    call.ended.wait(_SLICE_S)
                raise
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # the error's traceback has this frame, which would have the error

    def _submit(self, steps: Sequence[Step], told: Callable[[str], None], ahead: bool) -> _Call:
        board = self._board
        number, board.calls = board.calls, board.calls + 1
        graph = TaskGraph(tuple(replace(step.task, request=number) for step in steps), {})
        devices, ms = [step.device for step in steps], [step.ms for step in steps]
        first = _MANY * number + _LATER * ahead
        ranks = [first + place for place in range(len(steps))]
        numbers = board.dispatcher.submit(graph, devices, ms, ranks)
        call = _Call(number, set(numbers), set(), threading.Condition(board.lock), told)
        for place, step in zip(numbers, steps, strict=True):
            board.steps[place] = step, call
        known = set(board.replanner.devices) if board.replanner else set()
        for device in known.union(devices):
            _start(board, device)
        board.more.notify_all()
        return call


def _start(board: _Board, device: str) -> None:
    if device not in board.threads:
        # A daemon, since a device may hang for ever; `_finish` waits for the others.
        board.threads[device] = threading.Thread(
            target=_work, args=(board, device), name=f"edgejudge {device}", daemon=True
        )
        board.threads[device].start()


def _work(board: _Board, device: str) -> None:
    with board.lock:
        while not board.closed:
            number = board.dispatcher.next_for(device)
            if number is None:
                board.more.wait()
                continue
            step, call = board.steps.pop(number)
            call.waiting.discard(number)
            call.running.add(number)
            call.where[number] = device
            predicted_ms, began = board.dispatcher.ms(number), time.perf_counter()
            board.lock.release()
            try:
                error = _tried(step, device)
            finally:
                board.lock.acquire()
            took_ms = (time.perf_counter() - began) * 1e3
            if error is not None:
                call.error = call.error or error
                _call_off(board, call)
            elif board.replanner is not None and (step.task.unit, device) in board.ran:
                where = {n: d for c in _calls(board, call) for n, d in c.where.items()}
                for sentence in board.replanner.finished(
                    board.dispatcher, where, device, predicted_ms, took_ms
                ):
                    call.told(sentence)
            board.ran.add((step.task.unit, device))  # the first time it also allocates
            board.dispatcher.finished(number)
            call.running.discard(number)
            if call.over:
                call.ended.notify_all()
            board.more.notify_all()
            del step, call, error  # a result may be large, and the next step long in coming
        board.more.notify_all()  # `_close` may not have been able to


def _tried(step: Step, device: str) -> BaseException | None:
    try:
        step.run(device)
    except BaseException as error:  # it is the caller's, whatever it is
        return error
    return None


def _calls(board: _Board, call: _Call) -> list[_Call]:
    return list({id(c): c for c in (call, *(c for _, c in board.steps.values()))}.values())


def _call_off(board: _Board, call: _Call) -> None:
    board.dispatcher.cancel(call.number)
    for number in call.waiting:
        board.steps.pop(number, None)
    call.waiting.clear()
    board.more.notify_all()  # its end may have made room for others


def _close(board: _Board) -> None:
    # From wherever the collector runs, perhaps within the lock: the flag alone, and who waits for
    # it is woken where that is possible.
    board.closed = True
    if board.lock.acquire(blocking=False):
        board.more.notify_all()
        board.lock.release()


_boards: "weakref.WeakSet[_Board]" = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """A program that ends in the middle of a session's run crashes."""
    boards = list(_boards)
    for board in boards:
        _close(board)
    until = time.monotonic() + _LAST_S
    for board in boards:
        for thread in board.threads.values():
            thread.join(max(0.0, until - time.monotonic()))
