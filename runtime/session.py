"""One graph of a bundle in an ONNX Runtime session, on the provider that was asked for.

Takes a graph record and its files; gives `run` over numpy arrays and `run_bound` over buffers that
are read and written in place. Refuses a session that ended up on another provider. Does not know
what the graph computes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgejudge.bundle import Bundle, GraphRecord
from edgejudge.errors import ProviderError
from edgejudge.runtime.placement import Device
from edgejudge.runtime.provider import open_inner

__all__ = ["CPU", "Session", "default_threads", "first_line", "open_session"]

CPU = "CPUExecutionProvider"


def default_threads() -> int:
    """Cores this process may use; a container or taskset may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded graph. `provider` is where every node of it runs."""

    graph: GraphRecord
    provider: str
    _inner: Any

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the order of the graph record, which may take some of the feeds only."""
        taken = {tensor.name: feeds[tensor.name] for tensor in self.graph.inputs}
        try:
            outputs: list[NDArray[Any]] = self._inner.run(None, taken)
        except Exception as error:  # ONNX Runtime raises its own unrelated classes
            raise self._failed(error) from None
        return outputs

    def run_bound(
        self,
        feeds: Mapping[str, NDArray[Any]],
        shared: Mapping[str, tuple[str, NDArray[Any]]],
    ) -> list[NDArray[Any]]:
        """As `run`, with buffers in place: `shared` maps an input to the output that is the same
        memory.

        The outputs that are not shared come back, in the order of the graph record.
        """
        binding = self._inner.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        sinks = {sink for sink, _ in shared.values()}
        free = [o.name for o in self.graph.outputs if o.name not in sinks]
        for name in free:
            binding.bind_output(name, "cpu")
        for source, (sink, buffer) in shared.items():
            address = buffer.ctypes.data
            binding.bind_input(source, "cpu", 0, buffer.dtype, buffer.shape, address)
            binding.bind_output(sink, "cpu", 0, buffer.dtype, buffer.shape, address)
        try:
            self._inner.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise self._failed(error) from None
        # In the order of binding, so the free ones come first; the shared ones need no copy.
        return [value.numpy() for value in binding.get_outputs()[: len(free)]]

    def _failed(self, error: Exception) -> ProviderError:
        advice = "; check the bundle with `edgejudge screen --verify`"
        return ProviderError(
            f"{self.graph.file} failed on {self.provider} ({first_line(error)})"
            f"{advice if self.provider == CPU else ''}"
        )


def first_line(error: Exception) -> str:
    """Of what ONNX Runtime says, which goes on about its source files."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_session(
    bundle: Bundle, graph: GraphRecord, provider: str, threads: int, lean: bool = False
) -> Session:
    """Loads a graph of the `cpu` target, all of it, or raises BundleError. A `lean` one gives
    memory back after each run.
    """
    device = Device(graph.target, provider)
    return Session(
        graph, provider, open_inner(bundle.graph_file(graph), device, threads, lean=lean)
    )
