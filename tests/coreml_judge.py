"""A judge over Core ML packages, run by the interpreter of mil_program.py.

Takes a bundle and the folder that `edgejudge coreml` wrote; encodes pictures, feeds prompts in
chunks and asks questions, packed or one by one, as an app would. Names, shapes and places come from
the manifest alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle, GraphRecord
from edgejudge.models.packing import Packing
from edgejudge.models.rope import rotation
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime.embeddings import Embeddings
from edgejudge.runtime.mlpackage import package_name
from edgejudge.runtime.views import static_groups
from mil_program import Package

__all__ = ["CoremlJudge"]

_LEAST = -3e4  # what 16 bits hold, and hides a key


class CoremlJudge:
    """`rows` of every part's state hold the tokens that were fed; a fork goes back to fewer."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle, self.folder = bundle, folder
        self.spec = ModelSpec.from_json(bundle.manifest.spec)
        self._packages: dict[str, Package] = {}
        self._embeddings = Embeddings.of(bundle, self.spec)
        self.states: list[dict[str, NDArray[Any]]] = []
        for part in bundle.manifest.parts:
            graph = self.graphs("decoder", part.index)[0]
            package = self.package(graph)
            self.states.append(package.new_state(graph.function))

    def graphs(self, stage: str, part: int | None = None) -> list[GraphRecord]:
        return [
            graph
            for graph in self.bundle.manifest.graphs
            if (graph.target, graph.stage, graph.part) == ("coreml", stage, part)
        ]

    def package(self, graph: GraphRecord) -> Package:
        name = package_name(graph)
        if name not in self._packages:
            self._packages[name] = Package(self.folder / name)
        return self._packages[name]

    def run(self, graph: GraphRecord, feeds: dict[str, Any], state: Any = None) -> NDArray[Any]:
        ready = {
            tensor.name: np.asarray(feeds[tensor.name]).astype(tensor.dtype)
            for tensor in graph.inputs
        }
        found = self.package(graph).run(graph.function, ready, state)
        return found[graph.outputs[0].name]

    def encode(self, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The vision graph's inputs -> visual tokens [N, W]."""
        some = []
        for graph, given, wanted in static_groups(self.graphs("vision"), feeds):
            if "window_mask" in given:
                given["window_mask"] = np.maximum(given["window_mask"], _LEAST)
            rows = self.run(graph, given).astype(np.float32)[0]
            some.append(rows if wanted is None else rows[wanted])
        found, packing = np.concatenate(some), Packing.of(feeds)
        if packing is None:
            return found
        return np.einsum("tk,tkd->td", packing.shares, found[packing.rows])

    def feed(
        self,
        hidden: NDArray[np.float32],
        positions: NDArray[np.int64],
        begin: int,
        bias: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """hidden [S, W] behind `begin` rows -> [S, D] behind the last part. `bias` [S, begin + S]
        says who sees whom; without it each token sees what lies before it.
        """
        total, out = len(hidden), []
        sizes = sorted(graph.tokens or 0 for graph in self.graphs("decoder", 0))
        done = 0
        while done < total:
            left = total - done
            size = next((s for s in sizes if s >= left), sizes[-1])
            count = min(size, left)
            out.append(self._pass(hidden, positions, begin, bias, done, count, size))
            done += count
        return np.concatenate(out)

    def _pass(
        self,
        hidden: NDArray[np.float32],
        positions: NDArray[np.int64],
        begin: int,
        bias: NDArray[np.float32] | None,
        done: int,
        count: int,
        size: int,
    ) -> NDArray[np.float32]:
        text, at = self.spec.text, begin + done
        cos, sin = (_long(w, size) for w in rotation(positions[..., done : done + count], text))
        flow = _long(hidden[done : done + count], size)[None]
        for part in self.bundle.manifest.parts:
            graph = next(g for g in self.graphs("decoder", part.index) if g.tokens == size)
            assert graph.kv is not None
            rows = graph.kv.length_buckets[0]
            mask = np.full((size, rows), _LEAST, np.float32)
            for token in range(count):
                if bias is None:
                    mask[token, : at + token + 1] = 0
                else:
                    seen = bias[done + token, : at + count]
                    mask[token, : len(seen)] = np.maximum(seen, _LEAST)
            mask[count:, at:] = 0  # of nobody's rows, whatever is a number
            feeds = {
                "hidden": flow,
                "rope_cos": cos,
                "rope_sin": sin,
                "attention_bias": mask[None, None],
                "begin": [at],
            }
            flow = self.run(graph, feeds, self.states[part.index]).astype(np.float32)
        return flow[0, :count]

    def prefill(
        self, ids: Sequence[int], visual: NDArray[np.float32] | None, positions: Any
    ) -> int:
        """Starts over with a prefix; gives the rope position behind it."""
        places = np.arange(len(ids)) if positions is None else positions
        self.feed(self._embeddings.rows(np.asarray(ids), visual), places, 0)
        self.length = len(ids)
        return int(places.max()) + 1

    def ask(self, branches: Sequence[Sequence[int]], position: int, packed: bool) -> NDArray[Any]:
        """Label logits [B, R] at the ends of questions behind the prefix."""
        groups = [list(branches)] if packed else [[branch] for branch in branches]
        ends = []
        for group in groups:
            ids = np.concatenate([np.asarray(b) for b in group])
            places = np.concatenate([position + np.arange(len(b)) for b in group])
            bias = np.full((len(ids), self.length + len(ids)), _LEAST, np.float32)
            bias[:, : self.length] = 0
            start = 0
            for branch in group:
                for token in range(len(branch)):
                    first = self.length + start
                    bias[start + token, first : first + token + 1] = 0
                start += len(branch)
            hidden = self.feed(self._embeddings.rows(ids), places, self.length, bias)
            ends.append(hidden[np.cumsum([len(b) for b in group]) - 1])
        (head,) = self.graphs("verdict_head")
        rows = np.concatenate(ends)
        given = _long(rows, head.tokens or 0)
        return self.run(head, {"hidden": given})[: len(rows)]


def _long(x: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    return np.pad(x, ((0, size - len(x)), (0, 0)))
