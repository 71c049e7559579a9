"""The nano judge on providers that are really here: what the canary chooses, what the command
prints, any mix of devices, and how many decisions differ from those of the fp32 checkpoint.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import on_devices as od
import real_devices as rd
from edgejudge import Judge, Policy
from edgejudge.bundle import Bundle, read_manifest
from edgejudge.canaries import tolerance_of
from edgejudge.export import export, open_checkpoint, read_calibration, split_pictures
from edgejudge.gate import Tally, upper_bound
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.plan import make_plan
from edgejudge.policy import Rule
from edgejudge.runtime import Engine
from edgejudge.runtime.accelerator import Accelerator
from edgejudge.runtime.trace import Trace
from edgejudge.verdict import Verdict

pytestmark = pytest.mark.skipif(
    not od.MUST, reason="needs a GPU and an NPU, or their simulators: `make providers`"
)
torch.set_num_threads(2)
ISSUE = "vision=gpu,decoder.0=npu,decoder.1=cpu"
DEVICES = {"cpu": rd.CPU, "gpu": rd.GPU, "npu": rd.NPU}
# Of label logits, which reach 13, from the reference over the same weights; on the canary.
PARITY = {"float32.plain": 1e-3, "a16w8": 3e-2, "a16w4": 1e-1, "a8w8": 2e-1}
BAND = 2e-2  # on probabilities, of any mix from the CPU's
WRITING = 3e-1  # on logits of all tokens, which reach 20; the CPU writes with bytes


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache in which nothing was kept before, for subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("EDGEJUDGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return Bundle.open(rd.nano())


@pytest.fixture(scope="module")
def strip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A strip of a screenshot: five views, and a rule that is broken beyond doubt."""
    path = tmp_path_factory.mktemp("picture") / "strip.png"
    with Image.open(rd.NANO / "samples" / "screen.jpg") as picture:
        picture.crop((0, 240, 1920, 720)).save(path)
    return path


def probabilities(verdict: Verdict) -> NDArray[np.float64]:
    assert verdict.error is None, verdict.error
    return np.array(
        [q.probability for rule in verdict.rules for c in rule.conditions for q in c.alternatives]
    )


# --- what the canary chooses ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def chosen(nano: Bundle) -> Judge:
    return Judge.load(nano.path, place="vision=gpu,decoder=gpu")


def test_the_canary_catches_what_was_seen(nano: Bundle, chosen: Judge) -> None:
    """Fused attention computes wrongly there, and nothing but the numbers tells; floats of 16 bits
    it does not have.
    """
    fleet = chosen.engine.fleet  # type: ignore[union-attr]
    records = {record.variant: record for record in nano.manifest.targets}
    assert set(fleet.answers) == {(rd.GPU, "vision"), (rd.GPU, "decoder")} and not fleet.unused
    for stage in ("vision", "decoder"):
        found = fleet.answers[rd.GPU, stage]
        print(stage, found)
        assert list(found) == ["float16.fused", "float16.plain", "float32.fused", "float32.plain"]
        for half in ("float16.fused", "float16.plain"):
            assert "requires f16 but the device does not support it" in str(found[half])
        fused, plain = found["float32.fused"], found["float32.plain"]
        assert isinstance(fused, float) and fused > 10 * tolerance_of(
            nano, records["float32.fused"]
        )
        assert isinstance(plain, float) and plain < 1e-4
    assert fleet.accelerators[0].variants == {s: "float32.plain" for s in ("vision", "decoder")}


