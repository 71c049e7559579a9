"""What watching costs: verdicts with `judge.trace()` beside verdicts without, in turns:
`make bench-trace`.

Takes a bundle and a picture; prints the median ratio of a turn with its interval, and what a span
takes.
One JSON line ends it.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from edgejudge import Judge
from edgejudge.profiling import Distribution
from edgejudge.runtime.settings import processor
from edgejudge.runtime.trace import Trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--runs", type=int, default=60, help="of each")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    judge = Judge.load(args.bundle, allow_random=True, prefix_cache_bytes=0)
    took: dict[bool, list[float]] = {False: [], True: []}
    spans = 0

    def run(watched: bool) -> None:
        nonlocal spans
        began = time.perf_counter()
        if watched:
            with judge.trace() as seen:
                judge.screen(args.picture)
            spans = len(seen.spans)
        else:
            judge.screen(args.picture)
        took[watched].append((time.perf_counter() - began) * 1e3)

    for number in range(-2, args.runs):
        for watched in (False, True) if number % 2 else (True, False):
            run(watched)
        if number < 0:
            took = {False: [], True: []}
    off, on = Distribution.of(took[False]), Distribution.of(took[True])
    # Of each turn by itself: what the machine does meanwhile is in both of its runs.
    turns = [b / a for a, b in zip(took[False], took[True], strict=True)]
    ratio = Distribution.of(turns)
    trace, began, many = Trace(), time.perf_counter(), 20_000
    for _ in range(many):
        with trace.span("x"):
            pass
    each = (time.perf_counter() - began) * 1e6 / many
    print(f"without {off.p50:.2f} ms, with {on.p50:.2f} ms, {args.runs} runs of each, in turns")
    low, high = ratio.intervals["p50"]
    print(f"median of the turns' ratios {ratio.p50:.3f} ({low:.3f} to {high:.3f}, 95 %)")
    share = spans * each / 10 / off.p50
    print(f"{spans} spans a verdict, {each:.1f} us each, watched or not: {share:.2f} % of it")
    print(f"{processor()}, Python {sys.version.split()[0]}")
    print(json.dumps({"off": off.p50, "on": on.p50, **asdict(ratio), "span_us": each}))


if __name__ == "__main__":
    main()
