"""Graphs of the `gpu` and `npu` targets compute what the reference over their weights computes,
and give the same numbers however the work is cut.

Both targets run here on ONNX Runtime's CPU provider, which computes what a graph says. Ranges of
whole numbers are looked for on the very questions that are asked, so that nothing is clipped and
what is left is rounding; `test_ranges.py` has what clipping does.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import tiny_llava
import tiny_qwen
from edgejudge.bundle import Bundle
from edgejudge.export import (
    Asked,
    CalibrationPicture,
    Checkpoint,
    Cut,
    Plan,
    Reference,
    Stored,
    asked_of,
    export,
    open_checkpoint,
    prepared,
    ranges,
)
from edgejudge.export.gpu_ops import PlainGpuOps
from edgejudge.export.npu_ops import NpuOps
from edgejudge.models.image import canary_image, preprocess
from edgejudge.runtime import Engine, padded
from edgejudge.runtime.fleet import Fleet
from edgejudge.runtime.padded import NoGraph
from edgejudge.runtime.placement import Device
from edgejudge.runtime.replica import Replica
from edgejudge.runtime.views import static_groups

torch.set_num_threads(1)
FAMILIES: dict[str, Any] = {
    "smolvlm": tiny,
    "qwen2_5_vl": tiny_qwen,
    "llava_onevision": tiny_llava,
}
RECIPES = ("exact", "w8", "fast")
TARGETS = ("cpu", "gpu", "npu", "npu:a16w4")
# How far a label logit may be from the reference over the same weights; logits reach 4. Measured
# over both families, all recipes and pictures: float32 1e-5, float16 2.5e-2.
LIMITS = {
    "float32.plain": 1e-4,
    "float32.fused": 1e-4,
    "float16.plain": 5e-2,
    "float16.fused": 5e-2,
    # Scores share 65,536 levels with those that a mask hides: half a level is 1e-3 of a score here,
    # and every rounding before it adds its part. Measured: 2e-2.
    "a16w8": 4e-2,
    "a16w4": 4e-2,
}
TOKENS_LIMIT = {"float32": 5e-5, "float16": 5e-2, "a16w8": 1e-2, "a16w4": 1e-2}  # visual, of 9
# How far the same work may be when it is cut otherwise.
CUT_LIMIT = {"float32.plain": 2e-5, "float32.fused": 2e-5, "float16.plain": 6e-3, "a16w8": 5e-3}
SIZES = ((60, 90), (40, 40))
TEXTS = ("a knife", "beer", "a dog")
LONG = np.random.default_rng(3).integers(60, 400, 1200).tolist()
BRANCHES = [[70, 71, 72], [70, 71, 80, 81], [90], [70, 71, 72, 73]]


@dataclass(frozen=True)
class Made:
    """A checkpoint as its recipe wants it, and the bundle in two parts that came of it."""

    opened: Checkpoint
    plan: Plan
    bundle: Bundle

    def stored(self, variant: str) -> Stored:
        """The weights of a variant's graphs."""
        recipe, whole = self.plan.recipe, variant.startswith("a16")
        other = recipe.for_npu(int(variant[-1])) if whole else recipe.for_gpu()
        return Stored(self.opened.weights, self.plan.for_target(other))

    def reference(self, variant: str) -> Reference:
        image = self.opened.tokens.image
        return Reference(self.opened.spec, self.stored(variant), image, torch.float64)


def question(opened: Checkpoint, size: tuple[int, int]) -> Asked:
    return asked_of(opened, [CalibrationPicture("drawn", canary_image(*size), TEXTS)])[0]


def everything_asked(opened: Checkpoint, *_: Any) -> list[Asked]:
    """What ranges are looked for on."""
    return [*(question(opened, size) for size in SIZES), Asked(BRANCHES, LONG)]


