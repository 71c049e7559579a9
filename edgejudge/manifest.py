"""The records of bundle.json.

Frozen dataclasses, read and written by strict_json. Knows no files, models or engines; import its
names from `edgejudge.bundle`.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Self

from edgejudge.clue_settings import ClueSettings
from edgejudge.report_card import (
    DecisionsRecord,
    FidelityRecord,
    FlipCount,
    LabelMassRecord,
    SideRecord,
    WritingRecord,
)
from edgejudge.strict_json import canonical_json, to_json

__all__ = [
    "SCHEMA_VERSION",
    "CanaryRecord",
    "CompiledCondition",
    "CompiledPolicy",
    "CompiledRule",
    "ConceptRecord",
    "DecisionsRecord",
    "EmbeddingsRecord",
    "FidelityRecord",
    "FileRecord",
    "FlipCount",
    "GoldenRecord",
    "GraphRecord",
    "KvRecord",
    "LabelMassRecord",
    "Manifest",
    "PartRecord",
    "PolicyRecord",
    "PromptRecord",
    "QuantRecord",
    "RelevanceRecord",
    "RelevanceRule",
    "RuleRecord",
    "SideRecord",
    "TargetRecord",
    "TensorRecord",
    "TokensRecord",
    "WritingRecord",
]

SCHEMA_VERSION = 8


@dataclass(frozen=True, slots=True)
class FileRecord:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A graph input or output; a dimension is its size, or its name where it is free."""

    name: str
    dtype: str
    shape: tuple[str, ...]


STATES = ("keys", "values")  # what a cache of the layout "state" is called in its program


@dataclass(frozen=True, slots=True)
class KvRecord:
    """How a decoder graph keeps keys and values.

    `layout` BNSH is [1, kv_heads, rows, head_dim] for both; BNHS has keys as [1, kv_heads,
    head_dim, rows]. "state" is kept by the program itself, as [layers, kv_heads, rows, head_dim],
    and written to from the row on that it is told. `scales` says what a level of a quantized cache
    means: "channel" ones are in the graph, "layer" ones in `steps`, of keys and of values for each
    layer of the graph.
    `length_buckets` are the numbers of rows that a cache may have; none is any.
    """

    layout: str
    dtype: str
    kv_heads: int
    head_dim: int
    scales: str | None
    steps: tuple[tuple[float, ...], ...]
    length_buckets: tuple[int, ...]

    @property
    def row(self) -> tuple[str, int]:
        """What holds one head's row of a token: its type, and how many. Two of four bits share a
        byte, the first in its lower half, from 0 for -8 on.
        """
        if self.dtype == "int4":
            return "uint8", self.head_dim // 2
        return self.dtype, self.head_dim


@dataclass(frozen=True, slots=True)
class GraphRecord:
    target: str
    variant: str  # of the target: precision and form, "" where there is but one
    stage: str  # vision, decoder, verdict_head, writer, lm_head, ...
    part: int | None
    tokens: int | None  # of a static graph, whose cache has one bucket; null takes any number
    file: str
    weight_files: tuple[str, ...]
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    kv: KvRecord | None

    @property
    def function(self) -> str:
        """Of a Core ML program's functions, the one that this record is of."""
        return f"tokens{self.tokens}"

    @property
    def key(self) -> str:
        """What its session is called: a file's name, and a function's where it has several."""
        return f"{self.file}:{self.function}" if self.target == "coreml" else self.file


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A run of layers, first and last included."""

    index: int
    first_layer: int
    last_layer: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class QuantRecord:
    """One tensor group's scheme, and how far its weights moved (relative root mean square)."""

    group: str
    scheme: str
    bits: int
    block: int
    tensors: int
    bytes: int
    relative_rms_error: float


@dataclass(frozen=True, slots=True)
class EmbeddingsRecord:
    file: str
    dtype: str
    rows: int
    width: int


@dataclass(frozen=True, slots=True)
class TokensRecord:
    image: int
    end_of_turn: int
    eos: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """Every fixed piece of a prompt as token ids, so that judging needs no tokenizer.

    With an image: `head`, `image_open`, per tile `tile_open[row][column]` and its image tokens,
    after a row `row_break`, after the last one `last_break`, then `view_open`, the image tokens of
    the whole picture, `view_close`, the question, `tail`. Between two pictures is `image_break`.
    Without: `blind_head`, the question, `tail`. A question has been encoded together with the text
    before it, which is `text_open` behind a picture and `blind_text` without one.

    After an answer a further question follows: `next_turn`, the question encoded together with
    `next_text` before it, `tail`.

    `layout` says what rows and columns of a picture are: of "tiles", each a view of `visual_tokens`
    image tokens; of image tokens that take multimodal rope positions ("grid"); or of image tokens
    behind those of a view of the whole, a further one at the end of each row ("lines").
    """

    question_template: str
    layout: str
    head: tuple[int, ...]
    image_open: tuple[int, ...]
    image_break: tuple[int, ...]
    tile_open: tuple[tuple[tuple[int, ...], ...], ...]
    row_break: tuple[int, ...]
    last_break: tuple[int, ...]
    view_open: tuple[int, ...]
    view_close: tuple[int, ...]
    visual_tokens: int
    text_open: str
    tail: tuple[int, ...]
    blind_head: tuple[int, ...]
    blind_text: str
    next_turn: tuple[int, ...]
    next_text: str


