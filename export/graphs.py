"""The graphs of the `cpu` target: one function per stage.

Takes a family's forward pass, a spec and a maker of graph builders; writes .onnx files into the
bundle's folder and gives their records. Knows no family and no recipe.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from edgejudge.bundle import GraphRecord, KvRecord, PartRecord
from edgejudge.export.onnx_ops import OnnxOps
from edgejudge.models.family import Family
from edgejudge.models.spec import ModelSpec

__all__ = ["TARGET", "write_graphs"]

TARGET = "cpu"
_SMALLEST_BUCKET = 512


def write_graphs(
    folder: Path,
    family: Family,
    spec: ModelSpec,
    label_rows: tuple[int, ...],
    parts: list[range],
    judging: Callable[[str], OnnxOps],
    writing: Callable[[str], OnnxOps] | None,
) -> tuple[tuple[GraphRecord, ...], tuple[PartRecord, ...]]:
    """`judging` and `writing` make the builders of graphs that verdicts need and that only text
    needs; without `writing` text takes the same.
    """
    graphs = [_vision(folder, family, spec, judging)]
    records = []
    for index, layers in enumerate(parts):
        graph, size = _decoder(folder, family, spec, "decoder", index, layers, judging)
        graphs.append(graph)
        records.append(PartRecord(index, layers[0], layers[-1], size))
    graphs.append(_head(folder, family, spec, "verdict_head", label_rows, judging))
    if writing is not None:
        for index, layers in enumerate(parts):
            graph, _ = _decoder(folder, family, spec, "writer", index, layers, writing)
            graphs.append(graph)
    graphs.append(_head(folder, family, spec, "lm_head", None, writing or judging))
    return tuple(graphs), tuple(records)


def _vision(
    folder: Path, family: Family, spec: ModelSpec, make_ops: Callable[[str], OnnxOps]
) -> GraphRecord:
    ops = make_ops("vision")
    inputs = {
        name: ops.input(name, dtype, *shape)
        for name, (dtype, shape) in family.vision_inputs(spec).items()
    }
    tokens = family.vision(ops, spec, inputs)
    count = spec.visual_tokens or "T"
    ops.output(tokens, "visual_tokens", "float32", "V", count, spec.text.hidden)
    return _save(folder, ops, "vision", None, None)


def _decoder(
    folder: Path,
    family: Family,
    spec: ModelSpec,
    stage: str,
    index: int,
    layers: range,
    make_ops: Callable[[str], OnnxOps],
) -> tuple[GraphRecord, int]:
    """A part and the bytes of its weights."""
    ops, text = make_ops(f"{stage}_{index}"), spec.text
    hidden = ops.input("hidden", "float32", 1, "S", text.hidden)
    rotation = (
        ops.input("rope_cos", "float32", "S", text.head_dim // 2),
        ops.input("rope_sin", "float32", "S", text.head_dim // 2),
    )
    ops.input("attention_bias", "float32", 1, 1, "S", "T")
    ops.input("seqlens_k", "int32", 1)
    ops.input("total_sequence_length", "int32")
    for layer in layers:
        for name in ("key", "value"):
            ops.input(f"past_{name}_{layer}", "float32", 1, text.kv_heads, "C", text.head_dim)
    last = layers[-1] == text.layers - 1
    rows = ops.input("rows", "int64", "R") if last else None
    hidden = family.decoder(ops, spec, hidden, rotation, layers, rows)
    ops.output(hidden, "hidden_out", "float32", 1, "R" if last else "S", text.hidden)
    for layer in layers:
        for name in ("key", "value"):
            value = f"present_{name}_{layer}"
            ops.output(value, value, "float32", 1, text.kv_heads, "C", text.head_dim)
    kv = KvRecord(
        layout="BNSH",
        dtype="float32",
        kv_heads=text.kv_heads,
        head_dim=text.head_dim,
        scales=None,
        length_buckets=tuple(_buckets(text.max_positions)),
    )
    return _save(folder, ops, stage, index, kv), ops.weight_bytes


def _head(
    folder: Path,
    family: Family,
    spec: ModelSpec,
    stage: str,
    rows: tuple[int, ...] | None,
    make_ops: Callable[[str], OnnxOps],
) -> GraphRecord:
    ops = make_ops(stage)
    hidden = ops.input("hidden", "float32", "N", spec.text.hidden)
    logits = family.head(ops, spec, hidden, rows)
    name = "logits" if rows is None else "label_logits"
    ops.output(logits, name, "float32", "N", spec.text.vocab if rows is None else len(rows))
    return _save(folder, ops, stage, None, None)


def _buckets(longest: int) -> Iterator[int]:
    """Capacities a KV buffer is allocated in: doubling, up to the longest sequence."""
    length = _SMALLEST_BUCKET
    while length < longest:
        yield length
        length *= 2
    yield longest


def _save(
    folder: Path, ops: OnnxOps, stage: str, part: int | None, kv: KvRecord | None
) -> GraphRecord:
    file = f"{TARGET}.{stage}.onnx" if part is None else f"{TARGET}.{stage}.{part}.onnx"
    (folder / file).write_bytes(ops.model())
    return GraphRecord(
        target=TARGET,
        stage=stage,
        part=part,
        shape="dynamic",
        file=file,
        weight_files=ops.weight_files,
        inputs=ops.inputs,
        outputs=ops.outputs,
        kv=kv,
    )
