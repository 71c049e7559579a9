"""Both sides in integers: the graph computes what the reference says, no token meddles with
another, and nothing overflows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import tiny_llava
import tiny_qwen
from edgejudge.bundle import Bundle, Manifest
from edgejudge.errors import ProviderError
from edgejudge.export import Reference, Stored, export, open_checkpoint, prepared
from edgejudge.export.blocks import Plan
from edgejudge.export.eager import EagerOps
from edgejudge.export.recipe import recipe_named
from edgejudge.fidelity import export_bundle
from edgejudge.goldens import graph_error
from edgejudge.runtime import Engine, overflow
from edgejudge.runtime.sliced import SlicedEngine
from one_layer import NAME, run_layer

torch.set_num_threads(1)
FAMILIES: dict[str, Any] = {
    "smolvlm": tiny,
    "qwen2_5_vl": tiny_qwen,
    "llava_onevision": tiny_llava,
}
NANO = Path(__file__).parent.parent / "models" / "nano"


def linear(folder: Path, matrix: np.ndarray, bias: np.ndarray | None = None) -> Any:
    """One layer of the recipe `fast` as a function of x [1, S, K]."""
    return run_layer(folder, matrix, Plan(recipe_named("fast"), lambda _: "decoder.first"), bias)


def expected(x: np.ndarray, matrix: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """The same by hand, in float64."""
    step = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-12) / 127
    scale = np.abs(matrix).max(-1, keepdims=True) / 63
    scale[scale == 0] = 1
    levels = np.rint(matrix / scale)
    out: np.ndarray = (np.rint(x / step) @ levels.T) * step * scale[:, 0] + bias
    return out


def test_a_layer_is_what_it_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((40, 96)).astype(np.float32)
    matrix[7] = 0
    bias = rng.standard_normal(40).astype(np.float32)
    run = linear(tmp_path, matrix, bias)
    x = rng.standard_normal((1, 30, 96)).astype(np.float32)
    x[0, 3] = 0
    x[0, 4] *= 1e4
    assert np.allclose(run(x), expected(x.astype(np.float64), matrix, bias), rtol=1e-4, atol=1e-3)
    assert (run(x)[0, 3] == bias).all()


def test_the_largest_sums_do_not_overflow(tmp_path: Path) -> None:
    """Where products of bytes are added in pairs of 16 bits, eight-bit weights would not pass."""
    matrix = np.ones((16, 4096), np.float32)
    matrix[8:] = -1
    run = linear(tmp_path, matrix)
    for sign in (1.0, -1.0):
        x = np.full((1, 9, 4096), sign, np.float32)
        found = run(x)
        assert np.allclose(found[..., :8], sign * 4096, rtol=1e-6)
        assert np.allclose(found[..., 8:], -sign * 4096, rtol=1e-6)


def test_a_token_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    run = linear(tmp_path, rng.standard_normal((64, 128)).astype(np.float32))
    x = rng.standard_normal((1, 200, 128)).astype(np.float32)
    x[0, 50:] *= 1000  # outliers in another question
    whole = run(x)
    for begin, end in ((0, 1), (0, 24), (17, 40)):
        assert (run(x[:, begin:end]) == whole[:, begin:end]).all()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("fast")
    made = {}
    for name, maker in FAMILIES.items():
        folder = maker.make_checkpoint(root / name)
        made[name] = folder, export(folder, root / f"{name}-fast", "fast")
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_equal_the_reference(bundles: dict[str, tuple[Path, Path]], family: str) -> None:
    _, target = bundles[family]
    bundle = Bundle.open(target, unsealed=True)
    assert graph_error(bundle, Engine.open(bundle)) < recipe_named("fast").tolerance
    assert {"weights.i8.bin"} <= {f.name for f in bundle.manifest.files}
    records = {(q.group, q.bits) for q in bundle.manifest.quantization}
    assert {("decoder", 7), ("vision", 7), ("connector", 7), ("head", 8)} <= records


def test_the_reference_rounds_what_the_graph_rounds(
    bundles: dict[str, tuple[Path, Path]],
) -> None:
    """Without that it would be as far from the graphs as the checkpoint is."""
    folder, target = bundles["smolvlm"]
    opened = open_checkpoint(folder)
    bundle = Bundle.open(target, unsealed=True)
    golden = bundle.manifest.golden[0]

    def error(weights: Any) -> float:
        from edgejudge.export import Asked

        reference = Reference(opened.spec, weights, opened.tokens.image, torch.float64)
        (found,) = reference.ask([Asked(list(golden.branches))], opened.labels.token_ids)
        return float(np.abs(found - np.array(golden.label_logits)).max())

    changed, plan = prepared(opened, "fast")
    assert error(Stored(changed.weights, plan)) < 1e-3

    class Unrounded(Stored):
        def rounding(self, name: str) -> int | None:
            return None

    assert error(Unrounded(changed.weights, plan)) > 5e-3


def test_a_trained_judge_passes_the_gate(tmp_path: Path) -> None:
    manifest: Manifest = export_bundle(NANO / "qwen", tmp_path / "out", "fast")
    report = manifest.fidelity
    assert report is not None and report.decisions is not None
    assert report.decisions.flips <= 8 and report.decisions.probability_error_99 <= 0.05
    assert report.hidden_error < 0.02, "four bits move it by more"
    text = report.writing
    assert text is not None and text.words == text.decisions > 40, "it was trained on its labels"
    assert text.agree >= 0.98 * text.words


@pytest.mark.parametrize("kind,bits", [("vision", 8), ("decoder.middle.up_proj", 4)])
def test_a_layer_in_blocks_rounds_what_the_reference_rounds(
    tmp_path: Path, kind: str, bits: int
) -> None:
    """Each block of a token's activations has a scale of its own, whatever the neighbours."""
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((40, 80)).astype(np.float32)
    writing = recipe_named("balanced").for_writing()
    assert writing is not None
    plan = Plan(writing, lambda _: kind)
    assert (plan.bits_of(NAME), plan.rounding(NAME)) == (bits, 32)
    run = run_layer(tmp_path, matrix, plan)
    values = rng.standard_normal((1, 30, 80)).astype(np.float32)
    values[0, :, 40] *= 50  # takes the levels of its block, and of no other
    found = run(values)
    eager = EagerOps(Stored(tiny.Held({NAME: matrix}), plan), torch.float64)
    expected = eager.linear(torch.from_numpy(values).double(), NAME).numpy()
    plain = values.astype(np.float64) @ eager.plain(NAME).numpy().T
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.abs(plain - expected).max() > 10 * np.abs(found - expected).max()
    assert np.abs(run(values[:, 7:8]) - found[:, 7:8]).max() < 1e-4


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With eight-bit weights."""
    root = tmp_path_factory.mktemp("wide")
    folder = tiny.make_checkpoint(root / "checkpoint")
    return Bundle.open(export(folder, root / "bundle", "fast8"), unsealed=True)


class Overflowing:
    """A kernel that adds products of bytes in pairs of 16 bits, as x86 does without VNNI."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        levels = feeds["levels"].astype(np.int64)
        weights = np.where(np.arange(32) % 2, -127, 127)
        pairs = np.clip((levels[:, ::2] + levels[:, 1::2])[..., None] * weights, -32768, 32767)
        total = pairs.sum(1) - 128 * 64 * weights
        return [total.astype(np.float32)]


def test_eight_bits_are_refused_where_they_overflow(
    wide: Bundle, bundles: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "open_session", lambda _, graph, *__: Overflowing(graph))
    with pytest.raises(ProviderError, match="overflow on this processor.*--recipe fast,"):
        Engine.open(wide)
    with pytest.raises(ProviderError, match="overflow on this processor"):
        SlicedEngine.open(wide, 8 << 30)
    Engine.open(Bundle.open(bundles["smolvlm"][1], unsealed=True))  # seven bits never do


def test_eight_bits_are_nearer_where_they_do_not(
    wide: Bundle, bundles: dict[str, tuple[Path, Path]]
) -> None:
    try:
        engine = Engine.open(wide)
    except ProviderError:
        pytest.skip("this processor adds products of bytes in 16 bits")
    assert graph_error(wide, engine) < recipe_named("fast8").tolerance
    narrow = Bundle.open(bundles["smolvlm"][1], unsealed=True)
    moved = {
        bits: max(q.relative_rms_error for q in bundle.manifest.quantization if q.bits == bits)
        for bits, bundle in ((7, narrow), (8, wide))
    }
    assert moved[8] < 0.6 * moved[7]