@pytest.fixture(scope="module")
def fused(nano: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the forms that are right on this GPU."""
    folder = tmp_path_factory.mktemp("fused") / "bundle"
    folder.mkdir()
    for file in nano.path.iterdir():
        os.link(file, folder / file.name)
    (folder / "bundle.json").unlink()
    manifest = read_manifest(nano.path)
    some = replace(
        manifest,
        targets=tuple(t for t in manifest.targets if not t.variant.endswith(".plain")),
        graphs=tuple(g for g in manifest.graphs if not (g.variant or "").endswith(".plain")),
    )
    (folder / "bundle.json").write_bytes(some.signed().canonical())
    return folder


def test_a_device_without_a_right_form_is_not_used(fused: Path, nano: Bundle, strip: Path) -> None:
    judge = Judge.load(fused, place="vision=gpu,decoder=gpu")
    verdict = judge.screen(strip)
    notes = {note.message.partition(": ")[0] for note in verdict.notes}
    assert {note.code for note in verdict.notes} == {"device_unused"}
    assert notes == {f"{rd.GPU} is not used for {stage}" for stage in ("vision", "decoder")}
    off = [
        re.search(r"label logits of the canary are ([\d.]+) off", n.message) for n in verdict.notes
    ]
    assert all(found is not None and float(found[1]) > 0.1 for found in off)
    assert set(verdict.placement.values()) == {rd.CPU}
    alone = Judge.load(nano.path).screen(strip)
    assert np.array_equal(probabilities(verdict), probabilities(alone))
    assert alone.verdict == verdict.verdict == "unsafe"


def screened(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgejudge", "screen", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_strict_refuses_it(fused: Path, strip: Path) -> None:
    done = screened(str(strip), "--bundle", str(fused), "--place", "decoder=gpu", "--strict")
    assert done.returncode == 2 and not done.stdout, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {rd.GPU} is not right for decoder (float16.fused: ")
    assert last.endswith("; leave it to the CPU, or drop --strict")


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("chosen")  # so that the canary's answers for the tower are there
def test_the_line_of_the_issue(nano: Bundle, strip: Path) -> None:
    done = screened(str(strip), "--bundle", str(nano.path), "--place", ISSUE, "--json")
    assert done.returncode == 1, done.stderr
    (line,) = done.stdout.splitlines()  # vendors' libraries print there too
    found = json.loads(line)
    alone = Judge.load(nano.path).screen(strip)
    assert found["verdict"] == alone.verdict == "unsafe" and found["error"] is None
    broken = [rule["id"] for rule in found["rules"] if rule["verdict"] == "unsafe"]
    assert broken == [rule.id for rule in alone.rules if rule.verdict == "unsafe"]
    placement = {"vision": rd.GPU, "decoder.0": rd.NPU, "decoder.1": rd.CPU}
    assert found["placement"] == {**placement, "verdict_head": rd.CPU}
    notes = [note for note in found["notes"] if note["code"] == "device_simulated"]
    assert all(note["message"].endswith("is a simulator: its times mean nothing") for note in notes)
    assert {note["message"].split()[0] for note in notes} == {rd.GPU, rd.NPU}
    assert "1 of 1 judged" in done.stderr


def test_a_driver_that_is_missing(nano: Bundle, strip: Path, tmp_path: Path) -> None:
    gone = str(tmp_path / "driver.json")
    place = ("--bundle", str(nano.path), "--place", "vision=gpu")
    done = screened(str(strip), *place, VK_DRIVER_FILES=gone)
    assert done.returncode == 2 and not done.stdout, done.stderr
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("error: "))
    assert f"{gone} of VK_DRIVER_FILES does not exist" in line
    assert "Traceback" not in done.stderr


# --- any mix of devices --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(nano: Bundle) -> Engine:
    return Engine.open(nano, threads=2)


@pytest.fixture(scope="module")
def found(nano: Bundle) -> dict[str, Accelerator]:
    """Of all stages each, in forms that are right there."""
    return {
        target: rd.accelerators(nano, rd.everywhere(nano, target))[target] for target in rd.PLAIN
    }


@dataclass(frozen=True)
class Question:
    """A picture's prompt and questions, and its visual tokens by the device that made them."""

    ids: Sequence[int]
    branches: Sequence[Sequence[int]]
    visual: dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def question(nano: Bundle, engine: Engine, found: dict[str, Accelerator], strip: Path) -> Question:
    prompts = Prompts.of(nano)
    with Image.open(strip) as picture:
        seen = preprocess(np.asarray(picture), image_spec(nano.manifest.preprocessing))
    visual = {}
    for target, device in DEVICES.items():
        engine.trace, engine.fleet = Trace(), rd.fleet_of(nano, found, f"vision={target}")
        visual[target] = engine.encode_image(seen.feeds)
        assert rd.ran(engine) == {"vision": {device}}
    branches = make_plan("stickers", nano.manifest, prompts).branches[:12]
    return Question(prompts.prefix_ids(seen.rows, seen.cols), branches, visual)


def answers(
    engine: Engine, question: Question, visual: str, place: str, found: dict[str, Accelerator]
) -> NDArray[np.float64]:
    engine.trace, engine.fleet = Trace(), rd.fleet_of(engine.bundle, found, place)
    prefix = engine.prefill(question.ids, question.visual[visual])
    return engine.label_probabilities(engine.score(prefix, question.branches))


def test_any_mix_gives_the_cpus_probabilities(
    engine: Engine, found: dict[str, Accelerator], question: Question
) -> None:
    """Every pair of devices, at any two of: the tower, the first part, the second."""
    alone = answers(engine, question, "cpu", "decoder=cpu", found)
    errors = {}
    for (one, first), (two, second) in itertools.product(enumerate(DEVICES), repeat=2):
        visual = list(DEVICES)[(one + two) % 3]
        place = f"decoder.0={first},decoder.1={second}"
        mixed = answers(engine, question, visual, place, found)
        errors[visual, first, second] = float(np.abs(mixed - alone).max())
        ran = {"decoder.0": {DEVICES[first]}, "decoder.1": {DEVICES[second]}}
        assert rd.ran(engine) == ran and not engine.trace.marks
        handed = {s.counts["part"] for s in engine.trace.spans if s.name == "handover"}
        assert handed == {part for part, target in enumerate((first, second)) if target != "cpu"}
    for mix, error in errors.items():
        print(*mix, f"{error:.2g}")
    assert max(errors.values()) < BAND and errors["cpu", "cpu", "cpu"] == 0
    assert min(error for mix, error in errors.items() if "npu" in mix) > 0
    assert max(error for mix, error in errors.items() if "npu" not in mix) < 1e-4


def brought(engine: Engine, since: int) -> list[int]:
    """Rows that each part was handed before its passes; what it gives back has every other span."""
    return [s.counts["rows"] for s in engine.trace.spans[since:] if s.name == "handover"][::2]


def test_work_goes_from_one_device_to_another(
    engine: Engine, found: dict[str, Accelerator], question: Question
) -> None:
    """Prompts, questions and text, each on a device of its own: rows are handed over once."""
    wanted = answers(engine, question, "cpu", "decoder=cpu", found)
    errors, written = {}, {}
    for before in DEVICES:
        engine.fleet = rd.fleet_of(engine.bundle, found, f"decoder={before}")
        prefix = engine.prefill(question.ids, question.visual["cpu"])
        for after, device in DEVICES.items():
            place = f"decoder={after},writer={after}"
            engine.trace, engine.fleet = Trace(), rd.fleet_of(engine.bundle, found, place)
            scored = engine.label_probabilities(engine.score(prefix, question.branches))
            errors[before, after] = float(np.abs(scored - wanted).max())
            told = len(engine.trace.spans)
            assert brought(engine, 0) == ([] if after == "cpu" else [prefix.length] * 2)
            step, hidden = engine.step(question.branches[0][0], prefix)
            _, hidden = engine.step(question.branches[0][1], step)
            written[before, after] = engine.full_logits(hidden[None])[0]
            assert brought(engine, told) == ([] if after == "cpu" else [0, 0, 1, 1])
            assert set().union(*rd.ran(engine).values()) == {device} and not engine.trace.marks
            assert {name.partition(".")[0] for name in rd.ran(engine)} == {"decoder", "writer"}
    for pair, error in errors.items():
        off = float(np.abs(written[pair] - written["cpu", "cpu"]).max())
        print(*pair, f"probabilities {error:.2g}, logits of written text {off:.2g}")
        assert error < BAND and off < WRITING
        assert written[pair].argmax() == written["cpu", "cpu"].argmax()


# --- parity and decisions ------------------------------------------------------------------------


@pytest.mark.parametrize("variant", PARITY)
def test_nano_equals_the_reference(nano: Bundle, variant: str) -> None:
    """Over the weights of the variant's graphs, which the export computed in float64."""
    (record,) = (one for one in nano.manifest.targets if one.variant == variant)
    place = rd.everywhere(nano, record.target)
    engine = rd.engine_on(nano, place, **{record.target: variant})
    canary, prompts = nano.manifest.canary, Prompts.of(nano)
    picture = canary_image(canary.image_height, canary.image_width)
    seen = preprocess(picture, image_spec(nano.manifest.preprocessing))
    visual = engine.encode_image(seen.feeds)
    prefix = engine.prefill(prompts.prefix_ids(seen.rows, seen.cols), visual)
    logits = engine.score(prefix, canary.golden.branches)
    off = float(np.abs(logits - np.array(record.canary_logits)).max())
    apart = engine.score(prefix, canary.golden.branches, packed=False)
    print(f"nano {variant}: {off:.2g}, packed {float(np.abs(apart - logits).max()):.2g}")
    assert off < PARITY[variant] and not engine.trace.marks
    assert set().union(*rd.ran(engine).values()) == {DEVICES[record.target]}


def asking(bundle: Bundle, conditions: Sequence[str]) -> Policy:
    """Each by itself, held to the threshold that the bundle's policies have for it."""
    thresholds = {
        condition.text: rule.threshold
        for policy in bundle.manifest.policies
        for rule in policy.rules
        for either in rule.conditions
        for condition in either
    }
    rules = tuple(
        Rule(f"c{index}", text, "gate", ((text,),), thresholds.get(text, 0.5))
        for index, text in enumerate(conditions)
    )
    return Policy("gate", "1", rules)


@pytest.mark.parametrize(
    ("tower", "decoder", "whole", "strips"),
    [("gpu", "npu", 1, 8), ("npu", "gpu", 0, 5)],
    ids=["gpu and npu", "npu and gpu"],
)
def test_decisions_are_those_of_the_checkpoint(
    nano: Bundle,
    engine: Engine,
    found: dict[str, Accelerator],
    tmp_path: Path,
    tower: str,
    decoder: str,
    whole: int,
    strips: int,
) -> None:
    """Over pictures that no choice of the export has seen: a whole one, and strips of others, which
    have five views instead of thirteen.
    """
    checkpoint = open_checkpoint(rd.NANO / "checkpoint")
    assert checkpoint.calibration_folder is not None
    gate = split_pictures(read_calibration(checkpoint.calibration_folder)).gate
    pictures = [one.rgb for one in gate[:whole]]
    pictures += [one.rgb[64:128] for one in gate[whole : whole + strips]]
    # The concepts, which every picture is asked about; what else is asked is each one's own.
    common = [c for c in gate[0].conditions if all(c in one.conditions for one in gate)]
    assert len(common) >= len(nano.manifest.concepts)
    exact = Bundle.open(export(checkpoint, tmp_path / "exact", "exact"), unsealed=True)
    engine.trace, engine.fleet = (
        Trace(),
        rd.fleet_of(nano, found, f"vision={tower},decoder={decoder}"),
    )
    policy = asking(nano, common)
    wanted = Judge(exact, Engine.open(exact, threads=2)).screen(pictures, policy)
    tally = Tally()
    for index, verdict in enumerate(Judge(nano, engine).stream(pictures, policy)):
        placement = {"vision": DEVICES[tower]}
        placement |= {f"decoder.{part}": DEVICES[decoder] for part in (0, 1)}
        assert dict(verdict.placement) == {**placement, "verdict_head": rd.CPU}
        assert {note.code for note in verdict.notes} == {"device_simulated"}
        names: list[tuple[str, ...]] = [(rule.text,) for rule in verdict.rules]
        limits = np.array([rule.threshold for rule in verdict.rules])
        given = (probabilities(verdict), probabilities(wanted[index]), limits)
        tally.add(gate[index].image, names, *given)
    print(
        f"{tally.flips} of {tally.decisions} decisions flip, at most "
        f"{upper_bound(tally.flips, tally.decisions):.2%} with 95 % confidence; "
        f"{tally.near_flips} of {tally.near_decisions} near their threshold; probabilities move by "
        f"{tally.percentile_99():.4f} (99th percentile), {max(tally.errors):.4f} at most"
    )
    assert not tally.violations() and tally.decisions == len(pictures) * len(common)
