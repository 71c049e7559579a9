"""Ctrl-C in two steps: the first asks to stop after the picture in hand, the second stops at once.

Gives a question to ask between pictures. Knows nothing of what is stopped.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["CtrlC"]

_ASKED = b"\nstopping after the picture in hand; Ctrl-C again stops at once\n"


class CtrlC:
    """As a context; calling it says whether it was pressed. The second time raises
    KeyboardInterrupt. Does nothing outside the main thread, and where Ctrl-C is ignored. Other
    signals may count as Ctrl-C.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = (signal.SIGINT,)) -> None:
        self._pressed = False
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        return self._pressed

    def __enter__(self) -> "CtrlC":
        if threading.current_thread() is threading.main_thread():
            for each in self._signals:
                before = signal.getsignal(each)
                if before not in (None, signal.SIG_IGN):
                    self._before[each] = before
                    signal.signal(each, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
        os.write(2, _ASKED)  # print could meet itself in the middle of a line
