"""How fast a bundle judges: cold, warm, by stage, in memory.

Takes a bundle, a policy and how often to run; gives a `Profile` of plain numbers in milliseconds
and MiB. Times whole verdicts from the bytes of a picture, through the same `Judge` that users call.
Does not print.
"""

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgejudge.errors import EdgeJudgeError

__all__ = ["Percentiles", "Profile", "drawn_picture", "peak_rss_mib", "profile"]

SCHEMA_VERSION = 3
KEPT_BYTES = 1 << 30  # enough for one picture of any judge


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds over `n` runs."""

    n: int
    min_ms: float
    p50_ms: float
    p95_ms: float
    max_ms: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles":
        array = np.asarray(values, np.float64)
        p50, p95 = np.percentile(array, [50, 95])
        return cls(
            len(array),
            round(float(array.min()), 3),
            round(float(p50), 3),
            round(float(p95), 3),
            round(float(array.max()), 3),
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """`first_verdict_ms` counts from before the bundle is opened, in a process that has imported
    edgejudge. `warm` computes the picture anew each time, `kept` finds its prefix in the cache.
    `cold_process` is `edgejudge screen` on one picture as a whole process. `stages` are those of
    `warm`.
    """

    schema_version: int
    bundle: str
    bundle_sha256: str
    recipe: str
    policy: str
    questions: int
    picture: str
    first_verdict_ms: float
    warm: Percentiles
    kept: Percentiles
    stages: dict[str, Percentiles]
    cold_process: Percentiles | None
    library_images: int
    library_images_per_s: float | None
    peak_rss_mib: float
    placement: dict[str, str]
    settings: dict[str, int]  # of the engine
    machine: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def peak_rss_mib() -> float:
    """The most memory this process has had resident, mapped files included."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource  # not on Windows, where the figure is absent

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def profile(
    bundle: str | None = None,
    policy: str = "stickers",
    picture: str | None = None,
    runs: int = 20,
    cold: int = 0,
    images: int = 0,
) -> Profile:
    """Profile a bundle (None: the bundled nano judge).

    `picture` is a file to judge; without one a drawn 1920 x 1080 PNG is used. `cold` counts whole
    processes to start, `images` the pictures of a library run. Raises EdgeJudgeError where no
    verdict can be had.
    """
    if runs < 1 or cold < 0 or images < 0:
        raise ValueError(
            f"runs must be at least 1, cold and images at least 0: {runs}, {cold}, {images}"
        )
    from edgejudge.judge import Judge
    from edgejudge.prefix_cache import PrefixCache

    with tempfile.TemporaryDirectory() as folder:
        path = Path(picture) if picture else drawn_picture(Path(folder))
        began = time.perf_counter()
        judge = Judge.load(bundle, allow_random=True, prefix_cache_bytes=0)
        verdict = judge.screen(path, policy=policy)
        first_ms = (time.perf_counter() - began) * 1e3
        if verdict.error is not None:
            raise EdgeJudgeError(f"{path}: {verdict.error.message}; give another picture")
        warm = [_timed(judge, path, policy) for _ in range(runs)]
        keeping = Judge(judge.bundle, judge.engine, prefix_cache=PrefixCache(KEPT_BYTES))
        keeping.screen(path, policy=policy)
        kept = [_timed(keeping, path, policy)[0] for _ in range(runs)]
        stages = [dict(verdict.stages_ms) for _, verdict in warm]
        rate = _library(judge, policy, Path(folder), images) if images else None
        rss = peak_rss_mib()  # before other processes are started
        colds = [_cold_process_ms(bundle, policy, path) for _ in range(cold)]
    manifest = judge.bundle.manifest
    names = sorted({name for s in stages for name in s})
    return Profile(
        SCHEMA_VERSION,
        manifest.name,
        judge.bundle.fingerprint,
        manifest.recipe,
        policy,
        sum(len(c.alternatives) for r in verdict.rules for c in r.conditions),
        path.name if picture else "drawn 1920x1080 PNG",
        round(first_ms, 3),
        Percentiles.of([ms for ms, _ in warm]),
        Percentiles.of(kept),
        {name: Percentiles.of([s.get(name, 0.0) for s in stages]) for name in names},
        Percentiles.of(colds) if colds else None,
        images,
        None if rate is None else round(rate, 2),
        round(rss, 1),
        dict(verdict.placement),
        {name: getattr(judge.engine, name) for name in ("threads", "chunk", "pack_tokens")},
        _machine(),
    )


def _timed(judge: Any, path: Path, policy: str) -> tuple[float, Any]:
    start = time.perf_counter()
    verdict = judge.screen(path, policy=policy)
    return (time.perf_counter() - start) * 1e3, verdict


def drawn_picture(folder: Path) -> Path:
    """A PNG as large as a screen, for want of another."""
    from PIL import Image

    from edgejudge.models.image import canary_image

    path = folder / "screen.png"
    Image.fromarray(canary_image(1080, 1920)).save(path)
    return path


def _library(judge: Any, policy: str, folder: Path, count: int) -> float:
    """Images per second over `count` different JPEG files of phone and screen shapes."""
    from PIL import Image

    from edgejudge.models.image import canary_image

    sizes = ((1080, 1920), (1920, 1080), (1024, 1024), (720, 1280))
    paths = []
    for i in range(count):
        pixels = np.roll(canary_image(*sizes[i % len(sizes)]), 37 * i, axis=1)
        paths.append(folder / f"{i:05}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    began = time.perf_counter()
    verdicts = judge.screen(list(paths), policy=policy)
    seconds = time.perf_counter() - began
    failed = [v for v in verdicts if v.error is not None]
    if failed:
        raise EdgeJudgeError(f"{failed[0].path}: {failed[0].error.message}")
    return count / seconds


def _cold_process_ms(bundle: str | None, policy: str, picture: Path) -> float:
    """Wall time of one `edgejudge screen` process, interpreter included."""
    command = [
        sys.executable,
        "-m",
        "edgejudge",
        "screen",
        "--allow-random",
        str(picture),
        "--policy",
        policy,
        "--json",
    ]
    if bundle is not None:
        command += ["--bundle", bundle]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    elapsed = (time.perf_counter() - began) * 1e3
    if done.returncode == 2:
        raise EdgeJudgeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return elapsed


def _machine() -> dict[str, str]:
    import onnxruntime

    from edgejudge.runtime.settings import processor

    return {
        "system": platform.system(),
        "processor": processor(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