def make(root: Path, family: str, recipe: str, targets: tuple[str, ...] = TARGETS) -> Made:
    folder = root / family
    if not folder.exists():
        FAMILIES[family].make_checkpoint(folder)
    opened, plan = prepared(open_checkpoint(folder), recipe)
    out = root / f"{family}-{recipe}-{len(list(root.iterdir()))}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "asked_of", everything_asked)
        export(opened, out, plan, Cut(2), (), targets=targets)
    return Made(opened, plan, Bundle.open(out, unsealed=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lowering")


@pytest.fixture(scope="module")
def made(root: Path) -> Any:
    return cache(lambda family, recipe: make(root, family, recipe))


def engine_on(bundle: Bundle, stages: Mapping[str, str]) -> Engine:
    """Stages on the CPU provider in these variants, all else as ever."""
    engine = Engine.open(bundle, threads=1)
    places, parts = {}, [part.index for part in bundle.manifest.parts]
    for stage, variant in stages.items():
        device = Device("npu" if variant.startswith("a16") else "gpu", "CPUExecutionProvider")
        for part in [None] if stage == "vision" else parts:
            places[stage, part] = (device,)
    engine.fleet = Fleet.of(bundle, places, 1)
    for (stage, _), (accelerator,) in engine.fleet.routes.items():
        accelerator.use("decoder" if stage == "writer" else stage, stages[stage])
    return engine


def on_device(engine: Engine) -> bool:
    """Nothing of what was placed was left to the processor."""
    placed = {stage for stage, _ in engine.fleet.routes}
    done = [v for k, v in engine.placement.items() if k.partition(".")[0] in placed]
    return bool(done) and not engine.trace.marks and all(v[:4] in ("gpu:", "npu:") for v in done)


def expected(
    reference: Reference, opened: Checkpoint, asked: Asked, visual: np.ndarray | None
) -> np.ndarray:
    """Label logits, of visual tokens as they were given."""
    seen = None if visual is None else torch.from_numpy(visual).double()
    hidden = []
    for branch in asked.branches:
        reference.prefill(asked.ids, seen, asked.positions)
        hidden.append(reference.extend(branch)[-1])
    return reference.logits(torch.stack(hidden), opened.labels.token_ids).numpy()


def errors(made: Made, variant: str, size: tuple[int, int] = SIZES[0]) -> tuple[float, float]:
    """Of visual tokens, where the variant makes them, and of label logits."""
    opened, stages = made.opened, {"decoder": variant}
    if made.bundle.graphs("npu" if variant[0] == "a" else "gpu", variant, "vision"):
        stages["vision"] = variant
    engine, reference = engine_on(made.bundle, stages), made.reference(variant)
    asked = question(opened, size)
    visual = engine.encode_image(asked.feeds)
    found = engine.score(engine.prefill(asked.ids, visual, asked.positions), asked.branches)
    assert on_device(engine), (engine.placement, engine.trace.marks)
    off = np.abs(visual - reference.encode(asked.feeds).numpy()).max() if "vision" in stages else 0
    return float(off), float(np.abs(found - expected(reference, opened, asked, visual)).max())


# --- parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", LIMITS)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_equals_the_reference(made: Any, family: str, recipe: str, variant: str) -> None:
    for size in SIZES:
        tokens, logits = errors(made(family, recipe), variant, size)
        assert tokens < TOKENS_LIMIT[variant.partition(".")[0]]
        assert logits < LIMITS[variant]


def test_pictures_of_any_size_take_the_graph_that_holds_them(made: Any) -> None:
    """Static towers are of a few sizes; what a picture does not fill changes nothing."""
    one = made("qwen2_5_vl", "exact")
    engine, reference = engine_on(one.bundle, {"vision": "a16w8"}), one.reference("a16w8")
    (accelerator,) = engine.fleet.accelerators
    for size, slots in (((24, 24), 256), ((50, 70), 1024)):
        before, feeds = set(accelerator.loaded), preprocess(canary_image(*size), one.opened.image)
        near(engine.encode_image(feeds.feeds), reference.encode(feeds.feeds).numpy(), 0.3)
        (file,) = set(accelerator.loaded) - before
        assert f".{slots}." in file and not engine.trace.marks
    small = one.bundle.graphs("npu", "a16w8", "vision")[:1]
    with pytest.raises(NoGraph, match="takes a picture of 384 patches"):
        list(static_groups(small, feeds.feeds))


# --- the same work, cut otherwise ----------------------------------------------------------------


@pytest.fixture(params=[(f, v) for f in FAMILIES for v in CUT_LIMIT], ids="-".join)
def cutting(made: Any, request: pytest.FixtureRequest) -> Iterator[tuple[Engine, float]]:
    """An engine whose decoder is of a variant, and how far its numbers may move."""
    family, variant = request.param
    engine = engine_on(made(family, "exact").bundle, {"decoder": variant})
    yield engine, CUT_LIMIT[variant]
    assert on_device(engine), (engine.placement, engine.trace.marks)


def near(found: np.ndarray, wanted: np.ndarray, limit: float) -> None:
    assert np.abs(found - wanted).max() < limit


def test_chunked_is_whole_and_cached_is_full(cutting: tuple[Engine, float]) -> None:
    engine, limit = cutting
    ids, sizes = LONG[:300], (1, 7, 128, 129, 299)
    engine.chunk = 512
    whole = engine.score(engine.prefill(ids), BRANCHES)
    for split in sizes:
        first = engine.prefill(ids[:split])
        near(engine.score(engine.prefill(ids[split:], after=first), BRANCHES), whole, limit)
    for chunk in (*sizes, 300):
        engine.chunk = chunk
        near(engine.score(engine.prefill(ids), BRANCHES), whole, limit)


def test_packed_is_separate(cutting: tuple[Engine, float]) -> None:
    engine, limit = cutting
    rng = np.random.default_rng(0)
    many = [[*BRANCHES[i % 4], *rng.integers(60, 400, 9).tolist()] for i in range(24)]
    prefix = engine.prefill(LONG[:150])
    alone = engine.score(prefix, many, packed=False)
    for budget in (40, 128, 512):  # 512 is cut into pieces where a graph takes 128 tokens
        engine.pack_tokens = budget
        near(engine.score(prefix, many), alone, limit)
    near(engine.score_blind(many), engine.score_blind(many, packed=False), limit)


def test_a_fork_is_a_fresh_prefill(made: Any, cutting: tuple[Engine, float]) -> None:
    """What other questions and prompts left in a device's copy of the cache is never seen."""
    engine, limit = cutting
    prefix = engine.prefill(LONG[:140])
    first = engine.score(prefix, BRANCHES)
    engine.score(prefix, [LONG[500:700], LONG[700:800]])
    assert np.array_equal(engine.score(prefix, BRANCHES), first)
    snapshot = engine.snapshot(prefix)
    assert snapshot is not None
    engine.score(engine.prefill(LONG[300:500]), BRANCHES)
    again = engine.restore(snapshot, prefix.position)
    near(engine.score(again, BRANCHES), first, limit)
    engine.prefill(LONG[300:330])
    assert np.array_equal(engine.score(engine.prefill(LONG[:140]), BRANCHES), first)


# --- contexts and the graph of one token ---------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_around_a_context(made: Any, family: str) -> None:
    """Static graphs take 512, 1024 or 2048 rows; a prompt that fills one needs the next."""
    one = made(family, "exact")
    reference = one.reference("a16w8")
    engine = engine_on(one.bundle, {"decoder": "a16w8"})
    (accelerator,), opened = engine.fleet.accelerators, []
    for rows in (510, 512, 513, 1023, 1024, 1025):
        found = engine.score(engine.prefill(LONG[:rows]), BRANCHES)
        wanted = expected(reference, one.opened, Asked(BRANCHES, LONG[:rows]), None)
        # Shares of a thousand tokens are few levels each: up to 0.049 was seen.
        near(found, wanted, 2.5 * LIMITS["a16w8"])
        opened.append({file.split(".")[-2].split("x")[1] for file in accelerator.loaded})
    assert opened[1] == {"512"} and opened[2] == opened[4] == {"512", "1024"}
    assert opened[5] == {"512", "1024", "2048"} and on_device(engine)


@pytest.mark.parametrize("recipe", ["exact", "w8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_token_is_one_of_many(made: Any, family: str, recipe: str) -> None:
    """Text is written by the graph of one token, whose weights are those of the other."""
    bundle = made(family, recipe).bundle
    stages = {"decoder": "a16w8"} | ({"writer": "a16w8"} if bundle.has("cpu", "writer") else {})
    engine = engine_on(bundle, stages)
    (accelerator,) = engine.fleet.accelerators
    _, many = engine.append(LONG[:100])
    assert not any(".1x" in file for file in accelerator.loaded)
    _, one = engine.step(LONG[99], engine.prefill(LONG[:99]))
    assert any(".1x512." in file for file in accelerator.loaded) and on_device(engine)
    assert ("writer.0" in engine.placement) == (recipe != "exact")
    near(engine.label_logits(one[None]), engine.label_logits(many[None]), CUT_LIMIT["a16w8"])


# --- the checks themselves -----------------------------------------------------------------------


Wrong = Callable[[pytest.MonkeyPatch], None]


def failing(made: Made, variant: str) -> bool:
    """Whether `test_every_form_equals_the_reference` would fail."""
    tokens, logits = errors(made, variant)
    return tokens >= TOKENS_LIMIT[variant.partition(".")[0]] or logits >= LIMITS[variant]


def a_louder_scale(patch: pytest.MonkeyPatch) -> None:
    for form in (PlainGpuOps, NpuOps):
        usual = form._scaled
        wrong = lambda self, x, factor, usual=usual: usual(self, x, factor * 1.05)  # noqa: E731
        patch.setattr(form, "_scaled", wrong)


def mixed_halves(patch: pytest.MonkeyPatch) -> None:
    """Rope turns each channel with its neighbour instead of the one half a head away."""
    for form in (PlainGpuOps, NpuOps):
        usual = form.rope

        def rope(self: Any, x: str, rotation: Any, heads: int, dim: int, usual: Any = usual) -> str:
            x = self._reshaped(x, 0, 0, heads, dim // 2, 2)
            x = self._move("Transpose", x, perm=[0, 1, 2, 4, 3])
            return usual(self, self._reshaped(x, 0, 0, heads * dim), rotation, heads, dim)

        patch.setattr(form, "rope", rope)


def untransposed_keys(patch: pytest.MonkeyPatch) -> None:
    """Keys of all tokens in the right shape and the wrong order."""
    usual = PlainGpuOps._move

    def move(self: Any, op: str, x: Any, more: tuple[str, ...] = (), **how: Any) -> str:
        if how.get("perm") == [0, 1, 3, 2]:
            return usual(self, "Reshape", x, (self._constant([0, 0, 16, -1]),))
        return usual(self, op, x, more, **how)

    patch.setattr(PlainGpuOps, "_move", move)


def seen_behind(begin: Callable[[Any, int, int], int], end: Callable[[int], int]) -> Wrong:
    """Nothing hides these columns of a mask, of a piece's rows, the capacity and the tokens."""
    usual = padded._feeds

    def feeds(*given: Any) -> Any:
        found, (piece, capacity) = usual(*given), given[-2:]
        count = piece.end - piece.begin
        found["attention_bias"][..., begin(piece, capacity, count) : end(capacity)] = 0
        return found

    return lambda patch: patch.setattr(padded, "_feeds", feeds)


def unturned_rows(patch: pytest.MonkeyPatch) -> None:
    """Keys that are brought to a device in the right shape and the wrong order."""
    usual = Replica._own

    def own(self: Any, rows: np.ndarray, which: str, index: int) -> np.ndarray:
        if self._turned(which):
            b, heads, tokens, width = rows.shape
            rows = rows.reshape(b, heads, width, tokens).transpose(0, 1, 3, 2)
        return usual(self, rows, which, index)

    patch.setattr(Replica, "_own", own)


WRONG_GRAPHS: dict[str, tuple[str, Wrong]] = {
    "scale of the gpu": ("float32.plain", a_louder_scale),
    "scale of the npu": ("a16w8", a_louder_scale),
    "rope of the gpu": ("float32.plain", mixed_halves),
    "rope of the npu": ("a16w8", mixed_halves),
    "keys of the gpu": ("float32.plain", untransposed_keys),
}
EMPTY_ROWS = seen_behind(lambda piece, *_: piece.rows, lambda capacity: capacity)
PADDING = seen_behind(lambda _, capacity, count: capacity + count, lambda _: 1 << 30)
WRONG_RUNS: dict[str, tuple[str, Wrong]] = {
    "empty rows of a plain cache": ("float32.plain", EMPTY_ROWS),
    "empty rows of a fused cache": ("float32.fused", EMPTY_ROWS),
    "empty rows of a static cache": ("a16w8", EMPTY_ROWS),
    "tokens that stand for none": ("a16w8", PADDING),
    "keys of the npu": ("a16w8", unturned_rows),
}


@pytest.mark.parametrize("mutation", WRONG_GRAPHS)
def test_a_wrong_graph_fails_parity(
    root: Path, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    variant, wrong = WRONG_GRAPHS[mutation]
    wrong(monkeypatch)
    targets = ("cpu", "npu" if variant == "a16w8" else "gpu")
    assert failing(make(root, "smolvlm", "exact", targets), variant)


@pytest.mark.parametrize("mutation", WRONG_RUNS)
def test_a_wrong_run_fails_parity(
    made: Any, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    variant, wrong = WRONG_RUNS[mutation]
    assert not failing(made("smolvlm", "exact"), variant)
    wrong(monkeypatch)
    assert failing(made("smolvlm", "exact"), variant)


def test_a_stale_copy_of_the_cache_shows(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a device not told that rows were replaced, it would answer from those it had."""
    engine = engine_on(made("smolvlm", "exact").bundle, {"decoder": "float32.plain"})
    prefix = engine.prefill(LONG[:140])
    fresh, kept = engine.score(prefix, BRANCHES), engine.snapshot(prefix)
    assert kept is not None
    engine.score(engine.prefill(LONG[300:440]), BRANCHES)
    monkeypatch.setattr(Replica, "forget", lambda self, rows: None)
    stale = engine.score(engine.restore(kept, prefix.position), BRANCHES)
    assert np.abs(stale - fresh).max() > 100 * CUT_LIMIT["float32.plain"]
