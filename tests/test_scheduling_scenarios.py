"""Plans in fixed scenarios from published costs. All of it is arithmetic: no clock runs."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgejudge.runtime.scheduling import (
    Costs,
    Limits,
    Plan,
    Planner,
    Replanner,
    Sizes,
    read_workload,
    simulate,
)
from edgejudge.runtime.scheduling.costs import HEADS
from edgejudge.runtime.scheduling.exact import MOST_TASKS, optimal_placement_ms
from edgejudge.runtime.scheduling.graph import joined
from edgejudge.runtime.scheduling.layers import layer_graph
from edgejudge.runtime.scheduling.order import loads_ms
from edgejudge.runtime.scheduling.scenarios import (
    Figures,
    Scenario,
    ablation,
    figures,
    invented,
    scenarios,
)
from edgejudge.runtime.scheduling.simulator import Slow, Timeline


@cache
def known() -> dict[str, Scenario]:
    return {scenario.name: scenario for scenario in scenarios()}


@cache
def found(name: str) -> Figures:
    return figures(known()[name])


def test_the_worst_scenario_is_within_a_tenth_of_the_bound() -> None:
    assert len({name.split(":")[0] for name in known()}) >= 8
    ratios = {name: found(name).ratio for name in known()}
    assert max(ratios.values()) <= 1.10, max(ratios, key=lambda name: ratios[name])
    assert min(ratios.values()) >= 1 - 1e-9
    assert all(found(name).plan.proven for name in known())


def test_no_plan_is_longer_than_what_it_is_compared_with() -> None:
    for name in known():
        own = found(name)
        makespan = own.plan.makespan_ms * (1 - 1e-9)
        assert own.relaxed <= own.bound * (1 + 1e-9), name
        assert makespan <= own.in_order <= own.one_by_one + 1e-6, name
        assert own.single is None or makespan <= own.single, name


def test_small_scenarios_are_at_the_optimum() -> None:
    small = [s for s in known().values() if len(s.graph.tasks) <= MOST_TASKS]
    assert len(small) >= 3
    for scenario in small:
        best, _ = optimal_placement_ms(scenario.graph, Costs(scenario.profile))
        assert found(scenario.name).plan.makespan_ms == pytest.approx(best), scenario.name


def test_out_of_order_gains_what_was_published() -> None:
    """18 to 44 % over devices that overlap in order, for prompts of several chunks."""
    for tokens in (512, 1024, 2048, 4096):
        own = found(f"layers, NPU and CPU: {tokens}")
        assert 0.18 <= 1 - own.plan.makespan_ms / own.in_order <= 0.46, tokens
    alone = found("layers, NPU and CPU: 256")
    assert alone.plan.makespan_ms == pytest.approx(alone.in_order), "one chunk: nothing to reorder"


def test_each_thing_that_was_added_helps_as_published() -> None:
    steps = ablation()
    here, published = [s[1] for s in steps], [s[2] for s in steps]
    assert here == sorted(here) and published == sorted(published)
    for own, other in zip(here, published, strict=True):
        assert 0.5 <= own / other <= 2.0
    # The largest step is the outliers' in both.
    assert max(range(1, 4), key=lambda i: here[i] / here[i - 1]) == 2


def test_energy_changes_the_plan_where_it_should() -> None:
    pictures = known()["pictures, 4 of 9 views"]
    quick, lean = pictures.planner().plan(), pictures.planner("energy").plan()
    assert _heavy(lean) == {"npu"}, "it draws least and takes least"
    assert len(_heavy(quick)) > 1
    assert lean.energy_mj < quick.energy_mj and lean.makespan_ms > quick.makespan_ms
    # Where one device is best in both there is nothing to change.
    text = known()["text, a token at a time: 512"]
    assert text.planner("energy").plan().placement == text.planner().plan().placement


def _heavy(plan: Plan) -> set[str]:
    return {device for unit, device in plan.placement.items() if unit not in HEADS}


def test_throughput_is_not_below_the_busiest_device() -> None:
    one = known()["pictures, 1 of 9 views"]
    plan = one.planner("throughput").plan()
    assert plan.value < one.planner().plan().value, "pictures overlap"
    assert plan.bound <= plan.value <= 1.10 * plan.bound


def test_memory_is_kept() -> None:
    scenario = known()["tight memory: 4096"]
    planner = scenario.planner()
    plan = planner.plan()
    assert planner.fits(plan.placement)
    roomy = replace(
        scenario.profile,
        devices=tuple(replace(d, memory_bytes=None) for d in scenario.profile.devices),
    )
    wide = replace(scenario, profile=roomy).planner().plan()
    assert wide.value < plan.value
    assert not planner.fits(wide.placement)


def _run(factor: float, replanning: bool, jitter: float = 0.0, fixed: bool = False) -> Timeline:
    scenario = known()["balanced devices: 4096"]
    planner = scenario.planner()
    plan = planner.plan()
    placed = planner.costs.placed(scenario.graph, plan.placement)
    tasks = tuple(replace(task, fixed=fixed) for task in scenario.graph.tasks)
    return simulate(
        replace(scenario.graph, tasks=tasks),
        placed,
        ranks=plan.schedule.ranks,
        slow=[Slow("cpu", 300.0, factor)] if factor != 1 else [],
        jitter=jitter,
        seed=1,
        replanner=Replanner(planner.costs) if replanning else None,
    )


def busy_ms(timeline: Timeline) -> dict[str, float]:
    runs = timeline.runs
    return loads_ms([r.device for r in runs], [r.end_ms - r.begin_ms for r in runs])


def test_a_device_that_slows_down_is_noticed_and_planned_around() -> None:
    blind, seeing = _run(3.0, False), _run(3.0, True)
    assert seeing.makespan_ms < 0.75 * blind.makespan_ms
    assert "cpu takes" in seeing.events[0].text and "goes on on gpu" in seeing.events[0].text
    assert 300 < seeing.events[0].at_ms < 700, "after a few tasks"
    assert busy_ms(seeing)["gpu"] > busy_ms(blind)["gpu"]
    assert len(seeing.runs) == len(blind.runs) == len(known()["balanced devices: 4096"].graph.tasks)


def test_what_is_fixed_stays_on_a_device_that_slows_down() -> None:
    blind, fixed = _run(3.0, False), _run(3.0, True, fixed=True)
    assert fixed.runs == blind.runs
    assert "cpu takes" in fixed.events[0].text and "goes on" not in fixed.events[0].text


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["cpu", "gpu"]), st.floats(0, 900), st.floats(0.2, 8)), max_size=4
    ),
    st.floats(0, 0.5),
    st.integers(0, 99),
)
def test_whatever_devices_do_every_task_runs_once_and_in_order(
    changes: list[tuple[str, float, float]], jitter: float, seed: int
) -> None:
    scenario = known()["balanced devices: 1024"]
    planner, plan = scenario.planner(), found(scenario.name).plan
    placed = planner.costs.placed(scenario.graph, plan.placement)
    line = simulate(
        *(scenario.graph, placed),
        slow=[Slow(*change) for change in changes],
        jitter=jitter,
        seed=seed,
        replanner=Replanner(planner.costs),
    )
    ends = {run.task: run.end_ms for run in line.runs}
    assert sorted(run.task for run in line.runs) == list(range(len(scenario.graph.tasks)))
    free = {"cpu": 0.0, "gpu": 0.0}
    for run in line.runs:
        assert run.begin_ms >= free[run.device], "one at a time"
        free[run.device] = run.end_ms
        for edge in scenario.graph.tasks[run.task].after:
            assert run.begin_ms >= ends[edge.before]


def test_what_is_as_measured_is_left_alone() -> None:
    assert _run(1.0, True).events == ()
    assert _run(1.0, True) == _run(1.0, False)
    assert _run(1.0, True, jitter=0.05).events == (), "noise is no reason"
    assert _run(1.0, True, jitter=0.05) == _run(1.0, True, jitter=0.05), "a seed is a timeline"


def test_many_parts_are_searched_nearby_under_a_bound() -> None:
    """28 layers as 28 parts on three devices: 3^28 placements."""
    rows = {
        (f"decoder.{part}", device): {(128, 0): 3.0 * slow}
        for part in range(28)
        for device, slow in (("npu", 1.0), ("gpu", 2.0), ("cpu", 5.0))
    }
    sizes = Sizes((1,) * 28, (1,) * 28, 1, 64, 16, 32)
    graph = read_workload("prefill:tokens=1024").graph(sizes)
    plan = Planner(graph, Costs(invented(rows, (0.0, 0.0)))).plan()
    assert not plan.proven and len(plan.looked_at) > 20
    assert plan.bound <= plan.value <= 1.2 * plan.bound
    assert len(set(plan.placement.values())) == 3


def test_the_bench_prints_its_table() -> None:
    script = Path(__file__).parent / "bench" / "schedule.py"
    command = [sys.executable, str(script), "--only", "balanced devices: 128"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| balanced devices: 128 | 4 | 88.0 | 1.000 | 1.000 |" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["scenarios"][0]["ratio"] == 1.0


def test_noise_costs_little() -> None:
    for name in ("layers, NPU and CPU: 2048", "pictures, 4 of 9 views"):
        scenario = known()[name]
        planner, plan = scenario.planner(), found(name).plan
        placed = planner.costs.placed(scenario.graph, plan.placement)
        noisy = [
            simulate(
                *(
                    scenario.graph,
                    placed,
                    plan.limits,
                    plan.schedule.ranks,
                    plan.schedule.unlocking,
                ),
                jitter=0.1,
                seed=seed,
            ).makespan_ms
            for seed in range(5)
        ]
        assert max(noisy) <= 1.08 * plan.makespan_ms, name


def test_a_short_request_is_not_behind_a_long_one() -> None:
    """Layers of a prompt of 32 chunks and of one that came second and has one chunk."""
    graph = joined([layer_graph(4096, 128, 4), layer_graph(128, 128, 4)])
    costs = Costs(known()["layers, dear synchronisation: 2048"].profile)
    placed = costs.placed(graph, {"linear": "npu", "shadow": "cpu", "attention": "cpu"})
    first_come = [float(task.request) for task in graph.tasks]
    ends = []
    for lag_ms in (float("inf"), 50.0):
        limits = Limits(requests=2, caches=2, lag_ms=lag_ms)
        line = simulate(graph, placed, limits, first_come, unlocking=False)
        own = [run.end_ms for run in line.runs if graph.tasks[run.task].request == 1]
        ends.append((max(own), line.makespan_ms))
    (behind, whole), (fair, shared) = ends
    assert fair < 0.5 * behind
    assert shared < 1.05 * whole, "the long one pays for it, and little"


def test_the_same_words_give_the_same_plan() -> None:
    assert str(read_workload("screen:images=4")) == str(read_workload("screen: images=4,"))
    first, second = (known()["pictures, balanced"].planner().plan() for _ in range(2))
    assert first == second
