"""Pieces of a layer in two forms: matrices that share an input apart and as one, a norm apart from
the sum before it and fused with it, attention over floats and over integers.

Takes threads; times both forms in turns, for a prompt (integers) and for one token (4 bits), at the
shapes of a 1.5B decoder, SmolVLM2's and a SigLIP tower. Prints medians and their ratio. Not a test:
timings never are.
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
_STANDARD = ("Split", "Add", "LayerNormalization", "SimplifiedLayerNormalization")
_CONTEXT = 1000  # cached tokens before those of an attention


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
        domain = "" if op in _STANDARD else "com.microsoft"
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


def attention(heads: int, kv_heads: int, head_dim: int, tokens: int, bits: int) -> Piece:
    """Over a cache of floats, or of 8 or 4 bits with a step for each channel."""
    piece, total = Piece(heads * head_dim), _CONTEXT + tokens
    rng = np.random.default_rng(2)
    shape = (1, kv_heads, total, head_dim)
    values = rng.normal(0, 1, shape).astype(np.float32)
    most = 1 << (bits - 1)
    step = 4 / most
    levels = np.clip(np.rint(values / step), -most, most - 1).astype(np.int64)
    cache = values if bits == 32 else levels.astype(np.int8)
    if bits == 4:  # the lower half of a byte first, from 0 for -8 on
        cache = ((levels[..., ::2] + 8) | (levels[..., 1::2] + 8) << 4).astype(np.uint8)
    new = rng.normal(0, 1, (1, tokens, kv_heads * head_dim)).astype(np.float32)
    length = piece.hold(np.array([total - 1], np.int32))
    bias = piece.hold(np.zeros((1, 1, tokens, total), np.float32))
    inputs = ["x", piece.hold(new), piece.hold(new), piece.hold(cache), piece.hold(cache)]
    inputs += [length, piece.hold(np.array(total, np.int32)), "", "", "", bias]
    more: dict[str, object] = {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 0}
    if bits < 32:
        steps = np.full((1, kv_heads, 1, head_dim), step, np.float32)
        inputs += ["", piece.hold(steps), piece.hold(steps)]
        more |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        more["kv_cache_bit_width"] = bits
    piece.outputs += piece.add("GroupQueryAttention", inputs, 3, **more)[:1]
    return piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    threads = parser.parse_args().threads
    print(f"{processor()}, {threads} threads; medians of {ROUNDS}, in turns, {LAYERS} layers")
    print("(attention: one)\n\n| piece | tokens | first, ms | second, ms | second / first |")
    print("|---|---|---|---|---|")
    decoder = {"q, k, v": (1536, 256, 256), "gate, up": (8960, 8960)}
    cases = [
        (
            f"{name}, {kind}: apart, as one",
            n,
            [matrices(kind, 1536, rows, f) for f in (False, True)],
        )
        for kind, n in (("integers", 512), ("4 bits", 1))
        for name, rows in decoder.items()
    ]
    for kind, name, width, n in (
        ("rms", "root mean square", 1536, 512),
        ("layer", "layer", 1152, 1458),
    ):
        forms = [norms(kind, width, fused) for fused in (False, True)]
        cases.append((f"sum and {name} norm: apart, fused", n, forms))
    for heads, kv_heads, head_dim in ((12, 2, 128), (32, 32, 64)):
        for n in (256, 1):
            for bits in (8, 4):
                forms = [attention(heads, kv_heads, head_dim, n, each) for each in (32, bits)]
                name = f"attention, {heads} heads over {kv_heads}: floats, {bits} bits"
                cases.append((name, n, forms))
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
        first, second = (statistics.median(kept[1:]) * 1e3 for kept in seconds)
        print(f"| {name} | {tokens} | {first:.2f} | {second:.2f} | {second / first:.2f} |")


if __name__ == "__main__":
    main()
