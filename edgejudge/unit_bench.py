"""One unit of a bundle run in one shape on one device, and what it took.

Takes an opened engine; gives milliseconds. What is run is drawn, in a cache of its own, and comes
after all that others have for the device, so that an engine can be measured while it judges.
Chooses no shapes and keeps nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.patches import PatchSpec
from edgejudge.runtime import Engine
from edgejudge.runtime.decoding import PassFeeds
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.scheduling.workload import view_tokens
from edgejudge.runtime.stages import DecoderPass, Stages
from edgejudge.runtime.trace import Trace
from edgejudge.runtime.tree import causal

__all__ = ["UnitBench"]

_PICTURES = ((224, 224), (448, 448), (1080, 1920))  # height, width
_VIEWS = (1, 4)


@dataclass(slots=True)
class UnitBench:
    """Devices are called what the engine's traces call them. Where one has no graphs, fails, or is
    left for another one meanwhile, there is no time of it.
    """

    stages: Stages
    _cache: KvCache
    _pictures: dict[int, dict[str, NDArray[Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, engine: Engine) -> Self:
        text, kv = engine.spec.text, engine.bundle.graph("cpu", "decoder", 0).kv
        assert kv is not None, "a decoder graph has a cache"
        return cls(engine.stages, KvCache.of(kv, text.layers))

    @property
    def views(self) -> tuple[int, ...]:
        """Few and many: some of a picture's views, or pictures of several sizes."""
        if not self._pictures:
            view = view_tokens(self.stages.spec)
            for feeds in self._drawn():
                tokens = sum(self.stages.views(feeds).sizes)
                self._pictures[max(1, round(tokens / view))] = feeds
        return tuple(sorted(self._pictures))

    def vision(self, views: int, device: str) -> float | None:
        """One of `self.views`."""
        trace = Trace()
        found = self.stages.views(self._pictures[views])
        self.stages.run(trace, self._cache, (), views=found, wanted=device)
        return trace.spent("vision", device).get(None)

    def decoder(self, tokens: int, past: int, device: str) -> dict[int, float]:
        """A pass of `tokens` behind `past` others, by part; of more than the bundle holds none."""
        text = self.stages.spec.text
        if past + tokens > min(max(self._cache.buckets), text.max_positions):
            return {}
        self._cache.reserve(past + tokens)
        hidden = np.full((tokens, self.stages.spec.width_at(0)), 0.1, np.float32)

        def made() -> tuple[NDArray[np.float32], PassFeeds]:
            positions, bias = past + np.arange(tokens), causal(tokens, past)
            return hidden, PassFeeds.of(text, past, positions, bias, np.array([tokens - 1]))

        trace = Trace()
        one = DecoderPass(past, tokens, made)
        self.stages.run(trace, self._cache, [one], wanted=device)
        return {part: ms for part, ms in trace.spent("decoder", device).items() if part is not None}

    def head(self, stage: str, rows: int, device: str) -> float | None:
        trace = Trace()
        hidden = np.ones((rows, self.stages.spec.text.hidden), np.float32)
        self.stages.alone(stage, "hidden", hidden, trace, ahead=True)
        return trace.spent(stage, device).get(None)

    def _drawn(self) -> Iterator[dict[str, NDArray[Any]]]:
        spec = image_spec(self.stages.bundle.manifest.preprocessing)
        if isinstance(spec, PatchSpec):
            for height, width in _PICTURES:
                yield dict(preprocess(canary_image(height, width), spec).feeds)
            return
        views = preprocess(canary_image(*_PICTURES[-1]), spec).feeds["pixel_values"]
        for count in sorted({n for n in _VIEWS if n < len(views)} | {len(views)}):
            yield {"pixel_values": np.ascontiguousarray(views[:count])}
