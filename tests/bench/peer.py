"""What every engine of the benchmark answers to: JSON requests on stdin, JSON replies on stdout.

Takes a `Peer`; serves it in its own process until stdin ends, so that engines can be asked in turns
and each has its own memory. Knows no engine.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["Peer", "serve"]


class Peer(Protocol):
    """`ways` of asking many questions of one prefix, the best known first; `about` goes into the
    report: versions, precision, options. A peer has what its requests need: a decoder all but
    `encode`, a vision tower that alone.
    """

    about: dict[str, Any]
    ways: tuple[str, ...]

    def prefill(self, ids: list[int]) -> Any:
        """From nothing to the logits (or the hidden state) of the last position."""

    def logits(self, ids: list[int]) -> np.ndarray:
        """Of the last position [V], or of the rows it has."""

    def decode(self, tokens: int) -> None:
        """Greedy, behind what was prefilled last."""

    def rules(self, prefix: list[int], questions: list[list[int]], way: str) -> Any:
        """From nothing to the logits at the end of each question behind the prefix."""

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Views [V, 3, S, S] -> visual tokens."""


def _answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    did = request["do"]
    if did == "prefill":
        return _timed(lambda: peer.prefill(request["ids"]))
    if did == "decode":
        peer.prefill(request["ids"])
        return _timed(lambda: peer.decode(request["tokens"]))
    if did == "text":
        return _timed(lambda: (peer.prefill(request["ids"]), peer.decode(request["tokens"])))
    if did == "library":
        return _timed(
            lambda: [peer.rules(p, q, request["way"]) for p, q in request["pictures"]],
        )
    if did == "vision":
        shape = tuple(request["shape"])
        pixels = np.random.default_rng(request["seed"]).normal(0, 0.3, shape).astype(np.float32)
        return _timed(lambda: peer.encode(pixels))
    if did == "rules":
        return _timed(lambda: peer.rules(request["prefix"], request["questions"], request["way"]))
    if did == "logits":
        np.save(request["file"], peer.logits(request["ids"]))
        return {}
    status = Path("/proc/self/status").read_text()
    return {"peak_rss_mib": int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024}


def _timed(work: Any) -> dict[str, float]:
    began = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - began}


def serve(make: Any) -> None:
    """Replies go to the original stdout; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    began = time.perf_counter()
    try:
        peer: Peer = make(*sys.argv[1:])
    except Exception as error:
        reply({"failure": f"{type(error).__name__}: {error}"[:400]})
        return
    ways = getattr(peer, "ways", ())
    reply({"about": peer.about, "ways": ways, "load_s": time.perf_counter() - began})
    for line in sys.stdin:
        try:
            reply(_answer(peer, json.loads(line)))
        except Exception as error:
            reply({"failure": f"{type(error).__name__}: {error}"[:400]})
