"""The record of a profile: what was run, where, and every figure with its N and interval.

Takes figures; gives JSON and takes it back, for `--compare`. Measures and prints nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgejudge.errors import InputError
from edgejudge.file_bytes import file_bytes
from edgejudge.profiling.distributions import Distribution, Ratio
from edgejudge.profiling.limits import Limits
from edgejudge.profiling.machine import Beside

__all__ = ["SCHEMA_VERSION", "Compared", "Memory", "Profile", "compared"]

SCHEMA_VERSION = 4
_MOST_BYTES = 64 << 20
_WHOLE = ("run", "first", "kept", "cold_process")


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB. `resident` is what the process held at the end of each step, `stages` what files of the
    processor's graphs take, `kv` keys and values at the end, None where they are a slice's.
    """

    resident: dict[str, float]
    peak: float
    stages: dict[str, float]
    kv: float | None


@dataclass(frozen=True, slots=True)
class OperatorRecord:
    """What an operator took in one run of the workload, all its nodes together; `share` is of all
    operators. Profiled sessions are slower than others: shares mean more than milliseconds.
    """

    provider: str
    operator: str
    runs: int
    ms: float
    share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Milliseconds. `first_verdict_ms` counts from before the bundle is opened, in a process that
    has imported edgejudge; of it loading took `load_ms`, and opening graphs `opened_ms`, by device;
    `compiled` of them were compiled for their device, others needed none or were kept.

    `run` are warm runs, `first` the first answer of several within them, `kept` the same pictures
    with their prefixes kept. `stages` are spans of `run` by name, `rates` per second. `timeline`
    has seconds since the first run began, and what the run took. `watts` are those of the counters
    that can be read here.
    """

    schema_version: int
    bundle: str
    bundle_sha256: str
    recipe: str
    random_weights: bool
    workload: str
    of: str
    policy: str
    picture: str
    warmup: int
    stopped: bool  # by Ctrl-C, before all runs were done
    load_ms: float
    opened_ms: dict[str, float]
    compiled: int
    first_verdict_ms: float
    run: Distribution
    first: Distribution | None
    kept: Distribution | None
    stages: dict[str, Distribution]
    rates: dict[str, Distribution]
    cold_process: Distribution | None
    timeline: tuple[tuple[float, float], ...]
    cache_hits: float  # share of the pictures of `kept`
    memory: Memory
    cpu_cores: float  # that this process kept at work
    watts: dict[str, float]
    placement: dict[str, str]
    settings: dict[str, int]  # of the engine
    machine: dict[str, str | int]
    before: Beside
    after: Beside
    others: float | None  # share of all cores that other processes had meanwhile
    limits: Limits | None
    operators: tuple[OperatorRecord, ...]  # where they were asked for, by provider
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self) -> dict[str, Distribution]:
        """Distributions of milliseconds by name, those of whole runs first."""
        return dict(_figures({name: getattr(self, name) for name in (*_WHOLE, "stages")}))


def _figures(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Of a record, or of one in JSON."""
    for name in _WHOLE:
        if value.get(name):
            yield name.replace("_", " "), value[name]
    for name, found in value["stages"].items():
        yield f"  {name}", found


@dataclass(frozen=True, slots=True)
class Compared:
    """New over old, by figure. `slower` are those of a whole run whose ratio is above what was
    allowed with 95 % confidence; `differs` says what else is not the same.
    """

    ratios: dict[str, Ratio]
    slower: tuple[str, ...]
    differs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compared(new: Profile, path: str | Path, allowed: float) -> Compared:
    """With the record of a file; `allowed` is by which share a whole run may be slower. Raises
    InputError for a file that is none, of another workload or of another schema.
    """
    old = _read(path)
    if old["workload"] != new.workload:
        raise InputError(
            "compare",
            f"{path}: is about {old['workload']}, this is {new.workload}; compare the same one",
        )
    ratios: dict[str, Ratio] = {}
    try:
        before = {name: Distribution.from_json(v) for name, v in _figures(old)}
        for name, value in new.figures().items():
            if name in before:
                found = Ratio.of(value, before[name])
                ratios |= {} if found is None else {name: found}
        same = ("bundle_sha256", "recipe", "picture", "policy", "settings", "machine", "placement")
        now = json.loads(json.dumps(new.to_json()))
        differs = tuple(name for name in same if old[name] != now[name])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_record(path, f"{type(error).__name__}: {error}") from None
    whole = [name for name in ratios if not name.startswith(" ")]
    slower = tuple(
        name
        for name in whole
        if (ratios[name].low or 0.0) > 1 + allowed or _once(ratios[name], allowed)
    )
    return Compared(ratios, slower, differs)


def _once(ratio: Ratio, allowed: float) -> bool:
    """Of a single run there is no interval to go by."""
    return ratio.low is None and ratio.value > 1 + allowed


def _read(path: str | Path) -> dict[str, Any]:
    try:
        value = json.loads(file_bytes(path, _MOST_BYTES))
    except OSError as error:
        raise InputError("compare", f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise _no_record(path, str(error)) from None
    if not isinstance(value, dict) or "schema_version" not in value:
        raise _no_record(path, "it has no schema_version")
    if value["schema_version"] != SCHEMA_VERSION:
        raise InputError(
            "compare",
            f"{path}: has schema {value['schema_version']!r}, this edgejudge compares "
            f"{SCHEMA_VERSION}; profile the old one again",
        )
    if not isinstance(value.get("workload"), str):
        raise _no_record(path, "it has no workload")
    return value


def _no_record(path: str | Path, why: str) -> InputError:
    return InputError(
        "compare", f"{path}: is no record of `edgejudge profile --json` ({why}); give one"
    )
