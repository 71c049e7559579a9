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
    "single": (0, 0, 64, 8),
    "crowd": (0, 0, 64, 10),
    "2x2": (2, 2, 12, 20),
    "3x4": (3, 4, 5, 32),
    "4x3": (4, 3, 5, 32),
    "4x4": (4, 4, 4, 32),
}


@dataclass(slots=True)
class Batch:
    """Pixels uint8 [B, V, 3, S, S], dense labels uint8 [B, V, T, C], branch ids [B, Q, L] with ends
    [B, Q], answers [B, Q], blind prompts [N, M] with ends [N] and soft targets [N].
    """

    layout: str
    pixels: np.ndarray
    dense: np.ndarray
    branches: np.ndarray
    ends: np.ndarray
    answers: np.ndarray
    blind: np.ndarray
    blind_ends: np.ndarray
    blind_targets: np.ndarray


def _pad(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids padded to the longest, and the index of each row's last token."""
    out = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out, np.array([len(r) - 1 for r in rows])


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
    scenes = [stage.scene(rng, rows, cols, crowd=layout == "crowd") for _ in range(count)]
    ids: list[list[int]] = []
    answers = []
    answered = math.ceil(count * answer_share)
    for s in scenes[:answered]:
        asked = ask(rng, s.present, questions)
        ids += [prompts.branches[i][form_of(rng)] for i in asked]
        answers += [int(s.present[i]) for i in asked]
    branches, ends = _pad(ids)
    share = max(8, answered * questions // 9)  # one question in ten is asked without any image
    picks = rng.integers(0, len(CONCEPTS), share)
    blind, blind_ends = _pad([prompts.blind[i][form_of(rng)] for i in picks])
    return Batch(
        layout,
        np.stack([views_of(s) for s in scenes]),
        np.stack([s.dense for s in scenes]),
        branches.reshape(answered, questions, -1),
        ends.reshape(answered, questions),
        np.array(answers).reshape(answered, questions),
        blind,
        blind_ends,
        rates[picks],
    )


def producer(out: Any, wishes: Any, args: argparse.Namespace, seed: int) -> None:
    """A process that keeps batches ready."""
    rng = np.random.default_rng(seed)
    stage = Stage("train", args.sprites, args.photos)
    prompts = Prompts(Tokenizer.from_file(str(args.out / "tokenizer.json")), args.tokens_per_view)
    rates = base_rates()
    parent = os.getppid()
    while os.getppid() == parent:  # a killed trainer leaves no drawing process behind
        try:
            layout = wishes.get(timeout=30)
        except queue.Empty:
            continue
        out.put(make_batch(rng, stage, prompts, rates, layout, args.answer_share))
