"""Who may use the engine: one caller at a time, first come, first served, with an end to patience.

Takes threads that want a turn; gives turns, or an InputError for one that waited too long, was
called off, or found too many waiting. Does not know what a turn is used for.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from edgejudge.errors import InputError

__all__ = ["Stop", "Turns"]


class Stop:
    """When a request is over although it is not done: after `timeout` seconds, or when called
    off.
    """

    def __init__(self, timeout: float | None = None) -> None:
        if timeout is not None and not timeout > 0:
            raise ValueError(f"a timeout is a positive number of seconds, got {timeout}")
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._cancelled = False
        self._waiting: threading.Event | None = None

    def cancel(self) -> None:
        """From any thread; takes effect at the request's next step."""
        self._cancelled = True
        if self._waiting is not None:
            self._waiting.set()

    def check(self) -> None:
        """Raises InputError "cancelled" or "timeout" once it is over."""
        if self._cancelled:
            raise InputError("cancelled", "it was called off before its verdict")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise InputError(
                "timeout",
                f"no verdict within {self._timeout:g} s; allow more time, or ask less at once",
            )

    def wait(self, event: threading.Event) -> None:
        """Until the event is set or it is over, which the caller finds out by `check`."""
        self._waiting = event
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if not self._cancelled:
            event.wait(left)
        self._waiting = None


class Turns:
    """At most `limit` wait; one more is refused, since a queue without end answers nobody."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()  # its first has the turn

    @contextmanager
    def turn(self, stop: Stop) -> Iterator[None]:
        """Waits for the caller's turn, and ends it."""
        mine = threading.Event()
        with self._lock:
            if len(self._queue) > self.limit:
                raise InputError(
                    "busy",
                    f"{self.limit} others are waiting for this judge; try again later, or load "
                    "another one",
                )
            self._queue.append(mine)
            if self._queue[0] is mine:
                mine.set()
        try:
            while not self._is_first(mine):
                stop.check()
                stop.wait(mine)
            stop.check()
            yield
        finally:
            with self._lock:
                self._queue.remove(mine)
                if self._queue:
                    self._queue[0].set()

    def _is_first(self, event: threading.Event) -> bool:
        with self._lock:
            return self._queue[0] is event
