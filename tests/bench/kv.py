"""What keys and values in fewer bits do to verdicts, family by family: `make bench-kv`.

Takes trained very small judges with their calibration sets, and tiny checkpoints of every family
with random weights over drawn pictures; gives for each type of cache its bytes a token, decisions
that flip against the fp32 reference with their 95 % bounds, how far probabilities move and the
divergence of labels. Computed by the reference over weights as stored, which one bundle is held to.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))
from edgejudge.bundle import Bundle, KvRecord  # noqa: E402
from edgejudge.export import (  # noqa: E402
    CalibrationPicture,
    Checkpoint,
    Exact,
    Reference,
    Stored,
    Weights,
    asked_of,
    export,
    open_checkpoint,
    prepared,
    read_calibration,
    split_pictures,
    yes_probability,
)
from edgejudge.gate import Tally, lower_bound, upper_bound  # noqa: E402
from edgejudge.models.concepts import known_names, knows  # noqa: E402
from edgejudge.models.image import canary_image  # noqa: E402
from edgejudge.runtime import Engine  # noqa: E402
from edgejudge.runtime.kv_cache import KvCache  # noqa: E402
from families import FAMILIES  # noqa: E402

TRAINED = {"nano": "checkpoint", "nano-qwen": "qwen"}
CACHES = ("float32", "int8", "int4")
SIDES = ((1, 1), (1, 2), (2, 1), (3, 4), (4, 3), (1, 4), (2, 3), (3, 3))
CONDITIONS = tuple(
    f"{many} {color} {thing}"
    for many in ("a", "no")
    for color in ("red", "blue", "dark", "small")
    for thing in ("cat", "knife", "glass of beer", "letter")
)
RECIPE = "w8"
Answers = NDArray[np.float64]  # P(yes) of every decision, one picture after another


def pictures_of(opened: Checkpoint, most: int) -> list[CalibrationPicture]:
    """Those that no step was fitted to, asked what the judge knows; or drawn ones."""
    if opened.calibration_folder is None:
        side = opened.image.example_size[0]
        return [
            CalibrationPicture(f"{h}x{w}", canary_image(side * h, side * w), CONDITIONS)
            for h, w in SIDES[:most]
        ]
    names, patterns = known_names(opened.card.concepts), opened.card.patterns
    found = []
    for picture in split_pictures(read_calibration(opened.calibration_folder)).gate[:most]:
        some = tuple(text for text in picture.conditions if knows(names, text, patterns))
        if some:
            found.append(replace(picture, conditions=some))
    return found


def answers(
    opened: Checkpoint, weights: Weights, pictures: Sequence[CalibrationPicture]
) -> list[Answers]:
    """By picture."""
    reference = Reference(opened.spec, weights, opened.tokens.image)
    logits = reference.ask(asked_of(opened, pictures), opened.labels.token_ids)
    return [yes_probability(each, opened.labels.labels) for each in logits]


def bundle_answers(
    opened: Checkpoint, path: Path, pictures: Sequence[CalibrationPicture]
) -> list[Answers]:
    engine, found = Engine.open(Bundle.open(path, unsealed=True)), []
    for asked in asked_of(opened, pictures):
        visual = None if asked.feeds is None else engine.encode_image(asked.feeds)
        prefix = engine.prefill(asked.ids, visual, asked.positions)
        found.append(engine.label_probabilities(engine.score(prefix, asked.branches)))
    return found


def row(opened: Checkpoint, kv: str, truth: list[Answers], found: list[Answers]) -> str:
    text, tally = opened.spec.text, Tally()
    for index, (was, now) in enumerate(zip(truth, found, strict=True)):
        nothing: list[tuple[str, ...]] = [()] * len(was)
        tally.add(str(index), nothing, now, was, np.full(len(was), 0.5))
    record = KvRecord("BNSH", kv, text.kv_heads, text.head_dim, None, (), ())
    low, high = (bound(tally.flips, tally.decisions) for bound in (lower_bound, upper_bound))
    divergence = _divergence(np.concatenate(truth), np.concatenate(found))
    return (
        f"{kv} | {KvCache.of(record, text.layers).row_bytes:,} | {tally.flips} of "
        f"{tally.decisions:,} | {low:.2%} to {high:.2%} | {tally.percentile_99():.4f} | "
        f"{divergence:.1e}"
    )


def _divergence(was: Answers, now: Answers) -> float:
    """Kullback-Leibler, of the two labels, on average."""
    least = 1e-12
    each = [p * np.log((p + least) / (q + least)) for p, q in ((was, now), (1 - was, 1 - now))]
    return float(sum(each).mean())


def judges(root: Path, only: Sequence[str]) -> Iterator[tuple[str, Path]]:
    nano = Path(__file__).parent.parent.parent / "models" / "nano"
    for name, folder in TRAINED.items():
        if not only or name in only:
            yield name, nano / folder
    for family, maker in FAMILIES.items():
        name = f"tiny {family}"
        if not only or name in only:
            yield name, maker.make_checkpoint(root / family)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=32, help="of each judge, at most")
    parser.add_argument("--only", action="append", default=[], metavar="JUDGE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"weights by recipe {RECIPE}; bounds are one-sided, of 95 % each")
    print("| judge | cache | bytes a token | flips | bounds | 99 % move by at most | label KL |")
    print("|---|---|---|---|---|---|---|")
    held = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name, folder in judges(root, args.only):
            opened = open_checkpoint(folder)
            pictures = pictures_of(opened, args.pictures)
            truth = answers(opened, Exact(opened.weights), pictures)
            for kv in CACHES:
                changed, plan = prepared(opened, RECIPE, kv=kv)
                found = answers(changed, Stored(changed.weights, plan), pictures)
                print(f"| {name} | {row(opened, kv, truth, found)} |", flush=True)
                if name == "nano-qwen":
                    path = export(changed, root / f"bundle-{kv}", plan)
                    given = bundle_answers(changed, path, pictures)
                    held.append((kv, np.abs(np.concatenate(given) - np.concatenate(found)).max()))
    for kv, most in held:
        print(f"a bundle of nano-qwen with {kv} is within {most:.1e} of these probabilities")


if __name__ == "__main__":
    main()
