"""The runs of a profile: loading, the first one, warm ones, kept prefixes, whole processes.

Takes a bundle, a workload and how often to run it; gives a record. Whatever is timed goes through
the same `Judge` that users call. Ctrl-C ends the runs, and what was measured until then is the
record. Prints nothing.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgejudge.batches import BatchScorer
from edgejudge.bundle import Bundle
from edgejudge.errors import BundleError, EdgeJudgeError, InputError
from edgejudge.profiling.distributions import Distribution
from edgejudge.profiling.limits import Limits, limits_of
from edgejudge.profiling.machine import Beside, Usage, available_bytes, card, peak_rss_mib, usage
from edgejudge.profiling.pictures import drawn_picture
from edgejudge.profiling.records import SCHEMA_VERSION, Memory, OperatorRecord, Profile
from edgejudge.profiling.workloads import Came, Work, made, read_workload
from edgejudge.runtime.compiled import KEEPS
from edgejudge.runtime.memory import fits, resident_bytes
from edgejudge.runtime.operators import Ran, profiled
from edgejudge.runtime.session import CPU
from edgejudge.tracing import Tracing

__all__ = ["profile"]

KEPT_BYTES = 1 << 30  # enough for the pictures of any workload
_MIB = 1 << 20
_SETTINGS = ("threads", "chunk", "pack_tokens")
_OPERATORS = 12  # of each provider are told
_BUSY = 0.1  # of all cores: when others have more, figures are theirs too
_TOKENS = {"prefill": "prompt tokens", "score": "question tokens", "write": "written tokens"}


@dataclass(slots=True)
class _Runs:
    """Of one kind, in their order."""

    ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)
    pass_tokens: list[int] = field(default_factory=list)  # of prompts
    hits: int = 0
    images: int = 0

    def add(self, at_s: float, ms: float, came: Came, seen: Tracing) -> None:
        self.ms.append(ms)
        self.at_s.append(at_s)
        if came.images > 1 and came.first_ms is not None:
            self.first_ms.append(came.first_ms)
        self.stages.append(seen.totals())
        self.pass_tokens += _of_prompts(seen)
        self.hits, self.images = self.hits + came.cache_hits, self.images + came.images
        for name, count in (("images", came.images), ("answers", came.answers)):
            if count:
                self.rates.setdefault(name, []).append(1e3 * count / ms)
        spans = seen.spans
        for span, name in _TOKENS.items():
            own = [s for s in spans if s.name == span]
            tokens, took = sum(s.counts.get("tokens", 0) for s in own), sum(s.ms for s in own)
            if tokens and took > 0:
                self.rates.setdefault(name, []).append(1e3 * tokens / took)


def profile(
    bundle: str | None = None,
    workload: str = "screen",
    *,
    policy: str = "stickers",
    picture: str | None = None,
    runs: int = 20,
    seconds: float | None = None,
    warmup: int = 1,
    cold: int = 0,
    place: str | None = None,
    threads: int | None = None,
    memory_budget: int | None = None,
    operators: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Profile, Tracing]:
    """Profile a bundle (None: the bundled nano judge), and what its last warm run did.

    `picture` is a file to judge, where the workload takes one; without it pictures are drawn. Warm
    runs are `runs`, or as many as fit into `seconds`, which shows whether the machine slows down.
    `cold` counts whole processes of `edgejudge screen` to start. With `operators` one run more, of
    a judge that is slower for it, says which of them the time went to, and is what is traced.

    Raises InputError for numbers that make no sense and an unknown workload, BundleError for a
    bundle that does not fit into memory, EdgeJudgeError where no answer can be had.
    """
    if runs < 1 or warmup < 0 or cold < 0 or (seconds is not None and not seconds > 0):
        raise InputError(
            "usage",
            "runs must be at least 1, warmup and cold at least 0 and seconds above 0; got "
            f"{runs}, {warmup}, {cold} and {seconds}",
        )
    if operators and memory_budget is not None:
        raise InputError(
            "usage",
            "operators are profiled in a second judge, which a memory budget has no room for",
        )
    wanted = read_workload(workload)
    with tempfile.TemporaryDirectory() as folder:
        if picture is not None and not Path(picture).is_file():
            raise InputError("picture", f"{picture}: is no file; give a picture, or none to draw")
        given = Path(picture) if picture else None
        measured = _Measuring(wanted, policy, given, Path(folder), progress)
        how = {"place": place, "threads": threads, "memory_budget": memory_budget}
        measured.load(bundle, how)
        try:
            measured.warm(warmup, runs, seconds)
            measured.keep(runs if seconds is None else 5)
            measured.peak = peak_rss_mib()  # before other processes are started
            measured.processes(bundle, cold)
            if operators:
                measured.look_inside(how)
        except KeyboardInterrupt:
            measured.stopped = True
        return measured.record(warmup), measured.last


class _Measuring:
    def __init__(
        self,
        workload: Any,
        policy: str,
        picture: Path | None,
        folder: Path,
        progress: Callable[[str], None],
    ) -> None:
        self.workload, self.policy, self.picture = workload, policy, picture
        self.folder, self.progress = folder, progress
        self.before, self.stopped, self.peak = Beside.now(), False, 0.0
        self.resident = {"start": resident_bytes() / _MIB}
        self.runs, self.kept, self.colds = _Runs(), _Runs(), list[float]()
        self.last, self.used = Tracing(), Usage()
        self.operators: tuple[OperatorRecord, ...] = ()

    def load(self, bundle: str | None, how: Mapping[str, Any]) -> None:
        from edgejudge.judge import Judge, default_bundle

        folder = default_bundle() if bundle is None else Path(bundle)
        if how["memory_budget"] is None:
            _check_room(Bundle.open(folder))
        self.progress("loading")
        began = time.perf_counter()
        self.judge: Judge = Judge.load(folder, allow_random=True, prefix_cache_bytes=0, **how)
        self.load_ms = (time.perf_counter() - began) * 1e3
        self._hold("loaded")
        self.work: Work = made(self.workload, self.judge, self.folder, self.policy, self.picture)
        ms, _, seen = self._once(self.work)
        self.first_ms = self.load_ms + ms
        self.opened = dict[str, float]()
        for span in seen:
            if span.name == "load":
                self.opened[span.device] = self.opened.get(span.device, 0.0) + span.ms
        fleet = getattr(self.judge.engine, "fleet", None)
        self.compiled = sum(
            graph.origin == "compiled"
            for accelerator in (fleet.accelerators if fleet else ())
            for graph in accelerator.loaded.values()
            if accelerator.device.provider in KEEPS
        )
        self._hold("first run")

    def warm(self, warmup: int, runs: int, seconds: float | None) -> None:
        self.progress(f"{self.work.of}: warm runs")
        for _ in range(warmup):
            self._once(self.work)
        began = time.perf_counter()
        with usage() as self.used:
            while True:
                at_s = time.perf_counter() - began
                if (len(self.runs.ms) >= runs) if seconds is None else at_s >= seconds:
                    break
                ms, came, self.last = self._once(self.work)
                self.runs.add(round(at_s, 3), ms, came, self.last)
        self._hold("warm runs")

    def keep(self, runs: int) -> None:
        """The same pictures again, whose prefixes lie in the cache."""
        from edgejudge.judge import Judge
        from edgejudge.prefix_cache import PrefixCache

        if self.workload.kind != "screen" or isinstance(self.judge.engine, BatchScorer):
            return
        self.progress("runs with prefixes kept")
        keeping = Judge(self.judge.bundle, self.judge.engine, prefix_cache=PrefixCache(KEPT_BYTES))
        work = made(self.workload, keeping, self.folder, self.policy, self.picture)
        self._once(work)
        for _ in range(runs):
            ms, came, seen = self._once(work)
            self.kept.add(0.0, ms, came, seen)
        self._hold("prefixes kept")

    def look_inside(self, how: Mapping[str, Any]) -> None:
        """A run of another judge, whose sessions say what each operator took."""
        from edgejudge.judge import Judge

        self.progress("a run with operators profiled")
        with profiled() as inside:
            judge = Judge.load(
                self.judge.bundle.path, allow_random=True, prefix_cache_bytes=0, **how
            )
            work = made(self.workload, judge, self.folder, self.policy, self.picture)
            work.run()  # opens and allocates
            with judge.trace() as self.last:
                began = time.perf_counter()
                work.run()
                ended = time.perf_counter()
            self.last.operators += [r for r in inside.read() if began <= r.start < ended]
        self.operators = _by_operator(self.last.operators)

    def processes(self, bundle: str | None, count: int) -> None:
        for number in range(count):
            self.progress(f"whole process {number + 1} of {count}")
            path = self.picture or drawn_picture(self.folder)
            self.colds.append(_cold_process_ms(bundle, self.policy, path))

    def record(self, warmup: int) -> Profile:
        """Raises EdgeJudgeError where no warm run was done."""
        runs, judge = self.runs, self.judge
        if not runs.ms:
            raise EdgeJudgeError(
                f"stopped before the first warm run; the first run took {self.first_ms:.0f} ms, "
                f"{self.load_ms:.0f} of them to load"
            )
        manifest = judge.bundle.manifest
        names = dict.fromkeys(name for stages in runs.stages for name in stages)
        engine: Any = judge.engine
        cache = None if isinstance(engine, BatchScorer) else engine._cache
        peak = self.peak or peak_rss_mib()
        warnings = _warnings(self, Distribution.of(runs.ms))
        return Profile(
            SCHEMA_VERSION,
            manifest.name,
            judge.bundle.fingerprint,
            manifest.recipe,
            manifest.random_weights,
            str(self.workload),
            self.work.of,
            self.policy,
            self.picture.name if self.picture else "drawn",
            warmup,
            self.stopped,
            round(self.load_ms, 3),
            {device: round(ms, 3) for device, ms in self.opened.items()},
            self.compiled,
            round(self.first_ms, 3),
            Distribution.of(runs.ms),
            Distribution.of(runs.first_ms) if runs.first_ms else None,
            Distribution.of(self.kept.ms) if self.kept.ms else None,
            {n: Distribution.of([s.get(n, 0.0) for s in runs.stages]) for n in names},
            {name: Distribution.of(values) for name, values in runs.rates.items()},
            Distribution.of(self.colds) if self.colds else None,
            tuple((at, round(ms, 3)) for at, ms in zip(runs.at_s, runs.ms, strict=True)),
            round(self.kept.hits / self.kept.images, 4) if self.kept.images else 0.0,
            Memory(
                {name: round(mib, 1) for name, mib in self.resident.items()},
                round(peak, 1),
                _stage_mib(judge.bundle),
                None if cache is None else round(cache.nbytes / _MIB, 2),
            ),
            round(self.used.cpu_seconds / self.used.seconds, 3) if self.used.seconds else 0.0,
            self.used.watts,
            dict(engine.placement),
            {name: getattr(engine, name) for name in _SETTINGS if hasattr(engine, name)},
            card(),
            self.before,
            Beside.now(),
            self.used.others,
            self.limits(),
            self.operators,
            warnings,
        )

    def limits(self) -> Limits | None:
        """Of the decoder on the processor alone: other devices' limits are not known."""
        rates = self.runs.rates
        engine: Any = self.judge.engine
        elsewhere = {v for k, v in engine.placement.items() if k.startswith("decoder")} - {CPU}
        if elsewhere or not {"prompt tokens", "written tokens"} & rates.keys():
            return None
        known = {name: float(np.median(values)) for name, values in rates.items()}
        tokens = float(np.mean(self.runs.pass_tokens or [1]))
        return limits_of(self.judge.bundle, known, tokens, getattr(engine, "threads", 1))

    def _once(self, work: Work) -> tuple[float, Came, Tracing]:
        with self.judge.trace() as seen:
            began = time.perf_counter()
            came = work.run()
            ms = (time.perf_counter() - began) * 1e3
        return ms, came, seen

    def _hold(self, step: str) -> None:
        self.resident[step] = resident_bytes() / _MIB


