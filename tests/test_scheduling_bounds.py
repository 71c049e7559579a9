"""Bounds are below every schedule, the exact search finds the best, and plans are near it."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from edgejudge.runtime.scheduling import Costs, Edge, Limits, Planner, Task, TaskGraph
from edgejudge.runtime.scheduling.bounds import (
    critical_path_ms,
    linear_bound_ms,
    placement_bound_ms,
)
from edgejudge.runtime.scheduling.exact import optimal_placement_ms, optimum_ms
from edgejudge.runtime.scheduling.order import (
    RULES,
    in_turn,
    justified,
    list_schedule,
    loads_ms,
    ranks,
)
from edgejudge.runtime.scheduling.scenarios import invented

DEVICES = ("cpu", "gpu", "npu")


@st.composite
def jobs(draw: st.DrawFn, most: int = 7) -> tuple[list[tuple[int, ...]], list[str], list[float]]:
    count = draw(st.integers(1, most))
    after = [
        tuple(draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else ())
        for i in range(count)
    ]
    devices = draw(st.lists(st.sampled_from(DEVICES), min_size=count, max_size=count))
    ms = draw(st.lists(st.integers(1, 9).map(float), min_size=count, max_size=count))
    return after, devices, ms


def by_all_orders(after: list[tuple[int, ...]], devices: list[str], ms: list[float]) -> float:
    """Every order of all tasks, each as early as the ones before it in the order allow."""
    best = float("inf")
    for order in permutations(range(len(ms))):
        ends: dict[int, float] = {}
        free = dict.fromkeys(devices, 0.0)
        for i in order:
            if not set(after[i]) <= ends.keys():
                break
            ends[i] = max([free[devices[i]], *(ends[b] for b in after[i])]) + ms[i]
            free[devices[i]] = ends[i]
        else:
            best = min(best, max(ends.values()))
    return best


def makespan(begins: list[float], ms: list[float]) -> float:
    return max(begin + own for begin, own in zip(begins, ms, strict=True))


@settings(max_examples=60, deadline=None)
@given(jobs(6))
def test_the_exact_search_is_as_good_as_looking_at_every_order(
    job: tuple[list[tuple[int, ...]], list[str], list[float]],
) -> None:
    assert optimum_ms(*job) == pytest.approx(by_all_orders(*job))


@settings(max_examples=100, deadline=None)
@given(jobs(8))
def test_bounds_are_below_the_optimum_and_schedules_above(
    job: tuple[list[tuple[int, ...]], list[str], list[float]],
) -> None:
    after, devices, ms = job
    best = optimum_ms(*job)
    bound = placement_bound_ms(*job)
    assert max(critical_path_ms(after, ms), *loads_ms(devices, ms).values()) <= bound + 1e-9
    assert bound <= best + 1e-9
    begins = [in_turn(*job)]
    begins += [list_schedule(*job, ranks(rule, *job)) for rule in RULES]
    begins.append(list_schedule(*job, justified(*job, begins[-1])))
    for some in begins:
        assert makespan(some, ms) >= best - 1e-9
        for i, befores in enumerate(after):
            assert all(some[i] >= some[b] + ms[b] - 1e-9 for b in befores)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcdefgh"),
        st.dictionaries(st.sampled_from(DEVICES), st.floats(0.5, 50), min_size=1),
        min_size=1,
    )
)
def test_the_dual_is_the_linear_programme(works: dict[str, dict[str, float]]) -> None:
    devices = sorted({device for own in works.values() for device in own})
    pairs = [(unit, device) for unit, own in works.items() for device in own]
    loads = [[works[u][d] * (d == device) for u, d in pairs] + [-1.0] for device in devices]
    whole = [[float(u == unit) for u, _ in pairs] + [0.0] for unit in works]
    solved = linprog(
        np.array([0.0] * len(pairs) + [1.0]),
        A_ub=np.array(loads),
        b_ub=np.zeros(len(devices)),
        A_eq=np.array(whole),
        b_eq=np.ones(len(works)),
    )
    bound = linear_bound_ms(works)
    assert bound <= solved.fun * (1 + 1e-7)
    exact = len(devices) <= 2
    assert bound >= solved.fun * (1 - (1e-7 if exact else 0.06))


@st.composite
def instances(draw: st.DrawFn) -> tuple[TaskGraph, Costs]:
    units = draw(st.integers(1, 3))
    tasks = []
    for place in range(draw(st.integers(1, 8))):
        befores = (
            draw(st.lists(st.integers(0, place - 1), max_size=2, unique=True)) if place else []
        )
        edges = tuple(Edge(b, 1 << 20) for b in befores)
        tasks.append(Task(f"t{place}", f"u{draw(st.integers(0, units - 1))}", 1, 0, edges))
    rows = {
        (unit, device): {(1, 0): float(draw(st.integers(1, 9)))}
        for unit in {task.unit for task in tasks}
        for device in draw(st.sampled_from([("cpu", "gpu"), ("cpu",), DEVICES]))
    }
    link = draw(st.sampled_from([(0.0, 0.0), (0.5, 0.5), (4.0, 3.0)]))
    return TaskGraph(tuple(tasks), {}), Costs(invented(rows, link))


@settings(max_examples=80, deadline=None)
@given(instances())
def test_a_plan_is_near_the_best_of_all_placements_and_orders(
    instance: tuple[TaskGraph, Costs],
) -> None:
    graph, costs = instance
    best, where = optimal_placement_ms(graph, costs)
    plan = Planner(graph, costs).plan()
    assert plan.proven
    assert plan.bound <= best + 1e-9
    assert best - 1e-9 <= plan.value == plan.makespan_ms
    assert where is not None
    assert plan.value <= 1.25 * best, "list schedules of random graphs, not of judges"


def test_the_exact_search_knows_its_size() -> None:
    with pytest.raises(ValueError, match="too many"):
        optimum_ms([()] * 17, ["cpu"] * 17, [1.0] * 17)


def test_one_cache_makes_requests_follow_one_another_in_the_bound() -> None:
    tasks = tuple(Task(f"r{r}", "decoder.0", 1, request=r, cached=True) for r in range(3))
    costs = Costs(invented({("decoder.0", "cpu"): {(1, 0): 5.0}}, (0, 0)))
    plan = Planner(TaskGraph(tasks, {}), costs, limits=Limits(3)).plan()
    assert plan.bound == plan.value == 15.0


def test_all_placements_by_hand() -> None:
    """Two parts of two chunks on two devices: the four placements, worked out on paper."""
    tasks = (
        *(Task("a0", "a", 1), Task("b0", "b", 1, after=(Edge(0, 1),))),
        *(Task("a1", "a", 1, 1, (Edge(0),)), Task("b1", "b", 1, 1, (Edge(1), Edge(2, 1)))),
    )
    rows = {(unit, device): {(1, 0): 10.0} for unit, device in product("ab", ("cpu", "gpu"))}
    costs = Costs(invented(rows, (1.0, 0.0)))
    plan = Planner(TaskGraph(tasks, {}), costs).plan()
    # apart: a0 10, then b0 with 1 ms to move, beside a1; b1 with 1 ms again
    assert plan.value == 32.0
    assert plan.placement["a"] != plan.placement["b"]
    assert plan.moving_ms == 2.0
