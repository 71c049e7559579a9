"""A short form of `make soak`: one judge, eight threads, good and bad files in any order."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from soak import Held, Soaked, soak  # noqa: E402


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_three_hundred_verdicts_from_eight_threads() -> None:
    found = soak(300, 8, pictures=16)
    assert found.broken() == []
    assert sum(found.outcomes.values()) == 300
    assert found.outcomes["failed"] > 100
    assert len(found.outcomes) >= 3, "safe, unsafe and failed ones at least"


def test_what_a_run_may_not_do_is_said() -> None:
    held = [Held(10, 100 << 20, 8, 9), Held(20, 121 << 20, 9, 9)]
    found = Soaked(20, 1.0, {"safe": 20}, held, changed=["a.png"], errors=["b.png was safe"])
    assert found.broken() == [
        "the answer for a.png changed",
        "b.png was safe",
        "memory grew by 21.0 MiB",
        "descriptors grew from 8 to 9",
    ]
