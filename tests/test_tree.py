"""Passes compute every node of a tree once, and each token sees its own ancestors alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.runtime.tree import HIDDEN, causal, plan_passes

# Few different tokens, so that branches begin alike, repeat and contain each other.
branch_lists = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12
)


def replay(
    branches: list[list[int]], start: int, position: int, budget: int
) -> tuple[dict[int, list[tuple[int, int]]], int]:
    """What each branch's last token sees, (token, position) by row, with a cache as the engine's;
    and how many tokens ran.
    """
    cache: list[tuple[int, int]] = []
    seen: dict[int, list[tuple[int, int]]] = {}
    ran = 0
    for step in plan_passes(branches, start, position, budget):
        size = len(step.ids)
        assert 0 < size <= budget
        assert step.kept <= len(cache)
        del cache[step.kept :]
        cache += zip(step.ids.tolist(), step.positions.tolist(), strict=True)
        assert step.bias.shape == (1, 1, size, start + len(cache))
        assert not step.bias[..., :start].any(), "the prefix is for all"
        assert set(np.unique(step.bias)) <= {np.float32(0), HIDDEN}
        for row, member in zip(step.ends.tolist(), step.members.tolist(), strict=True):
            last = step.kept + row
            open_rows = np.flatnonzero(step.bias[0, 0, row, start : start + last + 1] == 0)
            assert member not in seen, "a branch ends once"
            seen[member] = [cache[i] for i in open_rows]
        ran += size
    return seen, ran


@given(branch_lists, st.integers(0, 40), st.integers(0, 60), st.integers(1, 30))
def test_a_branch_sees_itself_in_order(
    branches: list[list[int]], start: int, position: int, budget: int
) -> None:
    seen, ran = replay(branches, start, position, budget)
    for index, branch in enumerate(branches):
        assert seen[index] == [(token, position + i) for i, token in enumerate(branch)]
    nodes = {tuple(b[: i + 1]) for b in branches for i in range(len(b))}
    assert ran == len(nodes), "every node runs once, whatever the budget"


@given(st.integers(1, 64), st.integers(1, 3))
def test_a_long_branch_is_cut(budget: int, copies: int) -> None:
    branch = [i % 7 for i in range(500)]
    seen, ran = replay([branch] * copies, 3, 9, budget)
    assert ran == 500 and len(seen) == copies
    assert [token for token, _ in seen[0]] == branch


def test_finished_siblings_leave_the_cache() -> None:
    """Branches of three tokens behind a shared one: a pass keeps the shared row alone."""
    branches = [[9, i, i, i] for i in range(1, 9)]
    passes = plan_passes(branches, 10, 10, 8)
    assert [(p.kept, len(p.ids)) for p in passes] == [(0, 7), (1, 6), (1, 6), (1, 6)]
    branches = [[9, 1], [9, *range(20, 40)], [9, 2], [9, 3, 3, 3], [9, 4, 4, 4]]
    # The long one is cut; when it has ended, its rows go.
    passes = plan_passes(branches, 10, 10, 8)
    assert [(p.kept, len(p.ids)) for p in passes] == [(0, 2), (1, 8), (9, 8), (17, 8), (1, 3)]


def test_an_empty_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="branch 1 is empty"):
        plan_passes([[1], []], 0, 0, 8)


def test_no_branches_are_no_passes() -> None:
    assert plan_passes([], 5, 5, 8) == []


def test_a_plain_chunk_hides_nothing() -> None:
    assert causal(3, 4).shape == (1, 1, 3, 7)
    assert not causal(3, 4).any()
