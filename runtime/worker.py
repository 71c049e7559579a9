"""One thread that does a device's work, one call after another, with a deadline.

Takes functions; gives what they return or raise. A call that overruns its deadline is hung in the
device's driver, where nothing can end it: the thread is left behind, and every call from then on
fails at once. Does not know what the functions do.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from edgejudge.errors import ProviderError

__all__ = ["DeviceHung", "Worker"]

# How often a waiting thread looks up: on Windows, Ctrl-C gets through only between two waits.
_SLICE_S = 0.25

T = TypeVar("T")


class DeviceHung(ProviderError):
    """A device did not answer within its deadline, and is not asked again."""


@dataclass(slots=True)
class _Job:
    fn: Callable[[], Any]
    allowed_s: float
    done: threading.Event = field(default_factory=threading.Event)
    dropped: bool = False  # nobody waits for it any more
    value: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class _Line:
    """What the thread shares with its callers. It does not hold the Worker, whose end ends it."""

    jobs: SimpleQueue[_Job | None] = field(default_factory=SimpleQueue)  # None: that was all
    since: float | None = None  # when the running job began
    allowed_s: float = 0.0  # how long that one may take
    abandoned: bool = False


class Worker:
    """`name` is what errors call the device. The thread starts with the first call."""

    def __init__(self, name: str, deadline_s: float) -> None:
        if deadline_s <= 0:
            raise ValueError(f"deadline_s must be above 0: {deadline_s}")
        self._name = name
        self._deadline_s = deadline_s
        self._line = _Line()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __del__(self) -> None:
        # SimpleQueue.put may be called wherever the collector happens to run. An object whose
        # __init__ raised has no line.
        if hasattr(self, "_line"):
            self._line.jobs.put(None)

    @property
    def abandoned(self) -> bool:
        return self._line.abandoned

    def give_up(self) -> None:
        """Abandons a call that is running: who waits for it is told at once. Without one it does
        nothing.
        """
        if self._line.since is not None:
            self._line.abandoned = True

    def call(self, fn: Callable[[], T], deadlines: int = 1) -> T:
        """Safe from any thread. The deadline counts from when the device begins with `fn`, which
        may take so many of them: a call that waits for another one's end is not late.
        """
        line = self._line
        assert threading.current_thread() is not self._thread, "a call within a call never ends"
        job = _Job(fn, self._deadline_s * deadlines)
        with self._lock:
            self._start()
            line.jobs.put(job)
        try:
            while not job.done.wait(self._patience()):
                # Also on behalf of a caller who was interrupted and watches no longer.
                if line.abandoned or self._overdue():
                    line.abandoned = True
                    raise self._hung()
        except BaseException:
            job.dropped = True
            raise
        if job.error is None:
            result: T = job.value
            return result
        try:
            raise job.error
        finally:
            del job  # the error's traceback has this frame, which would have the error

    def _start(self) -> None:
        if self._line.abandoned:
            raise self._hung()
        if self._thread is None:
            # A daemon, so that the interpreter does not wait for it.
            thread = threading.Thread(
                target=_work, args=(self._line,), name=self._name, daemon=True
            )
            thread.start()
            self._thread = thread

    def _left_s(self) -> float:
        since = self._line.since
        if since is None:
            return self._deadline_s
        return since + self._line.allowed_s - time.monotonic()

    def _overdue(self) -> bool:
        return self._left_s() <= 0

    def _patience(self) -> float:
        return min(_SLICE_S, max(self._left_s(), 0.0))

    def _hung(self) -> DeviceHung:
        return DeviceHung(
            f"{self._name} has not answered within {self._line.allowed_s or self._deadline_s:g} s "
            "and is left alone; place its stages on another device, or allow more seconds"
        )


def _work(line: _Line) -> None:
    while (job := line.jobs.get()) is not None:
        if not job.dropped:
            line.allowed_s = job.allowed_s
            line.since = time.monotonic()
            try:
                job.value = job.fn()
            except BaseException as error:  # it is the caller's, whatever it is
                job.error = error
            line.since = None
            if line.abandoned:
                return
            job.done.set()
        del job  # a result may be large, and the next job may be long in coming
