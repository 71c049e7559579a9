"""Whether a manifest says what can be: ranges, names, and what one of its fields says of another.

Takes the manifest and the JSON that it was read from; raises a `BundleError` that names the
field. What needs the model's own numbers is checked by models.fitting. Knows no files or engines.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from edgejudge.clue_settings import ClueSettings
from edgejudge.errors import BundleError
from edgejudge.manifest import (
    CompiledPolicy,
    GoldenRecord,
    GraphRecord,
    KvRecord,
    Manifest,
    PartRecord,
)
from edgejudge.printable import brief

__all__ = ["MANIFEST_NAME", "check_manifest", "is_flat_name"]

MANIFEST_NAME = "bundle.json"
MOST_TOLERANCE = 2.0  # of a label logit: a canary that allows more would find nothing wrong

_FLAT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_SIZE = re.compile(r"[1-9][0-9]{0,17}")
_FORM = re.compile(r"[a-z0-9.]{0,40}")
_TYPES = {
    *("float32", "float16", "int64", "int32", "bool"),
    *("int8", "uint8", "int16", "uint16"),
}
_CACHED = ("decoder", "decoder_slice", "writer")  # stages whose graphs keep keys and values
_MOST_TEXT = 4000  # characters of one text
_MOST_NAME = 200
_MOST_IDS = 4096  # tokens of one question
_MOST_QUESTIONS = 2048  # of one policy
_MOST_LABELS = 4096
_MOST_SIDE, _MOST_PIXELS = 1 << 14, 1 << 23  # of the canary's picture
_MOST_BYTES = 1 << 46
_MOST_ROWS = 1 << 22  # of a cache
_MOST_WIDTH = 1 << 17  # of the sums that are tried for overflow
# Text that is put between tokens, where a line break belongs.
_PROMPTS = tuple(
    f"prompt.{p}" for p in ("question_template", "text_open", "blind_text", "next_text")
)

Problem = tuple[str, str]  # the place, and what is wrong there


def is_flat_name(name: str) -> bool:
    """A plain file name: no folder, no `..`, no drive, nothing hidden."""
    return _FLAT_NAME.fullmatch(name) is not None


def check_manifest(manifest: Manifest, value: dict[str, Any], data: bytes, where: str) -> None:
    """`data` is the canonical form, `value` what it says, and `where` what the error calls it."""
    for place, problem in _problems(manifest, value, data):
        raise BundleError(f"{where}: {place}: {problem}; do not use this bundle")


def _problems(manifest: Manifest, value: dict[str, Any], data: bytes) -> Iterator[Problem]:
    yield from _files(manifest)
    # A line per key, in order, where all is escaped that is not plain ASCII: most lines have no
    # such text, and need not be looked through at every start.
    for key, line in zip(sorted(value), data.splitlines()[1:], strict=False):
        if b"\\" in line:
            yield from _texts(value[key], key)
    if not 0 < len(manifest.name) <= _MOST_NAME:
        yield "name", f"{len(manifest.name)} characters; expected 1 to {_MOST_NAME}"
    yield from _labels(manifest)
    if not 0 <= manifest.band < 1:
        yield "band", f"{manifest.band} is not from 0 to below 1"
    yield from _twice("policies", (policy.name for policy in manifest.policies))
    for index, policy in enumerate(manifest.policies):
        yield from _policy(policy, f"policies[{index}]")
    for name in ("parts", "vision_slices", "decoder_slices"):
        yield from _parts(getattr(manifest, name), name)
    keys = [(g.target, g.variant, g.stage, g.part, g.tokens, _rows(g)) for g in manifest.graphs]
    yield from _twice("graphs", keys)
    for index, graph in enumerate(manifest.graphs):
        yield from _graph(graph, f"graphs[{index}]", manifest)
    yield from _targets(manifest)
    table = manifest.embeddings
    if table.dtype not in ("float16", "float32"):
        yield "embeddings.dtype", f"'{table.dtype}' is neither float16 nor float32"
    yield from _counts("embeddings", rows=table.rows, width=table.width)
    yield from _relevance(manifest)
    yield from _canary(manifest)
    for index, golden in enumerate(manifest.golden):
        yield from _golden(golden, f"golden[{index}]", manifest)


def _files(manifest: Manifest) -> Iterator[Problem]:
    for index, file in enumerate(manifest.files):
        place = f"files[{index}]"
        if not is_flat_name(file.name) or file.name == MANIFEST_NAME:
            yield f"{place}.name", f"file name '{brief(file.name)}' does not stay inside the bundle"
        if not 0 <= file.bytes < _MOST_BYTES:
            yield f"{place}.bytes", f"{file.bytes} is no size of a file"
        if not _SHA256.fullmatch(file.sha256):
            yield f"{place}.sha256", "expected 64 hexadecimal digits"
    yield from _twice("files", (file.name.casefold() for file in manifest.files))


def _texts(value: Any, place: str) -> Iterator[Problem]:
    """Every text is one line that can be printed, but for those of the prompt."""
    if isinstance(value, str):
        printed = value.replace("\n", "") if place in _PROMPTS else value
        if not printed.isprintable():
            yield place, "contains characters that cannot be printed"
    elif isinstance(value, dict):
        for key, item in value.items():
            if not key.isprintable():
                yield place, f"key '{brief(key)}' contains characters that cannot be printed"
            yield from _texts(item, f"{place}.{key}")
    elif isinstance(value, list) and value and isinstance(value[0], str | dict | list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{place}[{index}]")


def _labels(manifest: Manifest) -> Iterator[Problem]:
    rows = manifest.label_rows
    if not 2 <= len(rows) <= _MOST_LABELS or len(set(rows)) < len(rows) or min(rows) < 0:
        yield "label_rows", f"expected 2 to {_MOST_LABELS} different tokens"
    taken: dict[int, str] = {}
    for label, some in manifest.labels.items():
        if not some or not all(0 <= row < len(rows) for row in some):
            yield f"labels.{label}", f"expected some of the rows 0 to {len(rows) - 1}"
        for row in some:
            if taken.setdefault(row, label) != label:
                yield f"labels.{label}", f"row {row} is that of '{taken[row]}' too"
    if missing := {"yes", "no"} - manifest.labels.keys():
        yield "labels", f"'{min(missing)}' is missing"


def _policy(policy: CompiledPolicy, place: str) -> Iterator[Problem]:
    for name, sha256 in (("sha256", policy.sha256), ("source_sha256", policy.source_sha256)):
        if not _SHA256.fullmatch(sha256) and not (name == "source_sha256" and not sha256):
            yield f"{place}.{name}", "expected 64 hexadecimal digits"
    if not policy.name or not policy.rules:
        yield place, "a policy has a name and rules"
    yield from _twice(f"{place}.rules", (rule.id for rule in policy.rules))
    if policy.clue is not None:
        yield from _clue(policy.clue, f"{place}.clue")
    count = 0
    for index, rule in enumerate(policy.rules):
        at = f"{place}.rules[{index}]"
        for name in ("id", "text", "category"):
            if len(getattr(rule, name)) > _MOST_TEXT:
                yield f"{at}.{name}", f"more than {_MOST_TEXT} characters"
        if not 0 < rule.threshold < 1:
            yield f"{at}.threshold", f"{rule.threshold} is not between 0 and 1"
        if not rule.id or not rule.conditions or not all(rule.conditions):
            yield at, "a rule has an id and conditions, and each of them an alternative"
        for each, either in enumerate(rule.conditions):
            count += len(either)
            for one, condition in enumerate(either):
                spot = f"{at}.conditions[{each}][{one}]"
                if not 0 < len(condition.text) <= _MOST_TEXT:
                    yield f"{spot}.text", f"expected 1 to {_MOST_TEXT} characters"
                if not 0 <= condition.language_prior <= 1:
                    yield f"{spot}.language_prior", f"{condition.language_prior} is not in 0..1"
                yield from _ids(condition.branch_ids, f"{spot}.branch_ids")
    if count > _MOST_QUESTIONS:
        yield place, f"{count} conditions; at most {_MOST_QUESTIONS} are allowed"


def _clue(clue: ClueSettings, place: str) -> Iterator[Problem]:
    for name, low in (
        *(("reject", -1), ("accept", 0), ("region", 0), ("relevance", -1)),
        *(("region_confidence", 0), ("small_region", 0)),
    ):
        high, found = 0 if name == "reject" else 1, getattr(clue, name)
        if not low <= found <= high:
            yield f"{place}.{name}", f"{found} is not from {low} to {high}"
    if clue.turns not in (1, 2):
        yield f"{place}.turns", f"{clue.turns} is neither 1 nor 2"


def _parts(parts: Sequence[PartRecord], place: str) -> Iterator[Problem]:
    """Runs of layers one behind another, from the first layer on."""
    expected = 0
    for index, part in enumerate(parts):
        if (part.index, part.first_layer) != (index, expected) or part.last_layer < expected:
            yield f"{place}[{index}]", f"expected part {index}, from layer {expected} on"
        if not 0 <= part.weight_bytes < _MOST_BYTES:
            yield f"{place}[{index}].weight_bytes", f"{part.weight_bytes} is no number of bytes"
        expected = part.last_layer + 1


def _graph(graph: GraphRecord, place: str, manifest: Manifest) -> Iterator[Problem]:
    for name, text, form in (
        ("target", graph.target, _WORD),
        ("stage", graph.stage, _WORD),
        ("variant", graph.variant, _FORM),
    ):
        if not form.fullmatch(text):
            yield f"{place}.{name}", f"'{brief(text)}' is none"
    # By its name ONNX Runtime would read another format, which is not looked into here.
    ending = ".mlmodel" if graph.target == "coreml" else ".onnx"
    if not graph.file.endswith(ending):
        yield f"{place}.file", f"'{brief(graph.file)}' does not end in {ending}"
    listed = {file.name for file in manifest.files}
    for name in (graph.file, *graph.weight_files):
        if name not in listed:
            yield place, f"'{brief(name)}' is not listed in {MANIFEST_NAME}"
    slices = {"vision_slice": manifest.vision_slices, "decoder_slice": manifest.decoder_slices}
    parts = slices.get(graph.stage, manifest.parts)
    if graph.part is not None and not 0 <= graph.part < len(parts):
        yield f"{place}.part", f"{graph.part} is none of {len(parts)} parts"
    if graph.tokens is not None and not 0 < graph.tokens <= _MOST_ROWS:
        yield f"{place}.tokens", f"{graph.tokens} is no number of tokens"
    for which in ("inputs", "outputs"):
        tensors = getattr(graph, which)
        yield from _twice(f"{place}.{which}", (tensor.name for tensor in tensors))
        for index, tensor in enumerate(tensors):
            at = f"{place}.{which}[{index}]"
            if not _WORD.fullmatch(tensor.name) or tensor.dtype not in _TYPES:
                yield at, f"'{brief(tensor.name)}' of {brief(tensor.dtype)} is no tensor's record"
            if not all(_SIZE.fullmatch(d) or _WORD.fullmatch(d) for d in tensor.shape):
                yield f"{at}.shape", "a dimension is a size above 0, or a name"
            if graph.stage.startswith("vision") and not tensor.shape:
                yield f"{at}.shape", "expected the views, or patches, first"
            if graph.stage == "overflow_check" and not _is_matrix(tensor.shape):
                yield f"{at}.shape", f"expected rows and up to {_MOST_WIDTH} columns"
        if not tensors:
            yield f"{place}.{which}", "a graph has some"
    own = [each for each in graph.outputs if not each.name.startswith(("present_", "new_"))]
    if len(own) != 1:
        yield f"{place}.outputs", f"{len(own)} beside keys and values; expected 1"
    if (graph.kv is None) == (graph.stage in _CACHED):
        yield f"{place}.kv", f"stage '{graph.stage}' has {'one' if graph.kv is None else 'none'}"
    if graph.kv is not None:
        yield from _kv(graph.kv, f"{place}.kv", graph, parts)


def _kv(
    kv: KvRecord, place: str, graph: GraphRecord, parts: Sequence[PartRecord]
) -> Iterator[Problem]:
    known = ("state",) if graph.target == "coreml" else ("BNSH", "BNHS")
    if kv.layout not in known:
        yield f"{place}.layout", f"'{brief(kv.layout)}' is not {' or '.join(known)}"
    if kv.dtype not in ("float32", "float16", "int8", "int4", "uint16"):
        yield f"{place}.dtype", f"'{brief(kv.dtype)}' is no type of a cache"
    if kv.dtype in ("int8", "int4") and (graph.target, kv.scales) != ("cpu", "channel"):
        yield f"{place}.dtype", f"{kv.dtype} is for the cpu target, with scales by channel"
    if kv.dtype == "int4" and kv.head_dim % 2:
        yield f"{place}.head_dim", f"{kv.head_dim} channels of four bits fill no whole bytes"
    if kv.scales not in (None, "channel", "layer"):
        yield f"{place}.scales", "expected channel, layer or null"
    yield from _counts(place, kv_heads=kv.kv_heads, head_dim=kv.head_dim)
    steps, buckets = kv.steps, kv.length_buckets
    if any(len(pair) != 2 or min(pair) <= 0 for pair in steps):
        yield f"{place}.steps", "expected pairs of numbers above 0"
    if kv.scales == "layer" and graph.part is not None and 0 <= graph.part < len(parts):
        layers = parts[graph.part].last_layer + 1 - parts[graph.part].first_layer
        if len(steps) != layers:
            yield f"{place}.steps", f"{len(steps)} of {layers} layers"
    if any(low >= high for low, high in zip((0, *buckets), buckets, strict=False)):
        yield f"{place}.length_buckets", "expected rising numbers above 0"
    if buckets and buckets[-1] > _MOST_ROWS:
        yield f"{place}.length_buckets", f"{buckets[-1]} rows; at most {_MOST_ROWS} are allowed"
    if not buckets and graph.target == "cpu":
        yield f"{place}.length_buckets", "expected some"


def _targets(manifest: Manifest) -> Iterator[Problem]:
    yield from _twice("targets", ((each.target, each.variant) for each in manifest.targets))
    for index, each in enumerate(manifest.targets):
        place = f"targets[{index}]"
        if not 0 < each.tolerance <= MOST_TOLERANCE:
            yield (
                f"{place}.tolerance",
                f"{each.tolerance} is not above 0 and up to {MOST_TOLERANCE}",
            )
        if _shape(each.canary_logits) != _shape(manifest.canary.golden.label_logits):
            yield f"{place}.canary_logits", "expected as many as the canary has"


def _relevance(manifest: Manifest) -> Iterator[Problem]:
    record = manifest.relevance
    if record is None:
        return
    yield from _counts("relevance", width=record.width)
    keys = [(each.policy, each.rule) for each in record.rules]
    yield from _twice("relevance.rules", keys)
    if not keys:
        yield "relevance.rules", "expected some"
    known = {(policy.name, rule.id) for policy in manifest.policies for rule in policy.rules}
    if strange := set(keys) - known:
        yield "relevance.rules", f"'{brief(min(strange)[1])}' is no rule of this bundle"


def _canary(manifest: Manifest) -> Iterator[Problem]:
    canary = manifest.canary
    height, width = canary.image_height, canary.image_width
    if not (0 < height <= _MOST_SIDE and 0 < width <= _MOST_SIDE) or height * width > _MOST_PIXELS:
        yield "canary.image_height", f"a picture of {width} x {height} pixels is too large, or none"
    if not 0 < canary.tolerance <= MOST_TOLERANCE:
        yield "canary.tolerance", f"{canary.tolerance} is not above 0 and up to {MOST_TOLERANCE}"
    if canary.golden.image != "canary":
        yield "canary.golden.image", "expected 'canary'"
    yield from _golden(canary.golden, "canary.golden", manifest)


def _golden(golden: GoldenRecord, place: str, manifest: Manifest) -> Iterator[Problem]:
    known = {"canary", *(file.name for file in manifest.files)}
    if golden.image is not None and golden.image not in known:
        yield f"{place}.image", f"'{brief(golden.image)}' is not listed in {MANIFEST_NAME}"
    if not (0 <= golden.rows <= _MOST_SIDE and 0 <= golden.cols <= _MOST_SIDE):
        yield f"{place}.rows", f"a grid of {golden.rows} x {golden.cols}"
    if not golden.branches:
        yield f"{place}.branches", "expected some"
    for index, ids in enumerate(golden.branches):
        yield from _ids(ids, f"{place}.branches[{index}]")
    if _shape(golden.label_logits) != [len(manifest.label_rows)] * len(golden.branches):
        yield f"{place}.label_logits", "expected a number for each branch and label row"


def _ids(ids: Sequence[int], place: str) -> Iterator[Problem]:
    if not 0 < len(ids) <= _MOST_IDS or min(ids) < 0:
        yield place, f"expected 1 to {_MOST_IDS} tokens"


def _counts(place: str, **counts: int) -> Iterator[Problem]:
    for name, count in counts.items():
        if not 0 < count <= _MOST_ROWS:
            yield f"{place}.{name}", f"{count} is not above 0 and up to {_MOST_ROWS}"


def _twice(place: str, names: Iterable[Any]) -> Iterator[Problem]:
    for name, count in Counter(names).items():
        if count > 1:
            yield place, f"'{brief(str(name))}' is there twice"


def _is_matrix(shape: Sequence[str]) -> bool:
    return len(shape) == 2 and bool(_SIZE.fullmatch(shape[1])) and int(shape[1]) <= _MOST_WIDTH


def _shape(rows: Sequence[Sequence[float]]) -> list[int]:
    return [len(row) for row in rows]


def _rows(graph: GraphRecord) -> tuple[int, ...]:
    """Static graphs of one length differ in the cache that they take."""
    return () if graph.kv is None or graph.tokens is None else graph.kv.length_buckets
