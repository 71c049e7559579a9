"""Rotation, smoothing and exact columns, each alone and together: `make bench-ablation`.

Takes very small judges, as they are and with outliers put in; gives, for recipes of integers and of
four bits, how far verdicts, probabilities and label logits are from float32's. Computed by the
reference over the weights as stored, so no graph is written, unless prefill is to be timed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import outliers  # noqa: E402
import tiny  # noqa: E402
import tiny_qwen3  # noqa: E402
from edgejudge.errors import ProviderError  # noqa: E402
from edgejudge.export import (  # noqa: E402
    Checkpoint,
    Exact,
    Recipe,
    Reference,
    Stored,
    asked_of,
    export,
    open_checkpoint,
    prepared,
    read_calibration,
    recipe_named,
    split_pictures,
    yes_probability,
)
from edgejudge.gate import upper_bound  # noqa: E402

NANO = Path(__file__).parent.parent.parent / "models" / "nano"
JUDGES = ("nano", "qwen", "qwen3")
KINDS = ("none", "scaled 128", "turned", "massive 1000")
COLUMNS = ("flips", "at most", "probability, p99", "KL", "logits, rms")
ROUNDS = 5


class Means(NamedTuple):
    """What a recipe does before it quantizes."""

    rotate: bool = False
    smooth: bool = False
    side: bool = False

    def __str__(self) -> str:
        return ", ".join(name for name, on in self._asdict().items() if on) or "nothing"


def recipes() -> Iterator[tuple[str, Means, Recipe]]:
    every = [Means(r, s, e) for e in (False, True) for s in (False, True) for r in (False, True)]
    few = [Means(), Means(False, True, True), Means(True, True, True)]
    tried = {"fast": every, "fast8": few, "small": every[:4]}  # no columns beside blocks
    for name, combinations in tried.items():
        base = recipe_named(name)
        for means in combinations:
            gain = recipe_named("fast").side_gain if means.side else 0.0
            # With the nearest levels: what they are made of is another question.
            plain = replace(base, second_order=False)
            yield (
                name,
                means,
                replace(plain, rotate=means.rotate, smooth=means.smooth, side_gain=gain),
            )


def few_pictures(folder: Path, pictures: int, conditions: int) -> Path:
    """nano's calibration set with fewer pictures, and fewer questions of each."""
    source = NANO / "calibration"
    entries = json.loads((source / "questions.json").read_bytes())[:pictures]
    folder.mkdir()
    for entry in entries:
        shutil.copyfile(source / entry["image"], folder / entry["image"])
        entry["conditions"] = entry["conditions"][:: len(entry["conditions"]) // conditions]
        entry["conditions"] = entry["conditions"][:conditions]
    (folder / "questions.json").write_text(json.dumps(entries))
    return folder


def judge(name: str, scratch: Path, calibration: Path) -> Checkpoint:
    if name == "qwen3":  # random weights, since none is trained; the others are
        folder = tiny_qwen3.make_checkpoint(scratch / name)
        card = tiny.make_card(concepts=[])
        (folder / "judge.json").write_text(json.dumps(card))
        opened = open_checkpoint(folder)
    else:
        opened = open_checkpoint(NANO / {"nano": "checkpoint"}.get(name, name))
    return replace(opened, card=replace(opened.card, calibration_set=str(calibration)))


def with_outliers(opened: Checkpoint, kind: str) -> Checkpoint:
    if kind == "scaled 128":
        return outliers.scaled_channels(opened, 128.0)
    if kind == "turned":
        return outliers.rotated(opened)
    if kind == "massive 1000":
        return outliers.massive(opened, 1000.0, range(max(1, opened.spec.text.layers // 2)))
    return opened


def answers(opened: Checkpoint, weights: Any) -> np.ndarray:
    folder = opened.calibration_folder
    assert folder is not None, "a judge has calibration pictures"
    pictures = split_pictures(read_calibration(folder)).gate
    reference = Reference(opened.spec, weights, opened.tokens.image)
    return np.concatenate(reference.ask(asked_of(opened, pictures), opened.labels.token_ids))


def errors(opened: Checkpoint, found: np.ndarray, truth: np.ndarray) -> list[str]:
    """In the order of COLUMNS."""
    labels = opened.labels.labels
    p, q = (yes_probability(logits, labels) for logits in (truth, found))
    flips, count = int(((p >= 0.5) != (q >= 0.5)).sum()), len(p)
    p, q = (np.clip(x, 1e-12, 1 - 1e-12) for x in (p, q))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return [
        f"{flips} of {count}",
        f"{upper_bound(flips, count):.1%}",
        f"{np.percentile(np.abs(p - q), 99):.4f}",
        f"{divergence.mean():.1e}",
        f"{np.sqrt(np.square(found - truth).mean()):.4f}",
    ]


def prefill_tok_s(bundles: list[Path]) -> list[str]:
    """Of one picture's prompt, bundles in turns; of one that this processor cannot add up, none."""
    from recipes import Judged

    judged: list[Judged | None] = []
    for folder in bundles:
        try:
            judged.append(Judged(folder))
        except ProviderError:
            judged.append(None)
    for round_ in range(ROUNDS + 1):
        for one in filter(None, judged):
            one.once()
            if round_ == 0:  # opens the sessions
                one.seconds["prefill"].clear()
    return [
        "-" if one is None else f"{one.tokens / statistics.median(one.seconds['prefill']):.0f}"
        for one in judged
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=JUDGES, help="this judge alone")
    parser.add_argument("--outliers", choices=KINDS, help="of this kind alone")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--conditions", type=int, default=24, help="of each picture")
    parser.add_argument("--time", action="store_true", help="prefill of bundles too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["judge", "outliers", "recipe", "first", *COLUMNS]
    columns += ["prefill, tok/s"] * args.time
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        calibration = few_pictures(Path(scratch) / "pictures", args.pictures, args.conditions)
        for name in [args.only] if args.only else JUDGES:
            opened = judge(name, Path(scratch), calibration)
            truth = answers(opened, Exact(opened.weights))
            for kind in [args.outliers] if args.outliers else KINDS:
                hard = with_outliers(opened, kind)
                rows, bundles = [], []
                for recipe, means, chosen in recipes():
                    changed, plan = prepared(hard, chosen)
                    found = answers(changed, Stored(changed.weights, plan))
                    rows.append([name, kind, recipe, str(means), *errors(opened, found, truth)])
                    if args.time:
                        out = Path(scratch) / f"{name} {kind} {recipe} {means}"
                        bundles.append(export(changed, out, plan))
                    else:
                        print(f"| {' | '.join(rows[-1])} |", flush=True)
                if args.time:
                    for row, speed in zip(rows, prefill_tok_s(bundles), strict=True):
                        print(f"| {' | '.join([*row, speed])} |", flush=True)
                    for folder in bundles:
                        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
