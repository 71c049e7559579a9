"""Many questions over one prefix as a tree of tokens, cut into passes.

Takes the questions' token ids and a token budget; gives passes with rope positions and an attention
bias under which a token sees the prefix, its own ancestors and nothing else. What questions begin
with in common is computed once. Does not know what tokens mean, sessions or caches.

Tree masks over one sequence: Miao et al., SpecInfer, 2023 (there to verify drafts); prefix sharing
by a block mask: Juravsky et al., Hydragen, 2024.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["HIDDEN", "Pass", "causal", "even_parts", "plan_passes"]

# Added to a score that must not count. exp() of it is exactly 0 in fp32, and unlike -inf it
# survives a row of nothing else.
HIDDEN = np.float32(-1e9)


@dataclass(frozen=True, slots=True)
class Pass:
    """S tokens that run together behind the prefix and `kept` rows of earlier passes.

    `ids` int64 [S], `positions` int64 [S], `bias` f32 [1, 1, S, prefix + kept + S]; `ends` int64
    [E] are rows of the pass, `members` [E] the branch that ends at each.
    """

    kept: int
    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    bias: NDArray[np.float32]
    ends: NDArray[np.int64]
    members: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Tree:
    """Nodes in depth-first order, one token each: a node's descendants follow it up to `stop`."""

    ids: NDArray[np.int64]
    depths: NDArray[np.int64]
    parents: NDArray[np.int64]  # -1 for a first token
    stops: NDArray[np.int64]
    ends: NDArray[np.int64]  # branch -> the node of its last token


def plan_passes(
    branches: Sequence[Sequence[int]], start: int, position: int, budget: int
) -> list[Pass]:
    """Passes of at most `budget` tokens that compute every node of the branches' tree once.

    `start` is the number of cached prefix tokens, `position` the rope position that every branch
    begins at; the two differ in families whose image positions are not counted one by one.
    """
    tree = _tree(branches)
    order = np.argsort(tree.ends, kind="stable")  # branches by where they end
    ends = tree.ends[order]
    passes = []
    rows = np.zeros(0, np.int64)  # the node in each row behind the prefix
    stop = 0
    while stop < len(tree.ids):
        first, stop = stop, _cut(tree, stop, budget)
        nodes = np.arange(first, stop)
        rows = rows[: _needed(tree, rows, first)]
        kept = len(rows)
        rows = np.concatenate([rows, nodes])
        bias = causal(len(nodes), start + kept)
        sees = (rows <= nodes[:, None]) & (nodes[:, None] < tree.stops[rows])
        bias[0, 0, :, start:][~sees] = HIDDEN
        here = slice(*np.searchsorted(ends, [first, stop]))
        passes.append(
            Pass(
                kept,
                tree.ids[nodes],
                position + tree.depths[nodes],
                bias,
                ends[here] - first,
                order[here],
            )
        )
    return passes


def causal(tokens: int, start: int) -> NDArray[np.float32]:
    """Bias of a plain chunk: the kernel is causal itself, nothing more is hidden. [1, 1, S, start +
    S]
    """
    return np.zeros((1, 1, tokens, start + tokens), np.float32)


def _cut(tree: _Tree, first: int, budget: int) -> int:
    """Where the pass that begins at `first` stops: the last place within the budget where a branch
    has ended. Only a branch longer than the budget is cut within, since what ran before it in the
    same pass would have to stay in the cache as long as it goes on.
    """
    last = min(first + budget, len(tree.ids))
    if last == len(tree.ids):
        return last
    nodes = np.arange(first + 1, last + 1)
    fresh = nodes[tree.parents[nodes] != nodes - 1]
    return int(fresh[-1]) if len(fresh) else last


def _needed(tree: _Tree, rows: NDArray[np.int64], node: int) -> int:
    """How many cached rows to keep for a pass that begins at `node`: up to its parent's.

    In depth-first order every ancestor of a later token that is not of the pass itself is an
    ancestor of the pass's first token.
    """
    parent = tree.parents[node]
    return 0 if parent < 0 else int(np.flatnonzero(rows == parent)[0]) + 1


def _tree(branches: Sequence[Sequence[int]]) -> _Tree:
    """Branches with a common beginning share its nodes; equal branches share their end."""
    children: list[dict[int, int]] = [{}]  # of the root, then of each node as it was first met
    tokens = [-1]
    met = []
    for index, branch in enumerate(branches):
        if not len(branch):
            raise ValueError(f"branch {index} is empty; a question has at least one token")
        node = 0
        for token in branch:
            following = children[node].get(token)
            if following is None:
                following = children[node][token] = len(tokens)
                tokens.append(token)
                children.append({})
            node = following
        met.append(node)
    place = np.zeros(len(tokens), np.int64)  # node as met -> its place in depth-first order
    ids, depths, parents, stops = (np.zeros(len(tokens) - 1, np.int64) for _ in range(4))
    count = 0
    todo = [(node, -1, 0, False) for node in reversed(children[0].values())]
    while todo:
        node, parent, depth, left = todo.pop()
        if left:
            stops[place[node]] = count
            continue
        at = place[node] = count
        count += 1
        ids[at], depths[at], parents[at] = tokens[node], depth, parent
        todo.append((node, parent, depth, True))
        todo += [(child, at, depth + 1, False) for child in reversed(children[node].values())]
    return _Tree(ids, depths, parents, stops, place[met] if met else np.zeros(0, np.int64))


def even_parts(count: int, most: int) -> Iterator[slice]:
    """As few runs as hold `most` each, none much shorter than the others: a short pass reads all
    weights too.
    """
    parts = -(-count // most)
    for index in range(parts):
        yield slice(count * index // parts, count * (index + 1) // parts)
