"""One pass of tokens through one graph of decoder layers, keys and values in place.

Takes a session, hidden states, what all layers of the pass share and a cache; gives hidden states.
Does not know which pass this is, or what its tokens mean.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import PartRecord
from edgejudge.errors import InputError
from edgejudge.models.rope import rotation
from edgejudge.models.spec import TextSpec
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.session import Session

__all__ = ["PassFeeds", "check_positions", "run_layers"]


@dataclass(frozen=True, slots=True)
class PassFeeds:
    """What every layer of a pass takes beside hidden states: S tokens behind `begin` rows of the
    cache, at rope positions [S] or [3, S], under `bias` [1, 1, S, begin + S]; `rows` [R] are those
    whose hidden states the last layer gives.
    """

    begin: int
    feeds: dict[str, NDArray[Any]]
    rows: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        text: TextSpec,
        begin: int,
        positions: NDArray[np.int64],
        bias: NDArray[np.float32],
        rows: NDArray[np.int64],
    ) -> "PassFeeds":
        total = begin + positions.shape[-1]
        cos, sin = rotation(positions, text)
        feeds: dict[str, NDArray[Any]] = {
            "rope_cos": cos,
            "rope_sin": sin,
            "attention_bias": bias,
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
        }
        # No kernel is made for no row at all; the first one does no harm.
        return cls(begin, feeds, rows if len(rows) else np.zeros(1, np.int64))


def run_layers(
    session: Session,
    part: PartRecord,
    hidden: NDArray[np.float32],
    given: PassFeeds,
    cache: KvCache,
    first: int = 0,
) -> NDArray[np.float32]:
    """hidden [1, S, D] through the part's layers; [1, R, D] where the last layer is among them.

    The cache's first layer is the model's layer `first`. Its rows behind those of `given` are
    written, whatever its cursor, which stays.
    """
    feeds = {"hidden": hidden, **given.feeds}
    if any(tensor.name == "rows" for tensor in session.graph.inputs):
        feeds["rows"] = given.rows
    shared = {}
    for layer in range(part.first_layer, part.last_layer + 1):
        shared[f"past_key_{layer}"] = (f"present_key_{layer}", cache.keys[layer - first])
        shared[f"past_value_{layer}"] = (f"present_value_{layer}", cache.values[layer - first])
    (out,) = session.run_bound(feeds, shared)
    return out


def check_positions(text: TextSpec, last: int) -> None:
    """Raises InputError "too_long" where a token would stand further than the model knows."""
    if last >= text.max_positions:
        raise InputError(
            "too_long",
            f"a token would stand at position {last}, the model knows {text.max_positions}; use "
            "fewer or shorter conditions",
        )
