"""Which execution providers ONNX Runtime has here, on which devices, and why others are missing.

Takes nothing; gives what is found and what is not. A plugin provider is registered by its package's
own path; one that ONNX Runtime was built with computes one number, because it is listed without its
driver too. What a provider can compute is what its makers say, less the half floats that it turns
down: whether it computes rightly is for a bundle's canary to find out. Knows no bundle.
"""

import contextlib
import ctypes
import importlib
import importlib.metadata
import io
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike

from edgejudge.runtime.coreml_tools import absence, tools
from edgejudge.runtime.placement import UNITS
from edgejudge.runtime.provider import BUILT_IN, PLUGINS
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
    install: str | None = None  # the command that is no extra; {base} is the wheel that is here


_WEBGPU = "WebGpuExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_QNN = "QNNExecutionProvider"
_CUDA_DRIVER = "libcuda.so"  # comes with the card's driver; everything else pip installs
_OPENVINO = "OpenVINOExecutionProvider"
_KNOWN = (
    _Known(CPU, "cpu", ("float32", "int8", "int4 weights")),
    _Known(
        _WEBGPU,
        "gpu",
        ("float32", "float16", "int4 weights"),
        PLUGINS[_WEBGPU],
        "gpu",
    ),
    _Known(
        _CUDA,
        "gpu",
        ("float32", "float16", "bfloat16", "int8", "int4 weights"),
        elsewhere="it is in the wheel onnxruntime-gpu alone, which takes this one's place",
        install="pip uninstall {base} && pip install 'onnxruntime-gpu[cuda,cudnn]'",
    ),
    _Known(_QNN, "npu", ("int8", "int16 with int8 or int4 weights"), PLUGINS[_QNN], "npu"),
    _Known(
        _OPENVINO,
        "npu",
        ("float32", "float16", "int8"),
        PLUGINS[_OPENVINO],
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
_HARDWARE: dict[str, Kind] = {"CPU": "cpu", "GPU": "gpu", "NPU": "npu"}
# Vulkan drivers that compute on the CPU, by what their files are called.
_SOFTWARE_DRIVERS = ("swiftshader", "lvp", "lavapipe")
# The model y = -x over one number (IR 8, opset 13). Its two %c are the type, as ONNX numbers types.
_NEGATE = (
    b'\x08\x08:2\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08%c\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08%c\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
_ONNX_TYPES = {np.dtype(np.float32): 1, np.dtype(np.float16): 10}


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
            missing.append(Absent(known.provider, known.kind, reason, _install(known, reason)))
    own, absent = _core_ml()
    return found + own, missing + absent


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


def _core_ml() -> tuple[list[Device], list[Absent]]:
    """Compute units, for programs that Core ML runs without ONNX Runtime."""
    reason, install = absence()
    if not reason:
        try:
            here = tools()
            kinds, version = here.kinds(), here.version
        except Exception as error:  # coremltools raises whatever it pleases
            reason = f"its package coremltools does not work here ({first_line(error)})"
    if reason:
        return [], [Absent("CoreML", "npu", reason, install)]
    return [
        Device(
            units,
            _HARDWARE[kind.upper()],
            "coremltools",
            version,
            f"Core ML on {processor()}" + ("" if kind == "cpu" else f": {kinds[kind]}"),
            _memory(),
            ("float16",),
            simulator=False,
        )
        for units, kind in UNITS.items()
        if kind in kinds
    ], []


def _look_for(known: _Known) -> tuple[list[Device], str]:
    """Its devices, or none and why."""
    if known.provider in BUILT_IN:
        failure = "" if known.provider == CPU else _failure(known.provider, np.float32)
        return ([], failure) if failure else ([_built_in(known)], "")
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


def _install(known: _Known, reason: str) -> str | None:
    """The command that might bring a missing provider."""
    if known.provider in BUILT_IN:
        wanting = known.provider == _CUDA and _CUDA_DRIVER not in reason
        return "pip install 'onnxruntime-gpu[cuda,cudnn]'" if wanting else None
    base = _base_package()
    if known.module is None:
        return known.install and known.install.format(base=base)
    if _version(known.module):
        return None
    if base == "onnxruntime":
        return f"pip install 'edgejudge[{known.extra}]'"
    # The extra would bring the package onnxruntime too, over the wheel that is here in its place.
    return f"pip install --no-deps {known.module.replace('_', '-')}"


def _failure(provider: str, dtype: DTypeLike) -> str:
    """Why a provider of this build does not compute in a type; empty where it does."""
    numbered = _ONNX_TYPES[np.dtype(dtype)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.set_default_logger_severity(4)  # what goes wrong is ours to tell
    try:
        if provider == _CUDA:
            with contextlib.redirect_stdout(io.StringIO()):
                ort.preload_dlls()  # those that pip installed, which no search path names
        # Without the fallback, which prints and takes the CPU.
        session = ort.InferenceSession(
            _NEGATE % (numbered, numbered), options, providers=[provider], enable_fallback=0
        )
        if session.get_providers()[0] != provider:
            return f"ONNX Runtime leaves it out ({_hint(provider)})"
        session.run(None, {"x": np.ones(1, dtype)})
    except Exception as error:  # ONNX Runtime raises its own unrelated classes
        # Places in its sources come first, and sentences last.
        told = first_line(error).rpartition("was false. ")[2]
        return f"it does not run ({told}; {_hint(provider)})"
    finally:
        ort.set_default_logger_severity(2)  # as it is in a new process
    return ""


def _built_in(known: _Known) -> Device:
    name, memory, precisions = processor(), None, known.precisions
    if known.provider == CPU:
        memory = _memory()
    elif known.kind == "gpu":
        name = "the adapter that Dawn chooses" if known.provider == _WEBGPU else "the first one"
        if _failure(known.provider, np.float16):
            precisions = tuple(p for p in precisions if p != "float16")
    simulator = known.provider == _WEBGPU and _software_vulkan()
    package = _base_package()
    return Device(
        known.provider, known.kind, package, ort.__version__, name, memory, precisions, simulator
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
        gone = [path for path in _vulkan_drivers() if not os.path.exists(path)]
        if gone:
            return f"{' and '.join(gone)} of VK_DRIVER_FILES does not exist"
        if provider in BUILT_IN:
            return "it needs a graphics card and its driver"
        drm = "is there" if os.path.isdir("/sys/class/drm") else "does not exist"
        return f"it looks for a graphics card in /sys/class/drm, which {drm}"
    if provider == _CUDA:
        return _unloadable("onnxruntime_providers_cuda") or "its driver finds no device"
    if provider == _OPENVINO:
        return "it takes Intel's processors, graphics and NPUs"
    return f"this is {platform.system()} on {platform.machine()}"


def _unloadable(library: str) -> str:
    """What a library of ONNX Runtime's lacks; empty where it loads. Only for one that ONNX Runtime
    has tried already: loading it makes it ask ONNX Runtime for its functions.
    """
    for file in Path(ort.__file__).parent.glob(f"capi/*{library}.*"):
        try:
            ctypes.CDLL(str(file))
        except OSError as error:
            return first_line(error)
    return ""


def _vulkan_drivers() -> list[str]:
    """The driver files that the environment names, which are then the only ones."""
    paths = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES") or ""
    return [path for path in paths.split(os.pathsep) if path]


def _software_vulkan() -> bool:
    files = (path.lower() for path in _vulkan_drivers())
    return any(driver in file for file in files for driver in _SOFTWARE_DRIVERS)


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
