"""Where a judge's work runs and in which order: costs, plans, a dispatcher and its simulator.

Takes measured or invented costs and a workload; gives placements and timelines. Runs no model:
an executor plays the same dispatcher with real devices.
"""

from typing import TYPE_CHECKING

from edgejudge.lazy import lazily

if TYPE_CHECKING:
    from edgejudge.runtime.scheduling.costs import Costs
    from edgejudge.runtime.scheduling.dispatch import Dispatcher
    from edgejudge.runtime.scheduling.drift import Replanner
    from edgejudge.runtime.scheduling.graph import Edge, Task, TaskGraph
    from edgejudge.runtime.scheduling.kept import keep_profile, kept_profile
    from edgejudge.runtime.scheduling.limits import Limits
    from edgejudge.runtime.scheduling.planner import Plan, Planner
    from edgejudge.runtime.scheduling.profile import Profile, ProfileError
    from edgejudge.runtime.scheduling.simulator import Timeline, simulate
    from edgejudge.runtime.scheduling.workload import Sizes, Workload, read_workload

__all__ = [
    "Costs",
    "Dispatcher",
    "Edge",
    "Limits",
    "Plan",
    "Planner",
    "Profile",
    "ProfileError",
    "Replanner",
    "Sizes",
    "Task",
    "TaskGraph",
    "Timeline",
    "Workload",
    "keep_profile",
    "kept_profile",
    "read_workload",
    "simulate",
]

_HOMES = {
    "Costs": "costs",
    "Dispatcher": "dispatch",
    "Replanner": "drift",
    "Edge": "graph",
    "Task": "graph",
    "TaskGraph": "graph",
    "keep_profile": "kept",
    "kept_profile": "kept",
    "Limits": "limits",
    "Plan": "planner",
    "Planner": "planner",
    "Profile": "profile",
    "ProfileError": "profile",
    "Timeline": "simulator",
    "simulate": "simulator",
    "Sizes": "workload",
    "Workload": "workload",
    "read_workload": "workload",
}
__getattr__, __dir__ = lazily(__name__, __all__, _HOMES)
