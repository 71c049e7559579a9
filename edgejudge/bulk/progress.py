"""One line on a terminal: how many pictures are done, how fast, and how long the rest will take.

Takes summaries as they grow; writes to a stream that is a terminal. Knows nothing of pictures.
"""

import time
from typing import TextIO

from edgejudge.bulk.ledger import Summary

__all__ = ["Progress", "duration"]

_EVERY_S = 0.1


class Progress:
    def __init__(self, total: int, stream: TextIO) -> None:
        """Shows nothing where the stream is no terminal, or where there is only one picture."""
        self._total, self._stream = total, stream
        self._shows = stream.isatty() and total > 1
        self._began_s = time.perf_counter()
        self._next_s = 0.0

    def __call__(self, summary: Summary) -> None:
        now_s = time.perf_counter()
        if not self._shows or (now_s < self._next_s and summary.done < self._total):
            return
        self._next_s = now_s + _EVERY_S
        text = f"{summary.done}/{self._total}"
        if summary.written:
            # What is kept takes next to no time, and tells nothing about the rest.
            rate = summary.written / max(now_s - self._began_s, 1e-3)
            left_s = max(self._total - summary.done, 0) / rate
            text += f"  {rate:.1f} pictures/s  {duration(left_s)} left"
        self._stream.write(f"\r{text}\x1b[K")
        self._stream.flush()

    def clear(self) -> None:
        if self._shows:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def duration(seconds: float) -> str:
    """As in 0:07 or 12:34:56."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
