"""Seconds per picture and peak memory of a judge that is read from disk a few layers at a time.

Takes a bundle, a budget and batch sizes; runs `edgejudge screen` on that many drawn 1080p pictures,
each size in a process of its own, and the whole judge on one picture first, for comparison. Not a
test: timings never are.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from edgejudge.models.image import canary_image
from edgejudge.runtime.settings import processor


def screen(bundle: Path, pictures: list[str], *more: str) -> tuple[float, float]:
    """Seconds, and MiB of VmHWM."""
    command = [sys.executable, "-m", "edgejudge", "screen", *pictures, "--bundle", str(bundle)]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--allow-random", "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stdout, stderr = process.communicate()
    seconds = time.perf_counter() - began
    rows = stdout.splitlines()
    if len(rows) != len(pictures) or any('"error": null' not in row for row in rows):
        raise SystemExit(f"{len(rows)} rows for {len(pictures)} pictures: {stderr}{stdout[:2000]}")
    return seconds, float(stderr.rsplit("peak ", 1)[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--budget", default="512MiB")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated")
    args = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores; {args.bundle.name}, pictures of 1920 x 1080")
    print("\n| batch | seconds | of a picture | peak, MiB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        pictures = []
        for index in range(max(args.batch or (1, 8))):
            pictures.append(f"{folder}/{index}.jpg")
            Image.fromarray(canary_image(1080, 1920)).save(pictures[-1], quality=90)
        for name, count, more in [
            ("whole", 1, ["--memory-budget", "64GiB"]),
            *(
                (str(n), n, ["--memory-budget", args.budget, "--batch", str(n)])
                for n in args.batch or (1, 8)
            ),
        ]:
            seconds, peak = screen(args.bundle, pictures[:count], *more)
            print(f"| {name} | {seconds:.1f} | {seconds / count:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
