"""What attention over four bits does, by numpy on values made by hand: which half of a byte a
channel has, from where levels count, how they are rounded, and what comes of them; and which steps
a checkpoint is given.
"""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

import tiny
from edgejudge.errors import ExportError
from edgejudge.export import open_checkpoint, prepared
from edgejudge.export.blocks import KvSteps
from edgejudge.export.eager import EagerOps
from edgejudge.export.kv_steps import kv_steps
from edgejudge.export.observe import observe
from edgejudge.export.stored import Exact

Floats = NDArray[np.float32]
ROOM = 12  # rows of a cache
torch.set_num_threads(1)


def attend(
    q: Floats, k: Floats, v: Floats, steps: KvSteps, past: tuple[NDArray[np.uint8], ...], begin: int
) -> list[NDArray[np.generic]]:
    """[1, S, heads * H] over a cache [1, kv_heads, ROOM, H / 2], by the operator that graphs have:
    what it gives, and both caches after it.
    """
    kv_heads, wide = steps.keys.shape
    held = [1, kv_heads, ROOM, wide // 2]
    floats = {"q": q, "k": k, "v": v}
    floats |= {"ks": steps.keys[None, :, None], "vs": steps.values[None, :, None]}
    total, new = begin + q.shape[1], q.shape[1]
    lower = np.tril(np.ones((new, total), bool), begin)
    floats["bias"] = np.where(lower, 0, -1e9).astype(np.float32)[None, None]
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in floats.items()
    ]
    inputs += [helper.make_tensor_value_info(n, TensorProto.UINT8, held) for n in ("pk", "pv")]
    inputs += [
        helper.make_tensor_value_info("last", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("total", TensorProto.INT32, []),
    ]
    node = helper.make_node(
        "GroupQueryAttention",
        ["q", "k", "v", "pk", "pv", "last", "total", "", "", "", "bias", "", "ks", "vs"],
        ["y", "nk", "nv"],
        domain="com.microsoft",
        num_heads=q.shape[2] // wide,
        kv_num_heads=kv_heads,
        scale=1.0,
        do_rotary=0,
        k_quant_type="PER_CHANNEL",
        v_quant_type="PER_CHANNEL",
        kv_cache_bit_width=4,
    )
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    outputs += [helper.make_tensor_value_info(n, TensorProto.UINT8, None) for n in ("nk", "nv")]
    graph = helper.make_graph([node], "one", inputs, outputs)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {**floats, "pk": past[0], "pv": past[1]}
    feeds |= {"last": np.array([total - 1], np.int32), "total": np.array(total, np.int32)}
    found: list[NDArray[np.generic]] = session.run(None, feeds)
    return found


def unpacked(held: NDArray[np.generic]) -> NDArray[np.int64]:
    """[.., H / 2] bytes -> [.., H] levels: a byte's lower half comes first, 0 is -8."""
    halves = np.stack([held & 15, held >> 4], -1).astype(np.int64) - 8
    return halves.reshape(*held.shape[:-1], -1)


def test_halves_of_bytes_count_from_minus_eight_and_ties_go_to_the_even_level() -> None:
    ones = np.ones((1, 16), np.float32)
    row = [-10, -9, -8.5, -8, -7, -1.5, -0.5, 0, 0.5, 1.5, 2.5, 6.5, 7, 7.5, 8, 3]
    level = [-8, -8, -8, -8, -7, -2, 0, 0, 0, 2, 2, 6, 7, 7, 7, 3]
    k = np.array([[row]], np.float32)
    empty = np.zeros((1, 1, ROOM, 8), np.uint8)
    y, keys, values = attend(k, k, -k, KvSteps(ones, -ones, 4), (empty, empty), 0)
    held = [0, 0, 0x61, 0x88, 0xA8, 0xEA, 0xFF, 0xBF]  # (6, 1) is levels -2 and -7: 8 less
    assert keys[0, 0, 0].tolist() == held
    assert unpacked(keys)[0, 0, 0].tolist() == level
    # A step below zero turns a channel round, so that it reaches further up than down.
    assert values[0, 0, 0].tolist() == held
    assert (y[0, 0] == -np.array(level)).all()
    assert not keys[:, :, 1:].any(), "rows behind the pass are left alone"


@pytest.mark.parametrize(("new", "begin"), [(1, 0), (5, 0), (1, 7), (4, 6)])
def test_attention_is_that_over_levels_times_steps_and_the_reference_has_the_same(
    new: int, begin: int
) -> None:
    """Cached rows are drawn; the reference's cache is given what they mean."""
    rng = np.random.default_rng(new + begin)
    heads, kv_heads, wide, total = 4, 2, 16, begin + new
    q, k, v = (
        rng.normal(0, 1, (1, new, count * wide)).astype(np.float32)
        for count in (heads, kv_heads, kv_heads)
    )
    sizes = rng.uniform(0.1, 0.5, (2, kv_heads, wide)) * rng.choice([-1, 1], (2, kv_heads, wide))
    steps = KvSteps(*sizes.astype(np.float32), 4)
    shape = (1, kv_heads, ROOM, wide // 2)
    past = tuple(rng.integers(0, 256, shape).astype(np.uint8) for _ in "kv")
    y, *held = attend(q, k, v, steps, past, begin)
    meant = []
    for rows, before, after, step in zip(
        (k, v), past, held, (steps.keys, steps.values), strict=True
    ):
        by_head = rows.reshape(new, kv_heads, wide).transpose(1, 0, 2)
        levels = np.clip(np.rint(by_head / step[:, None]), -8, 7)
        assert (unpacked(after)[0, :, begin:total] == levels).all()
        assert (after[:, :, :begin] == before[:, :, :begin]).all()
        meant.append(unpacked(after)[0, :, :total] * step[:, None])

    class Given(Exact):
        def kv_steps(self, layer: int) -> KvSteps:
            return steps

    ops = EagerOps(Given(tiny.Held({})))
    if begin:
        ops._cache[0] = tuple(ops.tensor(each[None, :, :begin]) for each in meant)  # type: ignore[assignment]
    given = (ops.tensor(each) for each in (q, k, v))
    wanted = ops.cached_attention(*given, 0, heads, kv_heads, wide, 1.0)
    assert np.abs(y - wanted.numpy()).max() < 1e-5
    for kept, each in zip(ops._cache[0], meant, strict=True):
        assert np.abs(kept[0].numpy() - each).max() < 1e-6


@pytest.mark.parametrize(("kv", "levels"), [("int8", 256), ("int4", 16)])
def test_steps_hold_what_was_seen_and_no_smaller_ones_would(
    tmp_path: Path, kv: str, levels: int
) -> None:
    """All of it lies between the ends of the levels, and the larger end is on the longer side."""
    checkpoint = open_checkpoint(tiny.make_checkpoint(tmp_path / "tiny", tiling=False))
    found = kv_steps(checkpoint, kv)
    seen: dict[str, list[NDArray[np.float32]]] = {}

    def watch(name: str, x: torch.Tensor) -> None:
        if name.startswith(("keys ", "values ")):
            seen.setdefault(name, []).append(x[0].numpy())

    observe(checkpoint, watch)
    turned = 0
    for layer, steps in found.items():
        for name, step in (("keys", steps.keys), ("values", steps.values)):
            rows = np.concatenate(seen[f"{name} {layer}"], 1) / step[:, None]  # in levels
            low, high = rows.min(1), rows.max(1)
            assert (low > -levels / 2).all() and (high < levels / 2 - 1).all()
            room = np.minimum(low + levels / 2, levels / 2 - 1 - high)
            assert (room < 0.12 * levels / 2).all(), "an end that is used"
            turned += int((step < 0).sum())
    assert turned, "some channels reach further up than down"


def test_heads_that_do_not_fit_are_refused_by_name_before_anything_is_computed(
    tmp_path: Path,
) -> None:
    folder = tiny.make_checkpoint(tmp_path / "tiny", tiling=False, text_hidden=48)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec.text.head_dim == 12
    with pytest.raises(ExportError, match=r"config\.json: heads of 12 channels, .* --kv int4$"):
        prepared(checkpoint, "exact", kv="int4")
    with pytest.raises(ExportError, match="cannot be kept in 'int2'; known: float32, int8, int4"):
        prepared(checkpoint, "exact", kv="int2")
