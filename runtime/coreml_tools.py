"""The little of coremltools that runs programs, and why it is not here where it is not.

Takes paths of programs; compiles them, opens their functions on compute units, and tells which
device Core ML means to run each operation on. Only macOS has all of it. The package is an extra
(`coreml`), and imported when it is needed. Knows no bundle.
"""

import contextlib
import importlib.util
import io
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["Planned", "Program", "State", "Tools", "absence", "tools"]

_LEAST_MACOS = 15  # the first with states, and with several functions in a program
_KINDS = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "npu",
}


class State(Protocol):
    """Of a program, shared by all functions of it."""

    def read_state(self, name: str) -> NDArray[Any]: ...

    def write_state(self, name: str, value: NDArray[Any]) -> None: ...


class Program(Protocol):
    """A function that is open."""

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, Any]: ...

    def make_state(self) -> State: ...


@dataclass(frozen=True, slots=True)
class Planned:
    """An operation, where it is meant to run, and where else it could; of cpu, gpu and npu."""

    op: str
    name: str
    device: str
    supported: tuple[str, ...]


def absence() -> tuple[str, str | None]:
    """Why no program can run here, empty where one can; and what would install what is missing."""
    system, version = platform.system(), platform.mac_ver()[0]
    elsewhere = (
        "here bundles are exported with --targets cpu,coreml, looked into and written as packages "
        "with `edgejudge coreml`, and judged by other devices"
    )
    if system != "Darwin":
        return (
            f"Core ML runs on macOS {_LEAST_MACOS} and later, this is {system}: {elsewhere}",
            None,
        )
    if int(version.partition(".")[0] or 0) < _LEAST_MACOS:
        return f"it takes macOS {_LEAST_MACOS} or later, this is {version}: {elsewhere}", None
    if importlib.util.find_spec("coremltools") is None:
        return "its package coremltools is not installed", "pip install 'edgejudge[coreml]'"
    return "", None


class Tools:
    """coremltools, imported. Whatever it raises is of no class of its own."""

    def __init__(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # of packages that it was not tested with
            self._ct: Any = importlib.import_module("coremltools")
            self._compiled: Any = importlib.import_module("coremltools.models.utils")
            self._plans: Any = importlib.import_module("coremltools.models.compute_plan")
            self._devices: Any = importlib.import_module("coremltools.models.compute_device")

    @property
    def version(self) -> str:
        """Of all that numbers may depend on."""
        return f"{self._ct.__version__}, macOS {platform.mac_ver()[0]}"

    def kinds(self) -> dict[str, str]:
        """cpu, gpu and npu, those that there are, each with what is known of it."""
        found = {}
        for device in self._devices.MLComputeDevice.get_all_compute_devices():
            kind = _KINDS.get(type(device).__name__)
            if kind == "npu":
                found[kind] = f"Neural Engine of {device.total_core_count} cores"
            elif kind is not None:
                found[kind] = kind.upper()
        return found

    def compile(self, package: Path, out: Path) -> None:
        """To a new folder, whose name ends in .mlmodelc."""
        self._compiled.compile_model(str(package), str(out))

    def open(self, compiled: Path, units: str, function: str) -> Program:
        unit = self._ct.ComputeUnit[units]
        program: Program = self._ct.models.CompiledMLModel(str(compiled), unit, function)
        return program

    def plan(self, compiled: Path, units: str, function: str) -> Iterator[Planned]:
        """Operations that compute something."""
        plan = self._plans.MLComputePlan.load_from_path(str(compiled), self._ct.ComputeUnit[units])
        for operation in plan.model_structure.program.functions[function].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is None:  # constants run nowhere
                continue
            yield Planned(
                operation.operator_name.rpartition(".")[2],
                operation.outputs[0].name if operation.outputs else "",
                _kind(usage.preferred_compute_device),
                tuple(_kind(device) for device in usage.supported_compute_devices),
            )


def tools() -> Tools:
    return Tools()


def _kind(device: Any) -> str:
    return _KINDS.get(type(device).__name__, "cpu")
