"""A judge read from disk a few layers at a time says what the whole one says, in less memory."""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import tiny
import tiny_llava
import tiny_qwen
from edgejudge import BundleError, Judge, Policy
from edgejudge.bundle import Bundle
from edgejudge.errors import EdgeJudgeError, InputError
from edgejudge.export import export, parts
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.runtime import Engine, memory, sliced
from edgejudge.runtime.sliced import Request, SlicedEngine

LOGIT_BAND = 2e-4  # as in test_engine
BUDGET = 8 << 30
POLICY = Policy.from_yaml(
    """\
name: kitchen
version: 1
rules:
  - {id: blades, text: t, category: c, conditions: [[a knife, a blade for cutting food], a dog]}
  - {id: drinks, text: t, category: c, conditions: [beer]}
"""
)
FAMILIES = {
    "smolvlm": tiny.make_checkpoint,
    "qwen2_5_vl": tiny_qwen.make_checkpoint,
    "llava_onevision": tiny_llava.make_checkpoint,
}
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Bundle]:
    """Each family in three recipes, a layer or two to a slice."""
    root = tmp_path_factory.mktemp("sliced")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_SLICE_BYTES", 30_000)
        for family, make in FAMILIES.items():
            checkpoint = make(root / family)
            for recipe in ("exact", "w8", "fast"):
                path = export(checkpoint, root / f"{family}-{recipe}", recipe)
                found[family, recipe] = Bundle.open(path, unsealed=True)
    return found


def requests(bundle: Bundle, sizes: list[tuple[int, int]], texts: list[str]) -> list[Request]:
    prompts, spec = Prompts.of(bundle), image_spec(bundle.manifest.preprocessing)
    made = []
    for height, width in sizes:
        seen = preprocess(canary_image(height, width), spec)
        ids = prompts.prefix_ids(seen.rows, seen.cols)
        positions = prompts.prefix_positions(seen.rows, seen.cols)
        branches = [prompts.branch_ids(text) for text in texts]
        made.append(Request(branches, ids, positions, seen.feeds))
    return made


def whole(bundle: Bundle, request: Request) -> np.ndarray:
    engine = Engine.open(bundle, threads=1)
    assert request.feeds is not None
    visual = engine.encode_image(request.feeds)
    return engine.score(engine.prefill(request.ids, visual, request.positions), request.branches)


@pytest.mark.parametrize("recipe", ["exact", "w8", "fast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_slices_give_what_the_whole_gives(
    bundles: dict[tuple[str, str], Bundle], family: str, recipe: str
) -> None:
    bundle = bundles[family, recipe]
    manifest = bundle.manifest
    for cut, layers in (
        (manifest.vision_slices, SlicedEngine.open(bundle, BUDGET).spec.vision.layers),
        (manifest.decoder_slices, SlicedEngine.open(bundle, BUDGET).spec.text.layers),
    ):
        covered = [i for part in cut for i in range(part.first_layer, part.last_layer + 1)]
        assert covered == list(range(layers))
        assert len(cut) > 1 or recipe != "exact"
    asked = requests(bundle, [(60, 90), (90, 60), (40, 40)], ["a knife", "beer", "a dog"])
    found = SlicedEngine.open(bundle, BUDGET, threads=1).ask(iter(asked))
    for request, logits in zip(asked, found, strict=True):
        assert not isinstance(logits, EdgeJudgeError)
        assert np.abs(logits - whole(bundle, request)).max() < LOGIT_BAND


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tokens=st.integers(5, 80), patches=st.integers(1, 200), count=st.integers(1, 7))
@pytest.mark.parametrize("family", FAMILIES)
def test_passes_of_any_size_give_the_same(
    bundles: dict[tuple[str, str], Bundle], family: str, tokens: int, patches: int, count: int
) -> None:
    bundle = bundles[family, "exact"]
    texts = ["a knife", "a kitchen knife", "beer", "a dog", "a dog on a leash", "x", "wine"][:count]
    (request,) = requests(bundle, [(60, 90)], texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliced, "_TOKENS", tokens)
        patch.setattr(sliced, "_PATCHES", patches)
        (found,) = SlicedEngine.open(bundle, BUDGET, threads=1).ask([request])
    assert not isinstance(found, EdgeJudgeError)
    assert np.abs(found - whole(bundle, request)).max() < LOGIT_BAND


def test_prompts_without_a_picture(bundles: dict[tuple[str, str], Bundle]) -> None:
    bundle = bundles["smolvlm", "w8"]
    prompts = [Prompts.of(bundle).blind_ids(text) for text in ("a knife", "beer")]
    found = SlicedEngine.open(bundle, BUDGET, threads=1).score_blind(prompts)
    wanted = Engine.open(bundle, threads=1).score_blind(prompts)
    assert np.abs(found - wanted).max() < LOGIT_BAND


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where arrays wait; nothing may be left there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def judge(bundles: dict[tuple[str, str], Bundle], scratch: Path) -> Judge:
    bundle = bundles["smolvlm", "exact"]
    return Judge(bundle, SlicedEngine.open(bundle, BUDGET, threads=1), batch=3)


