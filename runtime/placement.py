"""Where each stage of a judge runs: which target's graphs, on which execution provider.

Takes what a user asks for, like `vision=gpu,decoder.0=npu`; gives a `Device` for each stage and
part. Does not open sessions, and does not know whether a device computes rightly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from edgejudge.bundle import Bundle
from edgejudge.errors import BundleError, InputError, ProviderError

if TYPE_CHECKING:
    from edgejudge.runtime.devices import Absent
    from edgejudge.runtime.devices import Device as Here

__all__ = ["STAGES", "UNITS", "Device", "Place", "Wish", "read_places", "resolved"]

STAGES = ("vision", "decoder", "writer")  # what can run elsewhere; heads are too small to
Place = tuple[str, int | None]  # a stage and a part of it; None is all of them
# Compute units as Core ML calls them, with the device beside the processor that each adds; the
# first is taken where none is named.
UNITS: Mapping[str, str] = {
    "CPU_AND_NE": "npu",
    "CPU_AND_GPU": "gpu",
    "ALL": "npu",
    "CPU_ONLY": "cpu",
}
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    **{units.lower(): units for units in UNITS},
}
# Which provider a target means where none is named, the fastest first.
_USUAL = {
    "cpu": ("cpu",),
    "gpu": ("cuda", "webgpu", "openvino"),
    "npu": ("qnn", "openvino"),
    "coreml": tuple(units.lower() for units in UNITS),
}


@dataclass(frozen=True, slots=True)
class Device:
    """A target's graphs on a provider. `options` are the provider's own, by name; `version` is that
    of the package that brings the provider. On a `simulator` times mean nothing.
    """

    target: str  # cpu, gpu, npu or coreml
    provider: str  # as ONNX Runtime calls it, or Core ML its compute units
    version: str = ""
    options: tuple[tuple[str, str], ...] = ()
    simulator: bool = False

    @property
    def name(self) -> str:
        """As verdicts and traces call it: npu:QNNExecutionProvider"""
        return f"{self.target}:{self.provider}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user asks for: graphs of a target, on a provider or on whichever there is."""

    target: str
    provider: str | None = None


def read_places(text: str) -> dict[Place, tuple[Wish, ...]]:
    """`STAGE[.PART]=TARGET[:PROVIDER]`, several with commas between; of targets with slashes
    between the first is tried first. Raises InputError.
    """
    found: dict[Place, tuple[Wish, ...]] = {}
    for item in filter(None, (piece.strip() for piece in text.split(","))):
        stage, equals, wishes = item.partition("=")
        name, dot, part = stage.strip().partition(".")
        if not equals or name not in STAGES or (dot and (name == "vision" or not _number(part))):
            raise _unread(item, "a stage is vision, decoder, writer, or decoder.N for a part")
        place = (name, int(part) if dot else None)
        if place in found:
            raise _unread(item, "that stage was placed already")
        found[place] = tuple(_wish(item, wish.strip()) for wish in wishes.split("/"))
    return found


def _wish(item: str, text: str) -> Wish:
    target, colon, provider = text.partition(":")
    units = _USUAL["coreml"]
    others = [name for name in _PROVIDERS if name not in units]
    if target not in _USUAL or (
        colon and provider not in (units if target == "coreml" else others)
    ):
        raise _unread(
            item,
            f"targets are {', '.join(_USUAL)}; providers {', '.join(others)}, and of coreml "
            f"{', '.join(units)}",
        )
    return Wish(target, _PROVIDERS[provider] if colon else None)


def _number(part: str) -> bool:
    # Python itself refuses to read one of thousands of digits.
    return part.isdecimal() and len(part) <= 9


def _unread(item: str, why: str) -> InputError:
    return InputError(
        "placement", f"cannot place {item!r}: {why}; write it like vision=gpu,decoder=npu:qnn"
    )


def resolved(
    wishes: Mapping[Place, Sequence[Wish]], bundle: Bundle
) -> dict[Place, tuple[Device, ...]]:
    """Devices for each place that is not plainly the processor's, by stage and part, the first one
    first; the processor comes behind the last. Raises ProviderError for a provider that is not
    here, BundleError for graphs that the bundle lacks.
    """
    found: dict[Place, tuple[Device, ...]] = {}
    parts = [part.index for part in bundle.manifest.parts]
    survey = cache(_survey)  # some providers run a graph for it
    for (stage, part), some in wishes.items():
        if part is not None and part not in parts:
            raise BundleError(
                f"{bundle.path}: has no decoder part {part}, only 0 to {parts[-1]}; export it with "
                "--parts"
            )
        devices = []
        for wish in some:
            if wish.target == "cpu":
                _check_processor(wish)
                break  # it does everything, so nothing behind it is ever asked
            devices.append(_device(wish, *survey()))
            _check_graphs(bundle, stage, devices[-1])
        if not devices:
            continue
        if stage == "vision" or part is not None:
            found[stage, part] = tuple(devices)
            continue
        for index in parts:
            if (stage, index) not in wishes:  # a part that is named by itself has the last word
                found[stage, index] = tuple(devices)
    return found


def _check_processor(wish: Wish) -> None:
    if wish.provider not in (None, _PROVIDERS["cpu"]):
        raise ProviderError(
            "the graphs of the cpu target run on the CPU provider alone; ask for gpu or npu"
        )


def _check_graphs(bundle: Bundle, stage: str, device: Device) -> None:
    wanted = "vision" if stage == "vision" else "decoder"
    if any((g.target, g.stage) == (device.target, wanted) for g in bundle.manifest.graphs):
        return
    others = any(g.target == device.target for g in bundle.manifest.graphs)
    advice = "" if others else f"export it with --targets cpu,{device.target}, or "
    raise BundleError(
        f"{bundle.path}: has no {wanted} graphs for the {device.target} target; {advice}leave that "
        "stage on the cpu"
    )


def _survey() -> "tuple[list[Here], list[Absent]]":
    # Imported here: it asks every provider how it is.
    from edgejudge.runtime.devices import survey

    return survey()


def _device(wish: Wish, here: "Sequence[Here]", missing: "Sequence[Absent]") -> Device:
    wanted: Sequence[str] = (
        [_PROVIDERS[name] for name in _USUAL[wish.target]]
        if wish.provider is None
        else [wish.provider]
    )
    for provider in wanted:
        for one in here:
            if one.provider == provider:
                options = _options(provider)
                return Device(wish.target, provider, one.version, options, one.simulator)
    reasons = {absent.provider: absent for absent in missing}
    told = []
    for provider in wanted:
        absent = reasons.pop("CoreML" if provider in UNITS else provider, None)
        if absent is not None:
            install = f" ({absent.install})" if absent.install else ""
            told.append(f"{provider}: {absent.reason}{install}")
    raise ProviderError(
        f"no provider for the {wish.target} target is here: {'; '.join(told)}; "
        "`edgejudge devices` lists what is"
    )


def _options(provider: str) -> tuple[tuple[str, str], ...]:
    if provider == _PROVIDERS["qnn"]:
        # Otherwise what comes in and goes out is made into levels on the processor.
        return (("offload_graph_io_quantization", "0"),)
    return ()
