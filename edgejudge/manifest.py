"""The records of bundle.json, and the strict JSON reading that every record of ours shares.

Takes plain JSON values; gives frozen dataclasses and back. Unknown and missing keys are errors by
name. Knows no files, models or engines; import its names from `edgejudge.bundle`.
"""

import hashlib
import json
import types
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Self, TypeVar, cast, get_args, get_origin

from edgejudge.errors import BundleError, EdgeJudgeError

__all__ = [
    "SCHEMA_VERSION",
    "CanaryRecord",
    "CompiledCondition",
    "CompiledPolicy",
    "CompiledRule",
    "ConceptRecord",
    "EmbeddingsRecord",
    "FidelityRecord",
    "FileRecord",
    "GoldenRecord",
    "GraphRecord",
    "KvRecord",
    "LabelMassRecord",
    "Manifest",
    "PartRecord",
    "PolicyRecord",
    "PromptRecord",
    "QuantRecord",
    "RuleRecord",
    "TensorRecord",
    "TokensRecord",
    "canonical_json",
    "from_json",
    "to_json",
]

SCHEMA_VERSION = 1
T = TypeVar("T")

# --- strict JSON for dataclasses -----------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Plain JSON values of a record: dataclasses become objects, tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(
    kind: type[T], value: Any, where: str, error: type[EdgeJudgeError] = BundleError
) -> T:
    """`value` as `kind`; any deviation is an `error` that names the place in the document."""
    return cast(T, _read(kind, value, where, error))


def _read(kind: Any, value: Any, where: str, error: type[EdgeJudgeError]) -> Any:
    if kind is Any or type(value) is kind:
        return value
    form, inner = _form(kind)
    if form == "optional":
        return None if value is None else _read(inner, value, where, error)
    if form == "record":
        items = _expect(value, dict, where, error)
        if items.keys() != inner.keys():
            unknown, missing = items.keys() - inner.keys(), inner.keys() - items.keys()
            problem, keys = ("unknown", unknown) if unknown else ("missing", missing)
            raise error(f"{where}: {problem} key {', '.join(map(repr, sorted(keys)))}")
        return kind(**{k: _read(t, items[k], f"{where}.{k}", error) for k, t in inner.items()})
    if form == "tuple":
        items = _expect(value, list, where, error)
        if set(map(type, items)) <= {inner}:  # token ids, mostly: not one call per number
            return tuple(items)
        return tuple(_read(inner, v, f"{where}[{i}]", error) for i, v in enumerate(items))
    if form == "dict":
        items = _expect(value, dict, where, error)
        return {k: _read(inner, v, f"{where}.{k}", error) for k, v in items.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _expect(value, kind, where, error)


@cache
def _form(kind: Any) -> tuple[str, Any]:
    """What a field's type is made of; asked once per type, since a manifest has many fields."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is types.UnionType:  # only `X | None` is used
        return "optional", next(a for a in args if a is not type(None))
    if is_dataclass(kind):
        return "record", {f.name: f.type for f in fields(kind)}
    if origin in (tuple, dict):
        return origin.__name__, args[0] if origin is tuple else args[1]
    return "plain", None


def _expect(value: Any, kind: type, where: str, error: type[EdgeJudgeError]) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise error(f"{where}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def canonical_json(value: dict[str, Any]) -> bytes:
    """The one form of a document: a line per key, in order. Raises ValueError for NaN."""
    # No indent: that form is written by Python code, ten times slower, at every start.
    lines = [
        f"{json.dumps(key)}: " + json.dumps(value[key], sort_keys=True, allow_nan=False)
        for key in sorted(value)
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


# --- records -------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class KvRecord:
    """How a decoder graph keeps keys and values; `scales` is for quantized caches, null here."""

    layout: str
    dtype: str
    kv_heads: int
    head_dim: int
    scales: str | None
    length_buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GraphRecord:
    target: str
    stage: str  # vision, decoder, verdict_head, lm_head
    part: int | None
    shape: str  # "dynamic", or the fixed number of tokens
    file: str
    weight_files: tuple[str, ...]
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    kv: KvRecord | None


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A run of decoder layers, first and last included."""

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

    With an image: `head`, per tile `tile_open[row][column]` and its image tokens, after a row
    `row_break`, after the last one `last_break`, then `view_open`, the image tokens of the whole
    picture, `view_close`, the question, `tail`. Without: `blind_head`, the question, `tail`, where
    the question has been encoded together with the text before it (`blind_text`).

    `visual_tokens` is how many image tokens a view has; 0 where a picture has rows x cols of them,
    which then take multimodal rope positions.
    """

    question_template: str
    head: tuple[int, ...]
    tile_open: tuple[tuple[tuple[int, ...], ...], ...]
    row_break: tuple[int, ...]
    last_break: tuple[int, ...]
    view_open: tuple[int, ...]
    view_close: tuple[int, ...]
    visual_tokens: int
    tail: tuple[int, ...]
    blind_head: tuple[int, ...]
    blind_text: str


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


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """`sha256` is of the canonical content; `source_sha256` of the YAML it was read from, so that
    a built-in policy can be matched with its compiled form without parsing YAML."""

    name: str
    version: str
    sha256: str
    source_sha256: str
    rules: tuple[RuleRecord, ...]


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
class LabelMassRecord:
    """Probability that the full head gives to the label rows together."""

    n: int
    mean: float
    minimum: float


@dataclass(frozen=True, slots=True)
class FidelityRecord:
    """Runtime against the fp32 reference over `pictures` x conditions = `decisions`."""

    calibration_set: str
    pictures: int
    decisions: int
    flips: int
    flip_rate: float
    max_probability_error: float
    mean_probability_error: float
    max_graph_error: float
    label_mass: LabelMassRecord


@dataclass(frozen=True, slots=True)
class Manifest:
    """`spec` and `preprocessing` are read, as strictly, by models.spec and models.image."""

    schema_version: int
    sha256: str  # of the canonical form with this field empty
    name: str
    family: str
    recipe: str
    spec: dict[str, Any]
    preprocessing: dict[str, Any]
    tokens: TokensRecord
    prompt: PromptRecord
    labels: dict[str, tuple[int, ...]]  # label -> rows of the verdict head
    label_rows: tuple[int, ...]  # verdict head row -> token id
    band: float
    concepts: tuple[ConceptRecord, ...]
    policies: tuple[CompiledPolicy, ...]
    parts: tuple[PartRecord, ...]
    graphs: tuple[GraphRecord, ...]
    embeddings: EmbeddingsRecord
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
