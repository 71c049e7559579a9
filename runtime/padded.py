"""One pass of tokens through a device's graphs, whose caches and lengths are fixed or padded.

Takes hidden states, what all layers of the pass share, the shared cache and a device's copy of it;
gives hidden states and puts new keys and values into the shared cache. A pass that is longer than a
graph takes goes in pieces, each behind the rows of those before it. Does not know what a device is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import GraphRecord, PartRecord
from edgejudge.errors import ProviderError
from edgejudge.runtime.decoding import PassFeeds
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.replica import Replica
from edgejudge.runtime.trace import Trace
from edgejudge.runtime.tree import HIDDEN

__all__ = ["NoGraph", "Runner", "fitting", "run_padded", "typed"]

_STEP = 128  # rows that a cache of any length grows by, so that few shapes are compiled
_MOST = 1 << 30
_HALF_HIDDEN = np.float32(-3e4)  # what HIDDEN is where 16 bits are all there are
_MASKS = ("attention_bias", "window_mask")
_NO_NUMBERS = "gave values that are no numbers"
Runner = Callable[[GraphRecord, dict[str, NDArray[Any]]], list[NDArray[Any]]]


class NoGraph(ProviderError):
    """A pass is longer than any graph of a device takes; nothing is wrong with the device."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens `begin` to `end` of a pass, behind `rows` rows of the cache, and what runs them."""

    begin: int
    end: int
    rows: int
    graph: GraphRecord


def fitting(graphs: Sequence[GraphRecord], tokens: int, rows: int) -> GraphRecord:
    """The smallest graph for so many tokens behind so many rows. Raises NoGraph."""
    found = [
        graph
        for graph in graphs
        if (graph.tokens or _MOST) >= tokens and _room(graph, rows) >= rows
    ]
    if not found:
        raise NoGraph(
            f"no graph of this device takes {tokens} tokens behind {rows} rows of the cache; "
            "another one does that work"
        )
    return min(found, key=lambda graph: (graph.tokens or _MOST, _capacity(graph, rows)))


def _room(graph: GraphRecord, rows: int) -> int:
    """How many rows may lie before a pass, if there are `rows`."""
    found = _capacity(graph, rows)
    return found - (graph.tokens or 0) if _in_place(graph) else found


def _in_place(graph: GraphRecord) -> bool:
    """Whether new rows stand among a cache's own, as they do in a state, and not behind it."""
    return graph.kv is not None and graph.kv.layout == "state"


def _capacity(graph: GraphRecord, rows: int) -> int:
    if graph.kv is not None and graph.kv.length_buckets:
        return graph.kv.length_buckets[0]
    return -(-max(rows, 1) // _STEP) * _STEP


def run_padded(
    graphs: Sequence[GraphRecord],
    run: Runner,
    part: PartRecord,
    hidden: NDArray[np.float32],
    given: PassFeeds,
    cache: KvCache,
    replica: Replica,
    trace: Trace,
) -> NDArray[np.float32]:
    """As run_layers: hidden [1, S, D] through the part's layers, the cache's cursor stays. `graphs`
    are all that the device has of the part, `run` has one of them run.
    """
    most = max(graph.tokens or _MOST for graph in graphs)
    total, pieces, out = hidden.shape[1], [], []
    for begin in range(0, total, most):  # all of them, before the first one runs in vain
        end, rows = min(begin + most, total), given.begin + begin
        pieces.append(_Piece(begin, end, rows, fitting(graphs, end - begin, rows)))
    for piece in pieces:
        graph = piece.graph
        capacity = _capacity(graph, piece.rows)
        with trace.span("handover", part=part.index, rows=piece.rows - replica.valid):
            replica.bring(cache, piece.rows, capacity)
        feeds = _feeds(hidden, given, piece, capacity) | replica.feeds()
        found = dict(zip((o.name for o in graph.outputs), run(graph, feeds), strict=True))
        count = piece.end - piece.begin
        out.append(np.asarray(found["hidden_out"][:, :count], np.float32))
        with trace.span("handover", part=part.index, rows=count):
            finite = replica.give(found, cache, piece.rows, count)
        if not finite:  # the processor would meet them, long after
            raise ProviderError(f"{graph.file} {_NO_NUMBERS}")
    flow = out[0] if len(out) == 1 else np.concatenate(out, axis=1)
    if not np.isfinite(flow).all():
        raise ProviderError(f"{graphs[0].file} {_NO_NUMBERS}")
    return flow


def _feeds(
    hidden: NDArray[np.float32],
    given: PassFeeds,
    piece: _Piece,
    capacity: int,
) -> dict[str, NDArray[Any]]:
    """Padded to the graph's tokens: what stands for none sees itself alone."""
    count = piece.end - piece.begin
    tokens = piece.graph.tokens or count
    some = np.s_[piece.begin : piece.end]
    padded = {"hidden": _long(hidden[0, some], tokens)[None]}
    for name in ("rope_cos", "rope_sin"):
        padded[name] = _long(given.feeds[name][some], tokens)
    first, last = capacity, capacity + tokens  # columns of new rows
    if _in_place(piece.graph):
        first, last = piece.rows, piece.rows + tokens
    mask = np.full((1, 1, tokens, max(capacity, last)), HIDDEN, np.float32)
    bias = given.feeds["attention_bias"][:, :, some]
    mask[:, :, :count, : piece.rows] = bias[..., : piece.rows]
    own = mask[0, 0, :, first:last]
    own[:count, :count] = bias[0, 0, :, piece.rows : piece.rows + count]
    own[np.triu_indices(tokens, 1)] = HIDDEN  # kernels of the processor are causal by themselves
    own[range(count, tokens), range(count, tokens)] = 0.0
    lengths = {
        "seqlens_k": np.array([capacity + tokens - 1], np.int32),
        "total_sequence_length": np.array(capacity + tokens, np.int32),
        "begin": np.array([piece.rows], np.int32),
    }
    return {**padded, **lengths, "attention_bias": mask}


def _long(values: NDArray[np.float32], tokens: int) -> NDArray[np.float32]:
    """[S, ...] with zeros behind, [tokens, ...]"""
    missing = tokens - len(values)
    if not missing:
        return np.ascontiguousarray(values)
    return np.concatenate([values, np.zeros((missing, *values.shape[1:]), np.float32)])


def typed(graph: GraphRecord, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the graph takes of these, in the types that it takes."""
    out = {}
    for tensor in graph.inputs:
        value = feeds[tensor.name]
        if tensor.name in _MASKS and tensor.dtype == "float16":
            value = np.maximum(value, _HALF_HIDDEN)
        with np.errstate(over="ignore"):  # what became infinite is found in the results
            out[tensor.name] = np.require(value, tensor.dtype, "C")
    return out
