"""What a Judge is told about the devices it works on: to ask them again, to measure them again.

Takes calls; gives nothing, or the measurement that was begun. The work is done in the runtime and
in remeasuring, which is imported with the first call. Knows no policy and no pictures.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgejudge.batches import BatchScorer
from edgejudge.errors import InputError
from edgejudge.writing import WITHOUT_BUDGET

if TYPE_CHECKING:
    from edgejudge.remeasuring import Remeasuring

__all__ = ["PlacedWork"]


class PlacedWork:
    """A part of Judge."""

    engine: Any

    def revive_devices(self) -> None:
        """Devices that failed too often, or did not end, are asked again from now on."""
        if not isinstance(self.engine, BatchScorer):
            self.engine.fleet.revive()

    def remeasure(
        self, *, on_drift: bool = False, told: Callable[[str], None] = lambda _: None
    ) -> "Remeasuring":
        """Measures what `edgejudge tune --costs` measured again, in a thread of its own, beside
        what is judged and behind all of it; then goes by that. `wait` of the result waits for the
        end, `stop` calls it off, and `told` gets a sentence when it is done.

        `on_drift` begins whenever a device is slower or faster than predicted, and goes on once in
        a while until all are as fast as they were: a device that is left for being slow is asked
        nothing that would show it. Raises InputError where no costs are known, and within a memory
        budget.
        """
        from edgejudge.remeasuring import Remeasuring

        if isinstance(self.engine, BatchScorer):
            raise InputError("memory_budget", f"it has no other devices{WITHOUT_BUDGET}")
        found = Remeasuring(self.engine, told)
        if on_drift:
            return found.on_drift()
        found.start()
        return found