def test_verdicts_of_a_batch_are_those_of_the_whole_judge(judge: Judge, tmp_path: Path) -> None:
    images: list[str] = []
    for index, size in enumerate([(60, 90), (90, 60), (40, 40), (33, 70), (60, 60)]):
        images.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(canary_image(*size)).save(images[-1])
    Path(images[1]).write_bytes(b"\x89PNG\r\n\x1a\n")
    images.append(str(tmp_path / "missing.png"))
    other = Judge(judge.bundle, Engine.open(judge.bundle, threads=1))
    wanted = other.screen([*images], POLICY)
    found = judge.screen([*images], POLICY)
    for one, two in zip(found, wanted, strict=True):
        assert (one.path, one.sha256, one.verdict) == (two.path, two.sha256, two.verdict)
        assert one.error == two.error and one.notes == two.notes
        for a, b in zip(one.rules, two.rules, strict=True):
            assert a.id == b.id and abs(a.probability - b.probability) < 1e-5
    assert [v.error.code for v in found if v.error] == ["undecodable", "missing"]
    assert found[0].placement.keys() == {"vision_slice", "decoder_slice", "verdict_head"}
    assert {"decode", "preprocess", "load", "vision", "decoder"} <= found[0].stages_ms.keys()
    assert judge.screen(images[2], POLICY).rules == found[2].rules
    priors = other.language_priors(POLICY)
    assert judge.language_priors(POLICY) == pytest.approx(priors, abs=1e-5)


def test_a_batch_that_takes_too_long_has_no_verdict(judge: Judge) -> None:
    found = judge.screen([canary_image(60, 90)] * 2, POLICY, timeout=0.01)
    assert [v.verdict for v in found] == [None, None]
    assert all(v.error is not None and v.error.code == "timeout" for v in found)
    assert judge.screen(canary_image(60, 90), POLICY).verdict is not None


def test_one_picture_too_long_leaves_the_others(judge: Judge) -> None:
    (good,) = requests(judge.bundle, [(40, 40)], ["beer"])
    long = Request([[70] * 3000], good.ids, good.positions, good.feeds)
    strange = Request([[70]], [1, 60, 70, 71])
    found = judge.engine.ask([long, good, strange])  # type: ignore[union-attr]
    assert isinstance(found[0], InputError) and found[0].code == "too_long"
    assert not isinstance(found[1], EdgeJudgeError) and not isinstance(found[2], EdgeJudgeError)
    assert np.abs(found[1] - whole(judge.bundle, good)).max() < LOGIT_BAND


def test_text_is_refused_in_words(judge: Judge) -> None:
    with pytest.raises(InputError, match="without a memory budget"):
        judge.write(canary_image(40, 40), "Why?")


def test_a_full_disk_is_a_failure_and_never_safe(judge: Judge) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        found = judge.screen([canary_image(60, 90)] * 2, POLICY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for verdict in found:
        assert verdict.verdict is None and verdict.error is not None
        assert verdict.error.code == "no_room" and "TMPDIR" in verdict.error.message


def test_a_missing_temporary_folder_is_a_failure(
    bundles: dict[tuple[str, str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundles["smolvlm", "exact"]
    judge = Judge(bundle, SlicedEngine.open(bundle, BUDGET, threads=1))
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    error = judge.screen(canary_image(60, 90), POLICY).error
    assert error is not None and error.code == "no_room" and "No such file" in error.message


def test_a_budget_is_for_decoded_pixels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sliced.most_pixels(0) == 0
    # As a process holds that judges: what other tests have loaded into this one is not meant.
    monkeypatch.setattr(memory, "resident_bytes", lambda: 200 << 20)
    assert sliced.most_pixels(8 << 30) > 100_000_000 > sliced.most_pixels(1 << 30) > 10_000_000


def test_a_budget_for_less_than_a_slice_is_refused(bundles: dict[tuple[str, str], Bundle]) -> None:
    with pytest.raises(BundleError, match=r"a memory budget of 20 MiB is less than the \d+ MiB"):
        SlicedEngine.open(bundles["smolvlm", "exact"], 20 << 20)


def test_a_prompt_beyond_the_budget_is_refused(bundles: dict[tuple[str, str], Bundle]) -> None:
    bundle = bundles["smolvlm", "exact"]
    engine = SlicedEngine.open(bundle, BUDGET, threads=1)
    engine.room.budget = engine.room.needed + 1000
    (found,) = engine.ask(requests(bundle, [(40, 40)], ["beer"]))
    assert isinstance(found, InputError) and found.code == "over_budget"


PEAK = """
import json, re, sys
from pathlib import Path
from edgejudge import Judge
from edgejudge.bundle import Bundle
from edgejudge.runtime import Engine
from edgejudge.runtime.sliced import SlicedEngine, fits

bundle, budget = Bundle.open(Path(sys.argv[1]), unsealed=True), int(sys.argv[2])
assert fits(bundle, 8 << 30) and not (budget and fits(bundle, budget))
engine = SlicedEngine.open(bundle, budget, 1) if budget else Engine.open(bundle, threads=1)
found = Judge(bundle, engine).screen([sys.argv[3]] * 2)
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps({"mib": peak / 1024, "errors": [str(v.error) for v in found if v.error]}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
def test_the_budget_is_kept(tmp_path: Path) -> None:
    """A decoder of 300 MB, in a process that may have less."""
    checkpoint = tiny.make_checkpoint(
        tmp_path / "checkpoint", text_layers=8, text_hidden=768, text_intermediate=3072
    )
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle, "exact")
    Image.fromarray(canary_image(60, 90)).save(tmp_path / "picture.png")

    def run(budget: int) -> dict[str, object]:
        command = [sys.executable, "-c", PEAK, str(bundle), str(budget)]
        done = subprocess.run(
            [*command, str(tmp_path / "picture.png")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        assert found["errors"] == []
        return found

    within, without = run(280 << 20), run(0)
    assert within["mib"] < 280 < without["mib"]  # type: ignore[operator]
