"""One judge on several devices at once, beside one device and beside the same devices in order:
`make bench-devices`.

Takes a bundle with graphs for the places that are asked for, and pictures; prints for each place
how long they take, for how much of that two devices are at work, and how many decisions are those
of the CPU. With simulators the times mean nothing: order, overlap and equality do. One JSON line
ends it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge import Judge, Verdict
from edgejudge.errors import EdgeJudgeError
from edgejudge.images import ImageInput
from edgejudge.runtime import Engine, Trace
from edgejudge.runtime.executor import Executor
from edgejudge.runtime.scheduling import Limits
from edgejudge.runtime.settings import processor

PLACES = (
    "",
    "vision=gpu,decoder=gpu",
    "vision=npu,decoder=npu",
    "vision=gpu",
    "vision=gpu,decoder.0=npu,decoder.1=cpu",
)
_STAGES = ("vision", "decoder", "writer", "verdict_head")


def load(bundle: Path, place: str, in_order: bool) -> tuple[Judge, list[Trace]]:
    """`in_order`: a picture is encoded before its prefill, and a pass ends before the next."""
    judge = Judge.load(bundle, place=place or None, prefix_cache_bytes=0, verify=False)
    engine, traces = judge.engine, []
    assert isinstance(engine, Engine)
    if in_order:
        engine.stages.executor = Executor(Limits(requests=1, chunks=1))

    class Traced(type(engine)):  # type: ignore[misc]
        __slots__ = ()

        def new_trace(self) -> Trace:
            traces.append(super().new_trace())
            return traces[-1]

        @property
        def overlaps(self) -> bool:
            return not in_order and super().overlaps

    engine.__class__ = Traced
    return judge, traces


def at_work(traces: Sequence[Trace]) -> tuple[float, float]:
    """Milliseconds in which at least one device was at work, and at least two."""
    edges: list[tuple[float, int, str]] = []
    for trace in traces:
        for span in trace.spans:
            if span.name in _STAGES and span.device != "host":
                begin = trace._began * 1e3 + span.start_ms
                edges += [(begin, 1, span.device), (begin + span.ms, -1, span.device)]
    busy: dict[str, int] = {}
    one = two = last = 0.0
    for at, change, device in sorted(edges):
        working = sum(count > 0 for count in busy.values())
        one += (at - last) * (working >= 1)
        two += (at - last) * (working >= 2)
        busy[device], last = busy.get(device, 0) + change, at
    return one, two


def strip(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    quarter, eighth = pixels.shape[1] // 4, pixels.shape[1] // 8
    middle = pixels.shape[0] // 2
    return pixels[max(0, middle - eighth) : middle - eighth + quarter]


def run(bundle: Path, place: str, files: Sequence[ImageInput], rounds: int, in_order: bool) -> Any:
    judge, traces = load(bundle, place, in_order)
    first = [judge.screen(file) for file in files]  # opens, compiles and allocates
    singles, streams, shares = [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        for file in files:
            judge.screen(file)
        singles.append((time.perf_counter() - began) * 1e3 / len(files))
        traces.clear()
        began = time.perf_counter()
        list(judge.stream(files))
        streams.append((time.perf_counter() - began) * 1e3 / len(files))
        one, two = at_work(traces)
        shares.append(two / one if one else 0.0)
    return first, *(statistics.median(found) for found in (singles, streams, shares))


def decisions(verdicts: Sequence[Verdict]) -> list[tuple[str, str | None]]:
    return [(rule.id, rule.verdict) for verdict in verdicts for rule in verdict.rules]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--place", action="append", help="instead of those for three providers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--strip",
        action="store_true",
        help="take the middle quarter of each picture's height: few views, for slow simulators",
    )
    parser.add_argument("pictures", nargs="+", type=Path)
    args = parser.parse_args()
    pictures = [strip(path) if args.strip else path for path in args.pictures]
    rows, ours = [], None
    print(
        "| place | a picture, ms | in a stream | in order | two at once | decisions as the CPU's |"
    )
    print("|---" * 6 + "|")
    for place in args.place or PLACES:
        try:
            found, single, stream, share = run(
                args.bundle, place, pictures, args.rounds, in_order=False
            )
            _, one_by_one, *_ = run(args.bundle, place, pictures, args.rounds, in_order=True)
        except EdgeJudgeError as error:
            print(f"| {place} | {error} | | | | |")
            continue
        told = decisions(found)
        ours = ours or told
        same = sum(a == b for a, b in zip(ours, told, strict=True))
        row = {
            "place": place or "cpu",
            "ms": single,
            "stream_ms": stream,
            "in_order_ms": one_by_one,
        }
        rows.append(row | {"two_at_once": share, "same": same, "decisions": len(told)})
        times = f"{single:.0f} | {stream:.0f} | {one_by_one:.0f}"
        print(f"| {row['place']} | {times} | {share:.0%} | {same} of {len(told)} |", flush=True)
    print(
        f"\n{len(args.pictures)} pictures, medians of {args.rounds} rounds; {processor()}, Python "
        f"{sys.version.split()[0]}"
    )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
