"""How far values reach: ranges are found under the names that graphs ask for, hold what counts and
nothing else, and what lies beyond them is clipped. And the weights of whole numbers in files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

import tiny
import tiny_llava
import tiny_qwen
from edgejudge.bundle import KvRecord, PartRecord
from edgejudge.export import Checkpoint, Exact, Plan, Reference, open_checkpoint, recipe_named
from edgejudge.export.blocks import QuantizedRows
from edgejudge.export.graphs import pass_inputs
from edgejudge.export.ledger import Ledger
from edgejudge.export.npu_ops import NpuOps
from edgejudge.export.quantize import Quantized, dequantize, quantize
from edgejudge.export.ranges import RangeOps, Ranges, ranges_of
from edgejudge.export.recipe import kinds_of
from edgejudge.export.store import WeightStore
from edgejudge.models.rope import rotation
from edgejudge.runtime.kv_cache import KvCache
from edgejudge.runtime.replica import Replica

torch.set_num_threads(1)
FAMILIES: dict[str, Any] = {
    "smolvlm": tiny,
    "qwen2_5_vl": tiny_qwen,
    "llava_onevision": tiny_llava,
}
NAME = "layers.1.up_proj.weight"


class Asking(dict[str, tuple[float, float]]):
    """Ranges that remember who was asked for."""

    def __init__(self, ranges: Ranges) -> None:
        super().__init__(ranges)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> tuple[float, float]:
        self.asked.add(name)
        return super().__getitem__(name)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("ranges")
    return {
        name: open_checkpoint(maker.make_checkpoint(root / name))
        for name, maker in FAMILIES.items()
    }


def plan_of(one: Checkpoint, bits: int = 8) -> Plan:
    kinds = kinds_of(one.family.group_of, one.spec.text.layers)
    return Plan(recipe_named("w8").for_npu(bits), kinds)


def graph_of(
    folder: Path, make: Callable[[NpuOps], None], plan: Plan, held: Any, ranges: Any
) -> Any:
    """A session of what `make` adds to a graph."""
    with WeightStore(folder) as store:
        ops = NpuOps("g", held, plan, store, Ledger(lambda _: "decoder"), ranges)
        make(ops)
    (folder / "g.onnx").write_bytes(ops.model())
    options = ort.SessionOptions()
    # As runtime/accelerator.py has it; else the CPU provider rounds what meets a matrix to bytes.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    return ort.InferenceSession(str(folder / "g.onnx"), options, ["CPUExecutionProvider"])


def runs(layers: int) -> list[range]:
    return [range(a, b) for a in range(layers) for b in range(a + 1, layers + 1)]


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_of_any_run_of_layers_asks_for_the_same_names(
    opened: dict[str, Checkpoint], tmp_path: Path, family: str
) -> None:
    one = opened[family]
    text, ranges = one.spec.text, ranges_of(one)
    for layers in runs(text.layers):
        asking = Asking(ranges)

        def decoder(ops: NpuOps, layers: range = layers) -> None:
            hidden, turn = pass_inputs(ops, one.spec, layers.start, 4, 12)
            for layer in layers:
                ops.input(f"past_key_{layer}", "uint16", 1, text.kv_heads, text.head_dim, 8)
                ops.input(f"past_value_{layer}", "uint16", 1, text.kv_heads, 8, text.head_dim)
            hidden = one.family.decoder(ops, one.spec, hidden, turn, layers)
            ops.output(hidden, "hidden_out", "float32", 1, 4, text.hidden)

        graph_of(tmp_path, decoder, plan_of(one), one.weights, asking)
        of_run = names_of(one, layers)
        unasked = of_run - asking.asked
        assert asking.asked <= of_run
        # A norm's input has levels already, but for the first one's.
        assert {name for name in unasked if not name.endswith(" <")} == set()
        first = [name for name in asking.asked if name.endswith(" <")]
        assert len(first) == 1 and f".layers.{layers[0]}.input_layernorm" in first[0]


def names_of(one: Checkpoint, layers: range) -> set[str]:
    ops = RangeOps(Exact(one.weights))
    through(one, ops, torch.randn(1, 5, one.spec.text.hidden), layers)
    return set(ops.ranges)


def through(one: Checkpoint, ops: RangeOps, hidden: torch.Tensor, layers: range) -> torch.Tensor:
    text = one.spec.text
    turn = rotation(np.arange(5), text)
    cos, sin = map(torch.from_numpy, turn)
    found: torch.Tensor = one.family.decoder(ops, one.spec, hidden, (cos, sin), layers)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_means_the_same_value_in_any_run(opened: dict[str, Checkpoint], family: str) -> None:
    one = opened[family]
    generator = torch.Generator().manual_seed(0)
    layers = one.spec.text.layers
    hidden = [torch.randn(1, 5, one.spec.text.hidden, generator=generator)]
    whole = RangeOps(Exact(one.weights))
    through(one, whole, hidden[0], range(layers))
    for layer in range(layers):
        hidden.append(
            through(one, RangeOps(Exact(one.weights)), hidden[-1], range(layer, layer + 1))
        )
    assert len({r for r in whole.ranges.values()}) > 0.8 * len(whole.ranges), "each its own"
    for run in runs(layers):
        part = RangeOps(Exact(one.weights))
        through(one, part, hidden[run.start], run)
        assert part.ranges == {name: whole.ranges[name] for name in part.ranges}


def vision_of(one: Checkpoint) -> Callable[[NpuOps], None]:
    side = one.spec.vision.image_size

    def vision(ops: NpuOps) -> None:
        pixels = ops.input("pixel_values", "float32", 1, 3, side, side)
        value = one.family.vision(ops, one.spec, {"pixel_values": pixels})
        ops.output(value, "y", "float32", 1, one.spec.visual_tokens, one.spec.text.hidden)

    return vision


def test_a_tower_asks_for_what_was_seen(opened: dict[str, Checkpoint], tmp_path: Path) -> None:
    one = opened["smolvlm"]
    asking = Asking(ranges_of(one))
    graph_of(tmp_path, vision_of(one), plan_of(one), one.weights, asking)
    tower = {n for n in asking if "vision" in n or "connector" in n}
    assert {n for n in tower - asking.asked if not n.endswith(" <")} == set()
    assert asking.asked <= tower

    two = opened["qwen2_5_vl"]
    asking = Asking(ranges_of(two))

    def windows(ops: NpuOps) -> None:
        shapes = next(iter(two.family.static_vision_inputs(two.spec).values()))
        inputs = {name: ops.input(name, "float32", *shape) for name, shape in shapes.items()}
        inputs["window_mask"] = ops.mask_input("window_mask")
        two.family.vision(ops, two.spec, inputs)

    graph_of(tmp_path, windows, plan_of(two), two.weights, asking)
    tower = {n for n in asking if "visual" in n}
    assert {n for n in tower - asking.asked if not n.endswith(" <")} == set()
    assert asking.asked - tower <= {n for n in asking if "scores" in n}


# --- values --------------------------------------------------------------------------------------


def test_masked_scores_do_not_count() -> None:
    """The first token's score with the second is huge, and hidden from it."""
    ops = RangeOps(Exact(tiny.Held({})))
    q = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    k = torch.tensor([[[0.1, 0.3], [1e6, -0.2]]])
    ops.cached_attention(q, k, k, 0, 1, 1, 2, 1.0)
    assert ops.ranges["scores 0"] == pytest.approx((-0.2, 0.3))
    # What lies in the cache is seen by all that come later.
    ops.cached_attention(q[:, :1], k[:, :1], k[:, :1], 0, 1, 1, 2, 1.0)
    assert ops.ranges["scores 0"] == pytest.approx((-0.2, 1e6))


