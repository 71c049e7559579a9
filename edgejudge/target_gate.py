"""The gate of graphs for other targets: decided by the same reference, run by the CPU provider.

Takes a bundle, and pictures with what the fp32 reference says of them; gives each variant's record
with what was measured, and which limits it does not hold. A device is another matter: its canary is
asked where it is, when the bundle is loaded there. Knows no checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle, TargetRecord
from edgejudge.errors import ExportError
from edgejudge.gate import Tally
from edgejudge.models.image import image_spec, preprocess
from edgejudge.models.prompt import Prompts

if TYPE_CHECKING:
    from edgejudge.export import CalibrationPicture
    from edgejudge.runtime import Engine
    from edgejudge.runtime.fleet import Fleet

__all__ = ["TargetGate", "Wanted", "emulated"]

PICTURES = 48  # that graphs of other targets are asked about
_ELSEWHERE = ("coreml",)  # targets that nothing here can run


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the reference says of one picture's conditions, and what each is asked for."""

    probabilities: NDArray[np.float64]  # [B]
    masses: NDArray[np.float64]  # [B], of yes and no in the full head
    rules: list[tuple[str, ...]]
    thresholds: NDArray[np.float64]  # [B]


@dataclass(slots=True)
class _Seen:
    tally: Tally = field(default_factory=Tally)
    masses: list[float] = field(default_factory=list)
    pictures: int = 0


class TargetGate:
    """`engine` is the bundle's, whose devices are exchanged."""

    def __init__(self, bundle: Bundle, engine: "Engine") -> None:
        self._bundle, self._engine = bundle, engine
        self._prompts = Prompts.of(bundle)
        self._seen = {(r.target, r.variant): _Seen() for r in bundle.manifest.targets}
        self._run = [r for r in bundle.manifest.targets if r.target not in _ELSEWHERE]

    def add(self, pictures: "Sequence[CalibrationPicture]", wanted: Sequence[Wanted]) -> None:
        """Asks every variant about the first pictures that are added."""
        engine, before = self._engine, self._engine.fleet
        for record in self._run:
            seen = self._seen[record.target, record.variant]
            some = pictures[: max(0, PICTURES - seen.pictures)]
            engine.fleet = emulated(self._bundle, record, engine.threads)
            try:
                for picture, want in zip(some, wanted, strict=False):
                    found = self._probabilities(picture)
                    names = (picture.image, want.rules)
                    seen.tally.add(*names, found, want.probabilities, want.thresholds)
                    seen.masses += want.masses.tolist()
                    seen.pictures += 1
            finally:
                engine.fleet = before

    def violations(self, accepted: float | None) -> list[str]:
        return [
            f"with the {record.target} graphs {record.variant} {broken}"
            for record in self._run
            for broken in self._seen[record.target, record.variant].tally.violations(accepted)
        ]

    def check_canaries(self) -> None:
        """Raises ExportError where a variant's graphs are not what the reference computes."""
        from edgejudge.canaries import tolerance_of
        from edgejudge.goldens import canary_distance

        engine, before = self._engine, self._engine.fleet
        for record in self._run:
            engine.fleet = emulated(self._bundle, record, engine.threads)
            try:
                error = canary_distance(self._bundle, engine)
                limit = tolerance_of(self._bundle, record)
            finally:
                engine.fleet = before
            if not error <= limit:
                raise ExportError(
                    f"label logits of the {record.target} graphs {record.variant} are {error:.2g} "
                    f"off the reference, allowed are {limit:.2g}; leave that target out"
                )

    def records(self, accepted: float | None) -> tuple[TargetRecord, ...]:
        """With what was measured."""
        found = []
        for record in self._bundle.manifest.targets:
            seen = self._seen[record.target, record.variant]
            decisions = None
            if seen.pictures:
                decisions = seen.tally.record(seen.masses, seen.pictures, accepted)
            found.append(replace(record, decisions=decisions))
        return tuple(found)

    def _probabilities(self, picture: "CalibrationPicture") -> NDArray[np.float64]:
        engine, prompts = self._engine, self._prompts
        seen = preprocess(picture.rgb, image_spec(self._bundle.manifest.preprocessing))
        grid = (seen.rows, seen.cols)
        visual = engine.encode_image(seen.feeds)
        ids, positions = prompts.prefix_ids(*grid), prompts.prefix_positions(*grid)
        prefix = engine.prefill(ids, visual, positions)
        branches = [prompts.branch_ids(text) for text in picture.conditions]
        return engine.label_probabilities(engine.score(prefix, branches))


def emulated(bundle: Bundle, record: TargetRecord, threads: int) -> "Fleet":
    """Every stage that the variant has graphs of, by the CPU provider."""
    from edgejudge.runtime.fleet import Fleet
    from edgejudge.runtime.placement import Device

    device = Device(record.target, "CPUExecutionProvider")
    places: dict[tuple[str, int | None], tuple[Device, ...]] = {
        ("decoder", part.index): (device,) for part in bundle.manifest.parts
    }
    if bundle.graphs(record.target, record.variant, "vision"):
        places["vision", None] = (device,)
    fleet = Fleet.of(bundle, places, threads)
    fleet.redo = False  # what the processor's own graphs answer says nothing of these
    for accelerator in fleet.accelerators:
        for stage in fleet.stages_of(accelerator):
            accelerator.use(stage, record.variant)
    return fleet
