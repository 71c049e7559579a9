"""Graphs of the `gpu` and `npu` targets: the same forward pass, lowered otherwise.

Takes an opened checkpoint, how the `cpu` target stores its weights, and the runs of layers that are
parts; writes graphs and the weights they need beside those of the `cpu` target, and gives their
records. Heads and embeddings stay on the processor, which needs microseconds for them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from edgejudge.bundle import GraphRecord, KvRecord, QuantRecord, TargetRecord
from edgejudge.errors import ExportError
from edgejudge.export.blocks import Plan
from edgejudge.export.byte_ranges import Bytes, byte_ranges
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.gpu_ops import FusedGpuOps, PlainGpuOps
from edgejudge.export.graphs import length_inputs, pass_inputs, save
from edgejudge.export.ledger import Ledger
from edgejudge.export.npu_ops import NpuOps
from edgejudge.export.ranges import Ranges, ranges_of
from edgejudge.export.recipe import Recipe
from edgejudge.export.store import WeightStore
from edgejudge.models.spec import ModelSpec

__all__ = ["TARGETS", "Variant", "lower", "variants_of"]

TARGETS = (
    *("cpu", "gpu", "npu", "npu:a16w4", "npu:a8w8"),
    *("coreml", "coreml:chunk64", "coreml:lut", "coreml:rows"),
)
_USUAL = {"npu": "a16w8", "coreml": "chunk128"}
_CONTEXTS = (512, 1024, 2048)  # rows of the cache that a static graph takes
_TOKENS = (128, 1)  # of a chunk of a prompt, and of text that is written


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to lower a target, the fastest first. `tolerance` is how far a label logit on a
    device may be from the reference over the same weights.
    """

    target: str
    name: str
    tolerance: float
    bits: int = 0  # of weights that are stored for this target; 0 are those of the plan
    by_bytes: bool = False  # whether matrices meet bytes
    chunk: int = 0  # tokens of a prompt that go through a program at once, where it has no other
    tables: bool = False  # whether levels of four bits are places in a table
    rows: bool = False  # whether weights are rows of one scale, of eight bits

    def recipe(self, recipe: Recipe) -> Recipe:
        """Of its weights, in a bundle of this recipe."""
        if self.bits or self.rows:
            return recipe.for_npu(self.bits or 8)
        return recipe.for_gpu()


_VARIANTS = (
    Variant("gpu", "float16.fused", 5e-2),
    Variant("gpu", "float16.plain", 5e-2),
    Variant("gpu", "float32.fused", 1e-3),
    Variant("gpu", "float32.plain", 1e-3),
    Variant("npu", "a16w8", 1e-1, 8),
    Variant("npu", "a16w4", 1e-1, 4),
    Variant("npu", "a8w8", 3e-1, 8, by_bytes=True),
    Variant("coreml", "chunk128", 5e-2, chunk=128),
    Variant("coreml", "chunk64", 5e-2, chunk=64),
    Variant("coreml", "lut", 5e-2, chunk=128, tables=True),
    Variant("coreml", "rows", 5e-2, chunk=128, rows=True),
)


def variants_of(targets: Sequence[str], kv: str = "float32") -> list[Variant]:
    """Of these targets, in their order; "npu:a16w4" has weights of four bits, "npu:a8w8" matrices
    that meet bytes; "coreml:chunk64" takes 64 tokens of a prompt at once in place of 128,
    "coreml:lut" has tables of levels and "coreml:rows" weights of eight bits with a scale for each
    row. Raises ExportError for one that is not known, and for any beside the CPU where its cache
    `kv` is of integers.
    """
    found = []
    for target in targets:
        name, _, form = target.partition(":")
        form = form or _USUAL.get(name, "")
        some = [v for v in _VARIANTS if v.target == name and v.name.startswith(form)]
        if target != "cpu" and not some:
            raise ExportError(f"no target is called {target!r}; known: {', '.join(TARGETS)}")
        found += some
    if found and kv != "float32":
        raise ExportError(
            f"keys and values in {kv} are for the cpu target alone; leave out --kv {kv}, or the "
            "other targets"
        )
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Lowered:
    """A variant that was written, and how its weights are stored."""

    variant: Variant
    plan: Plan
    graphs: tuple[GraphRecord, ...]
    quantization: tuple[QuantRecord, ...]

    def record(
        self, canary_logits: Callable[[Plan], tuple[tuple[float, ...], ...]]
    ) -> TargetRecord:
        """Not compared with anything yet."""
        variant = self.variant
        return TargetRecord(
            variant.target,
            variant.name,
            variant.tolerance,
            canary_logits(self.plan),
            self.quantization,
            None,
        )


