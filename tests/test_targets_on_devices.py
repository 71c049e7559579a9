"""Graphs of the gpu and npu targets on providers that are really here: WebGPU on a graphics card in
software, and Qualcomm's simulator of an NPU.

They compute what the reference over their weights computes, the canary chooses among their forms,
and what goes wrong is said in a sentence. The bounds are those of `test_lowering.py`, where the CPU
runs the same graphs, and what a device adds.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

import on_devices as od
import real_devices as rd
from edgejudge import Judge
from edgejudge.bundle import Bundle, FileRecord, read_manifest, sha256_of_file
from edgejudge.errors import ProviderError
from edgejudge.export import (
    Asked,
    Checkpoint,
    Cut,
    Plan,
    Reference,
    Stored,
    export,
    open_checkpoint,
    prepared,
    ranges,
    seal,
)
from edgejudge.models.image import canary_image, preprocess
from edgejudge.runtime.assignment import elsewhere
from edgejudge.runtime.compiled import compiled_path
from edgejudge.runtime.placement import read_places, resolved
from edgejudge.runtime.provider import open_inner
from families import FAMILIES

pytestmark = pytest.mark.skipif(
    not od.MUST, reason="needs a GPU and an NPU, or their simulators: `make providers`"
)
torch.set_num_threads(2)
TARGET = {"float32.plain": "gpu", "a16w8": "npu", "a16w4": "npu"}
# How far label logits, which reach 4, may be from the reference over the same weights.
LIMITS = {"float32.plain": 1e-3, "a16w8": 4e-2, "a16w4": 4e-2}
TOKENS_LIMIT = {"float32.plain": 1e-4, "a16w8": 6e-2, "a16w4": 6e-2}  # visual, of 9 to 16
# Qualcomm's simulator gives something else for a square view with as many patches as a patch has
# pixels, here 16 and 16: no published model has such views, and a canary would see it.
SHAPES: dict[str, dict[str, Any]] = {"llava_onevision": {"view": 22}}
# How far the same work may be when it is cut otherwise.
CUT_LIMIT = {"float32.plain": 2e-5, "a16w8": 1e-2}
SIZES = ((60, 90), (40, 40))
TEXTS = ("a knife", "beer", "a dog")
LONG = np.random.default_rng(3).integers(60, 400, 150).tolist()
BRANCHES = [[70, 71, 72], [70, 71, 80, 81], [90], [70, 71, 72, 73]]


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache in which nothing was kept before, for subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("EDGEJUDGE_CACHE", str(folder))
        yield folder


# --- parity --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A checkpoint as its recipe wants it, and the bundle in two parts that came of it."""

    opened: Checkpoint
    plan: Plan
    bundle: Bundle

    def reference(self, variant: str) -> Reference:
        recipe = self.plan.recipe
        bits = {"a16w8": 8, "a16w4": 4}.get(variant)
        chosen = self.plan.for_target(recipe.for_npu(bits) if bits else recipe.for_gpu())
        stored = Stored(self.opened.weights, chosen)
        return Reference(self.opened.spec, stored, self.opened.tokens.image, torch.float64)


def asked_of(opened: Checkpoint, size: tuple[int, int]) -> Asked:
    prompts = opened.prompts
    seen = preprocess(canary_image(*size), opened.image)
    grid = (seen.rows, seen.cols)
    branches = [prompts.branch_ids(text) for text in TEXTS]
    return Asked(branches, prompts.prefix_ids(*grid), seen.feeds, prompts.prefix_positions(*grid))


def everything_asked(opened: Checkpoint, *_: Any) -> list[Asked]:
    """What ranges are looked for on, so that what is left is rounding."""
    return [*(asked_of(opened, size) for size in SIZES), Asked(BRANCHES, LONG)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    root = tmp_path_factory.mktemp("targets")

    def make(family: str) -> Made:
        FAMILIES[family].make_checkpoint(root / family, **SHAPES.get(family, {}))
        opened, plan = prepared(open_checkpoint(root / family), "w8")
        out = root / f"{family}-bundle"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranges, "asked_of", everything_asked)
            export(opened, out, plan, Cut(2), (), targets=("cpu", "gpu", "npu", "npu:a16w4"))
        seal(out, rd.UNMEASURED)
        return Made(opened, plan, Bundle.open(out))

    return cache(make)


