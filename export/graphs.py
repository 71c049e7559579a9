"""The graphs of the `cpu` target: one method per stage.

Takes a family's forward pass, a spec and a maker of graph builders; writes .onnx files into the
bundle's folder and gives their records. Knows no family and no recipe.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgejudge.bundle import GraphRecord, KvRecord, PartRecord
from edgejudge.export.onnx_graph import OnnxGraph, overflow_check
from edgejudge.export.onnx_ops import OnnxOps
from edgejudge.export.store import WeightStore
from edgejudge.models.family import Family
from edgejudge.models.spec import ModelSpec

__all__ = [
    "TARGET",
    "GraphWriter",
    "Runs",
    "buckets",
    "length_inputs",
    "pass_inputs",
    "save",
]

TARGET = "cpu"
_SMALLEST_BUCKET = 512


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of layers, each to be a graph: what the decoder is cut into, and slices of both."""

    parts: list[range]
    vision_slices: list[range]
    decoder_slices: list[range]


@dataclass(frozen=True, slots=True)
class Written:
    """Records for the manifest."""

    graphs: tuple[GraphRecord, ...]
    parts: tuple[PartRecord, ...]
    vision_slices: tuple[PartRecord, ...]
    decoder_slices: tuple[PartRecord, ...]


@dataclass(frozen=True, slots=True)
class GraphWriter:
    """`judging` and `writing` make the builders of graphs that verdicts need and that only text
    needs; without `writing` text takes the same.
    """

    folder: Path
    store: WeightStore
    family: Family
    spec: ModelSpec
    label_rows: tuple[int, ...]
    judging: Callable[[str], OnnxOps]
    writing: Callable[[str], OnnxOps] | None
    kv_dtype: str  # of the cache that builders make: "float32", or "int8" or "int4"
    wide_integers: bool  # which some processors cannot add up

    def write(self, runs: Runs) -> Written:
        whole, _ = self._vision("vision", None, range(self.spec.vision.layers))
        decoder, parts = self._each(self._decoder, "decoder", runs.parts)
        graphs = [whole, *decoder, self._head("verdict_head", self.label_rows, self.judging)]
        if self.writing is not None:
            graphs += self._each(self._decoder, "writer", runs.parts)[0]
        graphs.append(self._head("lm_head", None, self.writing or self.judging))
        if self.wide_integers:
            check = overflow_check(self.store)
            graphs.append(save(self.folder, check, "overflow_check", None, None))
        # Last, so that the order of weights in their files is that of the graphs in daily use.
        thin, vision_slices = self._each(self._vision, "vision_slice", runs.vision_slices)
        graphs += thin
        thin, decoder_slices = self._each(self._decoder, "decoder_slice", runs.decoder_slices)
        return Written((*graphs, *thin), parts, vision_slices, decoder_slices)

    def _each(
        self,
        write: Callable[[str, int, range], tuple[GraphRecord, int]],
        stage: str,
        runs: list[range],
    ) -> tuple[list[GraphRecord], tuple[PartRecord, ...]]:
        graphs, records = [], []
        for index, layers in enumerate(runs):
            graph, size = write(stage, index, layers)
            graphs.append(graph)
            records.append(PartRecord(index, layers[0], layers[-1], size))
        return graphs, tuple(records)

    def _vision(self, stage: str, index: int | None, layers: range) -> tuple[GraphRecord, int]:
        """A run of the tower and the bytes of its weights."""
        family, spec = self.family, self.spec
        ops = self.judging(stage if index is None else f"{stage}_{index}")
        inputs = {
            name: ops.input(name, dtype, *shape)
            for name, (dtype, shape) in family.vision_inputs(spec, layers).items()
        }
        value = family.vision(ops, spec, inputs, layers)
        if layers.stop == spec.vision.layers:
            count = spec.visual_tokens or "T"
            ops.output(value, "visual_tokens", "float32", "V", count, spec.width_at(0))
        else:
            dtype, shape = family.vision_inputs(spec, range(layers.stop, layers.stop + 1))["hidden"]
            ops.output(value, "hidden_out", dtype, *shape)
        return save(self.folder, ops, stage, index, None), ops.weight_bytes

    def _decoder(self, stage: str, index: int, layers: range) -> tuple[GraphRecord, int]:
        """A run of the decoder and the bytes of its weights."""
        make = self.writing if stage == "writer" and self.writing is not None else self.judging
        ops, text = make(f"{stage}_{index}"), self.spec.text
        hidden, rotation = pass_inputs(ops, self.spec, layers.start, "S", "T")
        length_inputs(ops)
        kv = KvRecord(
            layout="BNSH",
            dtype=self.kv_dtype,
            kv_heads=text.kv_heads,
            head_dim=text.head_dim,
            scales=None if self.kv_dtype == "float32" else "channel",
            steps=(),
            length_buckets=tuple(buckets(text.max_positions)),
        )
        dtype, width = kv.row
        cache = (1, text.kv_heads, "C", width)
        for layer in layers:
            for name in ("key", "value"):
                ops.input(f"past_{name}_{layer}", dtype, *cache)
        last = layers[-1] == text.layers - 1
        rows = ops.input("rows", "int64", "R") if last else None
        hidden = self.family.decoder(ops, self.spec, hidden, rotation, layers, rows)
        wide = self.spec.width_at(layers.stop)
        ops.output(hidden, "hidden_out", "float32", 1, "R" if last else "S", wide)
        for layer in layers:
            for name in ("key", "value"):
                value = f"present_{name}_{layer}"
                ops.output(value, value, dtype, *cache)
        return save(self.folder, ops, stage, index, kv), ops.weight_bytes

    def _head(
        self, stage: str, rows: tuple[int, ...] | None, make_ops: Callable[[str], OnnxOps]
    ) -> GraphRecord:
        ops, spec = make_ops(stage), self.spec
        hidden = ops.input("hidden", "float32", "N", spec.text.hidden)
        logits = self.family.head(ops, spec, hidden, rows)
        name = "logits" if rows is None else "label_logits"
        ops.output(logits, name, "float32", "N", spec.text.vocab if rows is None else len(rows))
        return save(self.folder, ops, stage, None, None)


