"""Orders of tasks whose devices are chosen: rules, and a plan that is packed from both ends.

Takes what each task waits for, its device and milliseconds; gives ranks, of which a device takes
the lowest first. Knows no limits on memory: a dispatcher keeps those, whatever the ranks.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

__all__ = [
    "RULES",
    "in_turn",
    "justified",
    "list_schedule",
    "loads_ms",
    "makespan_ms",
    "ranks",
    "tails_ms",
]

RULES = ("path", "feed", "first")
_After = Sequence[Sequence[int]]


def ranks(rule: str, after: _After, devices: Sequence[str], ms: Sequence[float]) -> list[float]:
    """`first`: in the order of the graph. `path`: the longest way to the end first. `feed`: on the
    device with most to do the same, on others what leads soonest to work for that one.
    """
    count = len(ms)
    if rule == "first":
        return [float(i) for i in range(count)]
    tails = tails_ms(after, ms)
    if rule == "path":
        return [-tail for tail in tails]
    loads = loads_ms(devices, ms)
    most = max(loads, key=lambda device: loads[device])
    leads = [float("inf")] * count
    for i in range(count - 1, -1, -1):
        lead = 0.0 if devices[i] == most else leads[i] + ms[i]
        for before in after[i]:
            leads[before] = min(leads[before], lead)
    keys = [(0.0 if devices[i] == most else leads[i], -tails[i], i) for i in range(count)]
    found = [0.0] * count
    for rank, (_, _, i) in enumerate(sorted(keys)):
        found[i] = float(rank)
    return found


def loads_ms(devices: Sequence[str], ms: Sequence[float]) -> dict[str, float]:
    """What each device has to do."""
    found = dict.fromkeys(devices, 0.0)
    for device, own in zip(devices, ms, strict=True):
        found[device] += own
    return found


def makespan_ms(begins_ms: Sequence[float], ms: Sequence[float]) -> float:
    """When the last of tasks with these begins has ended."""
    return max((begin + own for begin, own in zip(begins_ms, ms, strict=True)), default=0.0)


def tails_ms(after: _After, ms: Sequence[float]) -> list[float]:
    """Of each task the longest way from its begin to the end of everything."""
    tails = list(ms)
    for i in range(len(ms) - 1, -1, -1):
        for before in after[i]:
            tails[before] = max(tails[before], ms[before] + tails[i])
    return tails


def justified(
    after: _After, devices: Sequence[str], ms: Sequence[float], begins_ms: Sequence[float]
) -> list[float]:
    """Ranks after packing a schedule against its end, the last tasks first. Played forwards they
    are mostly shorter than it was (Li and Willis, 1992).
    """
    count = len(ms)
    reverse: list[list[int]] = [[] for _ in range(count)]
    for i, befores in enumerate(after):
        for before in befores:
            reverse[count - 1 - before].append(count - 1 - i)
    ends = [begin + own for begin, own in zip(begins_ms, ms, strict=True)]
    backwards = list_schedule(reverse, devices[::-1], ms[::-1], [-end for end in reversed(ends)])
    # What began last backwards, counted from its far end, begins first forwards.
    return [-(backwards[count - 1 - i] + ms[i]) for i in range(count)]


def list_schedule(
    after: _After, devices: Sequence[str], ms: Sequence[float], rank: Sequence[float]
) -> list[float]:
    """Begins when every device, free, takes the ready task of the lowest rank."""
    count = len(ms)
    waits = [len(befores) for befores in after]
    nexts: list[list[int]] = [[] for _ in range(count)]
    for i, befores in enumerate(after):
        for before in befores:
            nexts[before].append(i)
    ready: dict[str, list[tuple[float, int]]] = {device: [] for device in devices}
    for i in range(count):
        if not waits[i]:
            heappush(ready[devices[i]], (rank[i], i))
    begins = [0.0] * count
    ends: list[tuple[float, int]] = []
    free = set(ready)
    now = 0.0
    while True:
        for device in sorted(free):
            if ready[device]:
                _, i = heappop(ready[device])
                begins[i] = now
                heappush(ends, (now + ms[i], i))
                free.discard(device)
        if not ends:
            return begins
        now = ends[0][0]
        while ends and ends[0][0] <= now:
            _, i = heappop(ends)
            free.add(devices[i])
            for after_it in nexts[i]:
                waits[after_it] -= 1
                if not waits[after_it]:
                    heappush(ready[devices[after_it]], (rank[after_it], after_it))


def in_turn(after: _After, devices: Sequence[str], ms: Sequence[float]) -> list[float]:
    """Begins when every device does its tasks strictly in the order of the graph, and waits for
    each: devices overlap, but nothing is taken out of order.
    """
    free = dict.fromkeys(devices, 0.0)
    ends: list[float] = []
    begins = []
    for i, befores in enumerate(after):
        begin = max([free[devices[i]], *(ends[before] for before in befores)])
        begins.append(begin)
        ends.append(begin + ms[i])
        free[devices[i]] = ends[i]
    return begins
