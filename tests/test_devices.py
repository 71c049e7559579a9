"""Every provider that edgejudge knows of is found or missing, and a missing one says why."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import onnxruntime as ort
import pytest

from edgejudge.cli import main
from edgejudge.runtime import devices
from edgejudge.runtime.devices import KINDS, survey
from edgejudge.runtime.placement import UNITS

ALL = {
    "CPUExecutionProvider",
    "WebGpuExecutionProvider",
    "CUDAExecutionProvider",
    "QNNExecutionProvider",
    "OpenVINOExecutionProvider",
    "CoreMLExecutionProvider",
    "XnnpackExecutionProvider",
    "CoreML",
}
PLUGINS = ("onnxruntime_ep_webgpu", "onnxruntime_qnn", "onnxruntime_ep_openvino")
# `make providers` sets it: there nothing may be skipped.
MUST = bool(os.environ.get("EDGEJUDGE_PROVIDERS"))
BASE = devices._base_package()
WEBGPU_IS_BUILT_IN = "WebGpuExecutionProvider" in devices.BUILT_IN


def test_each_is_found_or_missing_with_a_reason() -> None:
    found, missing = survey()
    here = {"CoreML" if d.provider in UNITS else d.provider for d in found}
    assert here | {a.provider for a in missing} == ALL
    assert not {d.provider for d in found} & {a.provider for a in missing}
    assert all(a.reason and a.kind in KINDS for a in missing)
    assert all(d.name and d.precisions and d.kind in KINDS and d.version for d in found)
    assert all(d.memory_bytes is None or d.memory_bytes > 0 for d in found)
    (cpu,) = (d for d in found if d.provider == "CPUExecutionProvider")
    assert not cpu.simulator and cpu.version == ort.__version__
    if hasattr(os, "sysconf"):
        assert cpu.memory_bytes is not None and cpu.memory_bytes > 1 << 28
    assert survey() == (found, missing), "asking again changes nothing"


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    found, missing = survey()
    assert main(["devices", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert len(document["devices"]) == len(found)
    assert [set(d) for d in document["devices"]] == [set(asdict(d)) for d in found]
    for device in document["devices"]:
        assert {"memory_bytes", "precisions", "simulator"} <= set(device), "null, not left out"
    assert document["absent"] == [asdict(a) for a in missing]
    assert all({"reason", "install"} <= set(absent) for absent in document["absent"])
    assert main(["devices"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ALL) and "not here:" in text
    if any(a.provider == "QNNExecutionProvider" for a in missing) and not MUST:
        assert "edgejudge[npu]" in text if BASE == "onnxruntime" else "--no-deps" in text


@pytest.mark.skipif(any(devices._version(m) for m in PLUGINS), reason="a plugin is installed")
def test_without_plugins_each_names_its_extra() -> None:
    _, missing = survey()
    named = {a.provider: (a.reason, a.install) for a in missing}
    for provider, module, extra in (
        ("WebGpuExecutionProvider", "onnxruntime-ep-webgpu", "gpu"),
        ("QNNExecutionProvider", "onnxruntime-qnn", "npu"),
        ("OpenVINOExecutionProvider", "onnxruntime-ep-openvino", "openvino"),
    ):
        reason, install = named[provider]
        assert module in reason and install == f"pip install 'edgejudge[{extra}]'"


@pytest.mark.parametrize("base", ["onnxruntime", "onnxruntime-webgpu"])
def test_no_command_brings_a_second_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    """The wheels install one import name, and the extras ask for the package onnxruntime."""
    monkeypatch.setattr(devices, "_base_package", lambda: base)
    monkeypatch.setattr(devices, "_version", lambda _: "")
    monkeypatch.setattr(devices, "BUILT_IN", frozenset())
    install = {k.provider: devices._install(k, "") for k in devices._KNOWN}
    assert install["CUDAExecutionProvider"] == (
        f"pip uninstall {base} && pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
    assert install["CoreMLExecutionProvider"] is install["XnnpackExecutionProvider"] is None
    for provider in ("WebGpuExecutionProvider", "OpenVINOExecutionProvider"):
        command = install[provider]
        assert command and ("--no-deps" in command) == (base != "onnxruntime")


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif("CUDAExecutionProvider" in devices.BUILT_IN, reason="it may well run here")
def test_one_that_is_built_in_and_left_out_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime does with CUDA where a library or the driver is missing."""
    monkeypatch.setattr(devices, "BUILT_IN", frozenset({"CUDAExecutionProvider"}))
    (known,) = (k for k in devices._KNOWN if k.provider == "CUDAExecutionProvider")
    found, reason = devices._look_for(known)
    assert found == [] and reason.startswith("ONNX Runtime leaves it out (")
    assert devices._install(known, reason) == "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    no_driver = "libcuda.so.1: cannot open shared object file"
    assert devices._install(known, no_driver) is None, "pip has no driver"


