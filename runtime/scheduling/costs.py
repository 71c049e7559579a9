"""Costs looked up: milliseconds of a task on a device, of bytes between devices, and energy.

Takes a `Profile`; gives numbers, interpolated between measured shapes. Beyond them it goes on along
the last slope and remembers that it did, for whoever shows a plan. Knows no placement.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf

from edgejudge.runtime.scheduling.graph import Task, TaskGraph
from edgejudge.runtime.scheduling.profile import Profile, ProfileError

__all__ = ["HEADS", "Costs", "Placed"]

HEADS = ("verdict_head", "lm_head")  # microseconds: free where nobody measured them
_FAR = 1.5  # times the largest measured shape; what is nearer is no news
_MIB = 1 << 20
_Curve = tuple[list[int], list[float]]  # tokens, milliseconds


@dataclass(frozen=True, slots=True)
class Placed:
    """A graph's tasks on devices: `ms` of each, and of those the `moving_ms` for what it takes from
    other devices. Whoever takes bytes pays for them, since copies are made while it waits.
    """

    devices: tuple[str, ...]
    ms: tuple[float, ...]
    moving_ms: tuple[float, ...]


class Costs:
    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.notes: dict[str, None] = {}  # sentences, each once, in order
        self._curves: dict[tuple[str, str], dict[int, _Curve]] = {}
        for row in sorted(profile.rows, key=lambda row: (row.past, row.tokens)):
            by_past = self._curves.setdefault((row.unit, row.device), {})
            tokens, times = by_past.setdefault(row.past, ([], []))
            tokens.append(row.tokens)
            times.append(row.p50_ms)
        self._links = {(link.source, link.target): link for link in profile.links}
        self._found: dict[tuple[str, str, int, int], float] = {}

    @cached_property
    def devices(self) -> tuple[str, ...]:
        return tuple(device.name for device in self.profile.devices)

    @cached_property
    def watts(self) -> dict[str, tuple[float, float]]:
        """Of each device (busy, idle)."""
        return {d.name: (d.busy_watts, d.idle_watts) for d in self.profile.devices}

    def devices_for(self, unit: str) -> tuple[str, ...]:
        """Those where it was measured. Raises ProfileError where it was nowhere."""
        found = tuple(name for name in self.devices if (unit, name) in self._curves)
        if not found and unit in HEADS:
            self.notes[f"{unit} was not measured and counts as nothing"] = None
            own = tuple(d.name for d in self.profile.devices if d.target == "cpu")
            return (own or self.devices)[:1]
        if not found:
            known = ", ".join(sorted({row.unit for row in self.profile.rows})) or "none"
            raise ProfileError(
                f"the profile has no row for {unit!r}, which the workload needs (it has: {known}); "
                "measure it with `edgejudge tune BUNDLE --costs`"
            )
        return found

    def ms(self, unit: str, device: str, tokens: int, past: int) -> float:
        key = (unit, device, tokens, past)
        if key not in self._found:
            self._found[key] = self._looked_up(*key)
        return self._found[key]

    def moving_ms(self, source: str, target: str, size: int) -> float:
        """Of `size` bytes; nothing where there are none, or where they stay, without end where
        nobody measured the way: no plan takes it.
        """
        if source == target or not size:
            return 0.0
        link = self._links.get((source, target))
        if link is None:
            return inf
        return link.fixed_ms + link.ms_per_mib * size / _MIB

    def unit_bytes(self, graph: TaskGraph, unit: str, device: str) -> int:
        for weight in self.profile.weights:
            if (weight.unit, weight.device) == (unit, device):
                return weight.bytes
        return graph.unit_bytes.get(unit, 0)

    def works(self, graph: TaskGraph) -> dict[str, dict[str, float]]:
        """Milliseconds of all of a unit's tasks on each device that can do it."""
        found: dict[str, dict[str, float]] = {}
        for unit in graph.units:
            own = [task for task in graph.tasks if task.unit == unit]
            found[unit] = {
                device: sum(self.ms(unit, device, task.tokens, task.past) for task in own)
                for device in self.devices_for(unit)
            }
        return found

    def quickest_ms(self, graph: TaskGraph) -> list[float]:
        """Of each task, where it takes least."""
        return [
            min(self.ms(t.unit, d, t.tokens, t.past) for d in self.devices_for(t.unit))
            for t in graph.tasks
        ]

    def placed(self, graph: TaskGraph, placement: Mapping[str, str]) -> Placed:
        devices = tuple(placement[task.unit] for task in graph.tasks)
        moving = tuple(self._taken(task, devices, devices[i]) for i, task in enumerate(graph.tasks))
        own = (
            self.ms(task.unit, device, task.tokens, task.past)
            for task, device in zip(graph.tasks, devices, strict=True)
        )
        return Placed(devices, tuple(a + b for a, b in zip(own, moving, strict=True)), moving)

    def _taken(self, task: Task, devices: tuple[str, ...], device: str) -> float:
        return sum(self.moving_ms(devices[e.before], device, e.bytes) for e in task.after)

    def _looked_up(self, unit: str, device: str, tokens: int, past: int) -> float:
        by_past = self._curves.get((unit, device))
        if by_past is None:
            return 0.0  # a head
        padded = self.profile.device(device).padded
        pasts = list(by_past)
        curves = [by_past[known] for known in pasts]
        if padded and past > pasts[-1]:
            tokens = _run(curves[-1], tokens)  # so that one shape's times make the line on
        widest = max(curves, key=lambda curve: curve[0][-1] - curve[0][0])
        times = [
            _padded(curve, tokens) if padded else _scaled(curve, widest, tokens) for curve in curves
        ]
        most = max(curve[0][-1] for curve in curves)
        if tokens > _FAR * most and not padded:
            self._far(unit, device, f"{tokens} tokens", f"{most}")
        if padded:
            at = bisect_left(pasts, past)
            if at < len(pasts):
                return times[at]
        elif len(pasts) == 1 and past:
            self._far(unit, device, f"{past} tokens before it", f"{pasts[0]}")
        if past > _FAR * pasts[-1] and len(pasts) > 1:
            self._far(unit, device, f"{past} tokens before it", f"{pasts[-1]}")
        return times[0] if len(pasts) == 1 else _along(pasts, times, past)

    def _far(self, unit: str, device: str, wanted: str, most: str) -> None:
        wanted_kind = wanted.split(" ", 1)[1]
        self.notes[
            f"{unit} on {device} was measured with up to {most} {wanted_kind} and is needed with "
            "more: its cost is extrapolated"
        ] = None