def pass_inputs(
    ops: OnnxGraph,
    spec: ModelSpec,
    layer: int,
    tokens: int | str,
    total: int | str,
    dtype: str = "float32",
) -> tuple[str, tuple[str, str]]:
    """What every decoder graph takes, of which `layer` is the first: hidden states, cos and sin,
    and the mask.
    """
    half = spec.text.head_dim // 2
    hidden = ops.input("hidden", dtype, 1, tokens, spec.width_at(layer))
    cos, sin = (ops.input(f"rope_{w}", dtype, tokens, half) for w in ("cos", "sin"))
    ops.input("attention_bias", dtype, 1, 1, tokens, total)
    return hidden, (cos, sin)


def length_inputs(ops: OnnxGraph) -> None:
    """What fused attention is told of the cache."""
    ops.input("seqlens_k", "int32", 1)
    ops.input("total_sequence_length", "int32")


def buckets(longest: int) -> Iterator[int]:
    """Capacities a KV buffer is allocated in: doubling, up to the longest sequence."""
    length = _SMALLEST_BUCKET
    while length < longest:
        yield length
        length *= 2
    yield longest


def save(
    folder: Path,
    ops: OnnxGraph,
    stage: str,
    part: int | None,
    kv: KvRecord | None,
    *,
    target: str = TARGET,
    variant: str = "",
    tokens: int | None = None,
) -> GraphRecord:
    """Writes a graph under the name that all of this gives it."""
    shape = "" if tokens is None else f"{tokens}"
    if kv is not None and tokens is not None:
        shape += f"x{kv.length_buckets[0]}"
    pieces = (target, variant, stage, "" if part is None else str(part), shape, "onnx")
    file = ".".join(piece for piece in pieces if piece)
    (folder / file).write_bytes(ops.model())
    return GraphRecord(
        target=target,
        variant=variant,
        stage=stage,
        part=part,
        tokens=tokens,
        file=file,
        weight_files=ops.weight_files,
        inputs=ops.inputs,
        outputs=ops.outputs,
        kv=kv,
    )
