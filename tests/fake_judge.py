"""A judge without graphs: the real manifest records, and an engine that answers from a table.

For tests of what lies around the engine. `FakeEngine.answers` maps a question's text to P(yes);
the tokens of a question are its characters, so the engine can read it back.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import (
    SCHEMA_VERSION,
    Bundle,
    CanaryRecord,
    CompiledCondition,
    CompiledPolicy,
    CompiledRule,
    ConceptRecord,
    EmbeddingsRecord,
    FidelityRecord,
    FileRecord,
    GoldenRecord,
    Manifest,
    PolicyRecord,
    PromptRecord,
    TokensRecord,
    sha256_of_file,
)
from edgejudge.judge import Judge
from edgejudge.models.concepts import known_names, knows
from edgejudge.models.tiles import TileSpec
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.trace import Trace

IMAGE, START, END = 1, 2, 3


class Length(int):
    """A prefix, as far as anything here looks at one."""

    @property
    def position(self) -> int:
        return int(self)


class FakeEngine:
    """Records what it was asked; gives `answers`, or `default` for other questions."""

    def __init__(self, answers: dict[str, float] | None = None, default: float = 0.01) -> None:
        self.answers = answers or {}
        self.default = default
        self.asked: list[list[str]] = []
        self.failure: Exception | None = None
        self.trace = Trace()
        self.interrupt: Callable[[], None] | None = None
        self.placement = {"vision": "FakeProvider"}
        self.fleet = Fleet()  # of no devices
        self.prefixes: list[Length] = []  # lengths of those that lie in the cache

    def new_trace(self) -> Trace:
        return Trace()

    overlaps = False

    def views(self, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return self.encode_image(feeds, self.trace)

    def encode_image(
        self, feeds: Mapping[str, NDArray[Any]], trace: Any = None
    ) -> NDArray[np.float32]:
        with (trace or self.trace).span("vision"):
            return np.zeros((len(feeds["pixel_values"]) * 4, 8), np.float32)

    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> Any:
        if self.interrupt is not None:
            self.interrupt()
        if self.failure is not None:
            raise self.failure
        assert list(ids).count(IMAGE) == (0 if visual is None else len(visual))
        return self._hold(len(ids), after)

    def holds(self, prefix: Any) -> bool:
        return prefix in self.prefixes

    def snapshot(
        self, prefix: Any, after: Any = None, most: int | None = None
    ) -> NDArray[np.float32] | None:
        assert self.holds(prefix)
        return np.zeros((1, 2, 1, prefix - (after or 0), 2), np.float32)

    def restore(self, rows: NDArray[np.float32], position: int, after: Any = None) -> Any:
        return self._hold(rows.shape[3], after)

    def _hold(self, length: int, after: Any) -> Length:
        self.prefixes = [] if after is None else self.prefixes[: self.prefixes.index(after) + 1]
        self.prefixes.append(Length(length + (after or 0)))
        return self.prefixes[-1]

    def score(self, prefix: Any, branches: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        if self.interrupt is not None:
            self.interrupt()
        with self.trace.span("score"), self._nested("decoder"):
            texts = ["".join(chr(i) for i in ids if i != END) for ids in branches]
        self.asked.append(texts)
        wanted = np.array([self.answers.get(text, self.default) for text in texts])
        logits = np.stack([np.zeros_like(wanted), np.log(wanted / (1 - wanted))], axis=1)
        return logits.astype(np.float32)  # [B, R], row 1 is yes

    def label_probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        wide = logits.astype(np.float64)
        return np.asarray(1 / (1 + np.exp(wide[:, 0] - wide[:, 1])), np.float64)

    def _nested(self, name: str) -> AbstractContextManager[None]:
        return self.trace.span(name)


class ColourEngine(FakeEngine):
    """Red pictures show a gun, grey ones perhaps, all others nothing."""

    def encode_image(
        self, feeds: Mapping[str, NDArray[Any]], trace: Any = None
    ) -> NDArray[np.float32]:
        red, green, blue = feeds["pixel_values"].mean(axis=(0, 2, 3))
        shown = 0.95 if red > green + 0.5 else 0.5 if abs(red - blue) < 0.1 else 0.01
        # In the tokens, not in the engine: the next picture is encoded before this one is asked.
        return super().encode_image(feeds, trace) + np.float32(shown)

    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> Any:
        if visual is not None:
            self.answers = {"a gun": float(visual[0, 0])}
        return super().prefill(ids, visual, positions, after)


def compiled(policy: PolicyRecord, concepts: tuple[ConceptRecord, ...] = ()) -> CompiledPolicy:
    names = known_names(concepts)
    rules = tuple(
        CompiledRule(
            rule.id,
            rule.text,
            rule.category,
            rule.threshold or 0.5,
            tuple(
                tuple(
                    CompiledCondition(text, (*map(ord, text), END), 0.1, knows(names, text))
                    for text in alternatives
                )
                for alternatives in rule.conditions
            ),
            rule.objects,
        )
        for rule in policy.rules
    )
    return CompiledPolicy(
        policy.name,
        policy.version,
        policy.sha256,
        policy.source_sha256,
        "prefix and own tokens",
        "from the prefix length",
        rules,
        policy.clue,
    )


def manifest(
    policies: tuple[CompiledPolicy, ...] = (),
    concepts: tuple[str, ...] = (),
    band: float = 0.05,
    patterns: tuple[str, ...] = (),
) -> Manifest:
    golden = GoldenRecord("canary", 0, 0, ((5,),), ((0.0, 0.0),))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        sha256="",
        name="fake",
        family="smolvlm",
        recipe="exact",
        random_weights=False,
        spec={},
        preprocessing=TileSpec(
            "tiles", 16, 16, False, "LANCZOS", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        ).to_json(),
        tokens=TokensRecord(IMAGE, END, (END,)),
        prompt=PromptRecord(
            question_template="{condition}",
            layout="tiles",
            image_open=(),
            image_break=(),
            head=(START,),
            tile_open=(),
            row_break=(),
            last_break=(),
            view_open=(4, 5),
            view_close=(4,),
            visual_tokens=4,
            text_open="",
            tail=(END,),
            blind_head=(START,),
            blind_text="",
            next_turn=(END, START),
            next_text="",
        ),
        labels={"no": (0,), "yes": (1,)},
        label_rows=(10, 11),
        band=band,
        concepts=tuple(ConceptRecord(name, (), "things") for name in concepts),
        patterns=patterns,
        policies=policies,
        parts=(),
        vision_slices=(),
        decoder_slices=(),
        graphs=(),
        targets=(),
        relevance=None,
        embeddings=EmbeddingsRecord("embeddings.bin", "float16", 128, 1),
        quantization=(),
        files=(),
        canary=CanaryRecord(16, 16, 0.01, golden),
        golden=(),
        fidelity=FidelityRecord("synthetic", 0, 0.0, 0.0, 0.0, None, None, None),
        tools={},
    ).signed()


def character_tokenizer(path: Path) -> None:
    """A tokenizer.json whose token of a character is its code point."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({chr(i): i for i in range(32, 127)}, unk_token=" "))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.save(str(path))


def fake_judge(folder: Path, manifest: Manifest, engine: FakeEngine) -> Judge:
    """A real opened bundle in `folder`, judged by the fake engine."""
    character_tokenizer(folder / "tokenizer.json")
    file = folder / "tokenizer.json"
    record = FileRecord(file.name, file.stat().st_size, sha256_of_file(file))
    signed = replace(manifest, files=(record,)).signed()
    (folder / "bundle.json").write_bytes(signed.canonical())
    assert json.loads(signed.canonical())["name"] == manifest.name
    return Judge(Bundle.open(folder), engine)
