"""The interpreter of saved MIL programs: operations mean what coremltools infers over constants,
and what that has no value for is computed by hand.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the extra coreml is not installed")

from mil_program import Package


def program(
    tmp_path: Path, build: Callable[[Any], Any], state: bool = False, **inputs: tuple[int, ...]
) -> Package:
    """Of operations over float32 inputs of these shapes, and the `state` s [2, 3], as saved."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program, types

    given = {name: mb.placeholder(shape, dtype=types.fp32) for name, shape in inputs.items()}
    if state:
        given["s"] = mb.state_tensor_placeholder((2, 3), dtype=types.fp16)
    with Function(given, opset_version=ct.target.iOS18) as function:
        function.set_outputs([mb.identity(x=build(dict(function.inputs)), name="out")])
    whole = Program()
    whole.add_function("main", function)
    ct.convert(
        whole,
        source="milinternal",
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    ).save(str(tmp_path / "p.mlpackage"))
    return Package(tmp_path / "p.mlpackage")


def test_a_state_keeps_what_was_written(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb

    def build(given: dict[str, Any]) -> Any:
        row = mb.cast(x=given["x"], dtype="fp16")
        old = mb.read_state(input=given["s"])
        new = mb.slice_update(x=old, update=row, begin=[1, 0], end=[2, 3])
        kept = mb.coreml_update_state(state=given["s"], value=new)
        return mb.cast(x=mb.add(x=kept, y=np.float16(10)), dtype="fp32")

    package = program(tmp_path, build, True, x=(1, 3))
    state = package.new_state("main")
    assert state["s"].shape == (2, 3) and not state["s"].any()
    out = package.run("main", {"x": np.array([[1, 2, 3]], np.float32)}, state)["out"]
    assert out.tolist() == [[10, 10, 10], [11, 12, 13]]
    assert state["s"].tolist() == [[0, 0, 0], [1, 2, 3]]
    package.run("main", {"x": np.array([[7, 8, 9]], np.float32)}, state)
    assert state["s"].tolist() == [[0, 0, 0], [7, 8, 9]]


X = np.array([[-2.0, -0.5, 0.0, 0.5], [1.0, 2.0, 3.0, 4.0]], np.float32)
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "gelu": lambda mb, x: mb.gelu(x=x, mode="EXACT"),
    "gelu_tanh": lambda mb, x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
    "silu": lambda mb, x: mb.silu(x=x),
    "softmax": lambda mb, x: mb.softmax(x=x, axis=-1),
    "matmul": lambda mb, x: mb.matmul(x=x, y=x, transpose_y=True),
    "reduce_mean": lambda mb, x: mb.reduce_mean(x=x, axes=[-1], keep_dims=True),
    "reduce_max": lambda mb, x: mb.reduce_max(x=x, axes=[0], keep_dims=False),
    "real_div": lambda mb, x: mb.real_div(x=x, y=np.float32(3)),
    "maximum": lambda mb, x: mb.maximum(x=x, y=np.float32(0.25)),
    "transpose": lambda mb, x: mb.transpose(x=x, perm=[1, 0]),
    "reshape": lambda mb, x: mb.reshape(x=x, shape=[4, -1]),
    "concat": lambda mb, x: mb.concat(values=[x, x], axis=0),
    "split": lambda mb, x: mb.split(x=x, num_splits=2, axis=-1)[1],
    "slice_by_index": lambda mb, x: mb.slice_by_index(x=x, begin=[0, 1], end=[2, 3]),
    "slice_update": lambda mb, x: mb.slice_update(
        x=x, update=np.ones((1, 2), np.float32), begin=[1, 1], end=[2, 3]
    ),
    "tile": lambda mb, x: mb.tile(x=x, reps=[2, 1]),
    "pad": lambda mb, x: mb.pad(x=x, pad=[0, 0, 0, 3], mode="constant", constant_val=0.0),
    "expand_dims": lambda mb, x: mb.expand_dims(x=x, axes=[0, 2]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_mean_what_coremltools_infers(tmp_path: Path, name: str) -> None:
    """Its value inference computes an operation over constants, where it has one; ours computes the
    same operation over an input.
    """
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function

    with Function({"x": mb.placeholder((1,))}):
        inferred = OPERATIONS[name](mb, mb.const(val=X)).val
    package = program(tmp_path, lambda given: OPERATIONS[name](mb, given["x"]), x=X.shape)
    found = package.run("main", {"x": X}, package.new_state("main"))["out"]
    wanted = inferred if inferred is not None else BY_HAND[name]
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < 1e-6


@pytest.mark.parametrize("tables", [(1, 1), (3, 1), (1, 4), (6, 2)])
@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_tables_are_looked_up_as_coremltools_does(
    tmp_path: Path, tables: tuple[int, int], kind: str
) -> None:
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    rng = np.random.default_rng(0)
    places = rng.integers(0, 16, (6, 64)).astype(np.uint8)
    table = (rng.standard_normal((*tables, 16, 1)) * 40).astype(kind)
    wanted: list[Any] = []

    def build(given: dict[str, Any]) -> Any:
        matrix = mb.constexpr_lut_to_dense(indices=places.astype(types.np_uint4_dtype), lut=table)
        wanted.append(matrix.op.materialized_val_inference())
        if kind == "int8":
            scales = np.full((6, 1), 0.5, np.float32)
            matrix = mb.constexpr_blockwise_shift_scale(data=matrix, scale=scales)
        else:
            matrix = mb.cast(x=matrix, dtype="fp32")
        return mb.matmul(x=given["x"], y=matrix, transpose_y=True)

    package = program(tmp_path, build, x=(64, 64))
    found = package.run("main", {"x": np.eye(64, dtype=np.float32)}, package.new_state("main"))
    share = 0.5 if kind == "int8" else 1.0
    assert np.abs(found["out"].T - wanted[0].astype(np.float32) * share).max() < 1e-5


BY_HAND = {
    "silu": X / (1 + np.exp(-X)),
    "slice_update": np.array([[-2, -0.5, 0, 0.5], [1, 1, 1, 4]], np.float32),
    "pad": np.pad(X, ((0, 0), (0, 3))),
}


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_unpacked_as_they_were_stored(tmp_path: Path, bits: int) -> None:
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    rng = np.random.default_rng(0)
    levels = rng.integers(-(1 << bits - 1), 1 << bits - 1, (6, 64)).astype(np.int8)
    scales = rng.standard_normal((6, 2)).astype(np.float32)
    data = levels.astype(types.np_int4_dtype) if bits == 4 else levels

    def build(given: dict[str, Any]) -> Any:
        matrix = mb.constexpr_blockwise_shift_scale(data=data, scale=scales)
        return mb.matmul(x=given["x"], y=matrix, transpose_y=True)

    package = program(tmp_path, build, x=(64, 64))
    found = package.run("main", {"x": np.eye(64, dtype=np.float32)}, package.new_state("main"))
    wanted = levels.astype(np.float32) * np.repeat(scales, 32, axis=1)
    assert np.abs(found["out"].T - wanted).max() < 1e-5
