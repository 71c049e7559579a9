"""How much of what the machine can do a decoder makes use of: arithmetic by prompts, reading by
tokens that are written.

Takes a bundle and its rates; gives shares of what numpy gets out of the machine at the same time:
bytes read from memory, and products of float32 matrices. Integer kernels may go beyond the latter.
"""

import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgejudge.bundle import Bundle
from edgejudge.models.spec import ModelSpec

__all__ = ["Limits", "limits_of", "operations_of"]

_BYTES = 1 << 27  # read by each thread: more than caches hold
_WIDE = 1024  # of the matrices
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """`read_gb_s` and `gflops` are numpy's here, `operations` those of a token in the decoder's
    matrices, `token_mb` the weights that writing one reads, `pass_tokens` how many of a prompt
    share one reading. `prompt_share` is of the arithmetic, `written_share` of the reading; None
    where nothing was prefilled, or written.
    """

    read_gb_s: float
    gflops: float
    operations: int
    token_mb: float
    pass_tokens: float
    prompt_share: float | None
    written_share: float | None


def limits_of(
    bundle: Bundle, rates: Mapping[str, float], pass_tokens: float, threads: int
) -> Limits:
    """`rates` are a profile's, a second."""
    read, gflops = _read_gb_s(threads), _gflops()
    spec = ModelSpec.from_json(bundle.manifest.spec)
    operations = operations_of(spec)
    stage = "writer" if bundle.has("cpu", "writer") else "decoder"
    sizes = {file.name: file.bytes for file in bundle.manifest.files}
    files = {
        name
        for graph in bundle.manifest.graphs
        if graph.target == "cpu" and graph.stage in (stage, "lm_head")
        for name in graph.weight_files
    }
    token_mb = sum(sizes.get(name, 0) for name in files) / 1e6
    prompt, written = rates.get("prompt tokens"), rates.get("written tokens")
    return Limits(
        round(read, 2),
        round(gflops, 1),
        operations,
        round(token_mb, 2),
        round(pass_tokens, 1),
        None if prompt is None else round(prompt * operations / (gflops * 1e9), 4),
        None if written is None else round(written * token_mb / (read * 1e3), 4),
    )


def operations_of(spec: ModelSpec) -> int:
    """Multiplications and additions that a token takes in the decoder's matrices; attention to
    earlier tokens is not among them.
    """
    text = spec.text
    queries, keys = text.heads * text.head_dim, 2 * text.kv_heads * text.head_dim
    layer = text.hidden * (2 * queries + keys) + 3 * text.hidden * text.intermediate
    return 2 * text.layers * layer


def _read_gb_s(threads: int) -> float:
    arrays = [np.ones(_BYTES // 8, np.uint64) for _ in range(threads)]
    took = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            list(pool.map(lambda a: int(a.max()), arrays))
            took.append(time.perf_counter() - began)
    return threads * _BYTES / min(took) / 1e9


def _gflops() -> float:
    a, took = np.ones((_WIDE, _WIDE), np.float32), []
    for _ in range(_ROUNDS + 1):
        began = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - began)
    return 2 * _WIDE**3 / statistics.median(sorted(took)[:3]) / 1e9
