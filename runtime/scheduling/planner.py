"""Which unit goes to which device, and in which order devices do what they have.

Takes a task graph, costs and an objective; gives a `Plan` with the placement, a predicted timeline,
a bound that no placement and no order goes below, and what else was looked at. Runs nothing.

Placements are taken by their lower bounds, the least first: first the load of the busiest device,
then with what leads to it and follows it, then a schedule. Where the next bound is not below the
best schedule, none is left that could be better.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice, permutations, product
from math import isfinite, prod

from edgejudge.runtime.scheduling.bounds import (
    critical_path_ms,
    linear_bound_ms,
    placement_bound_ms,
)
from edgejudge.runtime.scheduling.costs import Costs, Placed
from edgejudge.runtime.scheduling.graph import TaskGraph, joined
from edgejudge.runtime.scheduling.limits import Limits, waits_for
from edgejudge.runtime.scheduling.order import loads_ms
from edgejudge.runtime.scheduling.profile import ProfileError
from edgejudge.runtime.scheduling.schedule import Schedule, scheduled
from edgejudge.runtime.scheduling.simulator import energy_mj

__all__ = ["OBJECTIVES", "Candidate", "Plan", "Planner"]

OBJECTIVES = ("latency", "energy", "throughput")
_EXHAUSTIVE = 60_000  # placements: among more only those near good ones are looked at
_MOST_BOUND = 600_000  # tasks of all bounds of a search: about three seconds
_MOST_RUN = 100_000  # tasks of all schedules of a search: about two seconds
_STEADY = 8  # requests that stand for many, where throughput is asked for
_SAME = 1 + 1e-9
_MOST_RUNS = 24  # orders of devices along the layers that a search begins from
_NEARLY = 0.98  # of a share is the share: the next unit would be too much
Placement = dict[str, str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placement that was looked at: `value` by the objective, a lower bound of it where
    `schedule` is None.
    """

    placement: Placement
    value: float
    schedule: Schedule | None


