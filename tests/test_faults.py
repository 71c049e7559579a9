"""What a device does wrong costs time and a note, and never a verdict.

Faults are put into a device's sessions: graphs of the gpu target on the CPU provider.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from edgejudge import Judge, Policy, Verdict
from edgejudge.bundle import FidelityRecord
from edgejudge.commands.screen import exit_code
from edgejudge.errors import ProviderError
from edgejudge.export import Cut, export, seal
from edgejudge.runtime import Engine
from edgejudge.runtime.accelerator import Accelerator
from edgejudge.runtime.fleet import FAILURES
from edgejudge.runtime.stages import Stages
from test_judge import POLICY
from test_judge_shared import pictures

KITCHEN = Policy.from_yaml(POLICY)
GPU = "gpu:CPUExecutionProvider"
BAND = 1e-5  # on probabilities, of graphs in float32
VISION, DECODER = "vision=gpu:cpu", "decoder=gpu:cpu"
ALL = f"{VISION},{DECODER}"
Act = Callable[[str, list[np.ndarray]], list[np.ndarray]]  # a graph's stage, and what it gave


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("faults")
    tiny.make_checkpoint(
        root / "checkpoint", card=tiny.make_card(), vision_layers=1, text_layers=2, grid_of_tiles=2
    )
    export(root / "checkpoint", root / "bundle", "w8", Cut(2), (), targets=("cpu", "gpu"))
    seal(root / "bundle", FidelityRecord("synthetic", 0, 0.0, 0.0, 0.0, None, None, None))
    return root / "bundle"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all tests, so that canaries are asked once."""
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("cache")
        patched.setenv("EDGEJUDGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[Verdict]:
    judge = Judge.load(bundle, threads=1, prefix_cache_bytes=0)
    return [judge.screen(picture, KITCHEN) for picture in pictures(3)]


class Faults:
    """What befalls the device: `run` is called after each of its runs, `load` before each graph is
    opened. Both may raise, wait, or change what was computed.
    """

    def __init__(self) -> None:
        self.runs = 0
        self.run: Act | None = None
        self.load: Callable[[], None] | None = None

    def at(self, which: set[int], act: Act) -> None:
        """Only these runs, counted from now on."""
        begun = self.runs

        def some(stage: str, outputs: list[np.ndarray]) -> list[np.ndarray]:
            return act(stage, outputs) if self.runs - begun - 1 in which else outputs

        self.run = some


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    found, opened = Faults(), Accelerator._opened

    class Faulty:
        def __init__(self, inner: Any) -> None:
            self.inner, self.begin = inner, inner.begin

        def run(self, feeds: Any) -> Any:
            outputs = self.inner.run(feeds)
            found.runs += 1
            return outputs if found.run is None else found.run(self.inner.graph.stage, outputs)

    def open_faulty(self: Accelerator, graph: Any) -> Any:
        if found.load is not None:
            found.load()
        session, loaded = opened(self, graph)
        return Faulty(session), loaded

    monkeypatch.setattr(Accelerator, "_opened", open_faulty)
    return found


def load(bundle: Path, place: str) -> tuple[Judge, Accelerator]:
    """A judge whose device computes in float32, and the device."""
    judge = Judge.load(bundle, place=place, threads=1, prefix_cache_bytes=0)
    assert isinstance(judge.engine, Engine)
    (accelerator,) = judge.engine.fleet.accelerators
    for stage in list(accelerator.variants):
        accelerator.use(stage, "float32.plain")
    return judge, accelerator


def notes(verdict: Verdict) -> list[str]:
    return [note.code for note in verdict.notes if note.code.startswith("device_")]


def same(found: Verdict, expected: Verdict) -> None:
    """As all on the processor."""
    assert found.error is None and found.verdict == expected.verdict
    for one, other in zip(found.rules, expected.rules, strict=True):
        assert one.verdict == other.verdict
        assert abs(one.probability - other.probability) < BAND


def throw(error: BaseException) -> Act:
    def act(*_: object) -> list[np.ndarray]:
        raise error

    return act


def spoil(index: int) -> Act:
    """One number of an output is none: hidden states or visual tokens first, then new keys."""

    def act(stage: str, outputs: list[np.ndarray]) -> list[np.ndarray]:
        outputs = [output.copy() for output in outputs]
        outputs[0 if stage == "vision" else index].flat[0] = np.nan
        return outputs

    return act


ACTS = {
    "ours": throw(ProviderError("the device was lost")),
    "another's": throw(KeyError()),  # which says nothing at all
    "memory": throw(MemoryError()),
    "not numbers": spoil(0),
    "keys that are not": spoil(1),
    "values that are not": spoil(2),
}


@pytest.mark.parametrize("when", ["first", "second", "last"])
@pytest.mark.parametrize("place", [VISION, DECODER, "decoder.1=gpu:cpu"])
@pytest.mark.parametrize("kind", ACTS)
def test_one_fault(
    bundle: Path, faults: Faults, expected: list[Verdict], kind: str, place: str, when: str
) -> None:
    judge, _ = load(bundle, place)
    clean = judge.screen(pictures(1)[0], KITCHEN)
    same(clean, expected[0])
    before = faults.runs
    assert notes(judge.screen(pictures(1)[0], KITCHEN)) == notes(clean) == []
    several = faults.runs - before
    which = {"first": 0, "second": min(1, several - 1), "last": several - 1}[when]
    faults.at({which}, ACTS[kind])
    struck = judge.screen(pictures(1)[0], KITCHEN)
    same(struck, expected[0])
    assert notes(struck) == ["device_failed"]
    (message,) = (n.message for n in struck.notes if n.code == "device_failed")
    stage = place.partition("=")[0].partition(".")[0]
    assert message.startswith(f"{GPU} failed at {stage}, which the next place did instead (")
    assert "\n" not in message
    # The next picture, and the one after it, find nothing of it.
    for picture, other in zip(pictures(3)[1:], expected[1:], strict=True):
        later = judge.screen(picture, KITCHEN)
        same(later, other)
        assert notes(later) == []


@pytest.mark.parametrize("place", [ALL, "decoder.0=gpu:cpu", "decoder.1=gpu:cpu"])
def test_a_fault_at_any_run_leaves_no_trace(
    bundle: Path, faults: Faults, expected: list[Verdict], place: str
) -> None:
    """The n-th run fails, for every n until a picture has no n-th run."""
    judge, _ = load(bundle, place)
    judge.engine.chunk = 8  # type: ignore[attr-defined]
    judge.engine.pack_tokens = 4  # type: ignore[attr-defined]
    some = pictures(2)
    for n in range(200):
        faults.at({n}, ACTS["keys that are not" if n % 2 else "ours"])
        struck = judge.screen(some[n % 2], KITCHEN)
        same(struck, expected[n % 2])
        same(judge.screen(some[1 - n % 2], KITCHEN), expected[1 - n % 2])
        judge.revive_devices()
        if not notes(struck):
            break
    assert 4 < n < 199


@pytest.mark.parametrize("place", [VISION, DECODER])
def test_a_device_that_fails_always_is_left_alone(
    bundle: Path, faults: Faults, expected: list[Verdict], place: str
) -> None:
    judge, _ = load(bundle, place)
    picture = pictures(1)[0]
    faults.run = ACTS["ours"]
    found = [judge.screen(picture, KITCHEN) for _ in range(4)]
    assert all(v.rules == expected[0].rules for v in found), "all of it was the processor's"
    assert all(v.verdict == expected[0].verdict for v in found)
    failed = [n for v in found for n in v.notes if n.code == "device_failed"]
    assert len(failed) == FAILURES and "until Judge.revive_devices()" in failed[-1].message
    assert not any("revive" in note.message for note in failed[:-1])
    assert notes(found[-1]) == ["device_off"]
    asked = faults.runs
    assert notes(judge.screen(picture, KITCHEN)) == ["device_off"] and faults.runs == asked
    faults.run = None
    judge.revive_devices()
    again = judge.screen(picture, KITCHEN)
    same(again, expected[0])
    assert notes(again) == [] and faults.runs > asked and GPU in again.placement.values()


@pytest.mark.parametrize("place", [VISION, DECODER])
def test_a_graph_that_does_not_load(
    bundle: Path, faults: Faults, expected: list[Verdict], place: str
) -> None:
    judge, accelerator = load(bundle, place)
    accelerator.renew()

    def fail() -> None:
        raise OSError("no room\nin its memory")

    faults.load = fail
    found = judge.screen(pictures(1)[0], KITCHEN)
    assert found.rules == expected[0].rules and set(notes(found)) == {"device_failed"}
    assert all("no room" in n.message and "\n" not in n.message for n in found.notes)
    faults.load = None
    judge.revive_devices()
    assert notes(judge.screen(pictures(1)[0], KITCHEN)) == []


@pytest.mark.parametrize("place", [VISION, DECODER, ALL])
def test_a_device_that_hangs(
    bundle: Path, faults: Faults, expected: list[Verdict], place: str
) -> None:
    judge, accelerator = load(bundle, place)
    picture, release = pictures(1)[0], threading.Event()
    same(judge.screen(picture, KITCHEN), expected[0])
    accelerator._worker._deadline_s = 0.5

    def hang(stage: str, outputs: list[np.ndarray]) -> list[np.ndarray]:
        release.wait(60)
        return outputs

    faults.run = hang
    try:
        found, runs = judge.screen(picture, KITCHEN), faults.runs
        same(found, expected[0])
        assert notes(found) == ["device_failed"]
        (message,) = (n.message for n in found.notes)
        assert "has not answered within 0.5 s" in message and "revive_devices()" in message
        assert accelerator.hung
        later = judge.screen(picture, KITCHEN)
        same(later, expected[0])
        assert notes(later) == ["device_off"] and faults.runs == runs
        # A thread of its own for what is asked next; the old one stays where it is.
        faults.run = None
        judge.revive_devices()
        assert not accelerator.hung
        again = judge.screen(picture, KITCHEN)
        same(again, expected[0])
        assert notes(again) == [] and faults.runs > runs
    finally:
        release.set()


def test_in_a_stream_only_the_picture_it_happened_to(
    bundle: Path, faults: Faults, expected: list[Verdict]
) -> None:
    judge, _ = load(bundle, VISION)
    faults.at({0}, ACTS["not numbers"])  # in the thread that reads ahead
    found = list(judge.stream(pictures(3), KITCHEN))
    for verdict, other in zip(found, expected, strict=True):
        same(verdict, other)
    # Whichever of them was encoded first, on a machine that has other work too.
    assert sorted(notes(verdict) for verdict in found) == [[], [], ["device_failed"]]


def test_who_was_read_ahead_is_told_too(
    bundle: Path, faults: Faults, expected: list[Verdict]
) -> None:
    """The decoder fails for the first picture when the second is on its way already."""
    judge, _ = load(bundle, ALL)

    faults.run = lambda stage, outputs: outputs if stage == "vision" else ACTS["ours"](stage, [])
    found = list(judge.stream(pictures(3), KITCHEN))
    for verdict, other in zip(found, expected, strict=True):
        same(verdict, other)
    assert [set(notes(v)) for v in found] == [{"device_failed"}, {"device_off"}, {"device_off"}]
    assert all(len(notes(v)) == 1 for v in found[1:])


def test_nothing_is_safe_because_a_device_failed(
    bundle: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the processor cannot do it either, there is no verdict."""
    judge, _ = load(bundle, VISION)
    faults.run = ACTS["ours"]

    session = Stages.session

    def fail(stages: Stages, stage: str, part: int | None = None, **more: Any) -> Any:
        if stage == "vision":
            raise ProviderError("the processor is lost too")
        return session(stages, stage, part, **more)

    monkeypatch.setattr(Stages, "session", fail)
    found = judge.screen(pictures(1)[0], KITCHEN)
    assert found.verdict is None and found.error is not None
    assert found.error.code == "engine_failed" and notes(found) == ["device_failed"]


# The command line, on a device that hangs in the first run after its canary's answers were kept.
SCRIPT = """if True:
    import os, sys, time
    from edgejudge.runtime.accelerator import Accelerator
    opened = Accelerator._opened
    class Hangs:
        def __init__(self, inner):
            self.inner, self.begin = inner, inner.begin
        def run(self, feeds):
            print("hangs", file=sys.stderr, flush=True)
            time.sleep(1e6)
    def open_hanging(self, graph):
        session, loaded = opened(self, graph)
        return Hangs(session), loaded
    Accelerator._opened = open_hanging
    from edgejudge.cli import main
    sys.exit(main())
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "kitchen.yaml").write_text(POLICY)
    found = [str(tmp_path / f"{number}.png") for number in range(3)]
    for file, picture in zip(found, pictures(3), strict=True):
        picture.save(file)
    return found


def command(bundle: Path, files: list[str], place: str, deadline: str) -> list[str]:
    policy = str(Path(files[0]).parent / "kitchen.yaml")
    options = ["--policy", policy, "--json", "--threads", "1", "--bundle", str(bundle)]
    more = ["--place", place, "--deadline", deadline]
    return [sys.executable, "-c", SCRIPT, "screen", *files, *options, *more]


@pytest.mark.parametrize("place", [VISION, DECODER])
def test_a_program_with_a_hung_device_ends(
    bundle: Path, files: list[str], expected: list[Verdict], place: str
) -> None:
    Judge.load(bundle, place=place, threads=1)
    done = subprocess.run(
        command(bundle, files, place, "1"), capture_output=True, text=True, timeout=60
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["verdict"] for row in rows] == [v.verdict for v in expected], done.stderr
    for row, verdict in zip(rows, expected, strict=True):
        wanted = [round(rule.probability, 6) for rule in verdict.rules]
        assert [rule["probability"] for rule in row["rules"]] == wanted
    codes = [[note["code"] for note in row["notes"] if "device" in note["code"]] for row in rows]
    assert codes[0] == ["device_failed"] and codes[2] == ["device_off"] and len(codes[1]) == 1
    assert done.returncode == exit_code({str(v.verdict) for v in expected})
    assert "Traceback" not in done.stderr and done.stderr.count("hangs") == 1


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send to one process")
@pytest.mark.parametrize(("place", "deadline"), [(DECODER, "999"), (VISION, "2")])
def test_ctrl_c_while_a_device_hangs(
    bundle: Path, files: list[str], place: str, deadline: str
) -> None:
    Judge.load(bundle, place=place, threads=1)
    process = subprocess.Popen(
        command(bundle, files, place, deadline),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None and process.stderr.readline() == "hangs\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)  # which lets the picture in hand be finished
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline().startswith("stopping after the picture in hand")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stdout == "", stderr
    assert "stopped by Ctrl-C, 0 of 3 judged" in stderr and "Traceback" not in stderr
