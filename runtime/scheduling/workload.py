"""A workload as a task graph: what a judge does for pictures, a prompt or a text.

Takes words like `screen:rules=12,images=4` and the sizes of a bundle; gives a `TaskGraph`. Knows no
device and no cost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from edgejudge.bundle import Bundle
from edgejudge.errors import InputError
from edgejudge.models.prompt import screen_ids
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.scheduling.graph import Edge, Task, TaskGraph, joined
from edgejudge.runtime.settings import Settings
from edgejudge.runtime.tree import even_parts

__all__ = ["KINDS", "Sizes", "Workload", "read_counts", "read_workload", "view_tokens"]

_MOST = 1 << 16  # of any number in a workload
_MOST_TASKS = 20_000
_VIEW_TOKENS = 256  # of a picture whose own grid decides: 448 pixels square in most families


@dataclass(frozen=True, slots=True)
class Sizes:
    """What of a bundle makes tasks long and edges heavy. A view of a picture gives `view_tokens`;
    `kv_bytes` are those of a token in one layer.
    """

    layers: tuple[int, ...]  # of each part
    part_bytes: tuple[int, ...]
    vision_bytes: int
    hidden: int
    kv_bytes: int
    view_tokens: int
    chunk: int = 128
    pack_tokens: int = 512

    @classmethod
    def of(cls, bundle: Bundle, settings: Settings) -> Self:
        manifest = bundle.manifest
        spec = ModelSpec.from_json(manifest.spec)
        kv = bundle.graph("cpu", "decoder", 0).kv
        assert kv is not None, "a decoder graph has a cache"
        sizes = {file.name: file.bytes for file in manifest.files}
        vision = {
            name
            for graph in manifest.graphs
            if (graph.target, graph.stage) == ("cpu", "vision")
            for name in (graph.file, *graph.weight_files)
        }
        shared = {
            name
            for graph in manifest.graphs
            if graph.stage != "vision"
            for name in graph.weight_files
        }
        return cls(
            tuple(part.last_layer - part.first_layer + 1 for part in manifest.parts),
            tuple(part.weight_bytes for part in manifest.parts),
            sum(sizes.get(name, 0) for name in vision - shared),
            spec.text.hidden,
            KvCache.of(kv, 1).row_bytes,
            view_tokens(spec),
            chunk=settings.chunk,
            pack_tokens=settings.pack_tokens,
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """`counts` has every number of its kind, the defaults among them."""

    kind: str
    counts: dict[str, int]

    def __str__(self) -> str:
        return f"{self.kind}:" + ",".join(f"{name}={n}" for name, n in self.counts.items())

    def on(self, bundle: Bundle) -> "Workload":
        """With the crops that a picture which fills a screen has there, where nothing is said."""
        if self.counts.get("crops") != 0:
            return self
        visual = screen_ids(bundle).count(bundle.manifest.tokens.image)
        view = view_tokens(ModelSpec.from_json(bundle.manifest.spec))
        return Workload(self.kind, self.counts | {"crops": max(1, round(visual / view))})

    def graph(self, sizes: Sizes) -> TaskGraph:
        """Raises ValueError where crops were left to a bundle and none was asked."""
        if self.counts.get("crops") == 0:
            raise ValueError(f"{self}: how many crops is up to a bundle; take the workload on one")
        make, _ = KINDS[self.kind]
        return make(sizes, self.counts)


def read_workload(text: str) -> Workload:
    """`KIND[:NAME=N,...]`. Raises InputError, which names what there is."""
    return Workload(*read_counts(text, {name: usual for name, (_, usual) in KINDS.items()}))


def read_counts(text: str, kinds: Mapping[str, dict[str, int]]) -> tuple[str, dict[str, int]]:
    """As `read_workload`, of these kinds and their usual numbers: which one, and all its
    numbers.
    """
    kind, _, rest = text.partition(":")
    if kind not in kinds:
        known = "; ".join(
            f"{name}:" + ",".join(f"{key}={n}" for key, n in usual.items())
            for name, usual in kinds.items()
        )
        raise InputError("workload", f"there is no workload {kind!r}; those known are {known}")
    counts = dict(kinds[kind])
    for item in filter(None, (piece.strip() for piece in rest.split(","))):
        name, equals, number = item.partition("=")
        if name not in counts:
            raise InputError(
                "workload", f"{kind} has no {name!r}; it has {', '.join(counts)}: {kind}:{name}=N"
            )
        if not equals or not number.isdecimal() or not 1 <= int(number[:9]) <= _MOST:
            raise InputError(
                "workload", f"{kind}:{name} is {number!r}, expected a number from 1 to {_MOST}"
            )
        counts[name] = int(number)
    return kind, counts


@dataclass(slots=True)
class _Request:
    """The tasks of one request as they come."""

    sizes: Sizes
    tasks: list[Task]

    def vision(self, crops: int) -> list[int]:
        """A view at a time, so that a prompt may begin with the first ones."""
        found = []
        for crop in range(crops):
            self.tasks.append(Task(f"view {crop}", "vision", 1, chunk=0))
            found.append(len(self.tasks) - 1)
        return found

    def passes(
        self, name: str, runs: list[tuple[int, int, list[Edge]]], last: list[int] | None = None
    ) -> list[int]:
        """(tokens, past, what the first part takes) through every part, each after the one before
        it in the same part, whose keys and values it needs; gives each part's last task.
        """
        sizes = self.sizes
        chunk = self.tasks[-1].chunk + 1 if last else 0
        for number, (tokens, past, taken) in enumerate(runs):
            ends: list[int] = []
            for part, layers in enumerate(sizes.layers):
                edges = [Edge(ends[-1], tokens * sizes.hidden * 4)] if ends else list(taken)
                if last is not None:
                    edges.append(Edge(last[part], past * sizes.kv_bytes * layers))
                unit, where = f"decoder.{part}", chunk + number
                shape = (tokens, past, tuple(edges))
                self.tasks.append(
                    Task(f"{name} {number} {unit}", unit, *shape, chunk=where, cached=True)
                )
                ends.append(len(self.tasks) - 1)
            last = ends
        return last or []

    def head(self, unit: str, rows: int, after: int) -> None:
        edge = Edge(after, rows * self.sizes.hidden * 4)
        chunk = self.tasks[-1].chunk
        self.tasks.append(Task(unit, unit, rows, after=(edge,), chunk=chunk))

    def times(self, requests: int) -> TaskGraph:
        """So many of the request. A device that has a part holds its weights, and keys and values
        of the longest pass.
        """
        sizes = self.sizes
        rows = max(task.past + task.tokens for task in self.tasks if task.cached)
        held = {"vision": sizes.vision_bytes}
        for part, (weights, layers) in enumerate(zip(sizes.part_bytes, sizes.layers, strict=True)):
            held[f"decoder.{part}"] = weights + rows * sizes.kv_bytes * layers
        return joined([TaskGraph(tuple(self.tasks), held)] * requests)


def _screen(sizes: Sizes, counts: dict[str, int]) -> TaskGraph:
    """A picture's views, the prompt that they stand in, and questions packed behind it."""
    crops, view = counts["crops"], sizes.view_tokens
    tokens = crops * view + counts["prompt_tokens"]
    asked = counts["rules"] * counts["rule_tokens"]
    _few(counts["images"] * (crops + len(sizes.layers) * (tokens // sizes.chunk + 2)))
    request = _Request(sizes, [])
    views = request.vision(crops)
    runs = []
    for some in even_parts(tokens, sizes.chunk):
        needed = [v for v in views if some.start < (v + 1) * view and v * view < some.stop]
        taken = [Edge(v, view * sizes.hidden * 4) for v in needed]
        runs.append((some.stop - some.start, some.start, taken))
    last = request.passes("chunk", runs)
    packs: list[tuple[int, int, list[Edge]]] = [
        (some.stop - some.start, tokens, []) for some in even_parts(asked, sizes.pack_tokens)
    ]
    last = request.passes("questions", packs, last)
    request.head("verdict_head", counts["rules"], last[-1])
    return request.times(counts["images"])


def _prefill(sizes: Sizes, counts: dict[str, int]) -> TaskGraph:
    request = _Request(sizes, [])
    _few(counts["requests"] * len(sizes.layers) * (counts["tokens"] // sizes.chunk + 1))
    runs: list[tuple[int, int, list[Edge]]] = [
        (some.stop - some.start, some.start, [])
        for some in even_parts(counts["tokens"], sizes.chunk)
    ]
    request.passes("chunk", runs)
    return request.times(counts["requests"])


def _decode(sizes: Sizes, counts: dict[str, int]) -> TaskGraph:
    """A token at a time, each after the LM head of the one before."""
    _few(counts["requests"] * counts["tokens"] * (len(sizes.layers) + 1))
    request = _Request(sizes, [])
    last: list[int] | None = None
    for step in range(counts["tokens"]):
        taken = [] if last is None else [Edge(len(request.tasks) - 1, 4)]
        last = request.passes(f"token {step}", [(1, counts["past"] + step, taken)], last)
        request.head("lm_head", 1, last[-1])
    return request.times(counts["requests"])


def view_tokens(spec: ModelSpec) -> int:
    """Visual tokens of what counts as one view."""
    return spec.visual_tokens or _VIEW_TOKENS


def _few(tasks: int) -> None:
    if tasks > _MOST_TASKS:
        raise InputError(
            "workload",
            f"the workload has about {tasks} tasks, at most {_MOST_TASKS} are planned; "
            "ask for fewer images, requests or tokens",
        )


_Maker = Callable[[Sizes, dict[str, int]], TaskGraph]
# Name -> how its graph is made, and its numbers where nothing else is said; 0 is the bundle's own.
KINDS: dict[str, tuple[_Maker, dict[str, int]]] = {
    "screen": (
        _screen,
        {"rules": 12, "images": 1, "crops": 0, "prompt_tokens": 16, "rule_tokens": 24},
    ),
    "prefill": (_prefill, {"tokens": 512, "requests": 1}),
    "decode": (_decode, {"tokens": 64, "past": 512, "requests": 1}),
}
