"""A plan of where a bundle's work runs, as a document and as text for a terminal.

Takes a bundle, a workload, an objective and a profile of devices; gives JSON values, and lines of
bars. Measures nothing and opens no session.
"""

from collections.abc import Mapping
from typing import Any

from edgejudge.bundle import Bundle
from edgejudge.printable import brief
from edgejudge.runtime.placement import STAGES
from edgejudge.runtime.scheduling import Costs, Planner, Profile, Sizes, Workload
from edgejudge.runtime.scheduling.alternatives import alternatives
from edgejudge.runtime.settings import Settings

__all__ = ["SCHEMA_VERSION", "UNITS", "bars", "placement_plan", "sign"]

SCHEMA_VERSION = 1
UNITS = {"latency": "ms", "throughput": "ms a request", "energy": "mJ"}
_SIGNS = "0123456789abcdefghijklmnopqrstuvwxyz"


def placement_plan(
    bundle: Bundle, settings: Settings, workload: Workload, profile: Profile, objective: str
) -> dict[str, Any]:
    """Raises ProfileError for a profile that lacks what the workload needs, InputError for a
    workload of too many tasks.
    """
    workload = workload.on(bundle)
    graph = workload.graph(Sizes.of(bundle, settings))
    costs = Costs(profile)
    planner = Planner(graph, costs, objective)
    plan = planner.plan()
    notes = list(plan.notes)
    if profile.bundle not in ("", bundle.fingerprint):
        notes.append("the profile was measured with another bundle")
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": bundle.manifest.name,
        "workload": str(workload),
        "objective": objective,
        "unit": UNITS[objective],
        "source": profile.source,
        "devices": list(costs.devices),
        "placement": plan.placement,
        "place": _place(plan.placement, profile),
        "value": plan.value,
        "bound": plan.bound,
        "proven": plan.proven,
        "rule": plan.schedule.rule,
        "makespan_ms": plan.makespan_ms,
        "energy_mj": plan.energy_mj,
        "moving_ms": plan.moving_ms,
        "busy_ms": plan.busy_ms,
        "timeline": [
            {
                "task": graph.tasks[run.task].name,
                "unit": graph.tasks[run.task].unit,
                "request": graph.tasks[run.task].request,
                "device": run.device,
                "begin_ms": run.begin_ms,
                "end_ms": run.end_ms,
            }
            for run in plan.schedule.timeline.runs
        ],
        "alternatives": [
            {"name": a.name, "placement": a.placement, "value": a.value, "why": a.why}
            for a in alternatives(planner, plan)
        ],
        "notes": notes,
    }


def _place(placement: Mapping[str, str], profile: Profile) -> str:
    """As `screen --place` takes it; empty where all is the processor's, which needs no words."""
    targets = {device.name: device.target for device in profile.devices}
    placed = {
        unit: targets[device]
        for unit, device in placement.items()
        if unit.partition(".")[0] in STAGES and targets[device] != "cpu"
    }
    return ",".join(f"{unit}={target}" for unit, target in placed.items())


def sign(unit: str) -> str:
    """One character for a unit: of a part its number, else a letter: V for vision, H for a head."""
    name, _, part = unit.partition(".")
    if part:
        known = part.isdecimal() and len(part) < 6 and int(part) < len(_SIGNS)
        return _SIGNS[int(part)] if known else "#"
    return name.rpartition("_")[2][:1].upper()


def bars(plan: Mapping[str, Any], width: int) -> list[tuple[str, str]]:
    """(device, bar) of the devices that are used: what each does in every slice of the time, the
    unit that has most of it; a dot where it waits.
    """
    whole = plan["makespan_ms"]
    lines = []
    for device in plan["busy_ms"]:
        shares: list[dict[str, float]] = [{} for _ in range(width)]
        for run in plan["timeline"]:
            if run["device"] != device or not whole:
                continue
            begin, end = (run[key] / whole * width for key in ("begin_ms", "end_ms"))
            for at in range(int(begin), min(int(end) + 1, width)):
                own = min(end, at + 1) - max(begin, at)
                shares[at][run["unit"]] = shares[at].get(run["unit"], 0.0) + own
        line = "".join(
            sign(max(share, key=lambda u: share[u])) if sum(share.values()) >= 0.5 else "."
            for share in shares
        )
        lines.append((brief(device), line))
    return lines
