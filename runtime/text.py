"""Text on request: one token after another behind a prefix, greedy or sampled, free or as JSON.

Takes an engine, a prefix and the prompt's ids; gives the tokens written and why they ended. The LM
head is loaded by the first call. Does not know prompts or pictures.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import ProviderError
from edgejudge.runtime.json_text import JsonText

__all__ = ["Continued", "Sampling", "Written", "continued", "write"]


class Engine(Protocol):
    """The part of an engine that writes."""

    def append(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> tuple[Any, NDArray[np.float32]]: ...
    def step(self, token: int, after: Any) -> tuple[Any, NDArray[np.float32]]: ...
    def full_logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def room(self, prefix: Any) -> int: ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 takes the most probable token; above it, one of the most probable tokens
    whose probabilities add up to `top_p`, drawn by `seed`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf") and 0 < self.top_p <= 1):
            raise ValueError(
                f"temperature must be at least 0 and top_p in (0, 1], got {self.temperature}, "
                f"{self.top_p}"
            )


@dataclass(frozen=True, slots=True)
class Written:
    """`finish` is "end" where the model ended it (or a JSON document was complete), "stop" at a
    stop string, "length" at the limit; a JSON document is whole in each case.
    """

    ids: tuple[int, ...]
    text: str
    finish: Literal["end", "stop", "length"]


@dataclass(frozen=True, slots=True)
class Continued:
    """`prefix` holds the prompt and what was written but for its last tokens, `unread`."""

    written: Written
    prefix: Any
    unread: tuple[int, ...]


def write(
    engine: Engine,
    after: Any,
    prompt: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    ends: Collection[int],
    most: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    document: JsonText | None = None,
    never: Collection[int] = (),
) -> Written:
    """At most `most` tokens behind the prompt, which is put behind the prefix `after`; fewer where
    the model's context ends.

    `decode` gives the text of ids, `ends` are the ids that end a text, `never` those that are not
    written: an image token is no text, and could not be read again. Raises ProviderError for logits
    that are not numbers.
    """
    return continued(
        engine, after, prompt, decode, ends, most, sampling, stop, document, never
    ).written


def continued(
    engine: Engine,
    after: Any,
    prompt: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    ends: Collection[int],
    most: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    document: JsonText | None = None,
    never: Collection[int] = (),
) -> Continued:
    """As `write`, with the prefix from which a conversation goes on."""
    rng = np.random.default_rng(sampling.seed)
    written: list[int] = []
    read = 0  # how many of them lie in the prefix
    prefix, hidden = engine.append(prompt, after=after)
    most = min(most, engine.room(prefix) + 1)  # the last token written need not be read

    def over(finish: Literal["end", "stop", "length"], text: str | None = None) -> Continued:
        found = Written(tuple(written), decode(written) if text is None else text, finish)
        return Continued(found, prefix, tuple(written[read:]))

    while len(written) < most:
        logits = engine.full_logits(hidden[None])[0]
        if not np.isfinite(logits).all():
            raise ProviderError("the LM head gave logits that are not numbers; export it again")
        if never:
            logits = logits.copy()
            logits[list(never)] = -np.inf
        if document is not None:
            logits = np.where(document.allowed(), logits, -np.inf)
        token = _choose(logits, sampling, rng)
        if token in ends:
            return over("end")
        if document is not None and not document.take(token, most - len(written) - 1):
            written += document.tail
            return over("length")
        written.append(token)
        if document is not None and document.complete:
            return over("end")
        if stop:
            text = decode(written)
            found = [at for at in map(text.find, stop) if at >= 0]
            if found:
                return over("stop", text[: min(found)])
        if len(written) < most:
            prefix, hidden = engine.step(token, prefix)
            read = len(written)
    return over("length")


def _choose(logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    wide = logits.astype(np.float64) / sampling.temperature
    probabilities = np.exp(wide - wide.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    sums = np.cumsum(probabilities[order])
    nucleus = order[: int(np.searchsorted(sums, sampling.top_p)) + 1]
    kept = probabilities[nucleus]
    return int(rng.choice(nucleus, p=kept / kept.sum()))
