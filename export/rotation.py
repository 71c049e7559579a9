"""Turns the decoder's residual stream, so that the function stays the same and no channel towers.

Takes a checkpoint; gives it with other weights, and nothing to compute when it runs. Norms are
folded into the matrices behind them; then every matrix that reads the stream is multiplied by an
orthogonal Q, and everything that writes into it by its inverse (QuaRot, Ashkboos et al. 2024, with
Q a Hadamard matrix of drawn signs; but for the turns inside a layer, which cost time or, of values
of attention, did more harm than good where a channel is large for every token). Knows no recipe and
no family: where weights meet the stream is read from its forward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.hadamard import Turn
from edgejudge.export.stream import Stream, residual_stream
from edgejudge.export.weights import Source, matrix_shape, row_blocks

__all__ = ["Rotated", "rotated", "rotated_by", "turned"]

_SEED = 0


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


def turned(hidden: NDArray[np.float64]) -> NDArray[np.float32]:
    """Hidden states [N, D] of a checkpoint in the basis of the rotated one."""
    return Turn(hidden.shape[-1], _SEED)(hidden)


class Rotated:
    """A `Source`. Rows that are only multiplied from the right are made as they are asked for; of
    matrices whose rows are mixed the last one is held.
    """

    def __init__(self, source: Source, stream: Stream, width: int) -> None:
        self._source = source
        self._ones = stream.norms
        self._folded: Mapping[str, str | None] = stream.readers
        self._turn = Turn(width, _SEED)
        self._by_rows, self._by_columns = stream.writers, {*stream.readers, *stream.vectors}
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
        if name in self._by_rows:
            return self._mixed(name)[some]
        if name in self._ones or len(self.shape(name)) > 1:
            return self._turned(name, self._source.rows(name, index))
        return self._turned(name, self._source(name))[some]

    def _turned(self, name: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Some rows of a weight with their last axis turned."""
        if name in self._ones:
            return np.ones_like(rows)
        if name not in self._by_columns:
            return rows
        norm = self._folded.get(name)
        return self._turn(rows if norm is None else rows * self._source(norm).astype(np.float64))

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
        for some in row_blocks(inner, rows):  # columns, a few at a time
            whole[:, some] = self._turn(np.ascontiguousarray(whole[:, some].T)).T
        return whole.reshape(self._source.shape(name))