def _run(curve: _Curve, tokens: int) -> int:
    """Tokens that a padded device runs: of the largest shape, then of the smallest for the rest."""
    shapes = curve[0]
    whole, rest = divmod(tokens, shapes[-1])
    return whole * shapes[-1] + (shapes[bisect_left(shapes, rest)] if rest else 0)


def _padded(curve: _Curve, tokens: int) -> float:
    shapes, times = curve
    whole, rest = divmod(_run(curve, tokens), shapes[-1])
    return whole * times[-1] + (times[shapes.index(rest)] if rest else 0.0)


def _scaled(curve: _Curve, widest: _Curve, tokens: int) -> float:
    """On the curve, and outside of it as the widest one goes on, of a past with more shapes."""
    shapes, times = curve
    edge = min(max(tokens, shapes[0]), shapes[-1])
    if curve is widest or edge == tokens:
        return _along(shapes, times, tokens)
    known = _along(*widest, edge)
    own = _along(shapes, times, edge)
    return own * _along(*widest, tokens) / known if known else own


def _along(at: list[int], values: list[float], wanted: int) -> float:
    """On straight lines through the points; before the first as there, since what is smaller is not
    known to be cheaper; behind the last along the last line, never downwards. Behind the only one
    in proportion.
    """
    if wanted <= at[0]:
        return values[0]
    if len(at) == 1:
        return values[0] * wanted / at[0]
    i = min(bisect_left(at, wanted), len(at) - 1)
    x0, x1, y0, y1 = at[i - 1], at[i], values[i - 1], values[i]
    slope = (y1 - y0) / (x1 - x0)
    if wanted > x1:
        return y1 + max(slope, 0.0) * (wanted - x1)
    return y0 + slope * (wanted - x0)
