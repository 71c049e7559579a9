"""Which device does what, what becomes of work that one fails at, and when it is off.

Takes devices by stage and part; gives the result of the first that does a piece of work, or None,
which means the processor. A device that fails is passed over for that piece, and after a few
failures, or one that does not end, for all until it is asked for again. Knows no model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self, TypeVar

from edgejudge.bundle import Bundle
from edgejudge.models.spec import ModelSpec
from edgejudge.runtime.accelerator import Accelerator, DeviceFault, NotTaken
from edgejudge.runtime.placement import Device, Place
from edgejudge.runtime.replica import Moved
from edgejudge.runtime.trace import Trace

__all__ = ["DEADLINE_S", "FAILURES", "Fleet"]

DEADLINE_S = 120.0
FAILURES = 3  # after which a device is off

T = TypeVar("T")


@dataclass(slots=True)
class Fleet:
    """`routes` are the devices of each place, the first one first; `unused` says of each device,
    and stage of it, that is not used from the start, why.
    """

    routes: dict[Place, tuple[Accelerator, ...]] = field(default_factory=dict)
    unused: dict[tuple[str, str], str] = field(default_factory=dict)
    # Of each device and stage: form -> how far the canary was off, or why it could not be asked.
    answers: dict[tuple[str, str], dict[str, float | str]] = field(default_factory=dict)
    redo: bool = True  # on the processor what a device failed at; otherwise its fault is raised
    _failures: dict[str, int] = field(default_factory=dict)
    _off: set[str] = field(default_factory=set)
    _only: tuple[str, Accelerator] | None = None

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        places: Mapping[Place, Sequence[Device]],
        threads: int,
        deadline_s: float = DEADLINE_S,
        strict: bool = False,
    ) -> Self:
        """`deadline_s` is for one run of one graph, and for loading it. Nothing is used before a
        canary has chosen the form of its graphs.
        """
        spec = ModelSpec.from_json(bundle.manifest.spec)
        made: dict[Device, Accelerator] = {}
        for device in (device for some in places.values() for device in some):
            if device not in made:
                made[device] = Accelerator(bundle, spec, device, threads, deadline_s, strict)
        return cls({p: tuple(made[device] for device in some) for p, some in places.items()})

    @property
    def accelerators(self) -> list[Accelerator]:
        return list({a.device.name: a for some in self.routes.values() for a in some}.values())

    @property
    def moved(self) -> Moved:
        """What handing keys and values over has cost, since canaries were asked."""
        return Moved.of(accelerator.moved for accelerator in self.accelerators)

    def stages_of(self, accelerator: Accelerator) -> list[str]:
        """The stages whose graphs it runs; text that is written takes the decoder's."""
        found = {_graphs_of(stage) for (stage, _), a in self.routes.items() if accelerator in a}
        return sorted(found)

    def devices(self, stage: str, part: int | None, trace: Trace | None = None) -> list[str]:
        """Names of those that would be tried, in order; the trace is told which are off. None: the
        processor does it.
        """
        told = Trace() if trace is None else trace
        return [a.device.name for a in self._route(stage, part) if self._asked(stage, a, told)]

    def forget(self, rows: int, part: int) -> None:
        """Of a part's layers, what lies behind so many rows of the cache is replaced now."""
        for accelerator in self.accelerators:
            accelerator.forget(rows, part)

    def attempt(
        self,
        stage: str,
        part: int | None,
        trace: Trace,
        work: Callable[[Accelerator], T],
        first: str | None = None,
    ) -> tuple[T, Accelerator] | None:
        """The result and whose it is; None where the processor is to do it. The device `first` is
        tried before the others.
        """
        for accelerator in sorted(self._route(stage, part), key=lambda a: a.device.name != first):
            if not self._asked(stage, accelerator, trace):
                continue
            try:
                return work(accelerator), accelerator
            except DeviceFault as fault:
                if self._only is not None or not self.redo:
                    raise
                self._failed(accelerator, stage, fault, trace)
        return None

    def _route(self, stage: str, part: int | None) -> tuple[Accelerator, ...]:
        some = self.routes.get((stage, part), ())
        if self._only is not None and self._only[1] not in some:
            # A canary writes no text: the decoder's questions are for who shall write it, too.
            some = self.routes.get(("writer" if stage == "decoder" else stage, part), ())
        return some

    def _asked(self, stage: str, accelerator: Accelerator, trace: Trace) -> bool:
        if self._only is not None:
            return self._only == (_graphs_of(stage), accelerator)
        if (name := accelerator.device.name) in self._off:
            # The trace may have begun while the device was still asked.
            if not _told(trace, name, "device_failed", "device_off"):
                trace.marks.append(_off(name))
            return False
        return _graphs_of(stage) in accelerator.variants

    def _failed(
        self, accelerator: Accelerator, stage: str, fault: DeviceFault, trace: Trace
    ) -> None:
        name = accelerator.device.name
        if isinstance(fault, NotTaken):
            if not _told(trace, f"{name} is too small for {stage},", "device_passed_over"):
                trace.marks.append(
                    (
                        "device_passed_over",
                        f"{name} is too small for {stage}, which the next place did "
                        f"instead ({fault})",
                    )
                )
            return
        count = self._failures[name] = self._failures.get(name, 0) + 1
        more = ""
        if accelerator.hung or count >= FAILURES:
            self._off.add(name)
            more = "; it is not asked again until Judge.revive_devices()"
        trace.marks.append(
            (
                "device_failed",
                f"{name} failed at {stage}, which the next place did instead ({fault}){more}",
            )
        )

    def marks(self) -> list[tuple[str, str]]:
        """What holds for every result from now on."""
        found = [
            ("device_unused", f"{name} is not used for {stage}: {why}")
            for (name, stage), why in self.unused.items()
        ]
        found += [
            ("device_simulated", f"{a.device.name} is a simulator: its times mean nothing")
            for a in self.accelerators
            if a.device.simulator and a.variants
        ]
        return found + [_off(name) for name in sorted(self._off)]

    def revive(self) -> None:
        """Devices that were off are asked again."""
        for accelerator in self.accelerators:
            if accelerator.device.name in self._off:
                accelerator.renew()
        self._off.clear()
        self._failures.clear()

    @contextmanager
    def only(self, stage: str, accelerator: Accelerator, variant: str) -> Iterator[None]:
        """One stage on one device in one form, all others on the processor; faults are raised. The
        form's sessions stay open for who goes on to use it.
        """
        accelerator.use(stage, variant)
        self._only = (stage, accelerator)
        try:
            yield
        finally:
            self._only = None
            accelerator.variants.pop(stage)

    def numerics(self) -> str:
        """All that the devices' numbers depend on: for what is kept longer than a process."""
        return ";".join(
            f"{stage}.{part}={a.device!r}:{a.variants.get(_graphs_of(stage))}"
            for (stage, part), some in sorted(
                self.routes.items(), key=lambda r: (r[0][0], r[0][1] or 0)
            )
            for a in some
        )

    def give_up(self) -> None:
        """Nobody waits for a device any more that is at work now."""
        for accelerator in self.accelerators:
            accelerator.give_up()


def _off(name: str) -> tuple[str, str]:
    return "device_off", f"{name} failed too often, or did not end, and is not asked"


def _told(trace: Trace, about: str, *codes: str) -> bool:
    return any(code in codes and text.startswith(f"{about} ") for code, text in trace.marks)


def _graphs_of(stage: str) -> str:
    return "decoder" if stage == "writer" else stage