def _of_prompts(seen: Tracing) -> list[int]:
    """Tokens of each pass of a prompt through the decoder's first part."""
    found = []
    for trace in seen.requests:
        spans = trace.spans
        for span in spans:
            inside = None if span.parent is None else spans[span.parent].name
            if span.name == "decoder" and inside == "prefill" and not span.counts.get("part"):
                found.append(span.counts["tokens"])
    return found


def _warnings(measured: _Measuring, run: Distribution) -> tuple[str, ...]:
    found = list(run.doubts)
    others = measured.used.others
    if others is not None and others > _BUSY:
        found.append(f"other processes had {others:.0%} of the machine's cores meanwhile")
    if measured.judge.bundle.manifest.random_weights:
        found.append("its weights are random: times are real, verdicts mean nothing")
    found += dict.fromkeys(text for _, _, text in measured.last.marks)
    return tuple(found)


def _by_operator(runs: Sequence[Ran]) -> tuple[OperatorRecord, ...]:
    """Those that took most, of each provider."""
    sums: dict[tuple[str, str], list[float]] = {}
    for ran in runs:
        sums.setdefault((ran.provider, ran.operator), []).append(ran.ms)
    whole = sum(ran.ms for ran in runs)
    found = [
        OperatorRecord(provider, name, len(ms), round(sum(ms), 3), round(sum(ms) / whole, 4))
        for (provider, name), ms in sums.items()
    ]
    found.sort(key=lambda record: (record.provider, -record.ms))
    return tuple(
        record
        for provider in dict.fromkeys(record.provider for record in found)
        for record in [r for r in found if r.provider == provider][:_OPERATORS]
    )