def test_heads_that_share_keys_count_with_their_own() -> None:
    ops = RangeOps(Exact(tiny.Held({})))
    q = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])  # four heads of one channel, two of keys
    k = torch.tensor([[[10.0, -1.0]]])
    ops.cached_attention(q, k, k, 3, 4, 2, 1, 0.5)
    assert ops.ranges["scores 3"] == pytest.approx((-2.0, 10.0))


def test_ranges_hold_zero_and_a_little_more(opened: dict[str, Checkpoint]) -> None:
    for one in opened.values():
        found = ranges_of(one)
        assert all(low <= 0 <= high for low, high in found.values())
        assert max(max(-low, high) for low, high in found.values()) < 1e3, "no mask is among them"
        assert found == ranges_of(one)


def test_values_beyond_their_range_are_clipped(tmp_path: Path) -> None:
    """As an input, as a product, as the right side of a product, and as keys."""
    held = tiny.Held({NAME: np.eye(4, dtype=np.float32)})
    plan = Plan(recipe_named("w8").for_npu(8), lambda _: "decoder.middle.up_proj")

    def make(ops: NpuOps) -> None:
        ops.input("x", "float32", 1, 5, 4)
        ops.input("wide", "float32", 1, 5, 4)
        ops.output(ops._input("x", (-1.0, 2.0)), "given", "float32", 1, 5, 4)
        y = ops.linear(ops._input("wide", (-100.0, 100.0)), NAME)
        ops.output(y, "product", "float32", 1, 5, 4)
        narrow = ops._signed("x", np.float32(2 / 32767))
        ops.output(narrow, "side", "float32", 1, 5, 4)

    session = graph_of(tmp_path, make, plan, held, {NAME: (-3.0, 1.5)})
    x = np.array([0.5, -0.7, 2.5, -1.5, 40, -40, 1e4, -1e4, 1e9, -1e9, 0, *[0.1] * 9], np.float32)
    x = x.reshape(1, 5, 4)
    given, product, side = session.run(None, {"x": x, "wide": x})
    assert np.abs(given - np.clip(x, -1, 2)).max() < 1e-4
    assert np.abs(product - np.clip(x, -3, 1.5)).max() < 4e-3  # levels of 200 / 65535 before it
    assert np.abs(side - np.clip(x, -2, 2)).max() < 1e-4


