"""What devices cost, as `edgejudge tune` measures it and a file keeps it.

Takes a strict JSON document; gives a `Profile`: devices, milliseconds of each (unit, device, shape)
that was measured, and what it costs to carry bytes between two devices. Does not measure, and does
not guess: looking a cost up is costs.py.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from edgejudge.bundle import from_json, to_json
from edgejudge.errors import EdgeJudgeError
from edgejudge.file_bytes import file_bytes

__all__ = ["SCHEMA_VERSION", "DeviceRecord", "Link", "Profile", "ProfileError", "Row", "Weight"]

SCHEMA_VERSION = 1
_MOST_BYTES = 32 << 20  # of a file
_MOST_DEVICES = 16
_MOST = 1 << 50  # of any number


class ProfileError(EdgeJudgeError):
    """A profile of devices is missing, malformed, or lacks what a plan needs."""


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A target's graphs on a provider of one version. `memory_bytes` is what weights may take
    there, null is without end. A `padded` device runs the shapes that were measured and no others:
    fewer tokens cost as much as the next shape.
    """

    name: str
    target: str
    provider: str
    version: str
    memory_bytes: int | None
    busy_watts: float
    idle_watts: float
    padded: bool


@dataclass(frozen=True, slots=True)
class Row:
    """`p50_ms` of `n` runs of a unit over `tokens` tokens behind `past` others."""

    unit: str
    device: str
    tokens: int
    past: int
    p50_ms: float
    n: int


@dataclass(frozen=True, slots=True)
class Link:
    """What it costs to make one device's bytes another's, conversion of layouts included."""

    source: str
    target: str
    fixed_ms: float
    ms_per_mib: float


@dataclass(frozen=True, slots=True)
class Weight:
    """Bytes that a device holds for a unit; without a record, weights as they lie in the bundle,
    and keys and values.
    """

    unit: str
    device: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Profile:
    """`machine` is what all measurements depend on beside a device's version, `bundle` the
    fingerprint of the bundle that was measured; both are empty where costs are invented.
    """

    schema_version: int
    source: str
    bundle: str
    machine: dict[str, str]
    devices: tuple[DeviceRecord, ...]
    rows: tuple[Row, ...]
    links: tuple[Link, ...]
    weights: tuple[Weight, ...]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Raises ProfileError, by the name of the field, for a file that is no profile."""
        try:
            value = json.loads(file_bytes(path, _MOST_BYTES))
        except OSError as error:
            raise ProfileError(
                f"{path}: the profile of devices cannot be read ({error.strerror})"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ProfileError(
                f"{path}: is not JSON ({error}); expected a profile of devices as "
                "SCHEDULING.md describes it"
            ) from None
        return cls.from_json(value, str(path))

    @classmethod
    def from_json(cls, value: Any, where: str = "profile") -> Self:
        if isinstance(value, dict) and value.get("schema_version", 1) != SCHEMA_VERSION:
            raise ProfileError(
                f"{where}.schema_version: {value['schema_version']!r}, this edgejudge reads "
                f"{SCHEMA_VERSION}; measure again with `edgejudge tune BUNDLE --costs`"
            )
        found = from_json(cls, value, where, ProfileError)
        found._check(where)
        return found

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = to_json(self)
        return value

    def of(self, names: Mapping[str, str]) -> Self:
        """These devices alone, by other names."""
        return replace(
            self,
            devices=tuple(replace(d, name=names[d.name]) for d in self.devices if d.name in names),
            rows=tuple(replace(r, device=names[r.device]) for r in self.rows if r.device in names),
            links=tuple(
                replace(link, source=names[link.source], target=names[link.target])
                for link in self.links
                if link.source in names and link.target in names
            ),
            weights=tuple(
                replace(w, device=names[w.device]) for w in self.weights if w.device in names
            ),
        )

    def device(self, name: str) -> DeviceRecord:
        return next(device for device in self.devices if device.name == name)

    def _check(self, where: str) -> None:
        names = [device.name for device in self.devices]
        if not 1 <= len(names) <= _MOST_DEVICES:
            raise ProfileError(
                f"{where}.devices: {len(names)} of them, expected 1 to {_MOST_DEVICES}"
            )
        if len(set(names)) < len(names) or not all(names):
            raise ProfileError(f"{where}.devices: {names}; each needs a name of its own")
        for i, device in enumerate(self.devices):
            _refuse(
                f"{where}.devices[{i}]",
                memory_bytes=(device.memory_bytes or 0, 0),
                busy_watts=(device.busy_watts, 0),
                idle_watts=(device.idle_watts, 0),
            )
            if device.busy_watts < device.idle_watts:
                raise ProfileError(
                    f"{where}.devices[{i}].busy_watts: {device.busy_watts} is below idle_watts, "
                    f"{device.idle_watts}"
                )
        for i, row in enumerate(self.rows):
            at = f"{where}.rows[{i}]"
            _known(at, row.device, names)
            _refuse(at, tokens=(row.tokens, 1), past=(row.past, 0), n=(row.n, 1))
            _refuse(at, p50_ms=(row.p50_ms, 0), unit=(len(row.unit), 1))
        for i, link in enumerate(self.links):
            at = f"{where}.links[{i}]"
            _known(at, link.source, names)
            _known(at, link.target, names)
            _refuse(at, fixed_ms=(link.fixed_ms, 0), ms_per_mib=(link.ms_per_mib, 0))
        for i, weight in enumerate(self.weights):
            at = f"{where}.weights[{i}]"
            _known(at, weight.device, names)
            _refuse(at, bytes=(weight.bytes, 0))
        _once(f"{where}.rows", self.rows, lambda r: (r.unit, r.device, r.tokens, r.past))
        _once(f"{where}.links", self.links, lambda link: (link.source, link.target))
        _once(f"{where}.weights", self.weights, lambda weight: (weight.unit, weight.device))


def _known(where: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise ProfileError(
            f"{where}: the device {name!r} is not among the profile's: {', '.join(names)}"
        )


def _refuse(where: str, **fields: tuple[float, int]) -> None:
    """Of (value, least) what is below it, or so large that sums of it mean nothing."""
    for name, (value, least) in fields.items():
        if not least <= value <= _MOST:
            raise ProfileError(f"{where}.{name}: {value} is not from {least} to {_MOST}")


def _once(where: str, records: tuple[Any, ...], key: Callable[[Any], Any]) -> None:
    seen = set()
    for i, record in enumerate(records):
        if key(record) in seen:
            raise ProfileError(f"{where}[{i}]: {key(record)} stands there twice")
        seen.add(key(record))
