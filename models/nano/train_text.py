"""Trains nano's text model alone, on pictures its finished tower has encoded once.

Takes the run of train.py (--weights), gives a run of the same form. Every step packs the requests
about some pictures behind their image prefixes: what is there, in mosaics of views that never met;
all that tasks.py asks, in whole pictures; and which of two. Resumable: the pool of encoded pictures
is kept beside the run. Does not know bundles or the runtime.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tasks
import torch
from batches import make_questions
from loop import Loop, add_arguments, source_of
from losses import Losses
from metrics import auroc
from model import TOKENS_PER_VIEW
from mosaics import Pool, places
from packs import pack
from scene import CELL, VIEW, Stage, base_rates
from tasks import Asked
from tokenizers import Tokenizer
from transformers import SmolVLMForConditionalGeneration
from words import Prompts

# (rows, cols), pictures in a batch, share of the steps
LAYOUTS = (((3, 4), 9, 0.3), ((4, 3), 9, 0.25), ((4, 4), 7, 0.45))
WHOLE = {(3, 4): 1800, (4, 3): 1580, (4, 4): 2500}  # pictures drawn whole, views and all
# Share of the steps on mosaics, on whole pictures, on pairs of them.
STEPS = {"mosaic": 0.2, "whole": 0.52, "pair": 0.28}
MOSAIC_QUESTIONS = 30
PRESENCE, COUNTS, RELATIONS, PAIRS = 7, 4, 12, 6  # questions a picture, or pair
WAKING = 150  # steps until text counts in full
NOISE = 0.1  # of the visual tokens' own spread: the same views come back every few steps
WEIGHTS = {
    **{"presence": 1.0, "reason": 1.0, "name": 1.5, "count": 0.6, "crowd": 0.8},
    **{"place": 5.0, "look": 0.4, "mention": 8.0, "back": 0.2, "apart": 6.0},
    **{"early": 0.6, "last": 0.2, **dict.fromkeys(tasks.RELATIONS, 0.7)},
}
OTHER_WEIGHT = 0.35  # of any other kind of task
OPPOSITES = ("left", "right"), ("above", "below")
LABELS = ("presence", "more than one", "exactly one", *tasks.RELATIONS)  # told as AUROC


def pool_of(args: argparse.Namespace, losses: Losses) -> Pool:
    """The one kept beside the run, or a new one."""
    file: Path = args.out / "pool.pt"
    if file.exists():
        return Pool(**torch.load(file, weights_only=False))
    stage = Stage("train", args.sprites, args.photos)
    pool = Pool.fill(losses, stage, np.random.default_rng([args.seed, 1]), args.views, WHOLE)
    torch.save({"views": pool.views, "shown": pool.shown, "pictures": pool.pictures}, file)
    return pool


def questions(rng: np.random.Generator, shown: np.ndarray, items: Any) -> list[Asked]:
    """All kinds of questions about one whole picture."""
    asked = tasks.presence(rng, items, shown, PRESENCE)
    asked += tasks.counts(rng, items, shown, COUNTS)
    asked += tasks.relations(rng, items, shown, RELATIONS)
    return [*asked, tasks.crowd(items), tasks.reason(rng, items, shown)]


@torch.no_grad()
def waken(model: Any, prompts: Prompts) -> None:
    """Starts the tokens of new answers not far from Yes and No.

    Training on presence has pushed all others far from any answer: learning to say them tears at
    everything else, unless they begin near where answers are. And lets the words of opposite
    relations begin with one difference between them: which way round is then learned once, and
    which of the axes by itself. Two words that are nearly the same word stay so for very long.
    """
    used = {i for each in (*prompts.branches, *prompts.blind) for ids in each.values() for i in ids}
    table = model.get_input_embeddings().weight
    new = sorted({i for text in tasks.ANSWERS for i in prompts.ids(text)} - used)
    middle = (table[prompts.yes[0]] + table[prompts.no[0]]) / 2
    table[new] = 0.75 * middle + 0.25 * table[new]
    less, more = (table[prompts.ids(f" {word}")[0]] for word in OPPOSITES[0])
    half = (less - more) / 2
    for pair in OPPOSITES[1:]:
        first, second = (prompts.ids(f" {word}")[0] for word in pair)
        both = (table[first] + table[second]) / 2
        table[first], table[second] = both + half, both - half


class Trainer:
    """Steps of every kind, as losses with their log."""

    def __init__(self, losses: Losses, pool: Pool, rng: np.random.Generator, learned: int) -> None:
        self.losses, self.pool, self.rng = losses, pool, rng
        self.rates = base_rates()
        self.learned = learned
        self._kinds = np.array(list(STEPS.values()))
        self._shares = np.array([share for *_, share in LAYOUTS])

    def steps(self) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        while True:
            kind = str(self.rng.choice(list(STEPS), p=self._kinds))
            (rows, cols), count, _ = LAYOUTS[int(self.rng.choice(len(LAYOUTS), p=self._shares))]
            yield getattr(self, f"_{kind}")(rows, cols, count)

    def _noisy(self, drawn: list[torch.Tensor]) -> torch.Tensor:
        tokens = torch.stack(drawn).to(self.losses.device, torch.float32)
        return tokens + NOISE * tokens.std() * torch.randn_like(tokens)

    def _mosaic(self, rows: int, cols: int, count: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng, prompts = self.rng, self.losses.prompts
        draw = self.pool.picture if rng.random() < 0.5 else self.pool.mosaic
        drawn = [draw(rng, rows, cols) for _ in range(count)]
        shown = [p for _, p in drawn]
        asked = make_questions(rng, prompts, self.rates, shown, MOSAIC_QUESTIONS)
        tokens = self._noisy([t for t, _ in drawn])
        answer, blind, margin = self.losses.answer_loss(tokens, rows, cols, asked)
        score = auroc(margin.cpu().numpy().ravel(), asked.answers.ravel())
        record = {"blind": float(blind.detach()), "mosaic": float(answer.detach())}
        return answer + 0.1 * blind, record | {"auroc mosaic": score}

    def _whole(self, rows: int, cols: int, count: int) -> tuple[torch.Tensor, dict[str, float]]:
        drawn = [self.pool.known(self.rng, rows, cols) for _ in range(count)]
        asked = [questions(self.rng, each.shown, each.items) for each in drawn]
        lies = np.stack([each.lies for each in drawn])
        return self._learn(self._noisy([d.tokens for d in drawn]), lies, rows, cols, 1, asked)

    def _pair(self, rows: int, cols: int, count: int) -> tuple[torch.Tensor, dict[str, float]]:
        pairs = [
            [self.pool.known(self.rng, rows, cols) for _ in range(2)] for _ in range(count // 2)
        ]
        asked = [
            tasks.pairs(self.rng, (a.items, a.shown), (b.items, b.shown), PAIRS) for a, b in pairs
        ]
        tokens = self._noisy([torch.cat([a.tokens, b.tokens]) for a, b in pairs])
        lies = np.stack([np.concatenate([a.lies, b.lies]) for a, b in pairs])
        return self._learn(tokens, lies, rows, cols, 2, asked)

    def _learn(
        self,
        tokens: torch.Tensor,
        lies: np.ndarray,
        rows: int,
        cols: int,
        pictures: int,
        asked: list[list[Asked]],
    ) -> tuple[torch.Tensor, dict[str, float]]:
        prompts = self.losses.prompts
        prefix, packed = prompts.prefix(rows, cols, pictures), pack(prompts, asked)
        where = places(rows, cols, VIEW // CELL, pictures)
        on = torch.from_numpy(lies).to(self.losses.device).flatten(1, 2)
        each, logits, kinds = self.losses.packed_loss(
            tokens.flatten(1, 2), prefix, packed, where, on
        )
        self.learned += 1
        ramp = min(1.0, self.learned / WAKING)
        weights = WEIGHTS | {text: ramp * WEIGHTS[text] for text in ("reason", "name")}
        loss = sum(weights.get(name, OTHER_WEIGHT) * value for name, value in each.items())
        assert isinstance(loss, torch.Tensor)
        record = {name: float(value.detach()) for name, value in each.items()}
        target = packed.target[packed.target >= 0]
        margin = (logits[:, prompts.yes[0]] - logits[:, prompts.no[0]]).cpu().numpy()
        for index, name in enumerate(packed.kinds):
            mine = kinds.cpu().numpy() == index
            if name in LABELS:
                record[f"auroc {name}"] = auroc(margin[mine], target[mine] == prompts.yes[0])
            else:
                best = logits.argmax(-1).cpu().numpy()
                record[f"right {name}"] = float((best[mine] == target[mine]).mean())
        return loss, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--views", type=int, default=8_640, help="views in the pool")
    parser.add_argument(
        "--waken", action="store_true", help="the weights were trained on presence alone"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = source_of(args)
    if source is None:
        raise SystemExit("nothing to train: give --weights, a run of train.py")
    prompts = Prompts(Tokenizer.from_file(str(args.out / "tokenizer.json")), TOKENS_PER_VIEW)
    model: Any = SmolVLMForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    model.to(device).train()
    for part in (model.model.vision_model, model.model.connector):
        part.requires_grad_(False)
    losses = Losses(model, prompts, device, 0)
    loop = Loop(model, {}, args)
    if args.waken and not loop.step:
        waken(model, prompts)
    pool = pool_of(args, losses)
    start = {"device": device, "from": str(source), "step": loop.step, "seed": args.seed}
    print(json.dumps(start | {"views": len(pool.views)}), flush=True)
    trainer = Trainer(losses, pool, np.random.default_rng([args.seed, 2, loop.step]), loop.step)
    for loss, record in trainer.steps():
        if not loop.running:
            break
        loop.update(loss, record)


if __name__ == "__main__":
    main()
