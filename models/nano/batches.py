"""Batches of drawn scenes with their questions, and the process that keeps them ready.

Takes a random generator and a Stage; gives numpy arrays. Does not know the model.
"""

from __future__ import annotations

import argparse
import math
import os
import queue
from dataclasses import dataclass
from typing import Any

import numpy as np
from concepts import CONCEPTS
from scene import Stage, base_rates, views_of
from tokenizers import Tokenizer
from words import Prompts, ask, form_of

# rows, cols, pictures in a batch, questions a picture: about equal cost each
LAYOUTS = {
    "view": (0, 0, 64, 10),
    "single": (0, 0, 32, 8),
    "3x4": (3, 4, 3, 32),
    "4x3": (4, 3, 3, 32),
    "4x4": (4, 4, 2, 32),
}


@dataclass(slots=True)
class Questions:
    """Branch ids [B, Q, L] with ends [B, Q], answers [B, Q], blind prompts [N, M] with ends [N] and
    soft targets [N].
    """

    branches: np.ndarray
    ends: np.ndarray
    answers: np.ndarray
    blind: np.ndarray
    blind_ends: np.ndarray
    blind_targets: np.ndarray


@dataclass(slots=True)
class Batch:
    """Pixels uint8 [B, V, 3, S, S], dense labels uint8 [B, V, T, C], drawings int16 [B, V, T], and
    what is asked of the first pictures.
    """

    layout: str
    pixels: np.ndarray
    dense: np.ndarray
    sprite: np.ndarray
    questions: Questions


def _pad(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids padded to the longest, and the index of each row's last token."""
    out = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out, np.array([len(r) - 1 for r in rows])


def pick_cells(rng: np.random.Generator, sprite: np.ndarray, count: int) -> np.ndarray:
    """`count` visual tokens of each view, int64 [N, count] in order: mostly those that lie on
    drawings. sprite [N, T].
    """
    wish = rng.random(sprite.shape) + np.where(sprite > 0, 0.8, np.where(sprite < 0, 0.4, 0.0))
    return np.sort(np.argsort(-wish, axis=1)[:, :count], axis=1)


def make_questions(
    rng: np.random.Generator,
    prompts: Prompts,
    rates: np.ndarray,
    present: list[np.ndarray],
    count: int,
) -> Questions:
    """`count` questions about each picture, given what each shows (int8 [C])."""
    ids: list[list[int]] = []
    answers = []
    for shown in present:
        asked = ask(rng, shown, count)
        ids += [prompts.branches[i][form_of(rng)] for i in asked]
        answers += [int(shown[i]) for i in asked]
    branches, ends = _pad(ids)
    share = max(8, len(ids) // 9)  # one question in ten is asked without any image
    picks = rng.integers(0, len(CONCEPTS), share)
    blind, blind_ends = _pad([prompts.blind[i][form_of(rng)] for i in picks])
    shape = (len(present), count)
    return Questions(
        branches.reshape(*shape, -1),
        ends.reshape(shape),
        np.array(answers).reshape(shape),
        blind,
        blind_ends,
        rates[picks],
    )


def make_batch(
    rng: np.random.Generator,
    stage: Stage,
    prompts: Prompts,
    rates: np.ndarray,
    layout: str,
    answer_share: float,
) -> Batch:
    """A batch of one layout; the first `answer_share` of its pictures have questions, the rest the
    dense loss alone.
    """
    rows, cols, count, questions = LAYOUTS[layout]
    if layout == "view":
        scenes = [stage.view(rng) for _ in range(count)]
    else:
        scenes = [stage.scene(rng, rows, cols, busy=rows > 0) for _ in range(count)]
    answered = [s.present for s in scenes[: math.ceil(count * answer_share)]]
    return Batch(
        layout,
        np.stack([views_of(s) for s in scenes]),
        np.stack([s.dense for s in scenes]),
        np.stack([s.sprite for s in scenes]),
        make_questions(rng, prompts, rates, answered, questions),
    )


def producer(out: Any, wishes: Any, args: argparse.Namespace, seed: int) -> None:
    """A process that keeps batches ready."""
    rng = np.random.default_rng(seed)
    stage = Stage("train", args.sprites, args.photos, favoured=args.favoured)
    prompts = Prompts(Tokenizer.from_file(str(args.out / "tokenizer.json")), args.tokens_per_view)
    rates = base_rates()
    parent = os.getppid()
    while os.getppid() == parent:  # a killed trainer leaves no drawing process behind
        try:
            layout = wishes.get(timeout=30)
        except queue.Empty:
            continue
        out.put(make_batch(rng, stage, prompts, rates, layout, args.answer_share))
