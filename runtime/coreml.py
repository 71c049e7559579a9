"""Core ML programs of a bundle in sessions that an engine runs as it runs any other.

Takes a bundle and a device, which names compute units; gives a session for a graph's record, and
which operations Core ML means to run elsewhere. A program is compiled once and kept. Its state, the
keys and values of a part, is one for all of its functions. Runs where macOS does.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle, GraphRecord
from edgejudge.errors import ProviderError
from edgejudge.manifest import STATES
from edgejudge.printable import one_line
from edgejudge.runtime.accelerator import Loaded
from edgejudge.runtime.assignment import Elsewhere, check_strict
from edgejudge.runtime.compiled import made_once
from edgejudge.runtime.coreml_tools import Planned, Program, State, Tools, tools
from edgejudge.runtime.mlpackage import write_package
from edgejudge.runtime.placement import UNITS, Device
from edgejudge.runtime.session import Session

__all__ = ["ProgramSession", "Programs"]

_COMPILED = "program.mlmodelc"
_PLACES = {"cpu": "the CPU", "gpu": "the GPU", "npu": "the Neural Engine"}


@dataclass(slots=True)
class _Kept:
    """A program's state. Whether it takes what is written to it is looked at once: no documentation
    says in which types it does.
    """

    held: State | None = None
    tried: bool = False


@dataclass(frozen=True, slots=True)
class _Function:
    """As ONNX Runtime's sessions are called. Half floats come and go as floats of 32 bits, which is
    what coremltools makes of them.
    """

    graph: GraphRecord
    program: Program
    kept: _Kept

    def run(self, _: None, taken: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            found = self.program.predict(dict(taken), self.kept.held)
        except Exception as error:  # coremltools raises whatever Core ML says
            raise ProviderError(one_line(error)) from None
        if missing := [o.name for o in self.graph.outputs if o.name not in found]:
            raise ProviderError(f"it gave no {missing[0]}")
        return [np.asarray(found[output.name]) for output in self.graph.outputs]

    def begin(self, states: Mapping[str, NDArray[Any]]) -> None:
        """A new state, which is zeros, with these first rows."""
        try:
            state = self.kept.held = self.program.make_state()
            right = [self._put(state, name, rows) for name, rows in states.items()]
        except Exception as error:  # as above
            raise ProviderError(f"its state cannot be written ({one_line(error)})") from None
        if not all(right):
            raise ProviderError("its state does not hold what was written to it")
        self.kept.tried = self.kept.tried or any(rows.shape[2] for rows in states.values())

    def _put(self, state: State, name: str, rows: NDArray[Any]) -> bool:
        """Whether it is there, as far as that is looked at."""
        count, kv = rows.shape[2], self.graph.kv
        if not count or kv is None:
            return True
        whole = np.pad(rows, ((0, 0), (0, 0), (0, kv.length_buckets[0] - count), (0, 0)))
        state.write_state(name, whole.astype(np.float32))
        return self.kept.tried or np.array_equal(state.read_state(name), whole)


@dataclass(frozen=True, slots=True)
class ProgramSession(Session):
    """A function of a program."""

    def begin(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Begins a state anew where the feeds have rows of it. Raises ProviderError."""
        states = {name: feeds[name] for name in STATES if name in feeds}
        if states:
            self._inner.begin(states)


@dataclass(slots=True)
class Programs:
    """Those of one bundle on one device's compute units."""

    bundle: Bundle
    device: Device
    _tools: Tools = field(default_factory=lambda: tools())
    _kept: dict[str, _Kept] = field(default_factory=dict)

    def open(self, graph: GraphRecord, strict: bool) -> tuple[ProgramSession, Loaded]:
        """Raises ProviderError where Core ML does not compile or open it; a `strict` one has every
        operation on the device that the compute units name.
        """
        units = self.device.provider
        make = partial(self._compile, graph)
        folder, origin = made_once(self.bundle, graph, self.device, make)
        compiled = folder / _COMPILED
        try:
            program = self._tools.open(compiled, units, graph.function)
        except Exception as error:  # coremltools raises whatever Core ML says
            raise ProviderError(
                f"{graph.file}: Core ML cannot open it on {units} ({one_line(error)}); place this "
                "stage on other compute units or on the CPU"
            ) from None
        stray = self._elsewhere(compiled, graph)
        if strict:
            check_strict(stray, units, graph.file)
        kept = self._kept.setdefault(graph.file, _Kept())
        session = ProgramSession(graph, units, _Function(graph, program, kept))
        return session, Loaded(graph, stray, origin)

    def _compile(self, graph: GraphRecord, folder: Path) -> None:
        package = folder / "program.mlpackage"
        write_package(self.bundle, graph, package)
        try:
            self._tools.compile(package, folder / _COMPILED)
        except Exception as error:  # as above
            raise ProviderError(
                f"{graph.file}: Core ML cannot compile it ({one_line(error)}); place this stage on "
                "the CPU"
            ) from None
        finally:
            shutil.rmtree(package)

    def _elsewhere(self, compiled: Path, graph: GraphRecord) -> tuple[Elsewhere, ...]:
        """By Core ML's own plan, which says where an operation shall run, and not that it does."""
        units, planned, why = self.device.provider, [], ""
        wanted = UNITS[units]
        if units in ("ALL", "CPU_ONLY"):
            return ()
        try:
            planned = list(self._tools.plan(compiled, units, graph.function))
        except Exception as error:  # as above
            why = f": {one_line(error)}"
        if not planned:
            unknown = f"Core ML does not say where it would run{why}"
            return (Elsewhere("program", graph.function, "no device that is known", unknown),)
        return tuple(
            Elsewhere(one.op, one.name, one.device, _reason(one, wanted))
            for one in planned
            if one.device != wanted
        )


def _reason(one: Planned, wanted: str) -> str:
    can = "could run it, too" if wanted in one.supported else "does not take it"
    return f"Core ML means it for {_PLACES[one.device]}; {_PLACES[wanted]} {can}"
