"""A device is believed where it gives the canary's label logits, and nowhere else."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from edgejudge import BundleError, Judge, Policy, Verdict, canaries
from edgejudge.bundle import Bundle, FidelityRecord
from edgejudge.canaries import placed, tolerance_of
from edgejudge.cli import main
from edgejudge.errors import ProviderError
from edgejudge.export import Cut, export, seal
from edgejudge.runtime import Engine
from edgejudge.runtime.accelerator import Accelerator
from edgejudge.runtime.fleet import Fleet
from test_judge import POLICY
from test_judge_shared import pictures

KITCHEN = Policy.from_yaml(POLICY)
GPU = "gpu:CPUExecutionProvider"
FORMS = ["float16.fused", "float16.plain", "float32.fused", "float32.plain"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("canaries")
    tiny.make_checkpoint(
        root / "checkpoint", card=tiny.make_card(), vision_layers=1, text_layers=2, grid_of_tiles=2
    )
    export(root / "checkpoint", root / "bundle", "w8", Cut(2), (), targets=("cpu", "gpu"))
    seal(root / "bundle", FidelityRecord("synthetic", 0, 0.0, 0.0, 0.0, None, None, None))
    return root / "bundle"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    return tmp_path / "cache"


class Device:
    """The graphs that were run, and what becomes of their outputs; `wrong` is asked with the
    graph's form, its stage, the number of its tokens, and an output.
    """

    def __init__(self) -> None:
        self.ran: list[tuple[str, str, int | None]] = []
        self.wrong: Callable[[str, str, int, np.ndarray], np.ndarray] | None = None

    @property
    def forms(self) -> list[str]:
        """Without repetitions, as they were asked."""
        return list(dict.fromkeys(form for form, _, _ in self.ran))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found, opened = Device(), Accelerator._opened

    class Wrong:
        def __init__(self, graph: Any, inner: Any) -> None:
            self.graph, self.inner = graph, inner
            self.begin = inner.begin

        def run(self, feeds: Any) -> Any:
            outputs, graph = self.inner.run(feeds), self.graph
            found.ran.append((graph.variant, graph.stage, graph.part))
            if found.wrong is None:
                return outputs
            tokens = feeds["hidden"].shape[1] if "hidden" in feeds else 0
            return [found.wrong(graph.variant, graph.stage, tokens, out) for out in outputs]

    def open_wrong(self: Accelerator, graph: Any) -> Any:
        session, loaded = opened(self, graph)
        return Wrong(graph, session), loaded

    monkeypatch.setattr(Accelerator, "_opened", open_wrong)
    return found


def load(bundle: Path, place: str, **more: Any) -> Judge:
    return Judge.load(bundle, place=place, threads=1, prefix_cache_bytes=0, **more)


def chosen(judge: Judge) -> dict[str, str]:
    assert isinstance(judge.engine, Engine)
    (accelerator,) = judge.engine.fleet.accelerators
    return accelerator.variants


def unused(verdict: Verdict) -> list[str]:
    return [note.message for note in verdict.notes if note.code == "device_unused"]


@pytest.mark.parametrize("stage", ["vision", "decoder"])
@pytest.mark.parametrize("first", range(4))
def test_the_first_right_form_is_used(bundle: Path, device: Device, stage: str, first: int) -> None:
    def scaled(form: str, _: str, __: int, output: np.ndarray) -> np.ndarray:
        return output * 1.5 if form in FORMS[:first] else output

    device.wrong = scaled
    judge = load(bundle, f"{stage}=gpu:cpu")
    assert chosen(judge) == {stage: FORMS[first]}
    assert device.forms == FORMS[: first + 1], "none after a right one is asked"
    verdict = judge.screen(pictures(1)[0], KITCHEN)
    assert unused(verdict) == [] and GPU in verdict.placement.values()
    assert device.ran[-1][:2] == (FORMS[first], stage)


@pytest.mark.parametrize("place", ["decoder=gpu:cpu", "decoder.1=gpu:cpu", "writer=gpu:cpu"])
def test_wrong_for_more_than_one_token(bundle: Path, device: Device, place: str) -> None:
    """As fused attention of WebGPU on SwiftShader is: no single token shows it."""

    def jumbled(form: str, _: str, tokens: int, output: np.ndarray) -> np.ndarray:
        if not form.endswith("fused") or tokens < 2 or output.shape[1] != tokens:
            return output
        return np.concatenate([output[:, 1:], output[:, :1]], axis=1)

    device.wrong = jumbled
    judge = load(bundle, place)
    assert chosen(judge) == {"decoder": "float16.plain"}


@pytest.mark.parametrize("value", [np.nan, 1e4])
def test_what_is_right_nowhere_is_told_everywhere(
    bundle: Path, device: Device, value: float
) -> None:
    device.wrong = lambda _, stage, __, out: np.full_like(out, value) if stage == "vision" else out
    judge = load(bundle, "vision=gpu:cpu,decoder=gpu:cpu")
    assert chosen(judge) == {"decoder": "float16.fused"}, "the other stage is none the worse"
    alone = load(bundle, "decoder=gpu:cpu")
    asked = len([r for r in device.ran if r[1] == "vision"])
    for picture in pictures(2):
        verdict = judge.screen(picture, KITCHEN)
        assert verdict.rules == alone.screen(picture, KITCHEN).rules
        (message,) = unused(verdict)
        assert message.startswith(f"{GPU} is not used for vision: float16.fused: ")
        assert all(f"{form}: " in message for form in FORMS) and "\n" not in message
        assert verdict.placement["vision"] == "CPUExecutionProvider"
    failed = judge.screen(b"no picture", KITCHEN)
    assert failed.verdict is None and len(unused(failed)) == 1
    assert len([r for r in device.ran if r[1] == "vision"]) == asked, "it is not asked again"


def test_strict_refuses(
    bundle: Path, device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device.wrong = lambda _, __, ___, out: out * 2
    with pytest.raises(ProviderError, match=f"{GPU} is not right for decoder .* drop --strict"):
        load(bundle, "decoder=gpu:cpu", strict=True)
    pictures(1)[0].save(tmp_path / "a.png")
    (tmp_path / "p.yaml").write_text(POLICY)
    command = ["screen", str(tmp_path / "a.png"), "--bundle", str(bundle), "--threads", "1"]
    command += ["--policy", str(tmp_path / "p.yaml"), "--place", "decoder=gpu:cpu", "--json"]
    assert main([*command, "--strict"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"error: {GPU} is not right for decoder (float16")
    assert len(told.err.splitlines()) == 1
    assert main(command) in (0, 1, 3), "without it, the processor does it"
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert "device_unused" in [note["code"] for note in row["notes"]] and row["verdict"]
    device.wrong = None
    assert chosen(load(bundle, "decoder=gpu:cpu", strict=True)), "it asks again by itself"


def kept(cache: Path) -> list[dict[str, Any]]:
    return [json.loads(f.read_bytes()) for f in sorted(cache.glob("canaries/*/*.json"))]


def test_answers_are_kept(bundle: Path, device: Device, cache: Path) -> None:
    device.wrong = lambda form, _, __, out: out * 2 if form == "float16.fused" else out
    first = load(bundle, "decoder=gpu:cpu")
    (answers,) = kept(cache)
    assert list(answers) == FORMS[:2]
    limit = tolerance_of(first.bundle, first.bundle.manifest.targets[1])
    assert answers["float16.fused"] > 0.2 and answers["float16.plain"] <= limit
    asked = len(device.ran)
    again = load(bundle, "decoder=gpu:cpu")
    assert chosen(again) == chosen(first) == {"decoder": "float16.plain"}
    assert len(device.ran) == asked


def test_what_an_answer_depends_on(
    bundle: Path, device: Device, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks(place: str = "decoder=gpu:cpu", **more: Any) -> bool:
        before = len(device.ran)
        load(bundle, place, **more)
        return len(device.ran) > before

    assert asks() and not asks()
    assert asks("decoder.1=gpu:cpu"), "another split is another computation"
    assert not asks("decoder.1=gpu:cpu") and not asks()
    assert not asks("decoder.0=gpu:cpu,decoder.1=gpu:cpu"), "the same, in other words"
    assert asks("vision=gpu:cpu") and not asks("vision=gpu:cpu")
    assert asks(verify=True) and not asks()
    monkeypatch.setenv("VK_DRIVER_FILES", "another.json")
    assert asks() and not asks()
    monkeypatch.delenv("VK_DRIVER_FILES")
    assert not asks(), "those before are still there"
    of = Fleet.of

    def newer(bundle: Any, places: Any, *more: Any) -> Fleet:
        return of(bundle, {key: (replace(d, version="99"),) for key, (d,) in places.items()}, *more)

    with monkeypatch.context() as patched:
        patched.setattr(Fleet, "of", newer)
        assert asks() and not asks()
    for file in cache.glob("canaries/*/*.json"):
        file.write_text('{"float16.fused": [1], "float16.plain')
    assert asks(), "what cannot be read is asked again"


def test_a_limit_that_changed_is_applied_to_kept_answers(
    bundle: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(bundle, "decoder=gpu:cpu")
    monkeypatch.setattr(canaries, "tolerance_of", lambda *_: 1e-3)
    assert chosen(load(bundle, "decoder=gpu:cpu")) == {"decoder": "float32.fused"}
    assert device.forms == ["float16.fused", "float16.plain", "float32.fused"]


def test_a_cache_that_cannot_be_written(
    bundle: Path, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        asked = len(device.ran)
        assert chosen(load(bundle, "decoder=gpu:cpu")) == {"decoder": "float16.fused"}
        assert len(device.ran) > asked


def test_the_engine_is_as_it_was(bundle: Path, device: Device) -> None:
    """Canaries use the engine's cache: what lay in it is gone, and told so, and nothing else."""
    judge = Judge.load(bundle, threads=1)
    engine = judge.engine
    assert isinstance(engine, Engine)
    first = judge.screen(pictures(1)[0], KITCHEN)
    fleet, trace = engine.fleet, engine.trace
    before, marks = engine.fleet.numerics(), list(trace.marks)
    found = placed(judge.bundle, engine, "vision=gpu:cpu,decoder=gpu:cpu")
    assert engine.fleet is fleet and engine.fleet.numerics() == before and not engine.placement
    assert trace.marks == marks and found.numerics() != before
    assert device.ran and not found.marks()
    again = judge.screen(pictures(1)[0], KITCHEN)
    assert again.rules == first.rules and again.prefix_cache == "hit"
    other = judge.screen(pictures(2)[1], KITCHEN)
    assert other.rules == Judge.load(bundle, threads=1).screen(pictures(2)[1], KITCHEN).rules
    assert set(other.placement.values()) == {"CPUExecutionProvider"}