def expected(one: Made, variant: str, asked: Asked, visual: NDArray[np.float32]) -> Any:
    """Label logits, of visual tokens as they were given."""
    reference, seen = one.reference(variant), torch.from_numpy(visual).double()
    hidden = []
    for branch in asked.branches:
        reference.prefill(asked.ids, seen, asked.positions)
        hidden.append(reference.extend(branch)[-1])
    return reference.logits(torch.stack(hidden), one.opened.labels.token_ids).numpy()


@pytest.mark.parametrize("variant", LIMITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_target_equals_the_reference(
    made: Callable[[str], Made], family: str, variant: str
) -> None:
    one, target = made(family), TARGET[variant]
    engine = rd.engine_on(one.bundle, rd.everywhere(one.bundle, target), **{target: variant})
    device = {"gpu": rd.GPU, "npu": rd.NPU}[target]
    for size in SIZES:
        asked = asked_of(one.opened, size)
        visual = engine.encode_image(asked.feeds)
        found = engine.score(engine.prefill(asked.ids, visual, asked.positions), asked.branches)
        logits = float(np.abs(found - expected(one, variant, asked, visual)).max())
        tokens = one.reference(variant).encode(asked.feeds).numpy()
        off = float(np.abs(visual - tokens).max())
        print(f"{family} {variant} {size}: visual tokens {off:.2g}, label logits {logits:.2g}")
        assert off < TOKENS_LIMIT[variant] and logits < LIMITS[variant]
    assert rd.ran(engine) == dict.fromkeys(("vision", "decoder.0", "decoder.1"), {device})
    assert not engine.trace.marks


@pytest.mark.parametrize("variant", CUT_LIMIT)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_work_cut_otherwise(
    made: Callable[[str], Made], family: str, variant: str
) -> None:
    """Chunked is whole, and packed is separate."""
    engine = rd.engine_on(made(family).bundle, f"decoder={TARGET[variant]}")
    engine.chunk = 512
    prefix = engine.prefill(LONG)
    whole = engine.score(prefix, BRANCHES, packed=False)
    off = {}
    for budget in (6, 512):
        engine.pack_tokens = budget
        off[f"packed in {budget}"] = engine.score(prefix, BRANCHES)
    for chunk in (40, 129):
        engine.chunk = chunk
        off[f"chunks of {chunk}"] = engine.score(engine.prefill(LONG), BRANCHES)
    errors = {how: float(np.abs(found - whole).max()) for how, found in off.items()}
    print(family, variant, errors)
    assert max(errors.values()) < CUT_LIMIT[variant]
    assert not engine.trace.marks and rd.CPU not in set().union(*rd.ran(engine).values())


# --- every node on the device --------------------------------------------------------------------


def test_every_node_of_the_chosen_graphs_is_there() -> None:
    """Nano's, opened so that ONNX Runtime refuses a node on the CPU."""
    bundle = Bundle.open(rd.nano())
    places = resolved(read_places("vision=gpu,decoder.0=npu"), bundle)
    (gpu,), (npu,) = places["vision", None], places["decoder", 0]
    assert dict(npu.options) == {"offload_graph_io_quantization": "0"}
    asked = [(gpu, graph) for graph in bundle.manifest.graphs if graph.variant == "float32.plain"]
    asked += [
        (npu, graph)
        for graph in bundle.manifest.graphs
        # Compiling all of them takes a minute; the last layers and the largest context are enough.
        if graph.variant in ("a16w8", "a16w4", "a8w8")
        and (graph.stage == "vision" or (graph.part == 1 and "x2048" in graph.file))
    ]
    assert len(asked) == 3 + 3 + 3 + 2, "of bytes there is no graph of one token"
    for device, graph in asked:
        path = bundle.graph_file(graph)
        assert elsewhere(open_inner(path, device, 1, strict=True), device.provider, path) == ()


def shrinking(bundle: Path, out: Path) -> Path:
    """A copy whose tower for the GPU ends in a node that changes nothing, and that WebGPU has no
    kernel for.
    """
    shutil.copytree(bundle, out)
    file = out / "gpu.float32.plain.vision.onnx"
    model = onnx.load(file, load_external_data=False)
    (last,) = (n for n in model.graph.node if "visual_tokens" in n.output)
    last.output[list(last.output).index("visual_tokens")] = "before"
    model.graph.node.append(od.node("Shrink", "before", "visual_tokens", lambd=0.0))
    onnx.save(model, file)
    manifest = read_manifest(out)
    changed = FileRecord(file.name, file.stat().st_size, sha256_of_file(file))
    files = tuple(changed if one.name == file.name else one for one in manifest.files)
    (out / "bundle.json").write_bytes(replace(manifest, files=files).signed().canonical())
    return out


def test_a_node_without_a_kernel_is_named(made: Callable[[str], Made], tmp_path: Path) -> None:
    folder = shrinking(made("smolvlm").bundle.path, tmp_path / "shrinking")
    with pytest.raises(ProviderError) as error:
        Judge.load(folder, place="vision=gpu", strict=True)
    assert (
        "gpu.float32.plain.vision.onnx: 1 node would not run on WebGpuExecutionProvider: Shrink "
        "Shrink_visual_tokens (it has no kernel for this Shrink)"
    ) in str(error.value)
    assert "\n" not in str(error.value)
    judge = Judge.load(folder, place="vision=gpu")  # where it runs on the CPU, and is listed
    assert judge.screen(canary_image(60, 90)).placement["vision"] == rd.GPU
    (accelerator,) = judge.engine.fleet.accelerators  # type: ignore[union-attr]
    (loaded,) = accelerator.loaded.values()
    assert [stray.node for stray in loaded.elsewhere] == ["Shrink_visual_tokens"]


# --- what a compiler made is kept ----------------------------------------------------------------


def test_compiled_contexts_are_kept_bit_by_bit(
    made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path))
    bundle = made("smolvlm").bundle

    def ask() -> tuple[NDArray[np.float32], set[str]]:
        engine = rd.engine_on(bundle, "decoder.0=npu")
        found = engine.score(engine.prefill(LONG[:100]), BRANCHES)
        (accelerator,) = engine.fleet.accelerators
        (loaded,) = accelerator.loaded.values()
        assert loaded.elsewhere == () and not engine.trace.marks
        stamps.add(compiled_path(bundle, loaded.graph, accelerator.device) / "stamp.json")
        return found, {one.origin for one in accelerator.loaded.values()}

    stamps: set[Path] = set()
    first, origin = ask()
    assert origin == {"compiled"}
    again, origin = ask()
    assert origin == {"cached"} and np.array_equal(again, first)
    (stamp,) = stamps
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "onnxruntime": "1.0.0"}))
    third, origin = ask()
    assert origin == {"stale"} and np.array_equal(third, first)
    assert ask()[1] == {"cached"}


def test_a_backend_that_is_not_there(
    made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One sentence, and the CPU does the work."""
    import onnxruntime_qnn

    bundle = made("smolvlm").bundle
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path))
    gone = str(tmp_path / "libQnnHtp.so")
    monkeypatch.setattr(onnxruntime_qnn, "get_qnn_htp_path", lambda: gone)
    with pytest.raises(ProviderError) as error:
        Judge.load(bundle.path, place="decoder.0=npu", strict=True)
    assert "QNNExecutionProvider" in str(error.value) and "\n" not in str(error.value)
    judge = Judge.load(bundle.path, place="decoder.0=npu")
    verdict = judge.screen(canary_image(60, 90))
    (note,) = (note for note in verdict.notes if note.code == "device_unused")
    assert note.message.startswith(f"{rd.NPU} is not used for decoder: a16w8: ")
    assert "took none of its nodes" in note.message and "\n" not in note.message
    assert set(verdict.placement.values()) == {rd.CPU} and verdict.error is None
