"""The gate's statistics, and that it catches a bundle broken in any of many ways."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from edgejudge.errors import ExportError
from edgejudge.export import exporter
from edgejudge.export.blocks import Plan
from edgejudge.export.onnx_ops import OnnxOps
from edgejudge.export.quantize import Quantized
from edgejudge.fidelity import export_bundle
from edgejudge.gate import Limits, Tally, lower_bound, upper_bound
from test_export import POLICY

torch.set_num_threads(1)


# --- statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "count", "expected"),
    [
        (0, 598, 1 - 0.05 ** (1 / 598)),  # closed form
        (0, 3000, 0.000998),
        (1, 10, 0.394163),  # tables of Clopper and Pearson
        (10, 10, 1.0),
        (0, 0, 1.0),
    ],
)
def test_the_upper_bound_is_the_exact_one(hits: int, count: int, expected: float) -> None:
    assert upper_bound(hits, count) == pytest.approx(expected, abs=2e-6)


@given(count=st.integers(1, 4000), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_bounds_enclose_what_was_seen(count: int, share: float) -> None:
    hits = round(share * count)
    low, high = lower_bound(hits, count), upper_bound(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    assert upper_bound(hits, 2 * count) <= high + 1e-9
    if 0 < hits < count:
        terms = (math.comb(count, k) * high**k * (1 - high) ** (count - k) for k in range(hits + 1))
        if count < 500:  # the definition itself, where floats still hold it
            assert sum(terms) == pytest.approx(0.05, abs=1e-6)


def tally_of(found: list[float], wanted: list[float], limits: Limits) -> Tally:
    tally = Tally(limits)
    names: list[tuple[str, ...]] = [("p.r",)] * len(found)
    tally.add("one.png", names, np.array(found), np.array(wanted), np.full(len(found), 0.5))
    return tally


ENOUGH = Limits(decisions=100, near_decisions=10)


def test_flips_are_counted_by_way_by_nearness_and_by_rule() -> None:
    tally = tally_of([0.2, 0.9, 0.6, 0.1], [0.6, 0.2, 0.7, 0.1], ENOUGH)
    assert (tally.unsafe_to_safe, tally.safe_to_unsafe, tally.flips) == (1, 1, 2)
    # 0.6 and 0.7 are within 0.25 of the threshold; 0.2 is not, and its flip is not a near one.
    assert (tally.near_decisions, tally.near_flips) == (2, 1)
    assert tally.rules["p.r"].unsafe_to_safe == 1 and tally.pictures["one.png"].decisions == 4


@pytest.mark.parametrize(
    ("flipped", "moved", "expected"),
    [(0, 0.0, []), (40, 0.0, ["flip"]), (0, 0.2, ["99th percentile"]), (40, 0.2, ["flip", "99th"])],
)
def test_each_limit_is_held(flipped: int, moved: float, expected: list[str]) -> None:
    rng = np.random.default_rng(0)
    wanted = np.where(rng.random(4000) < 0.5, 0.01, 0.99)
    wanted[:800] = 0.45
    found = wanted + moved * np.where(wanted < 0.4, 1, -1) * (wanted != 0.45)
    found[-flipped or 4000 :] = 1 - wanted[-flipped or 4000 :]
    violations = tally_of(found.tolist(), wanted.tolist(), Limits()).violations()
    if flipped:
        expected = [*expected, *(["99th"] if flipped > 40 else [])]
    assert len(violations) >= len(expected)
    for word in expected:
        assert any(word in v for v in violations), violations
    if not expected:
        assert not violations


def test_too_few_decisions_refuse_only_what_they_prove() -> None:
    one_flip = tally_of([0.6] + [0.1] * 19, [0.4] + [0.1] * 19, Limits())
    assert one_flip.underpowered
    # One flip of twenty is 0.26 % at least: fewer than the limit of all, and near it is unclear.
    assert [v for v in one_flip.violations() if "decisions flip" in v and "near" not in v] == []
    many = tally_of([0.6] * 10 + [0.1] * 10, [0.1] * 20, Limits())
    assert any("10 of 20 decisions flip, at least" in v for v in many.violations())
    assert many.violations(accepted=0.9) == []


def test_a_probability_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"one\.png: a probability is not a number"):
        tally_of([math.nan], [0.5], Limits())


# --- broken bundles ------------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def linear_of(ending: str, change: Callable[[Any], Any]) -> Patch:
    """One group of matrices is stored otherwise than the checkpoint has it."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        stored, plan = OnnxOps._store_quantized, Plan.quantized

        def broken(self: Any, source: Any, name: str) -> Any:
            for part in plan(self, source, name):
                yield part._replace(q=change(part.q)) if name.endswith(ending) else part

        def storing(self: Any, weight: str, *args: Any) -> None:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(Plan, "quantized", broken)
                stored(self, weight, *args)

        patch.setattr(OnnxOps, "_store_quantized", storing)

    return apply


