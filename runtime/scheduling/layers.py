"""A prompt's work at the grain of layers: integer matrices, attention, and what outliers need.

Takes how many layers and chunks there are and what goes along edges; gives a `TaskGraph` as Xu et
al. (llm.npu, ASPLOS 2025) schedule it. The engine's own grain is parts, which are runs of layers;
this one is for simulations.
"""

from edgejudge.runtime.scheduling.graph import Edge, Task, TaskGraph

__all__ = ["layer_graph"]


def layer_graph(
    tokens: int,
    chunk: int,
    layers: int,
    row_bytes: int = 0,
    shadow_every: int = 1,
    requests: int = 1,
) -> TaskGraph:
    """`attention` of a layer, norms included, needs what all chunks so far have given in the layer
    below; behind it come the layer's matrices in integers (`linear`) and beside them, in every
    n-th layer, the exact product of channels that tower over the others (`shadow`). `row_bytes` are
    those of a token's hidden state.
    """
    tasks: list[Task] = []
    for request in range(requests):
        done: dict[tuple[int, int], list[int]] = {}  # (chunk, layer) -> what gives its output
        for number, begin in enumerate(range(0, tokens, chunk)):
            some = min(chunk, tokens - begin)
            size = some * row_bytes
            for layer in range(layers):
                below = [
                    # Earlier chunks' keys and values came over with those chunks.
                    Edge(before, size if other == number else 0)
                    for other in range(number + 1)
                    for before in done.get((other, layer - 1), ())
                ]
                place = f"{number}.{layer}"
                first = len(tasks)
                kinds = ["linear"] + ["shadow"] * (layer % shadow_every == 0)
                tasks.append(
                    Task(
                        f"attention {place}",
                        "attention",
                        some,
                        begin,
                        tuple(below),
                        request,
                        number,
                    )
                )
                tasks += [
                    Task(f"{kind} {place}", kind, some, 0, (Edge(first, size),), request, number)
                    for kind in kinds
                ]
                done[number, layer] = list(range(first + 1, len(tasks)))
    return TaskGraph(tuple(tasks), {})
