"""A model file in an ONNX Runtime session on one device, or one sentence why it cannot be there.

Takes a file and a `Device`; gives the opened session. A plugin is registered, a built-in provider
is asked for by name. Refuses a session that ended up on another provider. Does not know bundles or
what a graph computes.
"""

import contextlib
import importlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgejudge.errors import BundleError, ProviderError
from edgejudge.runtime import operators
from edgejudge.runtime.assignment import check_strict, elsewhere, nodes_of
from edgejudge.runtime.placement import Device

__all__ = ["BUILT_IN", "PLUGINS", "open_inner", "provider_options", "session_options"]

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_QNN = "QNNExecutionProvider"
_WEBGPU = "WebGpuExecutionProvider"
# Provider -> the module of its package.
PLUGINS: Mapping[str, str] = {
    _WEBGPU: "onnxruntime_ep_webgpu",
    _QNN: "onnxruntime_qnn",
    "OpenVINOExecutionProvider": "onnxruntime_ep_openvino",
}
# Before any plugin is registered: afterwards they are listed with those that were built in.
BUILT_IN = frozenset(ort.get_available_providers())
# What ONNX Runtime says of a file that is at fault itself, whatever the provider.
_FILE_ERRORS = ("NoSuchFile", "InvalidProtobuf")
# A message begins with the place in its sources that raised it.
_MESSAGES = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : (.+)"),
    re.compile(r" was false\. (.+)"),
)


def provider_options(device: Device) -> dict[str, str]:
    """The device's own, and what edgejudge always asks of its provider. The place of a library is
    not among them: they say what is compiled, wherever its compiler lies.
    """
    options: dict[str, str] = {}
    if device.provider == _QNN and device.simulator:
        # Of the generations that it simulates, the first that multiplies int16 by int16 exactly.
        options["htp_arch"] = "73"
    return {**options, **dict(device.options)}


