"""Views of a picture in groups, where the vision tower looks at each by itself.

Takes what a vision graph is fed with; gives the same a few views at a time: all at once take
several times the memory, and no less time. Knows no session.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from edgejudge.bundle import GraphRecord
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime.tree import even_parts

__all__ = ["in_groups"]


def in_groups(
    graph: GraphRecord, feeds: Mapping[str, NDArray[Any]], spec: ModelSpec, most: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Groups of at most `most` patches, but of a view at least; as many views as a static graph
    takes; everything together in families whose patches all meet.
    """
    names = [tensor.name for tensor in graph.inputs]
    if graph.tokens is not None:
        most = graph.tokens * spec.vision.grid**2
    elif any(tensor.shape[0] != "V" for tensor in graph.inputs):
        yield {name: feeds[name] for name in names}
        return
    views = max(1, most // spec.vision.grid**2)
    for some in even_parts(len(feeds[names[0]]), views):
        yield {name: feeds[name][some] for name in names}
