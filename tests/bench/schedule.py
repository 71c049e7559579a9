"""Plans against what is possible, in fixed scenarios from published costs: `make bench-schedule`.

Takes nothing; plans and simulates every scenario, and prints how long each plan is beside a lower
bound, and beside devices in order and alone. All of that is arithmetic and the same everywhere; the
last lines, how long planning, dispatching and handing over took, are measured here. One JSON line
ends it.
"""

import argparse
import json
import statistics
import sys
import time

from edgejudge.runtime.executor import Executor, Step
from edgejudge.runtime.scheduling.costs import Costs
from edgejudge.runtime.scheduling.dispatch import Dispatcher
from edgejudge.runtime.scheduling.exact import MOST_TASKS, optimal_placement_ms
from edgejudge.runtime.scheduling.graph import Edge, Task
from edgejudge.runtime.scheduling.scenarios import Scenario, ablation, figures, scenarios
from edgejudge.runtime.settings import processor

ROUNDS = 5
STEPS = 300


def overhead_us(scenario: Scenario) -> float:
    """Of a task, in the dispatcher: submitted, chosen and told to have ended; no clock runs."""
    planner = scenario.planner()
    plan = planner.plan()
    placed = planner.costs.placed(scenario.graph, plan.placement)
    devices = tuple(dict.fromkeys(placed.devices))
    took = []
    for _ in range(ROUNDS):
        dispatcher = Dispatcher()
        began = time.perf_counter()
        dispatcher.submit(scenario.graph, placed.devices, placed.ms, plan.schedule.ranks)
        while not dispatcher.done:
            for device in devices:
                number = dispatcher.next_for(device)
                if number is not None:
                    dispatcher.finished(number)
        took.append((time.perf_counter() - began) * 1e6 / len(scenario.graph.tasks))
    return statistics.median(took)


def executor_us(devices: int) -> float:
    """Of a step that does nothing, in the executor: chains over so many devices, each waiting for
    the one before it on another device.
    """
    names = [f"device {i}" for i in range(devices)]
    steps = [
        Step(
            Task(str(i), "u", 1, after=(Edge(i - 1),) if i else ()), _nothing, names[i % devices], 1
        )
        for i in range(STEPS)
    ]
    executor, times = Executor(), []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        executor.run(steps)
        times.append((time.perf_counter() - began) / STEPS * 1e6)
    return statistics.median(times)


def _nothing(_: str) -> None:
    """A step's work."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="scenarios whose names have this in them")
    args = parser.parse_args()
    chosen = [s for s in scenarios() if args.only in s.name]
    head = ("scenario", "tasks", "ms", "of bound", "of optimum", "of relaxed")
    print(f"| {' | '.join(head)} | in order | one by one | alone | s |")
    print("|---" * 10 + "|")
    rows, plan_s = [], []
    for scenario in chosen:
        began = time.perf_counter()
        scenario.planner().plan()
        plan_s.append(time.perf_counter() - began)
        found = figures(scenario)
        ms = found.plan.makespan_ms
        others = [found.in_order, found.one_by_one, found.single]
        cells = [f"{other / ms:.2f}" if other else "-" for other in others]
        exactly = "" if found.plan.proven else " (not all placements)"
        best = "-"
        if len(scenario.graph.tasks) <= MOST_TASKS:
            optimum, _ = optimal_placement_ms(scenario.graph, Costs(scenario.profile))
            best = f"{ms / optimum:.3f}"
        ratios = [f"{found.ratio:.3f}{exactly}", best, f"{ms / found.relaxed:.3f}"]
        cells = [scenario.name, str(len(scenario.graph.tasks)), f"{ms:.1f}", *ratios, *cells]
        print(f"| {' | '.join(cells)} | {plan_s[-1]:.2f} |", flush=True)
        row = {"scenario": scenario.name, "tasks": len(scenario.graph.tasks), "makespan_ms": ms}
        row |= {"bound_ms": found.bound, "relaxed_ms": found.relaxed, "ratio": found.ratio}
        row |= {"in_order_ms": found.in_order, "one_by_one_ms": found.one_by_one}
        rows.append(row | {"alone_ms": found.single, "proven": found.plan.proven})
    worst = max(rows, key=lambda row: row["ratio"])
    print(f"\nworst: {worst['ratio']:.3f} of the bound, {worst['scenario']}")
    print("\n| Qwen1.5-1.8B, 512 tokens | tokens/s here | published |\n|---|---|---|")
    for name, here, published in ablation():
        print(f"| {name} | {here:.0f} | {published:.0f} |")
    largest = max(chosen, key=lambda s: len(s.graph.tasks))
    us = overhead_us(largest)
    print(f"\nplans took {statistics.median(plan_s):.2f} s, at most {max(plan_s):.2f} s")
    print(f"the dispatcher took {us:.1f} us a task, of {len(largest.graph.tasks)} tasks")
    handed = {devices: round(executor_us(devices), 1) for devices in (1, 2, 3)}
    print(
        f"the executor took {handed[1]} us a step on one device, {handed[2]} and {handed[3]} where "
        "each hands over to another one, of 2 and of 3"
    )
    print(f"{processor()}, Python {sys.version.split()[0]}")
    document = {
        "scenarios": rows,
        "ablation": ablation(),
        "dispatch_us": us,
        "plan_s": plan_s,
        "executor_us": handed,
    }
    print(json.dumps(document, sort_keys=True))


if __name__ == "__main__":
    main()