def scaled(q: Quantized) -> Quantized:
    scales = q.scales.copy()
    scales[:, 0] *= 1.5
    return Quantized(q.bits, q.block, q.inner, q.levels, scales)


def swapped_nibbles(q: Quantized) -> Quantized:
    return Quantized(q.bits, q.block, q.inner, q.levels >> 4 | q.levels << 4, q.scales)


def swapped_rows(q: Quantized) -> Quantized:
    """The first two heads of 16 rows change places."""
    order = np.r_[16:32, 0:16, 32 : len(q.levels)]
    return Quantized(q.bits, q.block, q.inner, q.levels[order], q.scales[order])


def op(name: str, change: Callable[..., Any]) -> Patch:
    """One operator of every graph means something else; `change` gets it and its arguments."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original = getattr(OnnxOps, name)
        patch.setattr(OnnxOps, name, lambda self, *a, **k: change(original, self, *a, **k))

    return apply


def no_norm_in_layer_1(original: Any, ops: Any, x: str, weight: str, eps: float) -> Any:
    return x if ".layers.1.input_layernorm" in weight else original(ops, x, weight, eps)


def no_bias(
    original: Any, ops: Any, x: str, weight: str, bias: Any = None, rows: Any = None
) -> Any:
    return original(ops, x, weight, None if "fc1" in weight else bias, rows)


def late_rope(original: Any, ops: Any, x: str, turn: Any, heads: int, head_dim: int) -> Any:
    """Positions off by one for keys, as a mistaken prefix length would make them."""
    if heads == 4:
        return original(ops, x, turn, heads, head_dim)
    turned = original(ops, x, turn, heads, head_dim)
    return original(ops, turned, (turn[0], turn[1]), heads, head_dim)


def manifest_with(**changes: Callable[[Any], Any]) -> Patch:
    """The manifest says something else than the checkpoint."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original = exporter.Manifest

        def made(**fields: Any) -> Any:
            return original(**{k: changes[k](v) if k in changes else v for k, v in fields.items()})

        patch.setattr(exporter, "Manifest", made)

    return apply


BROKEN: dict[str, Patch] = {
    "a wrong scale in one group": linear_of("o_proj.weight", scaled),
    "nibbles in the wrong order": linear_of("gate_proj.weight", swapped_nibbles),
    "two heads swapped": linear_of("q_proj.weight", swapped_rows),
    "one layer's norm left out": op("rms_norm", no_norm_in_layer_1),
    "a bias left out": op("linear", no_bias),
    "rope turned twice": op("rope", late_rope),
    "sine and cosine swapped": op("rope", lambda f, o, x, t, *a: f(o, x, (t[1], t[0]), *a)),
    "another activation": op("activation", lambda f, o, x, kind: f(o, x, "gelu")),
    "attention not scaled": op("cached_attention", lambda f, *a: f(*a[:-1], 1.0)),
    "tiles shuffled wrongly": op("pixel_shuffle", lambda f, o, x, g, s: o.reshape(x, 0, 4, -1)),
    "labels swapped": manifest_with(labels=lambda v: {"yes": v["no"], "no": v["yes"]}),
    "image mean off": manifest_with(
        preprocessing=lambda v: {**v, "mean": [m + 0.3 for m in v["mean"]]}
    ),
    "another prompt": manifest_with(
        prompt=lambda v: type(v)(**{**_fields(v), "head": v.head[:1] * len(v.head)})
    ),
}


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in type(record).__dataclass_fields__}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_checkpoint(tmp_path_factory.mktemp("gate") / "checkpoint", tiling=False)


def test_the_whole_bundle_passes(checkpoint: Path, tmp_path: Path) -> None:
    export_bundle(checkpoint, tmp_path / "out", "small", policies=[POLICY], accept_flips=0.2)


@pytest.mark.parametrize("fault", BROKEN)
def test_the_gate_catches(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    BROKEN[fault](monkeypatch)
    recipe = "small" if "nibbles" in fault else "w8"
    with pytest.raises(ExportError, match="off the reference over the same|bundle is refused"):
        export_bundle(checkpoint, tmp_path / "out", recipe, policies=[POLICY], accept_flips=0.2)
    assert list(tmp_path.iterdir()) == []
