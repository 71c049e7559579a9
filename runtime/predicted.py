"""What an engine's steps should take where, from what `edgejudge tune --costs` measured.

Takes a kept profile; gives milliseconds of a step on a device, and the device that is quickest now.
Does not measure, and runs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from edgejudge.bundle import Bundle
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.scheduling.costs import Costs
from edgejudge.runtime.scheduling.drift import MUCH, Replanner
from edgejudge.runtime.scheduling.graph import Task
from edgejudge.runtime.scheduling.kept import kept_profile
from edgejudge.runtime.scheduling.profile import ProfileError
from edgejudge.runtime.session import CPU_DEVICE

__all__ = ["Predicted"]


@dataclass(slots=True)
class Predicted:
    """`costs` call the processor `CPU_DEVICE`. Those that the engine `began` with stay when costs
    are measured again: a device that was slow then too is not as fast as it was thought to be.
    """

    costs: Costs
    began: Costs
    _replanner: Replanner | None = field(default=None)

    @classmethod
    def kept(cls, bundle: Bundle, fleet: Fleet, threads: int) -> Self | None:
        """From the user's cache; None where nothing was measured for this bundle on this machine
        with as many threads, or not of all that the devices in use are for.
        """
        versions = {a.device.provider: a.device.version for a in fleet.accelerators}
        profile = kept_profile(bundle, threads=threads)
        if profile is None:
            return None
        names = {a.device.name for a in fleet.accelerators}
        devices = tuple(
            device
            for device in profile.devices
            if device.target == "cpu"
            or (device.name in names and versions[device.provider] == device.version)
        )
        cpu = CPU_DEVICE
        found = Costs(profile.of({d.name: cpu if d.target == "cpu" else d.name for d in devices}))
        wanted = {("vision", cpu)} | {(f"decoder.{p.index}", cpu) for p in bundle.manifest.parts}
        wanted |= {
            (stage if part is None else f"decoder.{part}", a.device.name)
            for (stage, part), some in fleet.routes.items()
            for a in some
        }
        try:
            known = all(device in found.devices_for(unit) for unit, device in wanted)
        except ProfileError:
            return None
        return cls(found, found) if known else None

    def ms(self, task: Task, device: str) -> float:
        factor = 1.0 if self._replanner is None else self._replanner.factor(device)
        return factor * _ms(self.costs, task, device)

    def device(self, task: Task, devices: Sequence[str]) -> str:
        """The first, unless it has become slower than another one is."""
        first = devices[0]
        if self.ms(task, first) < MUCH * _ms(self.began, task, first):
            return first
        return min(devices, key=lambda device: self.ms(task, device))

    @property
    def left(self) -> bool:
        """Whether a device may have been left for being slow."""
        slow = (
            self.ms(task, row.device) >= MUCH * _ms(self.began, task, row.device)
            for row in self.began.profile.rows
            for task in [Task("", row.unit, row.tokens, row.past)]
        )
        return any(slow)

    def replanner(self, may_run: Callable[[str, str], bool]) -> Replanner:
        """`may_run` says whether a unit has graphs on a device."""

        def fits(placement: Mapping[str, str]) -> bool:
            return all(may_run(unit, device) for unit, device in placement.items())

        self._replanner = Replanner(self.costs, fits)
        return self._replanner


def _ms(costs: Costs, task: Task, device: str) -> float:
    return costs.ms(task.unit, device, task.tokens, task.past)
