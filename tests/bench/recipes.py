"""One judge in several recipes, side by side: `make bench-recipes BUNDLES="A B ..."`.

Takes bundles of the same checkpoint; times vision, prefill and scoring of 12 questions over one
picture, in turns, and how far hidden states at the ends of questions are from those of the first.
Prints one table and one JSON line. Of trained judges in a recipe that rotates hidden states say
nothing: they are in a basis of their own. Not a test: timings never are.
"""

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rules import PICTURE, questions

from edgejudge.bundle import Bundle
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.runtime import Engine

STAGES = ("vision", "prefill", "score")
RULES = 12


class Judged:
    """One bundle, opened, and the seconds it took."""

    def __init__(self, folder: Path) -> None:
        self.bundle = Bundle.open(folder, unsealed=True)
        self.engine = Engine.open(self.bundle)
        self.prompts = Prompts.of(self.bundle)
        self.seen = preprocess(
            canary_image(*PICTURE), image_spec(self.bundle.manifest.preprocessing)
        )
        self.asked = questions(RULES, self.bundle.manifest.embeddings.rows)
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.hits: list[float] = []  # seconds to put a kept prefix back
        self.ends: Any = None

    def once(self) -> None:
        engine, grid = self.engine, (self.seen.rows, self.seen.cols)
        ids, positions = self.prompts.prefix_ids(*grid), self.prompts.prefix_positions(*grid)
        marks = [time.perf_counter()]
        visual = engine.encode_image(self.seen.feeds)
        marks.append(time.perf_counter())
        prefix = engine.prefill(ids, visual, positions)
        marks.append(time.perf_counter())
        self.ends = engine.ends(prefix, self.asked)
        marks.append(time.perf_counter())
        rows = engine.snapshot(prefix)
        assert rows is not None, "the prefix holds what is no number"
        began = time.perf_counter()
        engine.restore(rows, prefix.position)
        self.hits.append(time.perf_counter() - began)
        self.kept_bytes = rows.nbytes
        engine.trace.clear()
        for stage, (begin, end) in zip(STAGES, pairwise(marks), strict=True):
            self.seconds[stage].append(end - begin)
        self.tokens = len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    judges = [Judged(folder) for folder in args.bundles]
    for judge in judges:  # opens the sessions, which is not what is measured
        judge.once()
        judge.seconds = {stage: [] for stage in STAGES}
    for _ in range(args.rounds):  # in turns, so that a slow minute hits all alike
        for judge in judges:
            judge.once()
    first, results = judges[0], []
    name = first.bundle.manifest.name
    print(f"{name}: {first.tokens} tokens, {RULES} questions, medians of {args.rounds}")
    print(f"| recipe | {', s | '.join(STAGES)}, s | together | of the first | hidden states |")
    print("|---" * 7 + "|")
    for judge in judges:
        median = {stage: statistics.median(seen) for stage, seen in judge.seconds.items()}
        whole = [sum(run) for run in zip(*judge.seconds.values(), strict=True)]
        base = [sum(run) for run in zip(*first.seconds.values(), strict=True)]
        moved = np.linalg.norm(judge.ends - first.ends) / np.linalg.norm(first.ends)
        ratio = statistics.median(whole) / statistics.median(base)
        cells = [f"{median[stage]:.3f}" for stage in STAGES]
        spread = f"{statistics.median(whole):.3f} ({min(whole):.3f} to {max(whole):.3f})"
        cells = [judge.bundle.manifest.recipe, *cells, spread, f"{ratio:.2f}", f"{moved:.3f}"]
        print(f"| {' | '.join(cells)} |")
        results.append(
            {
                "recipe": judge.bundle.manifest.recipe,
                "seconds": judge.seconds,
                "bytes": sum(f.bytes for f in judge.bundle.manifest.files),
                "hidden_states_moved": float(moved),
            }
        )
    for judge in judges:
        hit = 1e3 * statistics.median(judge.hits)
        print(
            f"{judge.bundle.manifest.recipe}: kept keys and values take {judge.kept_bytes:,} bytes "
            f"and are back in {hit:.1f} ms (median of {len(judge.hits)})"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
