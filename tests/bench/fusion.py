"""What fusing would gain: matrices that share an input as one, and a norm with the sum before it.

Takes threads; times each form of a layer's pieces in turns, for a prompt (integers) and for one
token (4 bits), at the shapes of a 1.5B decoder and of a SigLIP tower. Prints medians and their
ratio. Not a test: timings never are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgejudge.export.onnx_graph import IR_VERSION, OPSETS
from edgejudge.runtime.settings import processor

ROUNDS, LAYERS = 41, 4


class Piece:
    """`LAYERS` copies of the same nodes over x [1, S, K]; each copy has weights of its own."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.nodes: list[NodeProto] = []
        self.held: list[object] = []
        self.outputs: list[str] = []
        self._rng = np.random.default_rng(0)
        self._count = 0

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **more: object) -> list[str]:
        self._count += 1
        names = [f"v{self._count}_{i}" for i in range(outputs)]
        domain = "" if op in ("Split", "Add", "LayerNormalization") else "com.microsoft"
        domain = "" if op == "SimplifiedLayerNormalization" else domain
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **more))
        return names

    def hold(self, values: np.ndarray) -> str:
        name = f"w{len(self.held)}"
        self.held.append(numpy_helper.from_array(values, name))
        return name

    def four_bits(self, rows: int) -> str:
        block = 128
        levels = self._rng.integers(0, 256, (rows, self.width // block, block // 2), np.uint8)
        scales = np.full(rows * (self.width // block), 1e-2, np.float32)
        inputs = ["x", self.hold(levels), self.hold(scales)]
        more = {"N": rows, "K": self.width, "bits": 4, "block_size": block, "accuracy_level": 4}
        return self.add("MatMulNBits", inputs, **more)[0]

    def integers(self, rows: int) -> str:
        levels = self._rng.integers(-63, 64, (self.width, rows)).astype(np.int8)
        one = self.hold(np.array(1, np.float32))
        zero = self.hold(np.array(128, np.uint8))
        scales = self.hold(np.full(rows, 1e-2, np.float32))
        return self.add("MatMulIntegerToFloat", ["x", self.hold(levels), one, scales, zero])[0]

    def session(self, threads: int, dtype: int) -> ort.InferenceSession:
        inputs = [helper.make_tensor_value_info("x", dtype, [1, "S", self.width])]
        if any("y" in node.input for node in self.nodes):
            inputs.append(helper.make_tensor_value_info("y", dtype, [1, "S", self.width]))
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self.outputs]
        graph = helper.make_graph(self.nodes, "piece", inputs, outputs, self.held)
        opsets = [helper.make_opsetid(d, v) for d, v in OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def matrices(kind: str, width: int, rows: Sequence[int], fused: bool) -> Piece:
    piece = Piece(width)
    make = piece.four_bits if kind == "4 bits" else piece.integers
    for _ in range(LAYERS):
        if fused:
            sizes = piece.hold(np.array(rows, np.int64))
            piece.outputs += piece.add("Split", [make(sum(rows)), sizes], len(rows), axis=-1)
        else:
            piece.outputs += [make(count) for count in rows]
    return piece


def norms(kind: str, width: int, fused: bool) -> Piece:
    piece = Piece(width)
    for _ in range(LAYERS):
        scale = piece.hold(np.ones(width, np.float32))
        affine = [scale, piece.hold(np.zeros(width, np.float32))] if kind == "layer" else [scale]
        op = "LayerNormalization" if kind == "layer" else "SimplifiedLayerNormalization"
        if fused:
            found = piece.add(f"Skip{op}", ["x", "y", *affine], 4, epsilon=1e-5)
            piece.nodes[-1].output[1:3] = ["", ""]
            piece.outputs += [found[0], found[3]]
        else:
            total = piece.add("Add", ["x", "y"])[0]
            piece.outputs += [*piece.add(op, [total, *affine], axis=-1, epsilon=1e-5), total]
    return piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    threads = parser.parse_args().threads
    print(f"{processor()}, {threads} threads; medians of {ROUNDS}, {LAYERS} layers, in turns")
    print("\n| piece | tokens | apart, ms | fused, ms | fused / apart |\n|---|---|---|---|---|")
    decoder = {"q, k, v": (1536, 256, 256), "gate, up": (8960, 8960)}
    cases = [
        (f"{name}, {kind}", tokens, [matrices(kind, 1536, rows, f) for f in (False, True)])
        for kind, tokens in (("integers", 512), ("4 bits", 1))
        for name, rows in decoder.items()
    ]
    cases += [
        ("sum and root mean square norm", 512, [norms("rms", 1536, f) for f in (False, True)]),
        ("sum and layer norm", 1458, [norms("layer", 1152, f) for f in (False, True)]),
    ]
    rng = np.random.default_rng(1)
    for name, tokens, pieces in cases:
        dtype = TensorProto.UINT8 if "integers" in name else TensorProto.FLOAT
        x = rng.normal(0, 1, (1, tokens, pieces[0].width)).astype(np.float32)
        if dtype == TensorProto.UINT8:
            x = rng.integers(0, 256, x.shape, np.uint8)
        seconds: list[list[float]] = [[], []]
        sessions = [piece.session(threads, dtype) for piece in pieces]
        feeds = {i.name: x for i in sessions[0].get_inputs()}
        for _ in range(ROUNDS + 1):
            for kept, session in zip(seconds, sessions, strict=True):
                began = time.perf_counter()
                session.run(None, feeds)
                kept.append(time.perf_counter() - began)
        apart, fused = (statistics.median(kept[1:]) * 1e3 for kept in seconds)
        print(f"| {name} | {tokens} | {apart:.2f} | {fused:.2f} | {fused / apart:.2f} |")


if __name__ == "__main__":
    main()
