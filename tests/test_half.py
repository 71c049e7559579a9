"""Floats of 16 bits: residuals of ten thousand do not overflow, and what cannot be stored is
refused.

`HalfOps` rounds after every operation, as a graphics card does. The graphs themselves run here on
ONNX Runtime's CPU provider, which computes most of them by casts to 32 bits and back, and may leave
a rounding out between two of them: there they show that nothing is wired wrongly, and `HalfOps`
shows what a card would make of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import Tensor

import tiny
from edgejudge.bundle import Bundle
from edgejudge.errors import ExportError
from edgejudge.export import (
    Asked,
    Checkpoint,
    Cut,
    Exact,
    Plan,
    Reference,
    asked_of,
    export,
    open_checkpoint,
    recipe_named,
)
from edgejudge.export.eager import EagerOps, _by_head
from edgejudge.export.gpu_ops import FusedGpuOps
from edgejudge.export.ledger import Ledger
from edgejudge.export.store import WeightStore
from edgejudge.runtime import Engine
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.placement import Device
from families import FAMILIES
from outliers import HUGE, huge_residuals, pictures_of

torch.set_num_threads(1)
ULP = 2.0**-11  # half the distance of two floats of 16 bits, of the lower one
LEAST = 2.0**-13  # of a peak and of a root, as gpu_ops has it
# On a label logit, of 4, of 16 bits in a tiny model. Measured: 2e-2.
LIMIT = 4e-2


class HalfOps(EagerOps):
    """Every step in 16 bits but sums of products, which are rounded once: what a card does.

    Tensors are of 32 bits and hold values of 16. `overflows` counts steps that made an infinity.
    """

    least_root = LEAST
    overflows = 0

    def r(self, x: Tensor) -> Tensor:
        y = x.half().float()
        self.overflows += int((y.isinf() & x.isfinite()).any())
        return y

    def tensor(self, array: Any) -> Tensor:
        found = super().tensor(array)
        return self.r(found) if found.is_floating_point() else found

    def linear(self, x: Tensor, weight: str, bias: str | None = None, rows: Any = None) -> Tensor:
        y = self.r(super().linear(x, weight, None, rows))
        return y if bias is None else self.add(y, self.plain(bias))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return self.r(x + y)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        return self.r(x * y)

    def scale(self, x: Tensor, weight: str) -> Tensor:
        return self.mul(x, self.plain(weight))

    def div(self, x: Tensor, y: Tensor) -> Tensor:
        return self.r(x / y)

    def mean(self, x: Tensor) -> Tensor:
        return self.r(self.r(x.sum(-1, keepdim=True)) / x.shape[-1])

    def activation(self, x: Tensor, kind: str) -> Tensor:
        if kind == "silu":
            return self.mul(x, self.r(x.sigmoid()))
        return self.r(super().activation(x, kind))

    def rope(self, x: Tensor, *how: Any) -> Tensor:
        return self.r(super().rope(x, *how))

    # Norms, step by step as gpu_ops has them.

    def peak(self, x: Tensor) -> Tensor:
        return x.abs().amax(-1, keepdim=True).clamp_min(LEAST)

    def rms_norm(self, x: Tensor, weight: str, eps: float) -> Tensor:
        peak = self.peak(x)
        return self.mul(self.divided(self.div(x, peak), peak, eps), self.plain(weight))

    def layer_norm(self, x: Tensor, weight: str, bias: str, eps: float) -> Tensor:
        peak = self.peak(x)
        small = self.div(x, peak)
        apart = self.r(small - self.mean(small))
        scaled = self.mul(self.divided(apart, peak, eps), self.plain(weight))
        return self.add(scaled, self.plain(bias))

    def divided(self, small: Tensor, peak: Tensor, eps: float) -> Tensor:
        mean = self.mean(self.mul(small, small))
        root = self.div(self.r(torch.tensor(eps**0.5)), peak)
        whole = self.r(self.add(mean, self.mul(root, root)).sqrt())
        return self.div(small, whole.clamp_min(self.least_root))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Tensor:
        scores = self.r(self.mul(q, self.r(torch.tensor(scale))) @ k.transpose(2, 3))
        if seen is not None:
            scores = self.r(scores + torch.where(seen, 0.0, -3e4))
        y = self.r(self.r(scores.softmax(-1)) @ v)
        return y.transpose(1, 2).flatten(2)

    def full_attention(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, mask: Any = None
    ) -> Tensor:
        q, k, v = (_by_head(x, heads) for x in (q, k, v))
        return self.attend(q, k, v, None if mask is None else (mask != 0)[:, None, None], scale)

    def cached_attention(self, q: Tensor, k: Tensor, v: Tensor, layer: int, *shape: Any) -> Tensor:
        heads, kv_heads, _, scale = shape
        q, k, v = _by_head(q, heads), _by_head(k, kv_heads), _by_head(v, kv_heads)
        if layer in self._cache:
            k, v = (torch.cat([a, b], 2) for a, b in zip(self._cache[layer], (k, v), strict=True))
        self._cache[layer] = (k, v)
        new, total = q.shape[2], k.shape[2]
        seen = torch.ones(new, total, dtype=torch.bool).tril(total - new)
        k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        return self.attend(q, k, v, seen, scale)


class Unscaled(HalfOps):
    """Norms as they are written down, in 16 bits."""

    def rms_norm(self, x: Tensor, weight: str, eps: float) -> Tensor:
        mean = self.mean(self.mul(x, x))
        root = self.r((mean + eps).sqrt())
        return self.mul(self.div(x, root), self.plain(weight))

    def layer_norm(self, x: Tensor, weight: str, bias: str, eps: float) -> Tensor:
        apart = self.r(x - self.mean(x))
        root = self.r((self.mean(self.mul(apart, apart)) + eps).sqrt())
        return self.add(self.mul(self.div(apart, root), self.plain(weight)), self.plain(bias))


# --- a checkpoint with massive activations -------------------------------------------------------


@dataclass(frozen=True)
class Case:
    opened: Checkpoint
    bundle: Bundle
    asked: Asked
    wanted: np.ndarray  # label logits by the reference in float64


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("half")
    opened = huge_residuals(
        open_checkpoint(FAMILIES[request.param].make_checkpoint(root / "checkpoint"))
    )
    plan = Plan(recipe_named("exact"), opened.family.group_of)
    bundle = export(opened, root / "bundle", plan, Cut(2), (), targets=("cpu", "gpu"))
    (asked,) = asked_of(opened, pictures_of(opened, 1))
    exact = Reference(opened.spec, Exact(opened.weights), opened.tokens.image, torch.float64)
    (wanted,) = exact.ask([asked], opened.labels.token_ids)
    return Case(opened, Bundle.open(bundle, unsealed=True), asked, wanted)


def by(case: Case, ops: HalfOps) -> np.ndarray:
    """Label logits; the head is the processor's, in 32 bits."""
    opened, image = case.opened, case.opened.tokens.image
    (ends,) = Reference(opened.spec, ops, image).ends([case.asked])
    head = Reference(opened.spec, Exact(opened.weights), image)
    return head.logits(ends, opened.labels.token_ids).numpy()


