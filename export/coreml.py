"""The `coreml` target: MIL programs of a checkpoint, one for each part of the judge.

Takes a checkpoint and a plan; writes for each part a model file and a file of weights into the
bundle's folder, flat as everything there is, and gives a record for each of its functions. A
decoder's functions are one chunk of a prompt and one token; a tower's are its sizes. The functions
of a program share its weights, and a decoder's its keys and values, which are the program's state.
Nothing of it runs here: that takes a Mac or a phone. Knows no family.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types

from edgejudge.bundle import GraphRecord, KvRecord, TensorRecord
from edgejudge.errors import EdgeJudgeError, ExportError
from edgejudge.export.blocks import Plan
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.coreml_ops import MilOps, Shared
from edgejudge.export.ledger import Ledger
from edgejudge.manifest import STATES
from edgejudge.printable import one_line

__all__ = ["MOST_BYTES", "write_programs"]

MOST_BYTES = 1 << 30  # of a program's weights, which is what phones take
_CONTEXT = 2048  # rows of the cache
_HEAD_ROWS = 64  # questions whose labels are read at once
_KINDS: dict[str, Any] = {"float16": types.fp16, "float32": types.fp32, "int32": types.int32}
_PIECES = {"model.mlmodel": "mlmodel", "weights/weight.bin": "weights.bin"}


@dataclass(frozen=True, slots=True)
class _Function:
    """`build` gives the outputs' values, of the inputs and states by name."""

    tokens: int
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    build: Callable[[Shared, dict[str, Any]], Sequence[Any]]


def write_programs(
    folder: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    ledger: Ledger,
    parts: Sequence[range],
    variant: str,
    chunk: int,
    tables: bool,
) -> Iterator[GraphRecord]:
    """Raises ExportError for a program that is larger than phones take, or a weight beyond 16-bit
    floats. `chunk` is how many tokens of a prompt go through at once; with `tables` levels of four
    bits are places in a table.
    """
    writer = _Writer(folder, checkpoint, plan, ledger, variant, chunk, tables)
    yield from writer.vision()
    for index, layers in enumerate(parts):
        yield from writer.decoder(index, layers)
    yield from writer.head("verdict_head", checkpoint.labels.token_ids, "float32", _HEAD_ROWS)
    yield from writer.head("lm_head", None, "float16", 1)


