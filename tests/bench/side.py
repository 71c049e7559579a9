"""How many exact columns `fast` needs against outliers that were put in: `make bench-side`.

Takes checkpoints of trained very small judges; gives, for each kind of outliers and each gain that
a matrix must have from its columns, how far label logits of calibration pictures' questions are
from float32's. Computed by the reference, no graph is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import outliers  # noqa: E402
from edgejudge.export import (  # noqa: E402
    Checkpoint,
    Exact,
    Plan,
    Reference,
    Stored,
    asked_of,
    open_checkpoint,
    prepared,
    read_calibration,
    recipe_named,
    split_pictures,
)
from edgejudge.export.side_path import Site, side_columns, sites_of  # noqa: E402

GAINS = (1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, float("inf"))


def answers(opened: Checkpoint, weights: Any, count: int) -> np.ndarray:
    folder = opened.calibration_folder
    assert folder is not None, "a trained judge has calibration pictures"
    pictures = split_pictures(read_calibration(folder)).selection[:count]
    reference = Reference(opened.spec, weights, opened.tokens.image)
    return np.concatenate(reference.ask(asked_of(opened, pictures), opened.labels.token_ids))


def shares(plan: Plan, sites: Sequence[Site]) -> tuple[float, float]:
    """Of inputs that have exact columns, and of the columns of those."""
    kept = [site for site in sites if plan.exact_columns(site.names[0])]
    if not kept:
        return 0.0, 0.0
    columns = sum(len(plan.exact_columns(site.names[0])) for site in kept)
    return len(kept) / len(sites), columns / sum(site.width for site in kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    nano = Path(__file__).parent.parent.parent / "models" / "nano"
    parser.add_argument("checkpoints", nargs="*", type=Path, default=[nano / "qwen"])
    parser.add_argument("--pictures", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(2)
    print("| judge | outliers | gain at least | inputs | their columns | rms error |")
    print("|---|---|---|---|---|---|")
    for folder in args.checkpoints:
        opened = open_checkpoint(folder)
        truth = answers(opened, Exact(opened.weights), args.pictures)
        half = range(max(1, opened.spec.text.layers // 2))
        kinds = {
            "none": opened,
            "scaled 128": outliers.scaled_channels(opened, 128.0),
            "rotated": outliers.rotated(opened),
            "massive 100": outliers.massive(opened, 100.0, half),
            "massive 1000": outliers.massive(opened, 1000.0, half),
        }
        for kind, hard in kinds.items():
            # A rotated stream has no channel that towers, whatever was put in.
            changed, plan = prepared(hard, replace(recipe_named("fast"), rotate=False))
            names = [n for n, _ in changed.family.weight_names(changed.spec) if plan.integer(n)]
            sites = sites_of(changed, names)
            for gain in GAINS:
                plan = plan.with_exact(side_columns(changed, sites, gain))
                found = answers(changed, Stored(changed.weights, plan), args.pictures)
                error = float(np.sqrt(np.square(found - truth).mean()))
                some, columns = shares(plan, sites)
                print(
                    f"| {folder.name} | {kind} | {gain:g} | {some:.0%} | {columns:.1%} "
                    f"| {error:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
