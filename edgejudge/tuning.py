"""Finds out how an engine works fastest on this machine.

Takes an opened bundle; gives the best settings with what was measured. Times real passes of the
decoder over a prompt as long as a screen-sized picture's, and over packed questions. Keeps nothing.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgejudge.bundle import Bundle
from edgejudge.models.prompt import screen_ids
from edgejudge.runtime import Engine
from edgejudge.runtime.session import default_threads
from edgejudge.runtime.settings import Settings

__all__ = ["Trial", "Tuned", "tune"]

_LENGTHS = (64, 128, 192, 256, 384, 512)
_AS_GOOD = 1.02  # differences below it are noise
_QUESTIONS, _LENGTH = 24, 16


@dataclass(frozen=True, slots=True)
class Trial:
    """One value of one setting, the others as chosen before it."""

    setting: str
    value: int
    n: int
    p50_ms: float
    min_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Tuned:
    settings: Settings
    prompt_tokens: int
    trials: tuple[Trial, ...]


def tune(
    bundle: Bundle, rounds: int = 5, progress: Callable[[str], None] = lambda _: None
) -> Tuned:
    """Threads first, then tokens of a prompt's pass, then of packed questions. Values are tried in
    turns; of those that are as good as the best by the median the smallest is taken, since it wants
    the least memory.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    ids = _prompt(bundle)
    branches = [ids[i : i + _LENGTH] for i in range(_QUESTIONS)]
    trials: list[Trial] = []

    def choose(setting: str, values: Sequence[int], run: Callable[[int], None]) -> int:
        progress(setting)
        times: dict[int, list[float]] = {value: [] for value in values}
        for number in range(rounds + 1):
            for value in values:
                began = time.perf_counter()
                run(value)
                if number:  # the first run allocates
                    times[value].append((time.perf_counter() - began) * 1e3)
        found = [_trial(setting, value, seen) for value, seen in times.items()]
        trials.extend(found)
        fastest = min(trial.p50_ms for trial in found)
        return min(trial.value for trial in found if trial.p50_ms <= _AS_GOOD * fastest)

    most = default_threads()
    engines = {
        count: Engine.open(bundle, Settings(count)) for count in sorted({1, -(-most // 2), most})
    }
    threads = choose("threads", list(engines), lambda count: _prefill(engines[count], ids))
    engine = engines[threads]
    engines.clear()  # each holds the weights

    def in_passes(tokens: int) -> None:
        engine.chunk = tokens
        engine.prefill(ids)

    def packed(tokens: int) -> None:
        engine.pack_tokens = tokens
        engine.ends(prefix, branches)

    lengths = [n for n in _LENGTHS if n < 2 * len(ids)]
    chunk = choose("chunk", lengths, in_passes)
    prefix = engine.prefill(ids)
    pack_tokens = choose("pack_tokens", _LENGTHS, packed)
    return Tuned(Settings(threads, chunk, pack_tokens), len(ids), tuple(trials))


def _prefill(engine: Engine, ids: Sequence[int]) -> None:
    engine.prefill(ids)


def _trial(setting: str, value: int, seen: Sequence[float]) -> Trial:
    figures = (statistics.median(seen), min(seen), max(seen))
    return Trial(setting, value, len(seen), *(round(f, 3) for f in figures))


def _prompt(bundle: Bundle) -> list[int]:
    """As many tokens as a screen-sized picture's prompt; which they are does not matter, so its
    image tokens, which would need a picture, are others.
    """
    ids, image = screen_ids(bundle), bundle.manifest.tokens.image
    return [ids[0] if token == image else token for token in ids]