@dataclass(frozen=True, slots=True)
class _Writer:
    folder: Path
    checkpoint: Checkpoint
    plan: Plan
    ledger: Ledger
    variant: str
    chunk: int
    tables: bool

    def vision(self) -> Iterator[GraphRecord]:
        family, spec = self.checkpoint.family, self.checkpoint.spec
        functions = []
        for size, shapes in family.static_vision_inputs(spec).items():
            count = spec.visual_tokens or size // spec.scale_factor**2
            functions.append(
                _Function(
                    size,
                    tuple(_tensor(name, "float16", *shape) for name, shape in shapes.items()),
                    (_tensor("visual_tokens", "float16", 1, count, spec.width_at(0)),),
                    lambda shared, given: [family.vision(MilOps(shared), spec, given)],
                )
            )
        yield from self._write("vision", None, functions, "float16", None)

    def decoder(self, index: int, layers: range) -> Iterator[GraphRecord]:
        spec, family = self.checkpoint.spec, self.checkpoint.family
        text = spec.text
        rows = min(_CONTEXT, text.max_positions)

        def build(shared: Shared, given: dict[str, Any]) -> Sequence[Any]:
            states = given["keys"], given["values"]
            ops = MilOps(shared, given["begin"], given["attention_bias"], states, layers.start)
            turn = given["rope_cos"], given["rope_sin"]
            hidden = family.decoder(ops, spec, given["hidden"], turn, layers)
            return [hidden, *ops.new.values()]

        functions = []
        for tokens in (self.chunk, 1):
            half = (tokens, text.head_dim // 2)
            inputs = (
                _tensor("hidden", "float16", 1, tokens, spec.width_at(layers.start)),
                _tensor("rope_cos", "float16", *half),
                _tensor("rope_sin", "float16", *half),
                _tensor("attention_bias", "float16", 1, 1, tokens, rows),
                _tensor("begin", "int32", 1),
            )
            # What was added is given too: a device that comes next, and whoever keeps a prefix,
            # need not read a whole state for it.
            new = (1, text.kv_heads, tokens, text.head_dim)
            outputs = (
                _tensor("hidden_out", "float16", 1, tokens, spec.width_at(layers.stop)),
                *(
                    _tensor(f"new_{which}_{layer}", "float16", *new)
                    for layer in layers
                    for which in ("key", "value")
                ),
            )
            functions.append(_Function(tokens, inputs, outputs, build))
        kv = KvRecord("state", "float16", text.kv_heads, text.head_dim, None, (), (rows,))
        state = (len(layers), text.kv_heads, rows, text.head_dim)
        yield from self._write("decoder", index, functions, "float16", kv, state)

    def head(
        self, stage: str, rows: tuple[int, ...] | None, kind: str, count: int
    ) -> Iterator[GraphRecord]:
        """Labels are read in 32 bits: they decide, and are few."""
        spec, family = self.checkpoint.spec, self.checkpoint.family
        wide = spec.text.vocab if rows is None else len(rows)
        name = "logits" if rows is None else "label_logits"

        def build(shared: Shared, given: dict[str, Any]) -> Sequence[Any]:
            return [family.head(MilOps(shared), spec, given["hidden"], rows)]

        one = _Function(
            count,
            (_tensor("hidden", kind, count, spec.text.hidden),),
            (_tensor(name, kind, count, wide),),
            build,
        )
        yield from self._write(stage, None, [one], kind, None)

    def _write(
        self,
        stage: str,
        part: int | None,
        functions: Sequence[_Function],
        kind: str,
        kv: KvRecord | None,
        state: tuple[int, ...] | None = None,
    ) -> Iterator[GraphRecord]:
        given = (self.checkpoint.weights, self.plan, self.ledger)
        shared = Shared(*given, np.dtype(kind).type, self.tables)
        stem = ".".join(str(p) for p in ("coreml", self.variant, stage, part) if p is not None)
        records = [
            GraphRecord(
                target="coreml",
                variant=self.variant,
                stage=stage,
                part=part,
                tokens=one.tokens,
                file="",
                weight_files=(),
                inputs=one.inputs,
                outputs=one.outputs,
                kv=kv,
            )
            for one in functions
        ]
        program = Program()
        for record, one in zip(records, functions, strict=True):
            program.add_function(record.function, _built(one, shared, state, stem))
        program.default_function_name = records[0].function
        program.skip_all_passes = True  # what was proven is what is written
        program.export_as_multifunction = True
        file, *weights = self._saved(program, stem)
        for record in records:
            yield replace(record, file=file, weight_files=tuple(weights))

    def _saved(self, program: Program, stem: str) -> list[str]:
        """The program's files, taken out of the folders that Xcode wants around them."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch, redirect_stderr(StringIO()):
            package = Path(scratch) / "program.mlpackage"
            try:  # to that folder at once: a gigabyte need not be written twice
                ct.convert(
                    program,
                    source="milinternal",
                    convert_to="mlprogram",
                    minimum_deployment_target=ct.target.iOS18,
                    pass_pipeline=ct.PassPipeline.EMPTY,
                    skip_model_load=True,
                    package_dir=str(package),
                )
            except OSError:
                raise  # which says itself that there is no room
            except Exception as error:  # of whatever class
                raise _refused(stem, "the whole", error) from error
            made = []
            for piece, ending in _PIECES.items():
                file = package / "Data" / "com.apple.CoreML" / piece
                if file.is_file():
                    made.append(f"{stem}.{ending}")
                    shutil.move(file, self.folder / made[-1])
                    (self.folder / made[-1]).chmod(0o644)  # coremltools gives it to its maker alone
        size = sum((self.folder / name).stat().st_size for name in made)
        if size > MOST_BYTES:
            raise ExportError(
                f"the program {stem} takes {size / 2**20:.0f} MiB, phones take "
                f"{MOST_BYTES >> 20}; ask for more parts with --parts"
            )
        return made


def _refused(stem: str, what: str, error: Exception) -> ExportError:
    return ExportError(
        f"the program {stem}: coremltools refuses {what} ({one_line(error)}); leave the target "
        "coreml out"
    )


def _built(one: _Function, shared: Shared, state: tuple[int, ...] | None, stem: str) -> Function:
    given = {
        tensor.name: mb.placeholder(tuple(map(int, tensor.shape)), dtype=_KINDS[tensor.dtype])
        for tensor in one.inputs
    }
    if state is not None:
        given |= {n: mb.state_tensor_placeholder(state, dtype=types.fp16) for n in STATES}
    with Function(given, opset_version=ct.target.iOS18) as function:
        try:
            made = one.build(shared, dict(function.inputs))
        except EdgeJudgeError:
            raise
        except Exception as error:  # what an operation's checks raise, of whatever class
            raise _refused(stem, f"what is done with {shared.at}", error) from error
        named = [mb.identity(x=x, name=o.name) for x, o in zip(made, one.outputs, strict=True)]
        function.set_outputs(named)
    return function


def _tensor(name: str, kind: str, *shape: int) -> TensorRecord:
    return TensorRecord(name, kind, tuple(map(str, shape)))
