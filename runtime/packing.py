"""Many short branches over one prefix, cut into passes.

Takes branch lengths and a token budget; gives passes with rope positions and an attention bias
under which a branch sees the prefix and itself, never a sibling. Does not know tokens' meaning,
sessions or caches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["HIDDEN", "Pass", "causal", "pack"]

# Added to a score that must not count. exp() of it is exactly 0 in fp32, and unlike -inf it
# survives a row of nothing else.
HIDDEN = np.float32(-1e9)


@dataclass(frozen=True, slots=True)
class Pass:
    """S tokens that run together. T = start + S keys are seen.

    `members` are indices of the branches in it, `ids` int64 [S], `positions` int64 [S], `bias` f32
    [1, 1, S, T], `ends` int64 [len(members)] the row of each branch's last token.
    """

    members: tuple[int, ...]
    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    bias: NDArray[np.float32]
    ends: NDArray[np.int64]


def pack(branches: Sequence[Sequence[int]], start: int, position: int, budget: int) -> list[Pass]:
    """Passes of at most `budget` tokens (a longer branch has a pass of its own), branches kept in
    order.

    `start` is the number of cached prefix tokens, `position` the rope position that every branch
    begins at; the two differ in families whose image positions are not counted one by one.
    """
    passes: list[Pass] = []
    group: list[int] = []
    used = 0
    for index, branch in enumerate(branches):
        if not branch:
            raise ValueError(f"branch {index} is empty; a question has at least one token")
        if group and used + len(branch) > budget:
            passes.append(_pass(branches, group, start, position))
            group, used = [], 0
        group.append(index)
        used += len(branch)
    if group:
        passes.append(_pass(branches, group, start, position))
    return passes


def causal(tokens: int, start: int) -> NDArray[np.float32]:
    """Bias of a plain chunk: the kernel is causal itself, nothing more is hidden. [1, 1, S, start +
    S]
    """
    return np.zeros((1, 1, tokens, start + tokens), np.float32)


def _pass(branches: Sequence[Sequence[int]], group: list[int], start: int, position: int) -> Pass:
    lengths = np.array([len(branches[i]) for i in group])
    ids = np.concatenate([np.asarray(branches[i], np.int64) for i in group])
    owner = np.repeat(np.arange(len(group)), lengths)  # [S] which branch a token belongs to
    first = np.cumsum(lengths) - lengths
    positions = position + np.arange(len(ids)) - first[owner]
    bias = causal(len(ids), start)
    bias[0, 0, :, start:][owner[:, None] != owner[None, :]] = HIDDEN
    return Pass(tuple(group), ids, positions.astype(np.int64), bias, np.cumsum(lengths) - 1)
