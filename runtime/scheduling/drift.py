"""Devices that are not as fast as measured: noticed while they work, and planned around.

Takes what each task was predicted to take and took; gives sentences for the trace, and moves what
has not begun where that ends sooner. Does not read a clock: a simulator and an executor use it
alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgejudge.runtime.scheduling.costs import Costs
from edgejudge.runtime.scheduling.dispatch import Dispatcher
from edgejudge.runtime.scheduling.order import list_schedule, makespan_ms, ranks

__all__ = ["MUCH", "Replanner"]

_FADES = 0.7  # a task's weight after each later one
_FEWEST = 5  # tasks before anything is concluded
MUCH = 1.4  # times longer, or shorter, than predicted
_WORTH = 0.98  # of the time that is left: what gains less is not moved


@dataclass(slots=True)
class _Seen:
    predicted_ms: float = 0.0
    took_ms: float = 0.0
    count: int = 0
    factor: float = 1.0  # that predictions have now, against the profile


@dataclass(slots=True)
class Replanner:
    """`fits` says of a placement whether memory allows it."""

    costs: Costs
    fits: Callable[[Mapping[str, str]], bool] = lambda _: True
    _seen: dict[str, _Seen] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        return self.costs.devices

    def factor(self, device: str) -> float:
        """How many times longer than measured a device is thought to take."""
        return self._seen[device].factor if device in self._seen else 1.0

    def finished(
        self,
        dispatcher: Dispatcher,
        where: Sequence[str] | Mapping[int, str],
        device: str,
        predicted_ms: float,
        took_ms: float,
    ) -> list[str]:
        """`where` each task ran or runs, by its number. Sentences about what was changed."""
        seen = self._seen.setdefault(device, _Seen())
        seen.predicted_ms = _FADES * seen.predicted_ms + predicted_ms
        seen.took_ms = _FADES * seen.took_ms + took_ms
        seen.count += 1
        if seen.count < _FEWEST or seen.predicted_ms <= 0:
            return []
        ratio = seen.took_ms / seen.predicted_ms
        if 1 / MUCH <= ratio <= MUCH:
            return []
        factor = max(seen.factor * ratio, 1e-3)
        self._seen[device] = _Seen(factor=factor)
        noticed = f"{device} takes {factor:.2f} times as long as measured"
        return [noticed + self._replanned(dispatcher, where)]

    def _replanned(self, dispatcher: Dispatcher, where: Sequence[str] | Mapping[int, str]) -> str:
        rest = _Rest(dispatcher, where, self)
        placement = {task.unit: rest.device[n] for n, task in rest.tasks.items()}
        if not placement:
            return ""
        left = before = rest.left_ms(placement)
        moved: dict[str, str] = {}
        while True:
            tries = [
                placement | {unit: other}
                for unit in placement
                for other in self.costs.devices_for(unit)
                if other != placement[unit] and self.fits(placement | {unit: other})
            ]
            found = min(tries, key=rest.left_ms, default=None)
            if found is None or rest.left_ms(found) > _WORTH * left:
                break
            moved |= {unit: found[unit] for unit in found if found[unit] != placement[unit]}
            placement, left = found, rest.left_ms(found)
        rest.apply(placement)
        if not moved:
            return f"; nothing is better elsewhere, {left:.0f} ms are left"
        units = ", ".join(f"{unit} goes on on {device}" for unit, device in sorted(moved.items()))
        return f"; {units}, {left:.0f} ms are left instead of {before:.0f}"


class _Rest:
    """What has not begun, as a graph of its own."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        where: Sequence[str] | Mapping[int, str],
        replanner: Replanner,
    ) -> None:
        self.dispatcher, self.where, self.replanner = dispatcher, where, replanner
        self.tasks = {n: task for n, task in dispatcher.waiting().items() if not task.fixed}
        self.device = {number: dispatcher.device(number) for number in self.tasks}
        place = {number: i for i, number in enumerate(self.tasks)}
        self.after = [
            [place[before] for before in dispatcher.befores(number) if before in place]
            for number in self.tasks
        ]
        self._known: dict[tuple[tuple[str, str], ...], float] = {}

    def left_ms(self, placement: Mapping[str, str]) -> float:
        key = tuple(sorted(placement.items()))
        if key not in self._known:
            devices, ms = self._placed(placement)
            begins = list_schedule(self.after, devices, ms, ranks("path", self.after, devices, ms))
            self._known[key] = makespan_ms(begins, ms)
        return self._known[key]

    def apply(self, placement: Mapping[str, str]) -> None:
        devices, ms = self._placed(placement)
        order = ranks("path", self.after, devices, ms)
        numbers = list(self.tasks)
        self.dispatcher.move(dict(zip(numbers, zip(devices, ms, strict=True), strict=True)))
        self.dispatcher.rerank(dict(zip(numbers, order, strict=True)))

    def _placed(self, placement: Mapping[str, str]) -> tuple[list[str], list[float]]:
        costs = self.replanner.costs
        devices, ms = [], []
        for number, task in self.tasks.items():
            device = placement[task.unit]
            own = costs.ms(task.unit, device, task.tokens, task.past)
            for before, edge in zip(self.dispatcher.befores(number), task.after, strict=True):
                waiting = self.tasks.get(before)
                source = placement[waiting.unit] if waiting else self.where[before]
                own += costs.moving_ms(source, device, edge.bytes)
            devices.append(device)
            ms.append(own * self.replanner.factor(device))
        return devices, ms
