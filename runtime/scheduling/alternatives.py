"""Why other placements lost.

Takes a planner and its plan; gives the placements that somebody would ask about, each with its
figure and the reason in a few words. Chooses nothing.
"""

from dataclasses import dataclass
from math import isfinite

from edgejudge.runtime.scheduling.bounds import critical_path_ms
from edgejudge.runtime.scheduling.costs import HEADS
from edgejudge.runtime.scheduling.order import loads_ms
from edgejudge.runtime.scheduling.planner import Candidate, Placement, Plan, Planner

__all__ = ["Alternative", "alternatives", "short"]

_MOST = 10  # that are told
_NEXT = 12  # of those that the search looked at
_ASKED = 40  # a bundle may have many parts
_AS_GOOD = 1 + 1e-6
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Alternative:
    """`value` is by the plan's objective; None where the placement is not possible at all."""

    name: str
    placement: Placement
    value: float | None
    why: str


def alternatives(planner: Planner, plan: Plan) -> list[Alternative]:
    """Each device alone, each single unit elsewhere, and the next best ones; the best first, what
    is not possible last.
    """
    asked: dict[tuple[str, ...], tuple[str, Placement]] = {}

    def ask(name: str, placement: Placement) -> None:
        if _heavy(placement) != _heavy(plan.placement):
            asked.setdefault(_heavy(placement), (name, placement))

    found = []
    for device in planner.costs.devices:
        alone = {
            unit: device if unit not in HEADS or device in planner.costs.devices_for(unit) else own
            for unit, own in plan.placement.items()
        }
        lacks = [u for u, d in alone.items() if d not in planner.costs.devices_for(u)]
        if lacks:
            why = f"{', '.join(lacks)} was not measured on {device}"
            found.append(Alternative(f"all on {device}", {}, None, why))
        else:
            ask(f"all on {device}", alone)
    for unit, where in plan.placement.items():
        for device in planner.costs.devices_for(unit):
            if device != where:
                ask(f"{unit} on {device}", plan.placement | {unit: device})
    for candidate in plan.looked_at[1 : 1 + _NEXT]:
        ask(short(candidate.placement), candidate.placement)
    known = {tuple(c.placement.values()): c for c in plan.looked_at if c.schedule is not None}
    for name, placement in list(asked.values())[:_ASKED]:
        own = known.get(tuple(placement.values()))
        found.append(_explained(planner, plan, name, placement, own))
    found.sort(key=lambda a: (a.value is None, a.value or 0.0, a.name))
    possible = [a for a in found if a.value is not None]
    return possible[:_MOST] + [a for a in found if a.value is None][:_MOST]


def _explained(
    planner: Planner, plan: Plan, name: str, placement: Placement, known: Candidate | None
) -> Alternative:
    for device, (wanted, allowed) in planner.over_memory(placement).items():
        room = f"{device} would hold {wanted / _MIB:.0f} MiB and may {allowed / _MIB:.0f}"
        return Alternative(name, placement, None, room)
    placed = planner.costs.placed(planner.graph, placement)
    if not isfinite(sum(placed.ms)):
        return Alternative(name, placement, None, "nobody measured a link that it needs")
    candidate = known or planner.candidate(placement)
    loads = loads_ms(placed.devices, placed.ms)
    busiest = max(loads, key=lambda device: loads[device])
    chain = critical_path_ms(planner.graph.after(), placed.ms)
    moving = sum(placed.moving_ms)
    if candidate.value <= plan.value * _AS_GOOD:
        why = "as good"
    elif plan.objective == "energy":
        most = max(loads, key=lambda d: loads[d] * planner.costs.watts[d][0])
        why = f"{most} draws {planner.costs.watts[most][0]:g} W for {loads[most]:.0f} ms"
    elif loads[busiest] > plan.makespan_ms:
        why = f"{busiest} has {loads[busiest]:.0f} ms to do"
    elif chain > plan.makespan_ms:
        why = f"its longest chain takes {chain:.0f} ms"
    else:
        why = f"devices wait for one another: {busiest}, the busiest, works {loads[busiest]:.0f} ms"
    if moving > 1.2 * plan.moving_ms and moving > 0.05 * plan.makespan_ms:
        why += f", {moving:.0f} ms of all move bytes between devices"
    return Alternative(name, placement, candidate.value, why)


def _heavy(placement: Placement) -> tuple[str, ...]:
    """Heads make no difference worth a line."""
    return tuple(device for unit, device in placement.items() if unit not in HEADS)


def short(placement: Placement) -> str:
    """Runs of parts together: vision=gpu,decoder.0-2=npu,decoder.3=cpu"""
    groups: list[tuple[str, str, list[str]]] = []
    for unit, device in placement.items():
        name, _, part = unit.partition(".")
        if groups and part and groups[-1][:2] == (name, device) and groups[-1][2]:
            groups[-1][2].append(part)
        else:
            groups.append((name, device, [part] if part else []))
    words = []
    for name, device, parts in groups:
        run = "" if not parts else f".{parts[0]}"
        run += f"-{parts[-1]}" if len(parts) > 1 else ""
        words.append(f"{name}{run}={device}")
    return ",".join(words)
