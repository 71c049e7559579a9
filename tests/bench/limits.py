"""What this machine can do at most: read bandwidth, the rate of every matrix kernel of ONNX Runtime
at one shape, and what a decoder's prefill would take if nothing but these limits held it up.

Takes threads and a shape; prints a table and one JSON line. `prefill_limit` takes a text model's
config.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

M, K, N = 256, 1536, 8960
REPEATS = 9


def bandwidth(threads: int) -> float:
    """GB/s that so many readers get out of arrays larger than any cache."""
    arrays = [np.ones(1 << 28, np.uint8).view(np.uint64) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEATS):
            began = time.perf_counter()
            list(pool.map(lambda a: int(a.max()), arrays))
            best = max(best, sum(a.nbytes for a in arrays) / (time.perf_counter() - began))
    return best / 1e9


def _weights(kind: str, k: int, n: int, block: int) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(0)

    def held(name: str, values: np.ndarray) -> onnx.TensorProto:
        return numpy_helper.from_array(values, name)

    if kind == "float32":
        return [held("w", rng.standard_normal((k, n), np.float32))]
    if kind in ("int8", "uint8"):
        low, high, dtype = (-63, 64, np.int8) if kind == "int8" else (65, 192, np.uint8)
        values = rng.integers(low, high, (k, n)).astype(dtype)
        return [held("w", values), held("s", np.full(n, 1e-2, np.float32))]
    bits = int(kind)
    levels = rng.integers(0, 256, (n, k // block, block * bits // 8), dtype=np.uint8)
    scales = np.full(n * (k // block), 1e-2, np.float32)
    return [held("w", levels), held("s", scales)]


def _kernels(k: int, n: int) -> dict[str, tuple[str, list, int]]:
    """Name -> (weights, nodes from x to y, block of weights with one scale)."""

    def node(op: str, inputs: list[str], output: str = "y", **attributes: object) -> onnx.NodeProto:
        domain = "com.microsoft" if op in _MICROSOFT else ""
        return helper.make_node(op, inputs, [output], domain=domain, **attributes)

    found: dict[str, tuple[str, list, int]] = {
        "MatMul float32": ("float32", [node("MatMul", ["x", "w"])], 0)
    }
    for bits in (4, 8):
        for block in (32, 64, 128, 256):
            for level in (1, 4):
                nodes = [
                    node(
                        "MatMulNBits",
                        ["x", "w", "s"],
                        N=n,
                        K=k,
                        bits=bits,
                        block_size=block,
                        accuracy_level=level,
                    )
                ]
                name = f"MatMulNBits {bits} bits, block {block}, accuracy_level {level}"
                found[name] = (str(bits), nodes, block)
    for kind, zero in (("int8", "z8"), ("uint8", "z128")):
        found[f"DynamicQuantizeMatMul {kind} (per pass)"] = (
            kind,
            [node("DynamicQuantizeMatMul", ["x", "w", "s", zero])],
            0,
        )
        per_token = [
            node("Abs", ["x"], "a"),
            helper.make_node("ReduceMax", ["a", "last"], ["m"], keepdims=1),
            node("Mul", ["m", "per_level"], "r"),
            node("Div", ["x", "r"], "d"),
            node("QuantizeLinear", ["d", "one", "z128"], "q"),
            node("MatMulIntegerToFloat", ["q", "w", "one", "s", "z128", zero], "f"),
            node("Mul", ["f", "r"]),
        ]
        found[f"MatMulIntegerToFloat {kind} (per token)"] = (kind, per_token, 0)
    return found


_MICROSOFT = {"MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}


def session(
    kind: str, nodes: list, block: int, k: int, n: int, threads: int
) -> ort.InferenceSession:
    held = _weights(kind, k, n, block)
    for name, value in (
        ("z8", np.int8(0)),
        ("z128", np.uint8(128)),
        ("one", np.float32(1)),
        ("per_level", np.float32(1 / 127)),
        ("last", np.array([-1], np.int64)),
    ):
        held.append(numpy_helper.from_array(np.asarray(value), name))
    used = {i for node in nodes for i in node.input}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n])]
    return _session(nodes, inputs, outputs, [t for t in held if t.name in used], threads)


def _session(
    nodes: list, inputs: list, outputs: list, held: list, threads: int
) -> ort.InferenceSession:
    graph = helper.make_graph(nodes, "kernel", inputs, outputs, held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Or the last kernel's threads take the cores from the next one's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def rates(m: int, k: int, n: int, threads: int) -> dict[str, float]:
    """Kernel -> giga-operations a second, medians, interleaved."""
    x = np.random.default_rng(1).standard_normal((m, k), np.float32)
    sessions = {name: session(*what, k, n, threads) for name, what in _kernels(k, n).items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(REPEATS + 1):
        for name, made in sessions.items():
            began = time.perf_counter()
            made.run(None, {"x": x})
            if index:
                times[name].append(time.perf_counter() - began)
    return {name: 2e-9 * m * k * n / statistics.median(seen) for name, seen in times.items()}


def _best(made: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> float:
    """Seconds of the fastest run: what the machine can do when nobody is in the way."""
    times = []
    for _ in range(2 * REPEATS):
        began = time.perf_counter()
        made.run([made.get_outputs()[0].name], feeds)
        times.append(time.perf_counter() - began)
    return min(times)


def matrix_seconds(tokens: int, k: int, n: int, threads: int) -> float:
    """One integer matrix with its scales, activations rounded already."""
    held = _weights("int8", k, n, 0)
    held += [numpy_helper.from_array(np.float32(1), "one")]
    held += [numpy_helper.from_array(np.uint8(128), "z128")]
    inputs = ["x", "w", "one", "s", "z128"]
    node = helper.make_node("MatMulIntegerToFloat", inputs, ["y"], domain="com.microsoft")
    info = helper.make_tensor_value_info
    taken = [info("x", TensorProto.UINT8, ["m", k])]
    made = _session([node], taken, [info("y", TensorProto.FLOAT, ["m", n])], held, threads)
    x = np.random.default_rng(1).integers(0, 256, (tokens, k)).astype(np.uint8)
    return _best(made, {"x": x})


def attention_seconds(tokens: int, heads: int, kv_heads: int, head_dim: int, threads: int) -> float:
    """One layer's GroupQueryAttention over so many tokens, nothing before them."""
    rng, width = np.random.default_rng(2), heads * head_dim
    shapes = {"q": width, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
    feeds = {n: rng.standard_normal((1, tokens, w), np.float32) for n, w in shapes.items()}
    feeds |= {n: np.zeros((1, kv_heads, 0, head_dim), np.float32) for n in ("past_k", "past_v")}
    counts = {"last": np.array([tokens - 1], np.int32), "total": np.array(tokens, np.int32)}
    info = helper.make_tensor_value_info
    node = helper.make_node(
        "GroupQueryAttention",
        [*feeds, *counts],
        ["y", "new_k", "new_v"],
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
    )
    inputs = [info(n, TensorProto.FLOAT, a.shape) for n, a in feeds.items()]
    inputs += [info(n, TensorProto.INT32, a.shape) for n, a in counts.items()]
    outputs = [info(n, TensorProto.FLOAT, None) for n in node.output]
    made = _session([node], inputs, outputs, [], threads)
    return _best(made, feeds | counts)


def prefill_limit(text: dict[str, Any], tokens: int, threads: int) -> dict[str, float]:
    """Seconds of a decoder's prefill at the limit, by what sets it: integer matrices, each as fast
    as its own shape ever ran; attention the same; and the rest (norms, sums, rotation, activation,
    rounding, steps of tokens), each value read and written once, at the bandwidth of memory.
    """
    hidden, inner, layers = (
        text[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    kv = hidden // heads * kv_heads
    shapes = [(hidden, hidden)] * 2 + [(hidden, kv)] * 2 + [(hidden, inner)] * 2 + [(inner, hidden)]
    matrices = sum(
        shapes.count((k, n)) * matrix_seconds(tokens, k, n, threads) for k, n in set(shapes)
    )
    # Two norms, two sums of three, rotation of q and k, activation and product.
    values = tokens * (2 * 2 * hidden + 2 * 3 * hidden + 2 * (hidden + kv) + 3 * inner)
    # Four inputs are read and written as bytes, and what comes out takes its token's step.
    values += tokens * (1.25 * (3 * hidden + inner) + 2 * (hidden + 2 * kv + inner))
    return {
        "matrices": layers * matrices,
        "attention": layers * attention_seconds(tokens, heads, kv_heads, hidden // heads, threads),
        "rest": layers * 4 * values / (bandwidth(threads) * 1e9),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(M, K, N), metavar=("M", "K", "N"))
    args = parser.parse_args()
    found = rates(*args.shape, args.threads)
    read = bandwidth(args.threads)
    m, k, n = args.shape
    print(f"reading {read:.1f} GB/s; {m} x {k} x {n}, {args.threads} threads")
    print("| kernel | GOP/s |\n|---|---|")
    for name, rate in found.items():
        print(f"| {name} | {rate:.0f} |")
    print(json.dumps({"read_gb_s": read, "gop_s": found, "shape": list(args.shape)}))


if __name__ == "__main__":
    main()
