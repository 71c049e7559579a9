"""Views of a picture in groups, where the vision tower looks at each by itself.

Takes what a vision graph is fed with; gives the same a few views at a time: all at once take
several times the memory, and no less time. Knows no session.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import GraphRecord
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime.padded import NoGraph
from edgejudge.runtime.tree import HIDDEN, even_parts

__all__ = ["in_groups", "static_groups"]


def in_groups(
    graph: GraphRecord, feeds: Mapping[str, NDArray[Any]], spec: ModelSpec, most: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Groups of at most `most` patches, but of a view at least; everything together in families
    whose patches all meet.
    """
    names = [tensor.name for tensor in graph.inputs]
    if any(tensor.shape[0] != "V" for tensor in graph.inputs):
        yield {name: feeds[name] for name in names}
        return
    views = max(1, most // spec.vision.grid**2)
    for some in even_parts(len(feeds[names[0]]), views):
        yield {name: feeds[name][some] for name in names}


def static_groups(
    graphs: Sequence[GraphRecord], feeds: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[GraphRecord, dict[str, NDArray[Any]], NDArray[np.int64] | None]]:
    """The same for static graphs of several sizes: each with what it is fed, and which of the rows
    that it gives are visual tokens; None is all. Raises NoGraph for a picture above the largest.
    """
    if "pixel_values" in feeds:  # views, which are all of one size
        (graph,) = graphs
        for view in feeds["pixel_values"]:
            yield graph, {"pixel_values": view[None]}, None
        return
    slots = len(feeds["patches"])
    fitting = [graph for graph in graphs if (graph.tokens or 0) >= slots]
    if not fitting:
        raise NoGraph(f"no graph of this device takes a picture of {slots} patches")
    graph = min(fitting, key=lambda graph: graph.tokens or 0)
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in graph.inputs}
    padded = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for name in shapes.keys() - {"window_mask", "table_spread"}:
        padded[name][:slots] = feeds[name]
    if "table_spread" in padded:
        for rows, shares in zip(feeds["table_rows"].T, feeds["table_shares"].T, strict=True):
            np.add.at(padded["table_spread"], (np.arange(slots), rows), shares)
    mask = padded["window_mask"]
    mask[:] = HIDDEN
    if "window_mask" in feeds:
        mask[: len(feeds["window_mask"])][feeds["window_mask"] != 0] = 0
    else:
        mask[:, :slots] = 0
    wanted = feeds.get("tokens")
    if wanted is None:  # without windows, empty slots lie behind all others
        wanted = np.arange(slots * int(graph.outputs[0].shape[1]) // int(graph.tokens or 1))
    yield graph, padded, wanted
