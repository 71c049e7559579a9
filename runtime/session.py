"""One graph of a bundle in an ONNX Runtime session, on the provider that was asked for.

Takes a graph record and its files; gives `run` over numpy arrays and `run_bound` over buffers that
are read and written in place. Refuses a session that ended up on another provider. Does not know
what the graph computes.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from numpy.typing import NDArray

from edgejudge.bundle import Bundle, GraphRecord, TensorRecord
from edgejudge.errors import BundleError, ProviderError
from edgejudge.printable import brief
from edgejudge.runtime.placement import Device
from edgejudge.runtime.provider import open_inner

__all__ = ["CPU", "CPU_DEVICE", "Session", "default_threads", "first_line", "open_session"]

CPU = "CPUExecutionProvider"
CPU_DEVICE = "cpu"  # what spans and steps call the processor
# As ONNX Runtime calls them.
_TYPES = {
    **{name: f"tensor({name})" for name in ("int8", "uint8", "int16", "uint16")},
    **{name: f"tensor({name})" for name in ("int32", "int64", "float16", "bool")},
    "float32": "tensor(float)",
}


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

    def begin(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Called before `run` with all that a pass has. What this session keeps itself, which is
        nothing here, is made anew where the feeds have rows of it.
        """

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the order of the graph record, which may take some of the feeds only."""
        taken = {}
        for tensor in self.graph.inputs:
            if tensor.name not in feeds:
                raise BundleError(
                    f"{self.graph.file}: its input '{tensor.name}' is none that this edgejudge "
                    "gives; export the bundle again"
                )
            taken[tensor.name] = feeds[tensor.name]
        try:
            outputs: list[NDArray[Any]] = self._inner.run(None, taken)
        except Exception as error:  # ONNX Runtime raises its own unrelated classes
            raise self._failed(error) from None
        self._check_shapes(taken, self.graph.outputs, outputs)
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
        sinks = {sink for sink, _ in shared.values()}
        given = [output for output in self.graph.outputs if output.name not in sinks]
        try:
            binding = self._inner.io_binding()
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            for output in given:
                binding.bind_output(output.name, "cpu")
            for source, (sink, buffer) in shared.items():
                address = buffer.ctypes.data
                binding.bind_input(source, "cpu", 0, buffer.dtype, buffer.shape, address)
                binding.bind_output(sink, "cpu", 0, buffer.dtype, buffer.shape, address)
            self._inner.run_with_iobinding(binding)
        except Exception as error:  # as above
            raise self._failed(error) from None
        # In the order of binding, so the free ones come first; the shared ones need no copy.
        outputs = [value.numpy() for value in binding.get_outputs()[: len(given)]]
        self._check_shapes(feeds, given, outputs)
        return outputs

    def _check_shapes(
        self,
        feeds: Mapping[str, NDArray[Any]],
        given: Sequence[TensorRecord],
        outputs: Sequence[NDArray[Any]],
    ) -> None:
        """Raises ProviderError for outputs that are not of the shapes that the record says, where
        what is called the same is as long.
        """
        sizes: dict[str, int] = {}
        for record in self.graph.inputs:
            if record.name in feeds:
                sizes.update(zip(record.shape, feeds[record.name].shape, strict=False))
        for record, output in zip(given, outputs, strict=True):
            wanted = [sizes.get(d, int(d) if d.isdecimal() else None) for d in record.shape]
            if len(wanted) != output.ndim or any(
                size not in (None, found) for size, found in zip(wanted, output.shape, strict=True)
            ):
                what = (
                    f"it gave {record.name} as {output.shape}, expected {', '.join(record.shape)}"
                )
                raise self._failed(ValueError(what))

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
    inner = open_inner(bundle.graph_file(graph), device, threads, lean=lean)
    _check_record(graph.file, graph.inputs, inner.get_inputs())
    _check_record(graph.file, graph.outputs, inner.get_outputs())
    return Session(graph, provider, inner)


def _check_record(file: str, recorded: Sequence[TensorRecord], found: Sequence[Any]) -> None:
    """Raises BundleError where a graph takes or gives other tensors than its record says."""
    said = [(tensor.name, _TYPES.get(tensor.dtype), len(tensor.shape)) for tensor in recorded]
    is_so = [(node.name, node.type, len(node.shape)) for node in found]
    for each, other in zip_longest(said, is_so):
        if each != other:
            name = brief((other or each)[0])
            raise BundleError(
                f"{file}: its tensor '{name}' is not as the manifest records it; do not use this "
                "bundle"
            )
