"""Pieces of a static graph in several forms on Qualcomm's HTP: which it takes, and how exactly.

`make bench-npu` prints a table: error against float64 of each form, and whether every node is on
the provider. On a machine without the hardware this is the HTP's simulator, whose numbers count and
whose times do not. Takes nothing, keeps nothing.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgejudge.errors import EdgeJudgeError
from edgejudge.runtime.placement import Device
from edgejudge.runtime.provider import open_inner

QNN = Device(
    "npu",
    "QNNExecutionProvider",
    options=(("offload_graph_io_quantization", "0"),),
    simulator=True,
)
Arrays = Mapping[str, NDArray[np.float32]]


class Graph:
    """Nodes between levels of 16 or 8 bits."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[np.generic] | np.generic) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        out = f"{op}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, inputs, [out], name=out, domain=domain, **attributes)
        )
        return out

    def levels(self, x: str, reach: float, dtype: str = "uint16") -> str:
        bits = 8 * np.dtype(dtype).itemsize
        zero = 0 if dtype.startswith("int") else 1 << bits - 1
        grid = (
            self.constant(np.float32(reach / ((1 << bits - 1) - 1))),
            self.constant(np.array(zero, dtype)),
        )
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *grid), *grid)

    def weight4(self, matrix: NDArray[np.float32], zeros: bool) -> str:
        """[K, N] in four bits, each output with a scale of its own."""
        scales = np.abs(matrix).max(0) / 7
        levels = np.clip(np.rint(matrix / scales), -7, 7).astype(np.int8)
        inputs = []
        for name, value in (("w", levels), ("z", np.zeros(matrix.shape[1], np.int8))):
            tensor = helper.make_tensor(
                name, TensorProto.INT4, value.shape, value.reshape(-1).tolist()
            )
            self.constants.append(tensor)
            inputs.append(name)
        inputs.insert(1, self.constant(scales.astype(np.float32)))
        return self.node("DequantizeLinear", *inputs[: 3 if zeros else 2], axis=1)

    def model(self, feeds: Arrays, y: str, shape: tuple[int, ...]) -> bytes:
        self.nodes.append(helper.make_node("Identity", [y], ["y"], name="last"))
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
            for name, value in feeds.items()
        ]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "piece", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
        return bytes(model.SerializeToString())


def try_form(
    name: str, feeds: Arrays, wanted: NDArray[np.float64], make: Callable[[Graph], str]
) -> None:
    graph = Graph()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "piece.onnx")
        file.write_bytes(graph.model(feeds, make(graph), wanted.shape))
        try:
            (found,) = open_inner(file, QNN, 1, strict=True).run(None, dict(feeds))
        except EdgeJudgeError as error:
            print(f"| {name} | {str(error)[:110]} |")
            return
    error, size = np.abs(found - wanted).max(), np.abs(wanted).max()
    print(f"| {name} | {error:.4f} of {size:.1f} |")


def main() -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    print("| form | largest error, or why not |\n|---|---|")
    a, b = normal(1, 2, 384, 32), normal(1, 2, 32, 640)
    feeds = {"a": a, "b": b}
    product = a.astype(np.float64) @ b.astype(np.float64)
    for right in ("uint16", "int16", "uint8"):
        try_form(
            f"product of two activations, uint16 by {right}",
            feeds,
            product,
            lambda g, right=right: g.levels(
                g.node("MatMul", g.levels("a", 5), g.levels("b", 5, right)), 30
            ),
        )
    x = normal(1, 128, 192) * 3
    x[:, 5, 7] = 200
    ones = np.ones(192, np.float32)
    rms = np.sqrt(np.square(x.astype(np.float64)).mean(-1, keepdims=True))
    norms: dict[str, Callable[[Graph], str]] = {
        "SimplifiedLayerNormalization": lambda g: g.node(
            "SimplifiedLayerNormalization",
            *(g.levels("x", 200), g.levels(g.constant(ones), 1)),
            axis=-1,
            epsilon=1e-6,
        ),
        "LpNormalization": lambda g: g.node(
            "Mul",
            g.levels(g.node("LpNormalization", g.levels("x", 200), axis=-1, p=2), 1),
            g.levels(g.constant(ones * np.float32(192**0.5)), 14),
        ),
    }
    for name, norm in norms.items():
        try_form(
            f"root mean square norm as {name}",
            {"x": x},
            x / rms,
            lambda g, norm=norm: g.levels(norm(g), 15),
        )
    gate, up = normal(1, 128, 512) * 3, normal(1, 128, 512)
    silu = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64)))

    def fused(g: Graph) -> str:
        return g.node("QuickGelu", g.levels("x", 15), domain="com.microsoft", alpha=1.0)

    def apart(g: Graph) -> str:
        x = g.levels("x", 15)
        return g.node("Mul", x, g.levels(g.node("Sigmoid", x), 1))

    for name, activation in (("QuickGelu", fused), ("Sigmoid and Mul", apart)):
        try_form(
            f"SiLU as {name}, times another value",
            {"x": gate, "up": up},
            silu * up,
            lambda g, activation=activation: g.levels(
                g.node("Mul", g.levels(activation(g), 15), g.levels("up", 5)), 60
            ),
        )
    x, matrix = normal(1, 128, 192), normal(192, 512) * np.float32(0.07)
    scales = np.abs(matrix).max(0) / 7
    rounded = np.clip(np.rint(matrix / scales), -7, 7) * scales
    for zeros in (True, False):
        try_form(
            f"weights of four bits, {'with' if zeros else 'without'} zero points",
            {"x": x},
            x.astype(np.float64) @ rounded.astype(np.float64),
            lambda g, zeros=zeros: g.levels(
                g.node("MatMul", g.levels("x", 5), g.weight4(matrix, zeros)), 8
            ),
        )
    keys = normal(1, 128, 2, 32)
    for dtype in ("uint16", "int16"):
        try_form(
            f"a transposition of {dtype}",
            {"x": keys},
            keys.transpose(0, 2, 3, 1).astype(np.float64),
            lambda g, dtype=dtype: g.levels(
                g.node("Transpose", g.levels("x", 5, dtype), perm=[0, 2, 3, 1]), 5, dtype
            ),
        )


if __name__ == "__main__":
    main()