def test_a_library_that_does_not_load_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is no library, where the package says that its library is."""
    module = ModuleType("onnxruntime_qnn")
    (tmp_path / "broken.so").write_bytes(b"no library")
    module.get_library_path = lambda: str(tmp_path / "broken.so")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", module)
    monkeypatch.setattr(devices, "_version", lambda _: "2.7.0")
    monkeypatch.setattr(devices, "_registered", set())
    if any(d.ep_name == "QNNExecutionProvider" for d in ort.get_ep_devices()):
        pytest.skip("the real one is registered in this process already")
    (known,) = (k for k in devices._KNOWN if k.module == "onnxruntime_qnn")
    found, reason = devices._look_for(known)
    assert found == [] and reason.startswith("its library does not load (")


@pytest.mark.skipif(not MUST, reason="needs the providers' packages: `make providers`")
def test_plugins_that_are_installed_are_found() -> None:
    found, missing = survey()
    reasons = {a.provider: a.reason for a in missing}
    by_name = {d.provider: d for d in found}
    if platform.machine() == "x86_64":
        npu = by_name["QNNExecutionProvider"]
        assert npu.kind == "npu" and npu.simulator and npu.package == "onnxruntime-qnn"
    if WEBGPU_IS_BUILT_IN:
        gpu = by_name["WebGpuExecutionProvider"]
        assert gpu.package == "onnxruntime-webgpu" and gpu.memory_bytes is None
        assert gpu.simulator and "float32" in gpu.precisions
        assert "float16" not in gpu.precisions, "SwiftShader's shaders have no half floats"
        return
    for provider in ("WebGpuExecutionProvider", "OpenVINOExecutionProvider"):
        assert provider in by_name or "finds no device" in reasons[provider]


@pytest.mark.skipif(BASE == "onnxruntime", reason="nothing else is installed in its place")
def test_there_is_one_onnx_runtime() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("onnxruntime")


@pytest.mark.skipif(not WEBGPU_IS_BUILT_IN, reason="needs onnxruntime-webgpu: `make providers`")
def test_a_missing_driver_is_a_reason(tmp_path: Path) -> None:
    """In a process of its own: drivers are read once."""
    driver = str(tmp_path / "driver.json")
    done = subprocess.run(
        [sys.executable, "-m", "edgejudge", "devices", "--json"],
        env={**os.environ, "VK_DRIVER_FILES": driver},
        capture_output=True,
        check=True,
    )
    document = json.loads(done.stdout)
    assert "WebGpuExecutionProvider" not in [d["provider"] for d in document["devices"]]
    (absent,) = (a for a in document["absent"] if a["provider"] == "WebGpuExecutionProvider")
    assert absent["reason"].startswith("it does not run (Failed to get a WebGPU adapter")
    assert f"{driver} of VK_DRIVER_FILES does not exist" in absent["reason"]
    assert absent["install"] is None


@pytest.mark.parametrize(
    ("files", "software"),
    [
        ("/usr/lib/chromium/vk_swiftshader_icd.json", True),
        ("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json", True),
        ("/usr/share/vulkan/icd.d/nvidia_icd.json", False),
        (os.pathsep.join(("/a/nvidia_icd.json", "/b/vk_swiftshader_icd.json")), True),
        ("", False),
    ],
)
def test_drivers_that_compute_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, files: str, software: bool
) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", files)
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    assert devices._software_vulkan() == software