def test_a_narrow_calibration_set_clips_a_tower(
    opened: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """Its values end where the ranges do, and still point where they should."""
    one, tower = opened["smolvlm"], opened["smolvlm"].spec.vision
    narrow = {name: (low * 0.4, high * 0.4) for name, (low, high) in ranges_of(one).items()}
    session = graph_of(tmp_path, vision_of(one), plan_of(one), one.weights, narrow)
    shape = (1, 3, tower.image_size, tower.image_size)
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    (found,) = session.run(None, {"pixel_values": pixels})
    reference = Reference(one.spec, Exact(one.weights), one.tokens.image)
    wanted = reference.encode({"pixel_values": pixels}).numpy()
    low, high = narrow["model.connector.modality_projection.proj.weight"]
    step = (high - low) / 65535
    assert found.min() >= low - step and found.max() <= high + step < 0.5 * wanted.max()
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.8


def test_cached_rows_beyond_their_range_are_clipped() -> None:
    kv = KvRecord("BNHS", "uint16", 1, 2, "layer", ((0.5, 0.25),), (8,))
    replica, cache = Replica(kv, PartRecord(0, 0, 0, 0)), KvCache(1, 1, 2, (8,))
    cache.reserve(4)
    rows = np.array([[1.0, -1.0], [1e6, -1e6], [1e30, -1e30], [0.0, 16383.5]], np.float32)
    cache.keys[0][0, 0, :4] = cache.values[0][0, 0, :4] = rows
    replica.bring(cache, 4, 8)
    feeds = replica.feeds()
    keys, values = feeds["past_key_0"][0, 0].T.astype(int), feeds["past_value_0"][0, 0].astype(int)
    assert (keys[:4] - 32768).tolist() == [[2, -2], [32767, -32768], [32767, -32768], [0, 32767]]
    assert (values[:3] - 32768).tolist() == [[4, -4], [32767, -32768], [32767, -32768]]
    assert (keys[4:] == 32768).all() and (values[4:] == 32768).all(), "what lies behind is zero"


# --- weights -------------------------------------------------------------------------------------


def read_back(folder: Path, matrix: np.ndarray, bits: int) -> tuple[np.ndarray, Plan, Any]:
    """[N, K] as ONNX Runtime reads what was stored."""
    held = tiny.Held({NAME: matrix})
    plan = Plan(recipe_named("w8").for_npu(bits), lambda _: "decoder.middle.up_proj")

    def make(ops: NpuOps) -> None:
        ops.output(ops._matrix(NAME, bits), "y", "float32", matrix.shape[1], matrix.shape[0])

    (found,) = graph_of(folder, make, plan, held, {}).run(None, {})
    return found.T, plan, held


SHAPES = [(5, 7), (4, 9), (3, 8), (33, 64), (1, 3), (96, 65)]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_read_as_they_are_meant(
    tmp_path: Path, shape: tuple[int, int], bits: int
) -> None:
    """Odd sizes too, where four bits end in half a byte, and rows whose largest value is the
    positive one or the negative one.
    """
    rng = np.random.default_rng(shape[1])
    matrix = rng.standard_normal(shape).astype(np.float32)
    matrix[0, 0], matrix[-1, -1] = 9.0, -9.0
    if shape[0] > 2:
        matrix[1] = 0
    found, plan, held = read_back(tmp_path, matrix, bits)
    meant = np.concatenate([dequantize(part.q) for part in plan.quantized(held, NAME)])
    assert np.array_equal(found, meant)
    assert np.abs(found - matrix).max() < (2.0 if bits == 4 else 0.05)


@pytest.mark.parametrize("bits", [4, 8])
def test_negative_scales_are_turned_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    matrix = np.random.default_rng(0).standard_normal((6, 9)).astype(np.float32)
    zero = 1 << bits - 1
    q = quantize(matrix, bits, 10)
    levels = q.levels
    if bits == 4:
        levels = np.stack([levels & 15, levels >> 4], -1).reshape(6, 1, 10)
    signs = np.where(np.arange(6) % 2, -1, 1)[:, None]
    turned = ((levels.astype(int) - zero) * signs[..., None] + zero).astype(np.uint8)
    if bits == 4:
        turned = turned[..., 0::2] | (turned[..., 1::2] << 4)
    same = Quantized(bits, 10, 9, turned, (q.scales * signs).astype(np.float32))
    assert np.array_equal(dequantize(same), dequantize(q)) and (same.scales[1::2] < 0).all()
    rows = QuantizedRows(same, 0.0, 1.0, np.zeros((6, 0), np.float32))
    monkeypatch.setattr(Plan, "quantized", lambda *_: iter([rows]))
    found, _, _ = read_back(tmp_path, matrix, bits)
    assert np.array_equal(found, dequantize(q))
