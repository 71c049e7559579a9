"""Turns the decoder's residual stream, so that the function stays the same and no channel towers.

Takes a checkpoint; gives it with other weights, and nothing to compute when it runs. Norms are
folded into the matrices behind them; then every matrix that reads the stream is multiplied by an
orthogonal Q, and everything that writes into it by its inverse (QuaRot, Ashkboos et al. 2024, with
Q a Hadamard matrix of drawn signs). Values of attention are turned too, each head for itself.
Knows no recipe and no family: where weights meet the stream is read from its forward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.hadamard import Turn
from edgejudge.export.stream import Stream, residual_stream
from edgejudge.export.weights import Source, matrix_shape, row_blocks

__all__ = ["Rotated", "rotated", "rotated_by"]

_STREAM_SEED, _VALUES_SEED = 0, 1


def rotated(checkpoint: Checkpoint) -> Checkpoint:
    """The same function. A head that was tied to the embeddings no longer is: a norm is folded into
    it.
    """
    stream = residual_stream(checkpoint.family, checkpoint.spec, checkpoint.weights)
    return rotated_by(checkpoint, stream)


def rotated_by(checkpoint: Checkpoint, stream: Stream) -> Checkpoint:
    """Where the places are known."""
    text = replace(checkpoint.spec.text, tie_word_embeddings=False)
    turned = Rotated(checkpoint.weights, stream, checkpoint.spec.text.hidden)
    return replace(checkpoint, spec=replace(checkpoint.spec, text=text), weights=turned)


@dataclass(slots=True)
class _Turns:
    """Weight name -> what its rows, or its last axis, are multiplied with."""

    rows: dict[str, Turn] = field(default_factory=dict)
    columns: dict[str, Turn] = field(default_factory=dict)

    @classmethod
    def of(cls, stream: Stream, width: int) -> "_Turns":
        turn = Turn(width, _STREAM_SEED)
        found = cls(
            rows=dict.fromkeys(stream.writers, turn),
            columns=dict.fromkeys([*stream.readers, *stream.vectors], turn),
        )
        for values in stream.values:
            turn = Turn(values.head_dim, _VALUES_SEED)
            found.rows[values.maker] = found.columns[values.user] = turn
            if values.bias is not None:
                found.columns[values.bias] = turn
        return found


class Rotated:
    """A `Source`. Rows that are only multiplied from the right are made as they are asked for; of
    matrices whose rows are mixed the last one is held.
    """

    def __init__(self, source: Source, stream: Stream, width: int) -> None:
        self._source = source
        self._ones = stream.norms
        self._folded: Mapping[str, str | None] = stream.readers
        self._turns = _Turns.of(stream, width)
        self._held: tuple[str, NDArray[np.float32]] | None = None
        self._lock = Lock()  # rows are quantized on several threads

    @property
    def parameters(self) -> int:
        return self._source.parameters

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def __call__(self, name: str) -> NDArray[np.float32]:
        return self.rows(name, slice(None))

    def rows(self, name: str, index: slice | Sequence[int]) -> NDArray[np.float32]:
        some = index if isinstance(index, slice) else list(index)
        if name in self._turns.rows:
            return self._mixed(name)[some]
        if name in self._ones or len(self.shape(name)) > 1:
            return self._turned(name, self._source.rows(name, index))
        return self._turned(name, self._source(name))[some]

    def _turned(self, name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Some rows of a weight with their last axis turned."""
        if name in self._ones:
            return np.ones_like(rows)
        norm, turn = self._folded.get(name), self._turns.columns.get(name)
        if norm is not None:
            rows = rows * self._source(norm).astype(np.float64)
        return rows if turn is None else turn(rows)

    def _mixed(self, name: str) -> NDArray[np.float32]:
        with self._lock:
            if self._held is None or self._held[0] != name:
                self._held = None  # before the next one is made
                self._held = name, self._whole(name)
            return self._held[1]

    def _whole(self, name: str) -> NDArray[np.float32]:
        rows, inner = matrix_shape(self._source, name)
        whole = np.empty((rows, inner), np.float32)
        for some in row_blocks(rows, inner):
            found = self._source.rows(name, some)
            whole[some] = self._turned(name, found.reshape(len(found), inner))
        turn = self._turns.rows[name]
        for some in row_blocks(inner, rows):  # columns, a few at a time
            whole[:, some] = turn(np.ascontiguousarray(whole[:, some].T)).T
        return whole.reshape(self._source.shape(name))
