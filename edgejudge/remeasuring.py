"""Costs measured again beside the work, where what was measured is no longer true.

Takes an engine that judges by a kept profile; when asked to, measures the profile's shapes in a
thread of its own, behind all that others have for the devices, keeps the new profile and has the
engine go by it. Knows no pictures and no verdicts.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Self

from edgejudge.errors import EdgeJudgeError, InputError
from edgejudge.runtime import Engine
from edgejudge.runtime.scheduling import keep_profile, kept_profile
from edgejudge.unit_costs import measured_again

__all__ = ["Remeasuring"]

_ROUNDS = 3
_PAUSE_S = 60.0  # at least, between two measurements while a device is left for being slow
_SHARE = 10.0  # times as long as the measurement took


class Remeasuring:
    """One measurement at a time. `told` gets a sentence when one ends, in the thread that
    measures. Safe from any thread.
    """

    def __init__(
        self, engine: Engine, told: Callable[[str], None] = lambda _: None, rounds: int = _ROUNDS
    ) -> None:
        """Raises InputError where nothing was measured for the engine yet."""
        if rounds < 1:
            raise InputError("usage", f"rounds must be at least 1, got {rounds}")
        if engine.stages.predicted is None:
            raise InputError(
                "no_costs",
                "there are no costs of this bundle, this machine and the devices in use to measure "
                "again; run `edgejudge tune BUNDLE --costs` first, and load the judge anew",
            )
        self._engine, self._told, self._rounds = engine, told, rounds
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._keeps_on = False

    def on_drift(self) -> Self:
        """From now on starts when a device is slower or faster than predicted, and goes on, with
        pauses of a minute or more, while one is left for being slow: nothing else would show that
        it has recovered.
        """
        self._keeps_on = True
        self._engine.stages.drifted = self.start
        return self

    def start(self) -> None:
        """Returns at once; nothing is begun while a measurement is at work, or after `stop`."""
        with self._lock:
            if self._stopped.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(
                target=self._measure, name="edgejudge costs", daemon=True
            )
            self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether nothing is measured any more, within so many seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def stop(self) -> None:
        """What is at work ends after its shape and keeps nothing; no other one begins."""
        self._stopped.set()

    def _measure(self) -> None:
        while True:
            began = time.monotonic()
            try:
                said = self._once()
            except (EdgeJudgeError, OSError) as error:
                said = f"costs could not be measured again ({error})"
            if said is None:
                return
            took = time.monotonic() - began
            self._told(f"{said} ({took:.1f} s beside the work)")
            predicted = self._engine.stages.predicted
            if not (self._keeps_on and predicted is not None and predicted.left):
                return
            if self._stopped.wait(max(_PAUSE_S, _SHARE * took)):
                return

    def _once(self) -> str | None:
        """A sentence about it; None when it was stopped."""
        bundle = self._engine.bundle
        profile = kept_profile(bundle, threads=self._engine.threads)
        if profile is None:
            return "what was measured for this bundle is no longer kept here"
        source = profile.source.split("; measured again")[0]
        found = measured_again(
            self._engine, profile, self._rounds, lambda: not self._stopped.is_set()
        )
        if found is None:
            return None
        again = sum(a != b for a, b in zip(found.rows, profile.rows, strict=True))
        source += f"; measured again beside the work, {self._rounds} runs of each shape"
        keep_profile(bundle, replace(found, source=source))
        self._engine.foresee()
        return f"costs of {again} of {len(found.rows)} shapes were measured again"