def on_device(case: Case, variant: str) -> Engine:
    bundle, device = case.bundle, Device("gpu", "CPUExecutionProvider")
    engine = Engine.open(bundle, threads=1)
    places = [("vision", None), *(("decoder", part.index) for part in bundle.manifest.parts)]
    engine.fleet = Fleet.of(bundle, dict.fromkeys(places, (device,)), 1)
    for stage in ("vision", "decoder"):
        engine.fleet.accelerators[0].use(stage, variant)
    return engine


def test_residuals_reach_ten_thousand(case: Case) -> None:
    """In both towers, while most values are around one."""
    seen: dict[str, list[np.ndarray]] = {"vision": [], "decoder": []}

    class Watching(EagerOps):
        def add(self, x: Tensor, y: Tensor) -> Tensor:
            z = super().add(x, y)
            if z.shape[-1] in (32, 64):
                seen["vision" if z.shape[-1] == 32 else "decoder"].append(z.abs().numpy().ravel())
            return z

    by(case, Watching(Exact(case.opened.weights)))
    for values in seen.values():
        found = np.concatenate(values)
        assert 0.9 * HUGE < found.max() < 3 * HUGE and np.median(found) < 4


def test_norms_as_they_are_written_overflow(case: Case) -> None:
    ops = Unscaled(Exact(case.opened.weights))
    found = by(case, ops)
    assert ops.overflows > 0
    assert not np.abs(found - case.wanted).max() < 0.5, "an infinite root makes zeros of a token"


