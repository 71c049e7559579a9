"""What one more rule costs: `make bench-rules`.

Takes a bundle; times verdict logits of 1, 4, 12 and 32 questions over one picture, vision and cold
prefix included, three ways: as a tree over one prefix, each question in passes of its own over that
prefix, and with the picture prefilled again for every question, as chat runtimes do. Half of each
question's tokens are shared. Prints one table and one JSON line. Not a test: timings never are.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgejudge.bundle import Bundle
from edgejudge.judge import default_bundle
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.profiling import peak_rss_mib
from edgejudge.runtime import Engine

COUNTS = (1, 4, 12, 32)
BUDGETS = (32, 64, 128, 256, 512)  # tokens of a pass
LENGTH = 16  # tokens of a question, half of them shared by all
PICTURE = (1080, 1920)


def questions(count: int, vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    low, high = vocabulary // 8, vocabulary // 2  # ordinary words in every tokenizer here
    shared = rng.integers(low, high, LENGTH // 2).tolist()
    own = [rng.integers(low, high, LENGTH - len(shared)).tolist() for _ in range(count)]
    return [shared + tail for tail in own]


class Bench:
    def __init__(self, folder: Path, rounds: int) -> None:
        self.bundle = Bundle.open(folder, unsealed=True)
        self.engine = Engine.open(self.bundle)
        self.rounds = rounds
        manifest = self.bundle.manifest
        self.prompts = Prompts.of(self.bundle)
        self.seen = preprocess(canary_image(*PICTURE), image_spec(manifest.preprocessing))
        self.vocabulary = manifest.embeddings.rows

    def prefix(self) -> Any:
        grid = (self.seen.rows, self.seen.cols)
        visual = self.engine.encode_image(self.seen.feeds)
        ids, positions = self.prompts.prefix_ids(*grid), self.prompts.prefix_positions(*grid)
        return self.engine.prefill(ids, visual, positions)

    def tree(self, asked: list[list[int]]) -> None:
        self.engine.score(self.prefix(), asked)

    def separate(self, asked: list[list[int]]) -> None:
        self.engine.score(self.prefix(), asked, packed=False)

    def again(self, asked: list[list[int]]) -> None:
        for question in asked:
            self.engine.score(self.prefix(), [question])

    def timed(self, way: Callable[[list[list[int]]], None], count: int) -> tuple[float, int]:
        """Seconds and computed tokens."""
        asked = questions(count, self.vocabulary)
        self.engine.trace.clear()
        began = time.perf_counter()
        way(asked)
        seconds = time.perf_counter() - began
        spans = [s for s in self.engine.trace.spans if s.name in ("prefill", "score")]
        return seconds, sum(s.counts["tokens"] for s in spans)


def over_kept(bench: Bench) -> tuple[dict[int, float], float]:
    """Median seconds to score each count of questions over a kept prefix; and the largest change of
    a probability against passes of their own.
    """
    prefix, engine = bench.prefix(), bench.engine
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(bench.rounds):
        for count in COUNTS:
            asked = questions(count, bench.vocabulary)
            began = time.perf_counter()
            logits = engine.score(prefix, asked)
            times[count].append(time.perf_counter() - began)
    apart = engine.label_probabilities(engine.score(prefix, asked, packed=False))
    moved = np.abs(engine.label_probabilities(logits) - apart).max()
    return {count: statistics.median(values) for count, values in times.items()}, float(moved)


def by_budget(bench: Bench) -> dict[int, float]:
    """Median seconds to score the most questions over a kept prefix, by tokens of a pass."""
    asked, prefix = questions(COUNTS[-1], bench.vocabulary), bench.prefix()
    times: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    for _ in range(bench.rounds):
        for budget in BUDGETS:
            bench.engine.pack_tokens = budget
            began = time.perf_counter()
            bench.engine.score(prefix, asked)
            times[budget].append(time.perf_counter() - began)
    return {budget: statistics.median(values) for budget, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=default_bundle())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    bench = Bench(args.bundle, args.rounds)
    bench.timed(bench.tree, 1)  # opens the sessions
    ways = {"tree": bench.tree, "separate": bench.separate, "picture again": bench.again}
    times: dict[tuple[str, int], list[float]] = {}
    tokens: dict[tuple[str, int], int] = {}
    for index in range(args.rounds):  # interleaved, so that a slow minute hits all alike
        for count in COUNTS:
            for name, way in ways.items():
                if name == "picture again" and (count > 12 or index > 0):
                    continue
                seconds, tokens[name, count] = bench.timed(way, count)
                times.setdefault((name, count), []).append(seconds)
    prefix = bench.prefix()
    rows = bench.engine.snapshot(prefix)
    assert rows is not None, "the prefix holds what is no number"
    restored = []
    for _ in range(args.rounds):
        began = time.perf_counter()
        bench.engine.restore(rows, prefix.position)
        restored.append(time.perf_counter() - began)
    median = {key: statistics.median(values) for key, values in times.items()}
    one = median["tree", 1]
    print(f"{bench.bundle.manifest.name} ({bench.bundle.manifest.recipe}), {prefix.length} tokens")
    heads = ("rules", "tree, s (min to max)", "of one rule", "tokens", "separate, s", "again, s")
    print(f"| {' | '.join(heads)} | again / tree |")
    print("|---" * 7 + "|")
    for count in COUNTS:
        mine = times["tree", count]
        tree, apart = median["tree", count], median["separate", count]
        again = median.get(("picture again", count))
        cells = [
            f"{count}",
            f"{tree:.3f} ({min(mine):.3f} to {max(mine):.3f})",
            f"{tree / one:.2f}",
            f"{tokens['tree', count]}",
            f"{apart:.3f}",
            *(("", "") if again is None else (f"{again:.3f}", f"{again / tree:.1f}")),
        ]
        print(f"| {' | '.join(cells)} |")
    kept, moved = over_kept(bench)
    most = COUNTS[-1]
    rate = kept[most] / (LENGTH // 2 + most * (LENGTH - LENGTH // 2))  # seconds of a token
    added = (kept[most] - kept[1]) / (most - 1) / (LENGTH - LENGTH // 2) / rate
    print(f"a rule more takes {added:.2f} times its own tokens at the rate of all {most}; ", end="")
    print(f"a probability moves by {moved:.1e} at most against passes of their own; ", end="")
    print(f"peak RSS {peak_rss_mib():.0f} MiB")
    hit = statistics.median(restored)
    print(f"kept keys and values take {rows.nbytes:,} bytes and are back in {1e3 * hit:.1f} ms")
    budgets = by_budget(bench)
    best = {tokens: f"{1e3 * seconds:.1f}" for tokens, seconds in budgets.items()}
    print("scoring the most rules, ms by tokens of a pass: ", best)
    result = {
        "score_s_by_pass_tokens": {k: round(v, 5) for k, v in budgets.items()},
        "score_s_by_rules": {k: round(v, 5) for k, v in kept.items()},
        "added_rule": round(added, 3),
        "largest_probability_change": moved,
        "peak_rss_mib": round(peak_rss_mib()),
        "bundle": bench.bundle.manifest.name,
        "bundle_sha256": bench.bundle.fingerprint,
        "rounds": args.rounds,
        "prefix_tokens": prefix.length,
        "prefix_kv_bytes": rows.nbytes,
        "restore_s": round(hit, 5),
        "seconds": {f"{name} {n}": [round(v, 4) for v in vs] for (name, n), vs in times.items()},
        "tokens": {f"{name} {n}": v for (name, n), v in tokens.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
