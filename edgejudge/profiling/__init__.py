"""How fast a bundle judges, and how sure that is: workloads, distributions, records, comparisons.

Takes a bundle and a workload; gives a record of figures with their N and intervals. Timed through
the same Judge that users call. Prints nothing.
"""

from typing import TYPE_CHECKING

from edgejudge.lazy import lazily

if TYPE_CHECKING:
    from edgejudge.profiling.distributions import Distribution, Ratio
    from edgejudge.profiling.machine import peak_rss_mib
    from edgejudge.profiling.measuring import profile
    from edgejudge.profiling.pictures import drawn_picture
    from edgejudge.profiling.records import Profile
    from edgejudge.profiling.workloads import read_workload

__all__ = [
    "Distribution",
    "Profile",
    "Ratio",
    "drawn_picture",
    "peak_rss_mib",
    "profile",
    "read_workload",
]

_HOMES = {
    "Distribution": "distributions",
    "Profile": "records",
    "Ratio": "distributions",
    "drawn_picture": "pictures",
    "peak_rss_mib": "machine",
    "profile": "measuring",
    "read_workload": "workloads",
}

__getattr__, __dir__ = lazily(__name__, __all__, _HOMES)