def test_scaled_norms_are_right(case: Case) -> None:
    ops = HalfOps(Exact(case.opened.weights))
    found = by(case, ops)
    assert ops.overflows == 0 and np.isfinite(found).all()
    assert np.abs(found - case.wanted).max() < LIMIT


@pytest.mark.parametrize("variant", ["float16.plain", "float16.fused"])
def test_graphs_compute_what_16_bits_mean(case: Case, variant: str) -> None:
    engine, asked = on_device(case, variant), case.asked
    assert asked.feeds is not None
    prefix = engine.prefill(asked.ids, engine.encode_image(asked.feeds), asked.positions)
    found = engine.score(prefix, asked.branches)
    assert not engine.trace.marks and np.isfinite(found).all()
    engine.placement.pop("verdict_head")
    assert set(engine.placement.values()) == {"gpu:CPUExecutionProvider"}
    assert np.abs(found - by(case, HalfOps(Exact(case.opened.weights)))).max() < LIMIT
    assert np.abs(found - case.wanted).max() < LIMIT


# --- norms of any vector --------------------------------------------------------------------------

WIDTH, EPS = 24, 1e-6
ONES = tiny.Held({"w": np.ones(WIDTH, np.float32), "b": np.zeros(WIDTH, np.float32)})
Norms = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def norms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Norms]:
    """x [1, 1, WIDTH] -> its root mean square norm and its layer norm, in three ways. ONNX's own
    evaluator computes each node in numpy, in the type that it has: no rounding is left out.
    """
    folder = tmp_path_factory.mktemp("norms")
    with WeightStore(folder) as store:
        plan = Plan(recipe_named("exact"), lambda _: "vision")
        ledger = Ledger(lambda _: "vision")
        graph = FusedGpuOps("norms", ONES, plan, store, ledger, dtype="float16")
        x = graph.input("x", "float16", 1, "S", WIDTH)
        graph.output(graph.rms_norm(x, "w", EPS), "rms", "float16", 1, "S", WIDTH)
        graph.output(graph.layer_norm(x, "w", "b", EPS), "layer", "float16", 1, "S", WIDTH)
    (folder / "g.onnx").write_bytes(graph.model())
    session = ort.InferenceSession(str(folder / "g.onnx"), providers=["CPUExecutionProvider"])
    nodes = ReferenceEvaluator(onnx.load(folder / "g.onnx"))
    ops = HalfOps(Exact(ONES))

    def by_steps(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = torch.from_numpy(x.astype(np.float32))
        return ops.rms_norm(t, "w", EPS).numpy(), ops.layer_norm(t, "w", "b", EPS).numpy()

    return {
        "graph": lambda x: tuple(session.run(None, {"x": x})),
        "nodes": lambda x: tuple(nodes.run(None, {"x": x})),
        "steps": by_steps,
    }


sizes = st.floats(-4, 4.477).map(lambda power: 10.0**power)  # up to thirty thousand
values = st.builds(float.__mul__, sizes, st.sampled_from([1.0, -1.0]))
vectors = st.one_of(
    st.lists(values, min_size=WIDTH, max_size=WIDTH),
    st.builds(
        lambda one, some: [one] * (WIDTH - len(some)) + some, values, st.lists(values, max_size=3)
    ),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(vector=vectors)
def test_scaled_norms_of_any_vector(norms: dict[str, Norms], vector: list[float]) -> None:
    x = np.array(vector, np.float16)[None, None]
    wide = x.astype(np.float64)
    apart = wide - wide.mean()
    rms, deviation = (np.sqrt(np.square(y).mean() + EPS) for y in (wide, apart))
    for run in norms.values():
        found_rms, found_layer = (y.astype(np.float64) for y in run(x))
        assert np.isfinite(found_rms).all() and np.isfinite(found_layer).all()
        exact = wide / rms
        # Five roundings, and below a hundredth the distance of the smallest floats.
        assert (np.abs(found_rms - exact) <= 6 * ULP * np.maximum(np.abs(exact), 1e-2)).all()
        # What lies close together around a large mean was lost when it became 16 bits.
        exact, lost = apart / deviation, np.abs(wide).max() / deviation
        assert (np.abs(found_layer - exact) <= 6 * ULP * (np.abs(exact) + lost)).all()


def test_equal_values_are_no_division_by_zero(
    norms: dict[str, Norms], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their deviation is zero, and eps over a large peak vanishes when it is squared."""
    for value in (0.0, 1e-4, 1.0, 5.0, 3e4):
        x = np.full((1, 1, WIDTH), value, np.float16)
        assert all(np.abs(run(x)[1]).max() < 1e-3 for run in norms.values())
    monkeypatch.setattr(HalfOps, "least_root", 0.0)
    assert np.isnan(norms["steps"](x)[1]).all()


def test_steps_are_those_of_the_graph(norms: dict[str, Norms]) -> None:
    """The same to a last bit, where a norm as it is written down overflows."""
    x = np.full((1, 1, WIDTH), 3.0, np.float16)
    x[..., 0] = HUGE
    for steps, nodes in zip(norms["steps"](x), norms["nodes"](x), strict=True):
        assert (np.abs(steps - nodes) <= 2 * ULP * np.abs(nodes)).all() and (nodes != 0).all()
    plain = Unscaled(Exact(ONES))
    assert (plain.rms_norm(torch.from_numpy(x.astype(np.float32)), "w", EPS) == 0).all()
    assert plain.overflows == 1


# --- what does not fit in 16 bits -----------------------------------------------------------------


def changed(folder: Path, family: str, ending: str) -> Checkpoint:
    """With a hundred thousand in the first of the weights that are called so."""
    opened = open_checkpoint(FAMILIES[family].make_checkpoint(folder))
    held = {n: np.array(opened.weights(n)) for n, _ in opened.family.weight_names(opened.spec)}
    held[next(name for name in held if name.endswith(ending))][..., -1] = 1e5
    return replace(opened, weights=tiny.Held(held))


@pytest.mark.parametrize(
    "family,ending",
    [
        ("smolvlm", "embeddings.position_embedding.weight"),
        ("smolvlm", "layers.0.mlp.fc1.bias"),
        ("smolvlm", "text_model.layers.1.mlp.up_proj.weight"),
        ("qwen2_5_vl", "q_proj.bias"),
        ("internvl", "embeddings.cls_token"),
        ("internvl", "layer.0.lambda_1"),
    ],
)
def test_weights_beyond_16_bits_are_refused(tmp_path: Path, family: str, ending: str) -> None:
    opened = changed(tmp_path / "checkpoint", family, ending)
    plan = Plan(recipe_named("exact"), opened.family.group_of)
    with pytest.raises(ExportError, match=f"{ending}.* not finite in float16"):
        export(opened, tmp_path / "out", plan, targets=("cpu", "gpu"))
    assert not (tmp_path / "out").exists()
    export(opened, tmp_path / "out", plan)  # 32 bits hold it


def test_embeddings_beyond_16_bits(tmp_path: Path) -> None:
    """A recipe that stores them so refuses; else a device fails at them and the CPU does it."""
    opened = changed(tmp_path / "checkpoint", "smolvlm", "embed_tokens.weight")
    plans = {n: Plan(recipe_named(n), opened.family.group_of) for n in ("exact", "w8")}
    with pytest.raises(ExportError, match="beyond float16; use --recipe exact"):
        export(opened, tmp_path / "out", plans["w8"], targets=("cpu", "gpu"))
    bundle = export(opened, tmp_path / "out", plans["exact"], targets=("cpu", "gpu"))
    engine = Engine.open(Bundle.open(bundle, unsealed=True), threads=1)
    prompt = [[1, 77, tiny.VOCABULARY - 1]]
    wanted = engine.score_blind(prompt)
    device = Device("gpu", "CPUExecutionProvider")
    engine.fleet = Fleet.of(engine.bundle, {("decoder", 0): (device,)}, 1)
    engine.fleet.accelerators[0].use("decoder", "float16.plain")
    assert np.array_equal(engine.score_blind(prompt), wanted)
    ((code, why),) = engine.trace.marks
    assert code == "device_failed" and "no numbers" in why