@dataclass(frozen=True, slots=True)
class Plan:
    """`value` and `bound` are milliseconds of the whole workload (latency), of a request among many
    (throughput), or millijoules (energy). `proven` says that no placement could be better by more
    than `value` is above `bound`; otherwise only those nearby were looked at.
    """

    objective: str
    placement: Placement
    schedule: Schedule
    limits: Limits
    value: float
    bound: float
    makespan_ms: float
    energy_mj: float
    busy_ms: dict[str, float]
    moving_ms: float
    proven: bool
    looked_at: tuple[Candidate, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class Planner:
    """One workload on one set of devices. Raises ProfileError for what the profile lacks."""

    graph: TaskGraph
    costs: Costs
    objective: str = "latency"
    limits: Limits | None = None  # None: as many pictures at once as devices, and one more
    _limits: Limits = field(init=False)
    _target: TaskGraph = field(init=False)  # what is scheduled
    _options: dict[str, tuple[str, ...]] = field(init=False)
    _after: list[tuple[int, ...]] = field(init=False)
    _works: dict[str, dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective is {self.objective!r}, expected one of {OBJECTIVES}")
        self._limits = self.limits or Limits(len(self.costs.devices) + 1)
        requests = len(self.graph.requests)
        many = self.objective == "throughput" and requests < _STEADY
        self._target = joined([self.graph] * -(-_STEADY // requests)) if many else self.graph
        self._options = {unit: self.costs.devices_for(unit) for unit in self.graph.units}
        self._after = waits_for(self._target, self._limits)
        self._works = self.costs.works(self._target)

    def plan(self) -> Plan:
        sizes = [len(devices) for devices in self._options.values()]
        found: list[Candidate] = []
        bound, ended = 0.0, False
        if prod(sizes) <= _EXHAUSTIVE:
            found, bound, ended = self._search(self._all())
        if not ended:
            seen = {tuple(c.placement.values()): c for c in found}
            bound = max(bound, self._climb(seen))
            found = list(seen.values())
        if not found:
            raise ProfileError(self._impossible())
        found.sort(key=lambda candidate: candidate.value)
        best = self._polished(found, bound)
        looked_at = (best, *(c for c in found if c.placement != best.placement))
        assert best.schedule is not None
        placed = self.costs.placed(self.graph, best.placement)
        schedule = best.schedule
        if self._target is not self.graph:  # the timeline that is shown is the workload's own
            schedule = scheduled(self.graph, placed, self._limits)
        busy = loads_ms(placed.devices, placed.ms)
        makespan = schedule.makespan_ms
        return Plan(
            self.objective,
            best.placement,
            schedule,
            self._limits,
            best.value,
            min(bound, best.value),
            makespan,
            energy_mj(busy, makespan, self.costs.watts),
            busy,
            sum(placed.moving_ms),
            ended,
            looked_at,
            tuple(self.costs.notes),
        )

    def candidate(self, placement: Placement, quick: bool = True) -> Candidate:
        """One placement, scheduled by one rule or by all; memory is not looked at."""
        placed = self.costs.placed(self._target, placement)
        schedule = scheduled(self._target, placed, self._limits, quick)
        return Candidate(placement, self._value(placed, schedule.makespan_ms), schedule)

    def fits(self, placement: Mapping[str, str]) -> bool:
        return not self.over_memory(placement)

    def over_memory(self, placement: Mapping[str, str]) -> dict[str, tuple[int, int]]:
        """Devices that would hold more than they may: (bytes wanted, bytes allowed)."""
        held: dict[str, int] = {}
        for unit, device in placement.items():
            held[device] = held.get(device, 0) + self.costs.unit_bytes(self.graph, unit, device)
        found = {}
        for device, wanted in held.items():
            allowed = self.costs.profile.device(device).memory_bytes
            if allowed is not None and wanted > allowed:
                found[device] = (wanted, allowed)
        return found

    def _all(self) -> Iterator[Placement]:
        units = list(self._options)
        for devices in product(*self._options.values()):
            yield dict(zip(units, devices, strict=True))

    def _search(self, placements: Iterator[Placement]) -> tuple[list[Candidate], float, bool]:
        """Candidates, a bound over all of the placements, and whether the search ended."""
        heap: list[tuple[float, int, int, Placement]] = []
        for number, placement in enumerate(placements):
            if self.fits(placement):
                heappush(heap, (self._load_value(placement), 0, number, placement))
        found: list[Candidate] = []
        best = bound = float("inf")
        most = max(4, _MOST_RUN // len(self._target.tasks))
        bounds = _MOST_BOUND // len(self._target.tasks)
        while heap:
            value, stage, number, placement = heappop(heap)
            if value >= best:
                heappush(heap, (value, stage, number, placement))
                break
            if stage == 0:
                bounds -= 1
                if not bounds:
                    return found, min(bound, value), False
                placed = self.costs.placed(self._target, placement)
                if not isfinite(sum(placed.ms)):
                    continue  # nobody measured a way that it needs
                least = placement_bound_ms(self._after, placed.devices, placed.ms)
                heappush(heap, (max(value, self._value(placed, least)), 1, number, placement))
                continue
            bound = min(bound, value)
            if len(found) == most:
                return found, bound, False
            found.append(self.candidate(placement))
            best = min(best, found[-1].value)
        bound = min(bound, heap[0][0]) if heap else bound
        found += [Candidate(p, value, None) for value, stage, _, p in heap[:64] if stage]
        return found, bound, True

    def _climb(self, seen: dict[tuple[str, ...], Candidate]) -> float:
        """From several placements to better ones by one unit's change, or two units' exchange; adds
        what it looks at, and gives a bound over all placements.
        """
        most = len(seen) + max(4, _MOST_RUN // len(self._target.tasks))
        starts = [c.placement for c in sorted(seen.values(), key=lambda c: c.value)[:1]]
        for start in starts + self._starts():
            here = seen.get(tuple(start.values())) or self._tried(start, seen)
            while here is not None and len(seen) < most:
                near = [self._tried(p, seen) for p in self._near(here.placement, here.value)]
                better = [c for c in near if c is not None and c.value * _SAME < here.value]
                here = min(better, key=lambda c: c.value, default=None)
        chain = critical_path_ms(self._after, self.costs.quickest_ms(self._target))
        least = max(linear_bound_ms(self._works), chain)
        return self._least_value(least)

    def _tried(
        self, placement: Placement, seen: dict[tuple[str, ...], Candidate]
    ) -> Candidate | None:
        key = tuple(placement.values())
        if key in seen or not self.fits(placement):
            return None
        if not isfinite(sum(self.costs.placed(self.graph, placement).ms)):
            return None
        seen[key] = self.candidate(placement)
        return seen[key]

    def _starts(self) -> list[Placement]:
        """Each unit where it is quickest; every device with all that it can do; runs of units of
        equal work, which hand over little; and units one by one, the heaviest first, on what has
        least to do and room.
        """
        cheapest = {u: min((ms, d) for d, ms in w.items())[1] for u, w in self._works.items()}
        starts = [cheapest, *self._alone()]
        share = linear_bound_ms(self._works)
        for devices in islice(permutations(self.costs.devices), _MOST_RUNS):
            starts.append(self._in_runs(devices, share))
        balanced: Placement = {}
        loads = dict.fromkeys(self.costs.devices, 0.0)
        for unit in sorted(self._works, key=lambda u: -min(self._works[u].values())):
            work = self._works[unit]
            order = sorted(work, key=lambda d: loads[d] + work[d])
            device = next((d for d in order if self.fits(balanced | {unit: d})), order[0])
            balanced[unit] = device
            loads[device] += work[device]
        starts.append({unit: balanced[unit] for unit in self._options})
        return starts

    def _in_runs(self, devices: Sequence[str], share_ms: float) -> Placement:
        """Units in their order, the first to the first device until it has its share."""
        placement: Placement = {}
        left = list(devices)
        load = 0.0
        for unit, work in self._works.items():
            if len(left) > 1 and load >= share_ms * _NEARLY:
                left.pop(0)
                load = 0.0
            device = next((d for d in (*left, *devices) if d in work), "")
            placement[unit] = device
            load += work[device] if device == left[0] else 0.0
        return placement

    def _alone(self) -> list[Placement]:
        """All that a device can do on it."""
        return [
            {unit: device if device in own else own[0] for unit, own in self._options.items()}
            for device in self.costs.devices
        ]

    def _near(self, placement: Placement, value: float) -> list[Placement]:
        """Neighbours whose bound is below `value`, the least first."""
        units = list(placement)
        found = [
            placement | {unit: device}
            for unit in units
            for device in self._options[unit]
            if device != placement[unit]
        ]
        for i, unit in enumerate(units):
            for other in units[i + 1 :]:
                a, b = placement[unit], placement[other]
                if a != b and b in self._options[unit] and a in self._options[other]:
                    found.append(placement | {unit: b, other: a})
        bounds = [(self._load_value(p), i) for i, p in enumerate(found) if self.fits(p)]
        return [found[i] for bound, i in sorted(bounds)[:24] if bound < value]

    def _polished(self, found: Sequence[Candidate], bound: float) -> Candidate:
        """The best few with every rule of order; the best of them."""
        best: Candidate | None = None
        few = max(1, min(4, _MOST_RUN // (25 * len(self._target.tasks))))
        for candidate in [c for c in found if c.schedule is not None][:few]:
            own = self.candidate(candidate.placement, quick=False)
            if best is None or own.value * _SAME < best.value:
                best = own
            if best.value <= bound * _SAME:
                break
        assert best is not None
        return best

    def _value(self, placed: Placed, makespan_ms: float) -> float:
        if self.objective == "energy":
            busy = loads_ms(placed.devices, placed.ms)
            return energy_mj(busy, makespan_ms, self.costs.watts)
        return makespan_ms / self._shared_by

    @property
    def _shared_by(self) -> int:
        return len(self._target.requests) if self.objective == "throughput" else 1

    def _load_value(self, placement: Placement) -> float:
        """A bound from works alone, without what moves."""
        busy: dict[str, float] = {}
        for unit, device in placement.items():
            busy[device] = busy.get(device, 0.0) + self._works[unit][device]
        most = max(busy.values(), default=0.0)
        if self.objective == "energy":
            return energy_mj(busy, most, self.costs.watts)
        return most / self._shared_by

    def _least_value(self, makespan_ms: float) -> float:
        if self.objective != "energy":
            return makespan_ms / self._shared_by
        watts = self.costs.watts
        return sum(min(w[d] * watts[d][0] for d in w) for w in self._works.values())

    def _impossible(self) -> str:
        few = prod(map(len, self._options.values())) <= _EXHAUSTIVE
        if any(self.fits(placement) for placement in (self._all() if few else self._starts())):
            return (
                "every placement needs a link between two devices that the profile lacks; add it "
                "to 'links', or measure it with `edgejudge tune BUNDLE --costs`"
            )
        sizes = ", ".join(
            f"{unit} {self.costs.unit_bytes(self.graph, unit, devices[0]) / 2**20:.0f} MiB"
            for unit, devices in self._options.items()
        )
        rooms = ", ".join(
            f"{d.name} {d.memory_bytes / 2**20:.0f} MiB"
            for d in self.costs.profile.devices
            if d.memory_bytes is not None
        )
        return (
            f"no placement fits into memory: {sizes}; allowed are {rooms}; export more parts with "
            "--parts, or allow more in the profile's memory_bytes"
        )
