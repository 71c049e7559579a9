"""Where the time of a prompt's pass goes: `make bench-prefill BUNDLE=DIR`.

Takes a bundle and a number of tokens, or of views of a square tower in place of them; prints tokens
or views a second, peak memory, and ONNX Runtime's own times by operator. Judges nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgejudge.bundle import Bundle
from edgejudge.profiling import peak_rss_mib
from edgejudge.runtime import Engine, session

RUNS = 4


def timed(engine: Engine, work: Callable[[Engine], object]) -> float:
    """Seconds of the fastest of a few runs, the first of which also loads."""
    times = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        work(engine)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def operators(bundle: Bundle, work: Callable[[Engine], object]) -> tuple[dict[str, float], int]:
    """Milliseconds of one run by operator, and how many graphs ran for it."""
    options: Any = ort.SessionOptions
    with tempfile.TemporaryDirectory() as folder:

        def profiling() -> Any:
            made = options()
            made.enable_profiling = True
            made.profile_file_prefix = f"{folder}/run"
            return made

        session.ort.SessionOptions = profiling
        engine = Engine.open(bundle)
        timed(engine, work)
        session.ort.SessionOptions = options
        spent: Counter[str] = Counter()
        runs = 0
        for held in engine._sessions.values():
            for event in json.loads(Path(held._inner.end_profiling()).read_text()):
                runs += event.get("name") == "model_run"
                if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
                    spent[event["args"]["op_name"]] += event["dur"] / 1e3
    return {name: ms / (RUNS + 1) for name, ms in spent.most_common()}, runs // (RUNS + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--views", type=int, help="through the vision tower, in place of tokens")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle, unsealed=True)
    rng = np.random.default_rng(0)
    if args.views:
        count, what = args.views, "views"
        side = int(bundle.graph("cpu", "vision").inputs[0].shape[-1])
        pixels = rng.normal(0, 0.3, (count, 3, side, side)).astype(np.float32)

        def work(engine: Engine) -> object:
            return engine.encode_image({"pixel_values": pixels})

    else:
        count, what = args.tokens, "tokens"
        most = bundle.manifest.embeddings.rows // 2
        ids = [int(i) for i in rng.integers(most // 8, most, count)]

        def work(engine: Engine) -> object:
            return engine.prefill(ids)

    seconds = timed(Engine.open(bundle), work)
    peak = peak_rss_mib()
    spent, passes = operators(bundle, work)
    print(
        f"{count} {what} in {passes} passes: {count / seconds:.1f} {what} a second, "
        f"peak RSS {peak:.0f} MiB"
    )
    print("| operator | ms |\n|---|---|")
    for name, ms in spent.items():
        print(f"| {name} | {ms:.1f} |")
    print(f"| all | {sum(spent.values()):.1f} |")


if __name__ == "__main__":
    main()
