"""Several places for one stage: what the first device fails at the second does, then the CPU."""

from pathlib import Path
from typing import Any

import pytest

import tiny
from edgejudge import Judge
from edgejudge.errors import ProviderError
from edgejudge.export import Cut, export
from edgejudge.fidelity import exporting_tools
from edgejudge.models.image import canary_image
from edgejudge.policy import Policy
from edgejudge.runtime.accelerator import Accelerator
from edgejudge.runtime.fleet import FAILURES
from edgejudge.verdict import Verdict

CPU = "CPUExecutionProvider"
NPU, GPU = f"npu:{CPU}", f"gpu:{CPU}"
PLACE = "vision=npu:cpu/gpu:cpu,decoder=npu:cpu/gpu:cpu"
POLICY = Policy.from_yaml(
    "{name: k, version: 1, rules: [{id: a, text: A knife., category: c, conditions: [a knife]}]}"
)
PICTURE = canary_image(24, 96)
BAND = 0.05  # between devices: one computes in whole numbers


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chains")
    checkpoint = tiny.make_checkpoint(root / "tiny", tiling=False)
    targets = ("cpu", "gpu", "npu")
    folder = export(checkpoint, root / "bundle", "w8", Cut(2), (), targets=targets)
    # Sealed by hand: this is not about its gate, and random weights pass none.
    from test_bundle import REPORT

    exporting_tools().seal(folder, REPORT)
    return folder


class Broken:
    """Devices that throw at each run, by their names."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.asked: list[str] = []


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    found, run = Broken(), Accelerator._run

    def some(self: Accelerator, *given: Any) -> Any:
        found.asked.append(self.device.name)
        if self.device.name in found.names:
            return self._safely(_throw)
        return run(self, *given)

    monkeypatch.setattr(Accelerator, "_run", some)
    return found


def _throw() -> Any:
    raise ProviderError("the device was lost")


def _near(found: Verdict, wanted: Verdict) -> None:
    assert found.error is None
    for one, other in zip(found.rules, wanted.rules, strict=True):
        assert abs(one.probability - other.probability) < BAND


def _codes(verdict: Verdict) -> list[str]:
    return [note.code for note in verdict.notes]


def test_the_next_place_does_it(bundle: Path, broken: Broken) -> None:
    judge = Judge.load(bundle, place=PLACE, threads=1, prefix_cache_bytes=0)
    plain = Judge.load(bundle, threads=1, prefix_cache_bytes=0).screen(PICTURE, POLICY)
    first = judge.screen(PICTURE, POLICY)
    _near(first, plain)
    assert set(first.placement.values()) == {NPU, CPU} and first.placement["vision"] == NPU
    broken.names = {NPU}
    second = judge.screen(PICTURE, POLICY)
    _near(second, plain)
    # Vision and two passes through two parts are more failures than a device is forgiven.
    assert set(second.placement.values()) == {GPU, CPU} and second.placement["decoder.1"] == GPU
    assert _codes(second).count("device_failed") == FAILURES
    told = [n.message for n in second.notes if n.code == "device_failed"]
    assert all(m.startswith(f"{NPU} failed at ") and "the next place did" in m for m in told)
    broken.asked.clear()
    third = judge.screen(PICTURE, POLICY)
    assert _codes(third) == ["device_off"] and set(broken.asked) == {GPU}
    broken.names = {GPU}
    fourth = judge.screen(PICTURE, POLICY)
    _near(fourth, plain)
    assert set(fourth.placement.values()) == {CPU}, "the processor is behind the last one"
    broken.names = set()
    judge.revive_devices()
    assert judge.screen(PICTURE, POLICY).placement["vision"] == NPU


def test_a_device_that_is_not_right_leaves_it_to_the_next(bundle: Path, broken: Broken) -> None:
    broken.names = {NPU}  # when the canary is asked
    judge = Judge.load(bundle, place=PLACE, threads=1, prefix_cache_bytes=0, verify=True)
    broken.names = set()
    verdict = judge.screen(PICTURE, POLICY)
    assert set(verdict.placement.values()) == {GPU, CPU}
    assert _codes(verdict) == ["device_unused"] * 2, "for vision and for the decoder"
    with pytest.raises(ProviderError, match="is not right for"):
        broken.names = {NPU}
        Judge.load(bundle, place=PLACE, threads=1, strict=True)
