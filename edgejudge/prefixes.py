"""Pictures put into the engine: decoded, encoded, prefilled or found, each once.

Takes pictures; gives prefixes in the engine, for whoever asks about them. `prepare` needs no turn
with the engine and may run ahead, `having` waits for one. Knows no policy, graph, provider or file
format.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgejudge.array_store import key_of
from edgejudge.bundle import Bundle
from edgejudge.errors import InputError
from edgejudge.images import ImageInput, Limits
from edgejudge.judging import Answerer, Found, Judging, Prepared, Spans, failing
from edgejudge.models.image import preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.models.vision_input import VisionInput
from edgejudge.prefix_cache import KeptPrefix, PrefixCache
from edgejudge.regions import Region
from edgejudge.turns import Stop, Turns

if TYPE_CHECKING:
    from edgejudge.runtime.json_text import JsonGrammar, JsonText

__all__ = ["OneAhead", "Prefixes", "Scorer"]


class Scorer(Answerer, Protocol):
    """What a Judge needs of an engine; `edgejudge.runtime.Engine` is one. `fleet` are its devices
    beside the CPU, as edgejudge.runtime.fleet has them.
    """

    fleet: Any

    @property
    def overlaps(self) -> bool: ...
    def views(self, feeds: Mapping[str, NDArray[Any]]) -> Any: ...
    def encode_image(
        self, feeds: Mapping[str, NDArray[Any]], trace: Any = None
    ) -> NDArray[np.float32]: ...
    def prefill(
        self,
        ids: Sequence[int],
        visual: Any = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> Any: ...
    def holds(self, prefix: Any) -> bool: ...
    def snapshot(
        self, prefix: Any, after: Any = None, most: int | None = None
    ) -> NDArray[np.float32] | None: ...
    def restore(self, rows: NDArray[np.float32], position: int, after: Any = None) -> Any: ...
    def append(
        self,
        ids: Sequence[int],
        visual: Any = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> tuple[Any, NDArray[np.float32]]: ...
    def step(self, token: int, after: Any) -> tuple[Any, NDArray[np.float32]]: ...
    def full_logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def room(self, prefix: Any) -> int: ...
    def ends(self, prefix: Any, branches: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...
    def score(self, prefix: Any, branches: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...
    def relevance(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]: ...


@dataclass(slots=True)
class _Encoded:
    """A picture as the text model takes it."""

    rows: int
    cols: int
    visual: Any  # f32 [N, D], or the engine's views, which it encodes when it takes them


@dataclass(slots=True)
class OneAhead(Prepared):
    """Without `encoded` its prefix was found in the cache. `others` are the variants of a file
    besides the first, which the file itself stands for.
    """

    rgb: NDArray[np.uint8] | None = None
    key: str | None = None
    encoded: _Encoded | None = None
    regions: tuple[Region, ...] = ()
    others: tuple["OneAhead", ...] = ()

    @property
    def variants(self) -> tuple["OneAhead", ...]:
        return (self, *self.others)


# A prefix, where it came from, and how many of its tokens were there already.
_Had = tuple[Any, Found, int]


class Prefixes(Judging):
    """`prepare` may run in any thread, `having` takes turns."""

    _engine: Scorer

    def __init__(
        self,
        bundle: Bundle,
        engine: Scorer,
        prompts: Prompts,
        limits: Limits,
        cache: PrefixCache | None,
    ) -> None:
        store = None if cache is None else cache.store
        # The fingerprint is of all that prompts, pixels and graphs are made from.
        identity = [bundle.fingerprint.encode(), *(() if cache is None else _versions())]
        identity.append(engine.fleet.numerics().encode())
        super().__init__(bundle, engine, prompts, limits, store, identity)
        self._cache = cache
        self._grammar: JsonGrammar | None = None
        self._system: Any = None  # the prefix before the picture, while the engine holds it
        self._encoding = Lock()  # many threads may prepare, and each encoding takes much memory

    def prepare(self, image: ImageInput, stop: Stop) -> OneAhead:
        """Decodes the first variant and encodes it, unless the cache knows it."""
        made = OneAhead(self._engine.new_trace())
        with failing(made):
            self._see(made, image, None)
            self._encode_ahead(made, stop)
        return made

    def _see(self, made: OneAhead, image: ImageInput, check: Callable[[], None] | None) -> None:
        """As `_read`."""
        first, *others = self._read(made, image, check).variants
        made.rgb = first.rgb
        made.others = tuple(
            OneAhead(made.trace, rgb=each.rgb, seen_in=each.seen_in) for each in others
        )
        if self._cache is not None:
            with made.trace.span("look up"):
                for one in made.variants:
                    assert one.rgb is not None
                    one.key = self._key(one.rgb)

    def _encode_ahead(self, made: OneAhead, stop: Stop) -> None:
        """Unless the cache knows it, or the engine would rather do it along with the rest."""
        if self._cache is None or made.key is None or made.key not in self._cache:
            stop.check()
            assert made.rgb is not None
            encode = self._in_views if self._engine.overlaps else self._encode
            made.encoded = encode(made.rgb, made.trace)

    def give_up(self) -> None:
        """Nobody waits any more for what devices are at now."""
        self._engine.fleet.give_up()

    @contextmanager
    def having(self, made: Sequence[OneAhead], stop: Stop, turns: Turns) -> Iterator[_Had]:
        """The engine for the caller alone, with the pictures in it, one behind the other. Of none
        the prefix is None, and the engine's trace is a new one.
        """
        trace = made[0].trace if made else self._engine.new_trace()
        with self._turn(trace, stop, turns):
            yield self._prefix(made) if made else (None, "off", 0)

    def _key(self, rgb: NDArray[np.uint8]) -> str:
        pixels = np.ascontiguousarray(rgb)
        return key_of([*self._identity, repr(pixels.shape).encode(), pixels.data])

    def _encode(self, rgb: NDArray[np.uint8], trace: Spans) -> _Encoded:
        seen = self._preprocessed(rgb, trace)
        with self._encoding:
            return _Encoded(seen.rows, seen.cols, self._engine.encode_image(seen.feeds, trace))

    def _in_views(self, rgb: NDArray[np.uint8], trace: Spans) -> _Encoded:
        seen = self._preprocessed(rgb, trace)
        return _Encoded(seen.rows, seen.cols, self._engine.views(seen.feeds))

    def _preprocessed(self, rgb: NDArray[np.uint8], trace: Spans) -> VisionInput:
        with trace.span("preprocess"):
            return preprocess(rgb, self._image_spec)

    def _prefix(self, made: Sequence[OneAhead]) -> _Had:
        """The pictures' prefix, where it came from, and how many of its tokens were there
        already.
        """
        reused = self._put_system()
        after, key = self._system, None
        found: set[Found] = set()
        for count, one in enumerate(made):
            # What a picture's keys and values are depends on all that lies before it.
            key = (
                one.key if count == 0 or one.key is None else key_of([f"{key} {one.key}".encode()])
            )
            try:
                after, how, tokens = self._put_picture(one, after, key, not count)
            except InputError as error:
                if error.code == "too_long" and len(made) > 1:
                    raise InputError(
                        "too_many_images",
                        f"{count} of {len(made)} pictures fill the context ({error})",
                    ) from None
                raise
            found.add(how)
            reused += tokens
        return after, "miss" if "miss" in found else found.pop(), reused

    def _put_picture(self, one: OneAhead, after: Any, key: str | None, first: bool) -> _Had:
        """One picture behind the prefix `after`, which ends with another unless it is the `first`;
        `key` names both.
        """
        engine = self._engine
        if self._cache is not None and key is not None:
            kept = self._cache.get(key)
            if kept is not None:
                return engine.restore(kept.rows, kept.position, after), "hit", kept.rows.shape[3]
        if one.encoded is None:  # it was there when it was looked up, or is there by itself
            assert one.rgb is not None
            one.encoded = self._in_views(one.rgb, one.trace)
        rows, cols = one.encoded.rows, one.encoded.cols
        ids = self._prompts.image_ids(rows, cols, first)
        start = 0 if after is None else after.position
        positions = self._prompts.image_positions(rows, cols, start, first)
        prefix = engine.prefill(ids, one.encoded.visual, positions, after)
        one.prefixes += 1
        if self._cache is None or key is None:
            return prefix, "off", 0
        with one.trace.span("keep"):
            self._keep(self._cache, key, prefix, after)
        return prefix, "miss", 0

    def _keep(self, cache: PrefixCache, key: str, prefix: Any, after: Any) -> None:
        rows = self._engine.snapshot(prefix, after, cache.most)
        if rows is not None:
            cache.put(key, KeptPrefix(rows, prefix.position))

    def _put_system(self) -> int:
        """Sees to it that the engine holds the prefix before the picture; gives how many of its
        tokens were known.
        """
        engine, head = self._engine, list(self._prompts.record.head)
        if not head or (self._system is not None and engine.holds(self._system)):
            return len(head)
        key = key_of([*self._identity, b"system prompt"])
        kept = None if self._cache is None else self._cache.get(key)
        if kept is not None:
            self._system = engine.restore(kept.rows, kept.position)
            return len(head)
        self._system = engine.prefill(head)
        if self._cache is not None:
            self._keep(self._cache, key, self._system, None)
        return 0

    def document(self, schema: Mapping[str, Any] | bool, most: int) -> "JsonText":
        """A JSON document in the making, of at most `most` tokens. Raises ProviderError without
        `edgejudge[text]`, and InputError "schema" for a schema that cannot be followed.
        """
        return self._open_grammar().text(schema, most)

    def _open_grammar(self) -> "JsonGrammar":
        if self._grammar is None:
            from edgejudge.runtime.json_text import JsonGrammar

            manifest = self._bundle.manifest
            text = self._prompts.tokenizer.text
            self._grammar = JsonGrammar(text, manifest.embeddings.rows, manifest.tokens.eos)
        return self._grammar


def _versions() -> tuple[bytes, bytes]:
    """Of what computes a prefix: a kept one may outlive the process. Both are loaded already, and
    asking the installed packages' metadata would cost a cold start several milliseconds.
    """
    import onnxruntime

    import edgejudge

    return edgejudge.__version__.encode(), onnxruntime.__version__.encode()
