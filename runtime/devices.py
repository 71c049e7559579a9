"""Which execution providers ONNX Runtime has here, on which devices, and why others are missing.

Takes nothing; gives what is found and what is not. A plugin provider is registered by its package's
own path. What a provider can compute is what its makers say: whether it computes it rightly is for
a bundle's canary to find out. Knows no bundle.
"""

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import onnxruntime as ort

from edgejudge.runtime.session import CPU, first_line
from edgejudge.runtime.settings import processor

__all__ = ["KINDS", "Absent", "Device", "register", "survey"]

Kind = Literal["cpu", "gpu", "npu"]
KINDS: tuple[Kind, ...] = ("cpu", "gpu", "npu")


@dataclass(frozen=True, slots=True)
class Device:
    """A provider on a piece of hardware. `memory_bytes` is null where the provider does not tell;
    `simulator` says that its times mean nothing.
    """

    provider: str
    kind: Kind
    package: str
    version: str
    name: str
    memory_bytes: int | None
    precisions: tuple[str, ...]
    simulator: bool


@dataclass(frozen=True, slots=True)
class Absent:
    """A provider that cannot be used here. `install` is the command that might help, if any."""

    provider: str
    kind: Kind
    reason: str
    install: str | None


@dataclass(frozen=True, slots=True)
class _Known:
    """`module` is the plugin's package, where there is one; `extra` what installs it."""

    provider: str
    kind: Kind
    precisions: tuple[str, ...]
    module: str | None = None
    extra: str | None = None
    elsewhere: str = ""  # why it is missing where no package would help
    install: str | None = None


_WEBGPU = "WebGpuExecutionProvider"
_QNN = "QNNExecutionProvider"
_KNOWN = (
    _Known(CPU, "cpu", ("float32", "int8", "int4 weights")),
    _Known(
        _WEBGPU,
        "gpu",
        ("float32", "float16", "int4 weights"),
        "onnxruntime_ep_webgpu",
        "gpu",
    ),
    _Known(
        "CUDAExecutionProvider",
        "gpu",
        ("float32", "float16", "bfloat16", "int8", "int4 weights"),
        elsewhere="ONNX Runtime's ordinary wheel is without it",
        install="pip uninstall onnxruntime && pip install onnxruntime-gpu",
    ),
    _Known(_QNN, "npu", ("int8", "int16 with int8 or int4 weights"), "onnxruntime_qnn", "npu"),
    _Known(
        "OpenVINOExecutionProvider",
        "npu",
        ("float32", "float16", "int8"),
        "onnxruntime_ep_openvino",
        "openvino",
    ),
    _Known(
        "CoreMLExecutionProvider",
        "npu",
        ("float32", "float16"),
        elsewhere="it is in ONNX Runtime's wheels for macOS alone",
    ),
    _Known(
        "XnnpackExecutionProvider",
        "cpu",
        ("float32",),
        elsewhere="it is in ONNX Runtime's builds for Android and iOS alone",
    ),
)
# Before any plugin is registered: afterwards they are listed with those that were built in.
_BUILT_IN = frozenset(ort.get_available_providers())
_HARDWARE: dict[str, Kind] = {"CPU": "cpu", "GPU": "gpu", "NPU": "npu"}
# Vulkan drivers that compute on the CPU, by what their files are called.
_SOFTWARE_DRIVERS = ("swiftshader", "lvp", "lavapipe")


def survey() -> tuple[list[Device], list[Absent]]:
    """Everything that edgejudge knows of, each either found or missing with the reason. Registers
    the plugins that are installed.
    """
    found: list[Device] = []
    missing: list[Absent] = []
    for known in _KNOWN:
        devices, reason = _look_for(known)
        found += devices
        if not devices:
            install = f"pip install 'edgejudge[{known.extra}]'" if known.extra else known.install
            helps = known.module is None or not _version(known.module)
            missing.append(Absent(known.provider, known.kind, reason, install if helps else None))
    return found, missing


def register(module: str, provider: str) -> None:
    """Makes ONNX Runtime know a plugin; a second time does nothing. Raises what importing the
    package or loading its library raises.
    """
    if any(device.ep_name == provider for device in ort.get_ep_devices()):
        return
    package: Any = importlib.import_module(module)
    if provider not in _registered:
        ort.register_execution_provider_library(provider, package.get_library_path())
        _registered.add(provider)


_registered: set[str] = set()


def _look_for(known: _Known) -> tuple[list[Device], str]:
    """Its devices, or none and why."""
    if known.provider in _BUILT_IN:
        return [_built_in(known)], ""
    if known.module is None:
        return [], known.elsewhere
    version = _version(known.module)
    if not version:
        return [], f"its package {known.module.replace('_', '-')} is not installed"
    try:
        register(known.module, known.provider)
    except Exception as error:  # a library that does not load raises whatever it pleases
        return [], f"its library does not load ({first_line(error)})"
    devices = [d for d in ort.get_ep_devices() if d.ep_name == known.provider]
    if not devices:
        return [], f"its library loads and finds no device ({_hint(known.provider)})"
    return [_plugged(known, version, device) for device in devices], ""


def _built_in(known: _Known) -> Device:
    name, memory = "", None
    simulator = False
    if known.provider == CPU:
        name, memory = processor(), _memory()
    elif known.provider == _WEBGPU:
        name = "the adapter that Dawn chooses"
        simulator = _software_vulkan()
    kind = known.kind
    package = _base_package()
    return Device(
        known.provider, kind, package, ort.__version__, name, memory, known.precisions, simulator
    )


def _plugged(known: _Known, version: str, found: Any) -> Device:
    hardware = found.device
    told = {**dict(hardware.metadata), **dict(found.ep_metadata)}
    kind = _HARDWARE.get(hardware.type.name, known.kind)
    named = told.get("Description") or told.get("device_name") or f"{hardware.vendor} {kind}"
    simulator = known.provider == _WEBGPU and _software_vulkan()
    if known.provider == _QNN and kind == "cpu":
        # Qualcomm's library simulates its accelerator on processors that have none.
        simulator, kind = True, known.kind
    memory = told.get("memory") or told.get("total_memory")
    return Device(
        known.provider,
        kind,
        (known.module or "").replace("_", "-"),
        version,
        str(named).strip(),
        int(memory) if memory and str(memory).isdecimal() else None,
        known.precisions,
        simulator,
    )


def _hint(provider: str) -> str:
    """Where a provider looks for its devices, as far as that can be said."""
    if provider == _WEBGPU:
        drm = "is there" if os.path.isdir("/sys/class/drm") else "does not exist"
        return f"it looks for a graphics card in /sys/class/drm, which {drm}"
    if provider == "OpenVINOExecutionProvider":
        return "it takes Intel's processors, graphics and NPUs"
    return f"this is {platform.system()} on {platform.machine()}"


def _software_vulkan() -> bool:
    paths = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES") or ""
    return any(driver in paths.lower() for driver in _SOFTWARE_DRIVERS)


def _version(module: str) -> str:
    """Of the package that has the module; empty where it is not installed."""
    try:
        return importlib.metadata.version(module.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return ""


def _base_package() -> str:
    """Of the packages that install ONNX Runtime under the same name, the one that is here."""
    others = ("onnxruntime-gpu", "onnxruntime-webgpu", "onnxruntime-openvino")
    return next((name for name in others if _version(name)), "onnxruntime")


def _memory() -> int | None:
    """Bytes of the machine."""
    ask: Callable[[str], int] | None = getattr(os, "sysconf", None)
    if ask is None:
        return None
    try:
        return ask("SC_PHYS_PAGES") * ask("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