@dataclass(frozen=True, slots=True)
class ConceptRecord:
    name: str
    aliases: tuple[str, ...]
    category: str


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """A rule as the policy states it: all conditions must hold, alternatives within one are OR."""

    id: str
    text: str
    category: str
    threshold: float | None
    conditions: tuple[tuple[str, ...], ...]
    objects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """`sha256` is of the canonical content; `source_sha256` of the YAML it was read from, so that
    a built-in policy can be matched with its compiled form without parsing YAML. `clue` is there
    where it decides by CLUE and not by thresholds."""

    name: str
    version: str
    sha256: str
    source_sha256: str
    rules: tuple[RuleRecord, ...]
    clue: ClueSettings | None = None


@dataclass(frozen=True, slots=True)
class CompiledCondition:
    """`language_prior` is P(yes | no image); `known` says whether the bundle claims the concept."""

    text: str
    branch_ids: tuple[int, ...]
    language_prior: float
    known: bool


@dataclass(frozen=True, slots=True)
class CompiledRule:
    id: str
    text: str
    category: str
    threshold: float
    conditions: tuple[tuple[CompiledCondition, ...], ...]
    objects: tuple[str, ...] = ()  # what its conditions are about, where it is said in other words


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """A policy as token ids. `mask` and `positions` say how its branches are packed."""

    name: str
    version: str
    sha256: str
    source_sha256: str
    mask: str
    positions: str
    rules: tuple[CompiledRule, ...]
    clue: ClueSettings | None = None


@dataclass(frozen=True, slots=True)
class GoldenRecord:
    """An input and the label logits [branches, label rows] of the reference over these weights.

    `image` is a PNG of the bundle, "canary" for the synthetic picture, or null for whole prompts
    without an image.
    """

    image: str | None
    rows: int
    cols: int
    branches: tuple[tuple[int, ...], ...]
    label_logits: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class CanaryRecord:
    """What an engine must reproduce at load, within `tolerance` on every label logit."""

    image_height: int
    image_width: int
    tolerance: float
    golden: GoldenRecord


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """Graphs beside those of the `cpu` target. `canary_logits` [branches, label rows] are the
    reference's over the weights that this variant stores, `tolerance` how far from them a device
    may be. `decisions` are the graphs' on the CPU provider against the fp32 reference; null where
    they were not compared.
    """

    target: str
    variant: str
    tolerance: float
    canary_logits: tuple[tuple[float, ...], ...]
    quantization: tuple[QuantRecord, ...]
    decisions: DecisionsRecord | None


@dataclass(frozen=True, slots=True)
class RelevanceRule:
    policy: str
    rule: str


@dataclass(frozen=True, slots=True)
class RelevanceRecord:
    """An encoder beside the judge: `texts` is a file of float32 unit vectors [rules, width], in the
    order of `rules`; `preprocessing` is read by models.crop."""

    family: str
    preprocessing: dict[str, Any]
    texts: str
    width: int
    rules: tuple[RelevanceRule, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`spec` and `preprocessing` are read, as strictly, by models.spec and models.image.

    `parts` cut the decoder; slices cut tower and decoder again, over the same weights, into runs
    that a device with little memory loads one after another.
    """

    schema_version: int
    sha256: str  # of the canonical form with this field empty
    name: str
    family: str
    recipe: str
    random_weights: bool  # made for latency alone: what it says means nothing
    spec: dict[str, Any]
    preprocessing: dict[str, Any]
    tokens: TokensRecord
    prompt: PromptRecord
    labels: dict[str, tuple[int, ...]]  # label -> rows of the verdict head
    label_rows: tuple[int, ...]  # verdict head row -> token id
    band: float
    concepts: tuple[ConceptRecord, ...]
    patterns: tuple[str, ...]  # of conditions about concepts, as models.concepts reads them
    policies: tuple[CompiledPolicy, ...]
    parts: tuple[PartRecord, ...]
    vision_slices: tuple[PartRecord, ...]
    decoder_slices: tuple[PartRecord, ...]
    graphs: tuple[GraphRecord, ...]
    targets: tuple[TargetRecord, ...]
    embeddings: EmbeddingsRecord
    relevance: RelevanceRecord | None
    quantization: tuple[QuantRecord, ...]
    files: tuple[FileRecord, ...]
    canary: CanaryRecord
    golden: tuple[GoldenRecord, ...]
    fidelity: FidelityRecord | None  # null: unsealed, not yet compared with the reference
    tools: dict[str, str]

    def canonical(self) -> bytes:
        return canonical_json(to_json(self))

    def signed(self) -> Self:
        """The same manifest, carrying the sha256 of its canonical form."""
        empty = replace(self, sha256="")
        return replace(empty, sha256=hashlib.sha256(empty.canonical()).hexdigest())
