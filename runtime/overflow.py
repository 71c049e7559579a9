"""Whether this processor adds products of bytes without overflow.

Takes a bundle with eight-bit integer weights, which carries a graph of the largest sums there are;
refuses the bundle where they come out wrong. What a processor is called is not asked.
"""

import numpy as np

from edgejudge.bundle import Bundle
from edgejudge.errors import ProviderError
from edgejudge.runtime.session import CPU, open_session

__all__ = ["check_overflow"]

_STAGE = "overflow_check"
_ROWS = (1, 16)  # kernels for one row and for many are not the same
_ENDS = (0, 255)


def check_overflow(bundle: Bundle, target: str, threads: int) -> None:
    """Raises ProviderError where integer kernels overflow on weights as large as the bundle's."""
    if not bundle.has(target, _STAGE):
        return
    session = open_session(bundle, bundle.graph(target, _STAGE), CPU, threads)
    width = int(session.graph.inputs[0].shape[1])
    columns = int(session.graph.outputs[0].shape[1])
    signs = np.where(np.arange(columns) % 2, -1.0, 1.0)
    for rows in _ROWS:
        for end in _ENDS:
            (sums,) = session.run({"levels": np.full((rows, width), end, np.uint8)})
            expected = (end - 128) * 127 * width * signs
            if not np.array_equal(sums, np.broadcast_to(expected, sums.shape)):
                raise ProviderError(
                    f"{bundle.path}: its eight-bit integers overflow on this processor, which adds "
                    "products of bytes in 16 bits; export it with --recipe fast, for any processor"
                )
