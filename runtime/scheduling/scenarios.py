"""Fixed scenarios from published costs, in which planner and dispatcher are measured.

Takes nothing; gives graphs and profiles, and how far a plan is from what is possible. What they
rest on, all of it on phones:

[N] Xu et al., llm.npu, ASPLOS 2025 (arXiv 2407.05858): [64 x 2048] x [2048 x 2048] takes an NPU
    0.9 ms in int8 and 252 in fp16, a CPU 4.2 in int8, a GPU 1.7 in fp16; matrices in groups of one
    scale cost an NPU 8.1 to 10.7 times as much; 256 tokens of Qwen1.5-1.8B (24 layers) take the NPU
    315 ms and the CPU about half of it beside; a graph is built in 360 ms and optimised in 11.54 s
    (Gemma-2B); a prompt of 512: 25, 37, 395 and 569 tokens/s with one thing added after another.
[A] Qualcomm AI Hub, Llama-3.2-3B w4a16 on Snapdragon 8 Elite: 88 ms for 128 tokens, 23.5 tokens/s.
[B] Lu et al., BlueLM-V-3B, 2024 (arXiv 2411.10640): nine views of a picture in 1.9 s, 196 tokens
    each, 2,048 tokens in 2.7 s by chunks of 128.

What they do not say is ours and marked so: how the CPU's half is divided, how attention grows, what
links cost, watts, and the same ratio between devices for all matrices.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgejudge.runtime.scheduling.bounds import critical_path_ms, linear_bound_ms
from edgejudge.runtime.scheduling.costs import HEADS, Costs
from edgejudge.runtime.scheduling.graph import TaskGraph
from edgejudge.runtime.scheduling.layers import layer_graph
from edgejudge.runtime.scheduling.limits import Limits
from edgejudge.runtime.scheduling.order import in_turn, makespan_ms
from edgejudge.runtime.scheduling.planner import Plan, Planner
from edgejudge.runtime.scheduling.profile import DeviceRecord, Link, Profile, Row
from edgejudge.runtime.scheduling.schedule import scheduled
from edgejudge.runtime.scheduling.workload import Sizes, read_workload

__all__ = ["PROMPTS", "Figures", "Scenario", "ablation", "figures", "invented", "scenarios"]

PROMPTS = (128, 256, 512, 1024, 2048, 4096)
_GPU, _CPU, _NPU_FLOAT = 1.7 / 0.9, 4.2 / 0.9, 252 / 0.9  # times the NPU's int8 [N]
_LINEAR_MS = 315 / 24  # of 256 tokens in a layer [N]
_ATTENTION_MS, _SHADOW_MS = 5.7, 5.0  # of 256 tokens in a layer (ours: 157 ms in all of them)
_GROWTH_MS = 1.0  # of attention with 256 tokens more before it (ours)
_KEPT = 7  # a layer in so many has its outliers beside it: 85 % are pruned [N]
_GROUPS = 10.7  # times as long as with one scale [N]
_PREPARED_MS = 360 + 11_540  # [N]
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    graph: TaskGraph
    profile: Profile
    limits: Limits | None = None

    def planner(self, objective: str = "latency") -> Planner:
        return Planner(self.graph, Costs(self.profile), objective, self.limits)


@dataclass(frozen=True, slots=True)
class Figures:
    """All in milliseconds. `relaxed` is the linear programme over placements, or the longest chain
    of quickest tasks; `bound` the least that any placement's busiest device or longest chain takes,
    moves included. The others have the plan's placement: strictly one task after another, devices
    at once but each in the graph's order; `single` the quickest device alone, heads aside.
    """

    plan: Plan
    relaxed: float
    bound: float
    one_by_one: float
    in_order: float
    single: float | None

    @property
    def ratio(self) -> float:
        return self.plan.makespan_ms / self.bound


def invented(
    rows: Mapping[tuple[str, str], Mapping[tuple[int, int], float]],
    links: tuple[float, float],
    memory: Mapping[str, int] | None = None,
    watts: Mapping[str, tuple[float, float]] | None = None,
    source: str = "published costs",
) -> Profile:
    """(unit, device) -> (tokens, past) -> milliseconds; every link costs the same."""
    names = list(dict.fromkeys(device for _, device in rows))
    devices = tuple(
        DeviceRecord(
            *(name, name, name, "0", (memory or {}).get(name)),
            *((watts or {}).get(name, (1.0, 0.0))),
            padded=False,
        )
        for name in names
    )
    measured = tuple(
        Row(unit, device, tokens, past, ms, 1)
        for (unit, device), shapes in rows.items()
        for (tokens, past), ms in shapes.items()
    )
    ways = tuple(Link(a, b, *links) for a in names for b in names if a != b)
    return Profile(1, source, "", {}, devices, measured, ways, ())


def scenarios() -> Iterator[Scenario]:
    yield from _by_layers()
    yield from _by_parts()
    yield from _pictures()


def _by_layers() -> Iterator[Scenario]:
    npu_cpu = {"npu": (1.0, _NPU_FLOAT / _CPU), "cpu": (_CPU, 1.0)}
    with_gpu = npu_cpu | {"gpu": (_GPU, 1.0)}  # attention as on the CPU [N]
    for tokens in PROMPTS[1:]:
        graph = layer_graph(tokens, 256, 24, 2048, _KEPT)
        profile = _layer_profile(npu_cpu, (0.05, 0.05))
        yield Scenario(f"layers, NPU and CPU: {tokens}", graph, profile)
    for tokens in (512, 2048):
        graph = layer_graph(tokens, 256, 24, 2048, 1)
        yield Scenario(f"layers, no outlier pruned: {tokens}", graph, profile)
        graph = layer_graph(tokens, 256, 24, 2048, _KEPT)
        three = _layer_profile(with_gpu, (0.05, 0.05))
        yield Scenario(f"layers, NPU, CPU, GPU: {tokens}", graph, three)
        graph = layer_graph(tokens, 128, 24, 2048, _KEPT)
        slow = _layer_profile(npu_cpu, (0.6, 1.0))
        yield Scenario(f"layers, dear synchronisation: {tokens}", graph, slow)


def _layer_profile(
    speeds: Mapping[str, tuple[float, float]], links: tuple[float, float]
) -> Profile:
    """`speeds`: times as long as the NPU for matrices, as the CPU for the rest."""
    rows: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for device, (matrix, rest) in speeds.items():
        rows["linear", device] = {(256, 0): _LINEAR_MS * matrix, (128, 0): _LINEAR_MS * matrix / 2}
        rows["shadow", device] = {(256, 0): _SHADOW_MS * rest, (128, 0): _SHADOW_MS * rest / 2}
        rows["attention", device] = {
            (tokens, past): (_ATTENTION_MS + _GROWTH_MS * past / 256) * tokens / 256 * rest
            for tokens in (128, 256)
            for past in (0, 4096)
        }
    return invented(rows, links)


def _sizes(parts: int, chunk: int = 128) -> Sizes:
    """A 3B model in 4 bits, 28 layers of 3,072 [A], with the views of [B]."""
    return Sizes(
        *((28 // parts,) * parts, (1800 * _MIB // parts,) * parts, 450 * _MIB),
        *(3072, 2 * 8 * 128, 196),
        chunk=chunk,
        pack_tokens=chunk,
    )


def _parts(
    parts: int,
    speeds: Mapping[str, float],
    links: tuple[float, float] = (0.3, 0.15),
    memory: Mapping[str, int] | None = None,
    chunk_ms: float = 88.0,
    watts: Mapping[str, tuple[float, float]] | None = None,
    vision_ms: float = 1900 / 9,
) -> Profile:
    """128 tokens in `chunk_ms` and one in half of it [A]; a quarter more behind 4,096 (ours)."""
    rows: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for device, speed in speeds.items():
        for part in range(parts):
            rows[f"decoder.{part}", device] = {
                (tokens, past): share * chunk_ms / parts * speed * (1 + past / 16_384)
                for tokens, share in ((1, 43 / 88), (128, 1.0))
                for past in (0, 4096)
            }
        rows["vision", device] = {(1, 0): vision_ms * speed}
    return invented(rows, links, memory, watts)


_WATTS = {"npu": (2.0, 0.1), "gpu": (4.5, 0.2), "cpu": (6.0, 0.4)}  # ours


def _by_parts() -> Iterator[Scenario]:
    balanced = {"gpu": 1.0, "cpu": 1.0}
    for tokens in PROMPTS:
        graph = read_workload(f"prefill:tokens={tokens}").graph(_sizes(4))
        yield Scenario(f"balanced devices: {tokens}", graph, _parts(4, balanced))
    for tokens in (512, 4096):
        graph = read_workload(f"prefill:tokens={tokens}").graph(_sizes(4))
        yield Scenario(f"slow link: {tokens}", graph, _parts(4, balanced, (8.0, 4.0)))
        graph = read_workload(f"prefill:tokens={tokens}").graph(_sizes(7))
        three = {"npu": 1.0, "gpu": _GPU, "cpu": _CPU}
        tight = {"npu": 800 * _MIB, "gpu": 600 * _MIB}
        yield Scenario(f"tight memory: {tokens}", graph, _parts(7, three, memory=tight))
        graph = read_workload(f"prefill:tokens={tokens},requests=4").graph(_sizes(4))
        yield Scenario(f"four prompts, three devices: {tokens}", graph, _parts(4, three))
    graph = read_workload("decode:tokens=32,past=512").graph(_sizes(4))
    yield Scenario("text, a token at a time: 512", graph, _parts(4, {"npu": 1.0, "cpu": 1.2}))


def _pictures() -> Iterator[Scenario]:
    three = {"npu": 1.0, "gpu": _GPU, "cpu": _CPU}
    for images, crops, parts in ((1, 9, 4), (4, 9, 4), (8, 1, 2)):
        words = f"screen:images={images},crops={crops},rules=20"
        graph = read_workload(words).graph(_sizes(parts))
        profile = _parts(parts, three, chunk_ms=2700 / 16, watts=_WATTS)
        yield Scenario(f"pictures, {images} of {crops} views", graph, profile)
    graph = read_workload("screen:images=4,crops=4,rules=12").graph(_sizes(2))
    yield Scenario("pictures, balanced", graph, _parts(2, {"gpu": 1.0, "cpu": 1.0}))


def figures(scenario: Scenario) -> Figures:
    planner = scenario.planner()
    plan = planner.plan()
    graph, costs = scenario.graph, planner.costs
    after = graph.after()
    works = costs.works(graph)
    placed = costs.placed(graph, plan.placement)
    turns = in_turn(after, placed.devices, placed.ms)
    alone = []
    for device in costs.devices:
        where = {unit: device if device in own else next(iter(own)) for unit, own in works.items()}
        others = {unit for unit, chosen in where.items() if chosen != device}
        if others <= set(HEADS) and planner.fits(where):
            alone.append(sum(costs.placed(graph, where).ms))
    return Figures(
        plan,
        max(linear_bound_ms(works), critical_path_ms(after, costs.quickest_ms(graph))),
        plan.bound,
        sum(placed.ms),
        makespan_ms(turns, placed.ms),
        min(alone, default=None),
    )


def ablation(tokens: int = 512) -> list[tuple[str, float, float | None]]:
    """(what was added, tokens/s here, tokens/s published) for Qwen1.5-1.8B with chunks of 256 [N];
    None where nothing was published for the length.
    """
    graph = layer_graph(tokens, 256, 24, 2048, _KEPT)
    where = {"linear": "npu", "attention": "cpu", "shadow": "cpu"}
    costs = Costs(_layer_profile({"npu": (1.0, 60.0), "cpu": (_CPU, 1.0)}, (0.05, 0.05)))
    exact = costs.placed(graph, where)
    turns = in_turn(graph.after(), exact.devices, exact.ms)
    naive = makespan_ms(turns, exact.ms)
    best = scheduled(graph, exact)
    grouped = sum(
        ms * (_GROUPS if task.unit == "linear" else 1.0)
        for task, ms in zip(graph.tasks, exact.ms, strict=True)
        if task.unit != "shadow"
    )
    steps = (
        ("NPU, a graph for each prompt, scales in groups", grouped + _PREPARED_MS, 25.0),
        ("chunks that share their graphs", grouped, 37.0),
        ("outliers beside one scale, in order", naive, 395.0),
        ("out of order", best.makespan_ms, 569.0),
    )
    return [
        (name, 1e3 * tokens / ms, published if tokens == 512 else None)
        for name, ms, published in steps
    ]
