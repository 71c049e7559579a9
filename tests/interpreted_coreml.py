"""Core ML on machines that have none: programs run by the interpreter of mil_program.py.

Takes what edgejudge.runtime.coreml_tools hands to coremltools; gives what that would give, in the
types that it gives. `Interpreted` can be told what Core ML does at its worst: fail, kill the
process, plan operations elsewhere, or lose what is written to a state.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgejudge.runtime import coreml, devices
from edgejudge.runtime.coreml_tools import Planned
from mil_program import Package

__all__ = ["Interpreted", "pretend"]


class InterpretedState:
    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays = arrays

    def read_state(self, name: str) -> NDArray[Any]:
        return self.arrays[name].astype(np.float32)

    def write_state(self, name: str, value: NDArray[Any]) -> None:
        assert value.shape == self.arrays[name].shape and value.dtype == np.float32
        self.arrays[name][:] = value


@dataclass
class InterpretedProgram:
    package: Package
    function: str
    core: "Interpreted"

    def predict(
        self, data: dict[str, Any], state: InterpretedState | None = None
    ) -> dict[str, Any]:
        self.core.calls.append((self.package.folder.parts[-4], self.function))
        self.core.before()
        wanted = self.package.description(self.function)
        assert set(data) == {tensor.name for tensor in wanted.input}
        assert (state is not None) == bool(wanted.state)
        arrays = None if state is None else state.arrays
        found = self.package.run(self.function, data, arrays)
        found = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in found.items()}
        return self.core.after(found)

    def make_state(self) -> InterpretedState:
        self.core.states += 1
        return self.core.state(self.package.new_state(self.function))


@dataclass
class Interpreted:
    """`calls` are (folder of the program, function) as they came, `states` how many were made."""

    version: str = "interpreted"
    calls: list[tuple[str, str]] = field(default_factory=list)
    compiled: list[str] = field(default_factory=list)
    states: int = 0
    before: Callable[[], None] = lambda: None
    after: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found
    state: Callable[[dict[str, Any]], InterpretedState] = InterpretedState
    planned: Callable[[str], str] = lambda _: "npu"  # the device of an operation
    _open: dict[Path, Package] = field(default_factory=dict)

    def kinds(self) -> dict[str, str]:
        return {"cpu": "CPU", "npu": "Neural Engine of 0 cores"}

    def compile(self, package: Path, out: Path) -> None:
        self.compiled.append(package.parent.name)
        shutil.copytree(package, out)

    def open(self, compiled: Path, units: str, function: str) -> InterpretedProgram:
        assert units in ("CPU_AND_NE", "CPU_ONLY", "ALL")
        if compiled not in self._open:
            self._open[compiled] = Package(compiled)
        assert function in self._open[compiled].functions
        return InterpretedProgram(self._open[compiled], function, self)

    def plan(self, compiled: Path, units: str, function: str) -> Iterator[Planned]:
        for op in self._open[compiled].operations(function):
            if op != "const" and not op.startswith("constexpr"):
                yield Planned(op, f"a_{op}", self.planned(op), ("cpu", "npu"))


def pretend(patch: pytest.MonkeyPatch) -> Interpreted:
    """From now on the interpreter is Core ML."""
    core = Interpreted()
    patch.setattr(coreml, "tools", lambda: core)
    patch.setattr(devices, "tools", lambda: core)
    patch.setattr(devices, "absence", lambda: ("", None))
    return core