def lower(
    folder: Path,
    store: WeightStore,
    checkpoint: Checkpoint,
    plan: Plan,
    parts: Sequence[range],
    variants: Sequence[Variant],
    progress: Callable[[str, float], None],
) -> list[Lowered]:
    """Writes these variants beside the graphs of the `cpu` target, which `plan` is of."""
    ranges: Ranges = {}
    given: Bytes | None = None
    if any(variant.bits for variant in variants):
        progress("looking how far values reach", 0.0)
        if any(variant.by_bytes for variant in variants):
            ranges, given = byte_ranges(checkpoint)
        else:
            ranges = ranges_of(checkpoint)
    found = []
    for index, variant in enumerate(variants):
        progress(f"writing {variant.target} graphs", index / len(variants))
        chosen = plan.for_target(variant.recipe(plan.recipe))
        ledger = Ledger(checkpoint.family.group_of)
        writer = _Writer(folder, store, checkpoint, ledger, parts)
        apart = given if variant.by_bytes else None
        graphs = tuple(writer.write(variant, chosen, ranges, apart))
        found.append(Lowered(variant, chosen, graphs, ledger.records()))
    return found


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes one variant at a time."""

    folder: Path
    store: WeightStore
    checkpoint: Checkpoint
    ledger: Ledger
    parts: Sequence[range]

    def write(
        self, variant: Variant, plan: Plan, ranges: Ranges, apart: Bytes | None
    ) -> Iterator[GraphRecord]:
        """`plan` is of the variant; `ranges` are needed by whole numbers alone, and `apart` by
        bytes.
        """
        if variant.target == "gpu":
            yield from self._gpu(variant, plan)
        elif variant.target == "coreml":
            yield from self._coreml(variant, plan)
        else:
            yield from self._npu(variant, plan, ranges, apart)

    @property
    def _spec(self) -> ModelSpec:
        return self.checkpoint.spec

    def _gpu(self, variant: Variant, plan: Plan) -> Iterator[GraphRecord]:
        dtype, _, form = variant.name.partition(".")
        make = PlainGpuOps if form == "plain" else FusedGpuOps
        given = (self.checkpoint.weights, plan, self.store, self.ledger)
        family, spec, text = self.checkpoint.family, self._spec, self._spec.text
        ops = make("vision", *given, dtype=dtype)
        inputs = {
            name: ops.input(name, dtype if kind == "float32" else kind, *shape)
            for name, (kind, shape) in family.vision_inputs(spec).items()
        }
        value = family.vision(ops, spec, inputs)
        ops.output(value, "visual_tokens", dtype, "V", spec.visual_tokens or "T", spec.width_at(0))
        yield save(self.folder, ops, "vision", None, None, target="gpu", variant=variant.name)
        for index, layers in enumerate(self.parts):
            ops = make(f"decoder_{index}", *given, dtype=dtype)
            hidden, rotation = pass_inputs(ops, spec, layers.start, "S", "T", dtype)
            if form == "fused":
                length_inputs(ops)
            cache = (1, text.kv_heads, "C", text.head_dim)
            for layer in layers:
                for name in ("key", "value"):
                    ops.input(f"past_{name}_{layer}", dtype, *cache)
            hidden = family.decoder(ops, spec, hidden, rotation, layers)
            ops.output(hidden, "hidden_out", dtype, 1, "S", spec.width_at(layers.stop))
            new, rows = ("present", "T") if form == "fused" else ("new", "S")
            for layer in layers:
                for name in ("key", "value"):
                    value = f"{new}_{name}_{layer}"
                    ops.output(value, value, dtype, 1, text.kv_heads, rows, text.head_dim)
            kv = KvRecord("BNSH", dtype, text.kv_heads, text.head_dim, None, (), ())
            yield save(self.folder, ops, "decoder", index, kv, target="gpu", variant=variant.name)

    def _coreml(self, variant: Variant, plan: Plan) -> Iterator[GraphRecord]:
        writer = _coreml_writer()
        given = (self.folder, self.checkpoint, plan, self.ledger, self.parts)
        yield from writer(*given, variant.name, variant.chunk, variant.tables)

    def _npu(
        self, variant: Variant, plan: Plan, ranges: Ranges, apart: Bytes | None
    ) -> Iterator[GraphRecord]:
        given = (self.checkpoint.weights, plan, self.store, self.ledger, ranges, apart)
        family, spec, text = self.checkpoint.family, self._spec, self._spec.text
        yield from self._npu_vision(variant, lambda name: NpuOps(name, *given))
        contexts = [c for c in _CONTEXTS if c <= text.max_positions] or [text.max_positions]
        for index, layers in enumerate(self.parts):
            for context in contexts:
                # Qualcomm's compiler fills all memory over bytes of a single token; one that is
                # alone takes the graph of many.
                for tokens in _TOKENS[:1] if variant.by_bytes else _TOKENS:
                    ops = NpuOps(f"decoder_{index}", *given)
                    total = context + tokens
                    hidden, rotation = pass_inputs(ops, spec, layers.start, tokens, total)
                    for layer in layers:
                        keys = (1, text.kv_heads, text.head_dim, context)
                        values = (1, text.kv_heads, context, text.head_dim)
                        ops.input(f"past_key_{layer}", "uint16", *keys)
                        ops.input(f"past_value_{layer}", "uint16", *values)
                    hidden = family.decoder(ops, spec, hidden, rotation, layers)
                    wide = spec.width_at(layers.stop)
                    ops.output(hidden, "hidden_out", "float32", 1, tokens, wide)
                    for layer in layers:
                        keys = (1, text.kv_heads, text.head_dim, tokens)
                        values = (1, text.kv_heads, tokens, text.head_dim)
                        ops.output(f"new_key_{layer}", f"new_key_{layer}", "float32", *keys)
                        ops.output(f"new_value_{layer}", f"new_value_{layer}", "float32", *values)
                    found = iter(ops.cache_steps)
                    steps = tuple((key, next(found)) for key in found)
                    shape = (text.kv_heads, text.head_dim)
                    kv = KvRecord("BNHS", "uint16", *shape, "layer", steps, (context,))
                    yield save(
                        self.folder,
                        ops,
                        "decoder",
                        index,
                        kv,
                        target="npu",
                        variant=variant.name,
                        tokens=tokens,
                    )

    def _npu_vision(self, variant: Variant, make: Callable[[str], NpuOps]) -> Iterator[GraphRecord]:
        """Of each size that the family has."""
        family, spec = self.checkpoint.family, self._spec
        for size, shapes in family.static_vision_inputs(spec).items():
            ops, inputs = make("vision"), {}
            for name, shape in shapes.items():
                inputs[name] = ops.input(name, "float32", *shape)
                if name == "window_mask":
                    inputs[name] = ops.mask_input(name)
            value = family.vision(ops, spec, inputs)
            count = spec.visual_tokens or size // spec.scale_factor**2
            ops.output(value, "visual_tokens", "float32", 1, count, spec.width_at(0))
            yield save(
                self.folder,
                ops,
                "vision",
                None,
                None,
                target="npu",
                variant=variant.name,
                tokens=size,
            )


def _coreml_writer() -> Callable[..., Iterator[GraphRecord]]:
    """Imported here: an extra of its own, which says much when it is imported."""
    try:
        with redirect_stderr(StringIO()):
            from edgejudge.export.coreml import write_programs
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "coremltools":
            raise
        raise ExportError(
            "the target coreml needs coremltools; install it with "
            "`pip install 'edgejudge[export,coreml]'`, or leave that target out"
        ) from None
    return write_programs