def _check_room(bundle: Bundle) -> None:
    """Raises BundleError for one that would make the machine swap."""
    free = available_bytes()
    if free is not None and not fits(bundle, resident_bytes() + free):
        sizes = sum(_stage_mib(bundle).values())
        raise BundleError(
            f"{bundle.path}: its graphs take {sizes:.0f} MiB, and with what runs beside them more "
            f"than the {free // _MIB} MiB that are free; close other programs, export it in fewer "
            "bits, or give --memory-budget"
        )


def _stage_mib(bundle: Bundle) -> dict[str, float]:
    sizes = {file.name: file.bytes for file in bundle.manifest.files}
    files: dict[str, set[str]] = {}
    for graph in bundle.manifest.graphs:
        if graph.target == "cpu" and not graph.stage.endswith("_slice"):
            files.setdefault(graph.stage, set()).update((graph.file, *graph.weight_files))
    return {
        stage: round(sum(sizes.get(name, 0) for name in names) / _MIB, 2)
        for stage, names in files.items()
    }


def _cold_process_ms(bundle: str | None, policy: str, picture: Path) -> float:
    """Wall time of one `edgejudge screen` process, interpreter included."""
    command = [sys.executable, "-m", "edgejudge", "screen", "--allow-random", str(picture)]
    command += ["--policy", policy, "--json"]
    if bundle is not None:
        command += ["--bundle", bundle]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    elapsed = (time.perf_counter() - began) * 1e3
    if done.returncode == 2:
        raise EdgeJudgeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return elapsed
