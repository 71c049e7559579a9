"""Thousands of verdicts over good and bad files from several threads: `make soak`.

Takes a number of verdicts and of threads; prints one JSON line with the memory, the descriptors and
the threads of the process as they went, and exits with 1 where one of the promises of SECURITY.md
does not hold: a verdict that changed, a failure that was called something else, memory or
descriptors that grew. Does not know how a picture is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from edgejudge.judge import Judge

NANO = Path(__file__).parent.parent.parent / "models" / "nano"
POLICY = "stickers"
KEPT_BYTES = 32 << 20  # of prefixes: less than the pictures need, so that some are found, some not
GROWTH_BYTES = 20 << 20
PATIENCE_S = 120


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes that ask a decoder for any number of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def good_files(folder: Path, count: int) -> list[Path]:
    """Drawn pictures of nano in the formats and modes that people have."""
    sources = sorted((NANO / "calibration").glob("*.png"))[:count]
    out = []
    for number, source in enumerate(sources):
        image = Image.open(source).convert("RGB")
        kind = number % 8
        file = folder / f"good-{number:03}"
        if kind == 0:
            image.save(file, "PNG")
        elif kind == 1:
            image.save(file, "JPEG", quality=80)
        elif kind == 2:
            image.save(file, "WEBP", quality=80)
        elif kind == 3:
            image.convert("CMYK").save(file, "JPEG")
        elif kind == 4:
            image.quantize(64).save(file, "GIF")
        elif kind == 5:
            seen = image.convert("RGBA")
            seen.putalpha(Image.linear_gradient("L").resize(image.size))
            seen.save(file, "PNG")
        elif kind == 6:
            grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
            Image.fromarray(grey).save(file, "PNG")
        else:
            frames = [image.resize((160, 120)), image.resize((160, 120)).rotate(90)]
            frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=80)
        out.append(file)
    return out


def bad_files(folder: Path) -> list[Path]:
    """One of each kind that cannot be judged."""
    whole = (NANO / "samples" / "chat.jpg").read_bytes()
    contents = {
        "empty": b"",
        "text": b"not a picture\n" * 100,
        "torn.jpg": whole[: len(whole) // 3],
        "torn.png": png_that_claims(64, 64),
        "bomb.png": png_that_claims(60_000, 60_000),
        "long.png": png_that_claims(70_000, 10),
        "noise": random.Random(5).randbytes(20_000),
        "noise.jpg": whole[:200] + random.Random(6).randbytes(5_000),
    }
    out = []
    for name, content in contents.items():
        out.append(folder / name)
        out[-1].write_bytes(content)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to(folder / "loop")
    return [*out, *(folder / name for name in ("folder", "fifo", "loop", "missing"))]


@dataclass
class Held:
    """What the process holds, in bytes and numbers."""

    verdicts: int
    rss: int
    descriptors: int
    threads: int

    @classmethod
    def now(cls, verdicts: int) -> Held:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        rss = pages * os.sysconf("SC_PAGE_SIZE")
        return cls(verdicts, rss, len(os.listdir("/proc/self/fd")), threading.active_count())


@dataclass
class Soaked:
    """What a run found. `changed` are files whose answer was not the same every time."""

    verdicts: int
    seconds: float
    outcomes: dict[str, int]
    held: list[Held]
    changed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def growth(self) -> int:
        """Bytes of memory from the first measure, when all is warm, to the last."""
        return self.held[-1].rss - self.held[0].rss

    def broken(self) -> list[str]:
        """The promises that did not hold."""
        out = [f"the answer for {name} changed" for name in self.changed] + self.errors
        if self.growth > GROWTH_BYTES:
            out.append(f"memory grew by {self.growth / 2**20:.1f} MiB")
        first, last = self.held[0], self.held[-1]
        if last.descriptors > first.descriptors:
            out.append(f"descriptors grew from {first.descriptors} to {last.descriptors}")
        return out


def soak(verdicts: int, threads: int, pictures: int = 48, seed: int = 0) -> Soaked:
    """Judges files in any order, each many times, from `threads` threads over one judge."""
    judge = Judge.load(prefix_cache_bytes=KEPT_BYTES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good, bad = good_files(folder, pictures), bad_files(folder)
        files = [*good, *bad]
        rng = random.Random(seed)
        rounds = -(-verdicts // len(files))
        order = [file for _ in range(rounds) for file in rng.sample(files, len(files))][:verdicts]
        waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for file in order:
            waiting.put(file)
        lock, first, done = threading.Lock(), {}, Counter[str]()
        result = Soaked(verdicts, 0.0, {}, [])
        warm = max(2 * len(files), verdicts // 10)
        must_fail = set(bad)

        def work() -> None:
            while True:
                try:
                    file = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    verdict = judge.screen(file, POLICY)
                except Exception as error:
                    with lock:
                        result.errors.append(f"{file.name}: {type(error).__name__}: {error}")
                    continue
                code = verdict.verdict or "failed"
                if (code == "failed") != (file in must_fail):
                    with lock:
                        result.errors.append(f"{file.name} was {code}")
                said = code, verdict.error and verdict.error.code
                said = *said, tuple(round(r.probability or 0.0, 6) for r in verdict.rules)
                with lock:
                    if first.setdefault(file, said) != said:
                        result.changed.append(file.name)
                    done[code] += 1
                    count = done.total()
                    if count >= warm and (count - warm) % max(1, (verdicts - warm) // 20) == 0:
                        result.held.append(Held.now(count))
                        print(result.held[-1], file=sys.stderr)

        began = time.perf_counter()
        workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
        for each in workers:
            each.start()
        for each in workers:
            while each.is_alive():
                before = done.total()
                each.join(PATIENCE_S)
                if each.is_alive() and done.total() == before:
                    result.errors.append(f"no verdict in {PATIENCE_S} s")
                    break
        result.held.append(Held.now(done.total()))
        result.seconds = time.perf_counter() - began
        result.outcomes = dict(done)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verdicts", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = soak(args.verdicts, args.threads, seed=args.seed)
    broken = found.broken()
    told = {**asdict(found), "threads": args.threads, "growth_mib": round(found.growth / 2**20, 1)}
    print(json.dumps({**told, "broken": broken}))
    for each in broken:
        print(f"error: {each}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