def session_options(
    device: Device,
    threads: int,
    *,
    lean: bool = False,
    strict: bool = False,
    config: Mapping[str, str] | None = None,
) -> ort.SessionOptions:
    """For a session that has its provider from here, if that is a plugin; a built-in one is named
    when the session is opened. `config` are ONNX Runtime's entries. Raises ProviderError for a
    plugin that is not here.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that go on spinning after a run take the cores from the next graph's.
    entries = {"session.force_spinning_stop": "1"}
    if lean:
        options.enable_cpu_mem_arena = False
    if device.provider != _CPU:
        # Every node that a provider declines is an error to some, and `elsewhere` says it better.
        options.log_severity_level = 4
        entries["session.record_ep_graph_assignment_info"] = "1"
        # What is left to the CPU is computed as the graph says. From version 1.31 on, ONNX Runtime
        # would make its matrix products of quantized weights quick and rough.
        entries["session.qdq_matmulnbits_accuracy_level"] = "0"
        if strict:
            entries["session.disable_cpu_ep_fallback"] = "1"
    operators.listening(options)
    for name, value in {**entries, **(config or {})}.items():
        options.add_session_config_entry(name, value)
    if device.provider not in BUILT_IN:
        _plug_in(options, device)
    return options


def open_inner(
    path: Path,
    device: Device,
    threads: int,
    *,
    lean: bool = False,
    strict: bool = False,
    config: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """A `lean` session gives memory back after each run; a `strict` one has every node on the
    device. Raises BundleError if the file is at fault, and ProviderError otherwise.
    """
    try:
        return _open(
            path, device, session_options(device, threads, lean=lean, strict=strict, config=config)
        )
    except ProviderError:
        if not strict:
            raise
        # Which nodes they are can be asked of a session that is not strict only. One that opens
        # without them must not keep what it compiles.
        kept = {k: v for k, v in (config or {}).items() if not k.startswith("ep.context_")}
        loose = device
        if device.provider == _QNN:  # as it does by itself in a strict session
            on_device = ("offload_graph_io_quantization", "0")
            loose = replace(device, options=(*device.options, on_device))
        inner = _open(path, loose, session_options(loose, threads, config=kept))
        found = elsewhere(inner, device.provider, path)
        check_strict(found, device.provider, path.name)
        raise


def _open(path: Path, device: Device, options: ort.SessionOptions) -> ort.InferenceSession:
    provider = device.provider
    named = [(provider, provider_options(device))] if provider in BUILT_IN else None
    if provider == _CUDA:
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()  # those that pip installed, which no search path names
    try:
        # Otherwise a provider that fails is replaced with the CPU, and said so on standard output.
        inner = ort.InferenceSession(str(path), options, providers=named, enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises its own unrelated classes
        if provider == _CPU or type(error).__name__ in _FILE_ERRORS:
            raise BundleError(
                f"{path}: ONNX Runtime {ort.__version__} cannot load it on {provider} "
                f"({_message(error)}); export the bundle again with this edgejudge"
            ) from None
        raise ProviderError(
            f"{path.name}: {provider} cannot load it ({_message(error)}); {_help(provider)}"
        ) from None
    if inner.get_providers()[0] != provider:
        raise ProviderError(
            f"{path.name}: asked for {provider}, ONNX Runtime chose {inner.get_providers()[0]}; "
            "install the provider's package and driver or place this stage on the CPU"
        )
    # A compiler whose library or device fails declines every node. What is built in has no
    # such list in every version.
    if provider not in BUILT_IN and all(where != provider for where, _ in nodes_of(inner)):
        raise ProviderError(f"{path.name}: {provider} took none of its nodes; {_help(provider)}")
    operators.note(path.name, inner)
    return inner


def _plug_in(options: ort.SessionOptions, device: Device) -> None:
    # Imported here: it asks every provider how it is, through modules that open sessions.
    from edgejudge.runtime.devices import register

    provider = device.provider
    if provider not in PLUGINS:
        raise ProviderError(
            f"this ONNX Runtime ({ort.__version__}) is without {provider}, it has "
            f"{', '.join(sorted(BUILT_IN))}; `edgejudge devices` says how to get it"
        )
    module = PLUGINS[provider]
    package = module.replace("_", "-")
    try:
        register(module, provider)
    except ImportError:
        raise ProviderError(
            f"{provider} is not here: its package {package} is not installed; "
            f"pip install {package} or place its stages on another device"
        ) from None
    except Exception as error:  # a library that does not load raises whatever it pleases
        raise ProviderError(
            f"{provider} is not here: the library of {package} does not load "
            f"({_message(error)}); install the package again or place its stages on another device"
        ) from None
    found = [one for one in ort.get_ep_devices() if one.ep_name == provider]
    if not found:
        raise ProviderError(
            f"{provider} finds no device here; check the hardware's driver or place its stages on "
            "another device"
        )
    # A simulator is a processor to ONNX Runtime, whatever it simulates.
    meant = [one for one in found if one.device.type.name.lower() == device.target] or found
    options.add_provider_for_devices(meant[:1], _plugin_options(device))


def _plugin_options(device: Device) -> dict[str, str]:
    options = provider_options(device)
    if device.provider == _QNN and "backend_path" not in options:
        package: Any = importlib.import_module(PLUGINS[_QNN])
        options["backend_path"] = package.get_qnn_htp_path()
    return options


def _help(provider: str) -> str:
    """What a user can look at when a provider fails as a whole."""
    if provider == _WEBGPU and (missing := _missing_driver()):
        return f"{missing[0]} names the driver {missing[1]}, which does not exist: correct it"
    if provider == _WEBGPU:
        return (
            "check that the graphics card has a Vulkan driver (VK_DRIVER_FILES can name one), or "
            "place this stage on the CPU"
        )
    return "check its driver with `edgejudge devices` or place this stage on the CPU"


def _missing_driver() -> tuple[str, str] | None:
    """The variable and the first file that it names and that is not there."""
    for variable in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        if named := os.environ.get(variable):
            for file in named.split(os.pathsep):
                if not os.path.exists(file):
                    return variable, file
            return None  # the second is not read where the first is set
    return None


def _message(error: Exception) -> str:
    """The gist of what ONNX Runtime says, on one line and without its source files."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for pattern in _MESSAGES:
        if found := pattern.search(first):
            return found[1].strip().rstrip(".")
    return first