def test_an_error_leaves_the_engine_as_it_was(bundle: Path, device: Device) -> None:
    engine = Engine.open(Bundle.open(bundle), threads=1)
    device.wrong = lambda _, __, ___, out: out * 2
    fleet = engine.fleet
    with pytest.raises(ProviderError, match="is not right for vision"):
        placed(engine.bundle, engine, "vision=gpu:cpu", strict=True)
    assert engine.fleet is fleet and not engine.placement
    assert np.isfinite(engine.score(engine.prefill([1, 60, 61]), [[70, 71]])).all()


def test_a_hang_is_no_answer(bundle: Path, device: Device, cache: Path) -> None:
    release = threading.Event()

    def hang(_: str, stage: str, __: int, output: np.ndarray) -> np.ndarray:
        if stage == "decoder":
            release.wait(60)
        return output

    device.wrong = hang
    judge = load(bundle, "vision=gpu:cpu,decoder=gpu:cpu", deadline=1.0)
    try:
        assert chosen(judge) == {} and len(device.ran) == 1
        verdict = judge.screen(pictures(1)[0], KITCHEN)
        told = unused(verdict)
        assert len(told) == 2 and all("has not answered within 1 s" in each for each in told)
        assert verdict.error is None and len(device.ran) == 1
        assert kept(cache) == []
    finally:
        release.set()
    device.wrong = None
    assert set(chosen(load(bundle, "vision=gpu:cpu,decoder=gpu:cpu"))) == {"vision", "decoder"}


@pytest.mark.parametrize("stage", ["vision", "decoder.1"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_damaged_file_is_told(bundle: Path, tmp_path: Path, stage: str, kept: bool) -> None:
    """It is no fault of a device, whether the canary meets it or the first picture."""
    place, name = f"{stage}=gpu:cpu", f"gpu.float16.fused.{stage}.onnx"
    if kept:
        Judge.load(bundle, place=place, threads=1)
    shutil.copytree(bundle, copy := tmp_path / "bundle")
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    judge = Judge.load(copy, place=place, threads=1) if kept else None
    with pytest.raises(BundleError, match=f"{name}: its sha256 is not the one"):
        Judge.load(copy, place=place) if judge is None else judge.screen(pictures(1)[0])
