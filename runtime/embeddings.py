"""The token table, mapped and never loaded whole.

Takes an opened bundle and token ids; gives hidden states, image tokens replaced by what a picture
gave. Knows no graph.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle
from edgejudge.errors import ProviderError
from edgejudge.models.spec import ModelSpec

__all__ = ["Embeddings", "check_visual"]


@dataclass(frozen=True, slots=True)
class Embeddings:
    _table: NDArray[Any]  # [V, D]
    _image: int  # the image token
    _width: int  # of what the decoder takes: zeros stand beside what is no visual token

    @classmethod
    def of(cls, bundle: Bundle, spec: ModelSpec) -> Self:
        record = bundle.manifest.embeddings
        shape, dtype = (record.rows, record.width), np.dtype(record.dtype)
        table = np.memmap(bundle.file(record.file), dtype, "r", shape=shape)
        return cls(table, bundle.manifest.tokens.image, spec.width_at(0))

    def rows(
        self, ids: NDArray[np.int64], visual: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """[S, W]; `visual` [N, W] takes the place of the N image tokens, in order."""
        if len(ids) == 0 or ids.min() < 0 or ids.max() >= len(self._table):
            raise ValueError(f"token ids must be 0..{len(self._table) - 1} and at least one")
        hidden = np.zeros((len(ids), self._width), np.float32)
        hidden[:, : self._table.shape[1]] = self._table[ids]
        places = np.flatnonzero(ids == self._image)
        given = 0 if visual is None else len(visual)
        check_visual(given, len(places))
        if visual is not None:
            # A cache of bytes would make numbers of what is none.
            if not np.isfinite(visual).all():
                raise ProviderError(
                    "the vision graph gave visual tokens that are not numbers; check the bundle "
                    "with `edgejudge screen --verify`, or export it again"
                )
            hidden[places] = visual
        return hidden


def check_visual(given: int, places: int) -> None:
    """Raises ProviderError where the vision graph's tokens are not as many as the prompt has
    places for.
    """
    if given != places:
        raise ProviderError(
            f"the vision graph gave {given} visual tokens for {places} places in the prompt; "
            "check the bundle with `edgejudge screen --verify`, or export it again"
        )
