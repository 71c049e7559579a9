"""Packs hold every branch once, under a mask in which siblings do not see each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.runtime.packing import HIDDEN, causal, pack

branch_lists = st.lists(
    st.lists(st.integers(0, 99), min_size=1, max_size=12), min_size=1, max_size=12
)


@given(branch_lists, st.integers(0, 40), st.integers(0, 60), st.integers(1, 30))
def test_a_pass_is_its_branches_side_by_side(
    branches: list[list[int]], start: int, position: int, budget: int
) -> None:
    passes = pack(branches, start, position, budget)
    assert [m for p in passes for m in p.members] == list(range(len(branches)))
    for p in passes:
        assert len(p.ids) <= budget or len(p.members) == 1
        assert p.ids.tolist() == [t for m in p.members for t in branches[m]]
        assert p.positions.tolist() == [
            position + i for m in p.members for i in range(len(branches[m]))
        ]
        owner = np.repeat(p.members, [len(branches[m]) for m in p.members])
        assert (owner[p.ends] == p.members).all()
        assert p.ids[p.ends].tolist() == [branches[m][-1] for m in p.members]
        bias = p.bias[0, 0]
        assert bias.shape == (len(p.ids), start + len(p.ids))
        assert (bias[:, :start] == 0).all()
        for row in range(len(p.ids)):
            for column in range(len(p.ids)):
                expected = 0 if owner[row] == owner[column] else HIDDEN
                assert bias[row, start + column] == expected


def test_an_empty_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="branch 1 is empty"):
        pack([[1], []], 0, 0, 8)


def test_a_plain_chunk_hides_nothing() -> None:
    assert causal(3, 4).shape == (1, 1, 3, 7)
    assert not causal(3, 4).any()
