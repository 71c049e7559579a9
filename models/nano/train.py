"""Trains the nano judge: a small SmolVLM, from nothing, on drawn scenes.

Takes sprites.npz and photos.npz, gives a Hugging Face checkpoint folder (and state.pt to go on
from). Auxiliary losses ask each visual token what it lies on; after the first --vision-only steps,
every step also packs the questions of a picture behind one image prefix. Does not know bundles or
the runtime; train_text.py goes on with the text model alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from batches import LAYOUTS, Batch, pick_cells, producer
from loop import LOG_EVERY, Loop, add_arguments, source_of
from losses import Losses
from metrics import auroc
from model import TOKENS_PER_VIEW, make_config, whiten
from scene import Stage
from tokenizers import Tokenizer
from transformers import SmolVLMForConditionalGeneration
from words import Prompts, train_tokenizer

DENSE_WEIGHT = 12.0  # of the auxiliary losses against the answers
SPRITE_WEIGHT = 0.25
CELL_WEIGHT = 3.0
HEAD_RATE = 0.03


def parse_mix(text: str) -> tuple[list[str], np.ndarray]:
    """`view=0.5,3x4=0.5` -> names and shares."""
    parts = dict(p.split("=") for p in text.split(","))
    share = np.array([float(v) for v in parts.values()])
    return list(parts), share / share.sum()


def fit_heads(
    model: Any,
    heads: list[torch.nn.Parameter],
    steps: int,
    batch: Callable[[], tuple[torch.Tensor, torch.Tensor, dict[str, float]]],
) -> None:
    """The heads of the losses alone, over a model that stands still: heads that know nothing would
    tear at what it knows.
    """
    adam = torch.optim.Adam(heads, lr=HEAD_RATE)
    model.requires_grad_(False)
    for step in range(1, steps + 1):
        _, loss, record = batch()
        adam.param_groups[0]["lr"] = HEAD_RATE * (1 - (step - 1) / steps)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step % LOG_EVERY == 0:
            print(json.dumps({"heads": step, **record}), flush=True)
    model.requires_grad_(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--mix", default="view=1", help="layouts and shares, e.g. view=0.5,3x4=0.5")
    parser.add_argument(
        "--vision-only", type=int, default=0, help="first steps that train the tower alone"
    )
    parser.add_argument(
        "--answer-share", type=float, default=0.5, help="share of the pictures that have questions"
    )
    parser.add_argument(
        "--favoured",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help="concepts that are drawn more often, e.g. knife,gun",
    )
    parser.add_argument(
        "--keep",
        type=int,
        help="visual tokens of each view the tower sees and learns from; needs --vision-only",
    )
    parser.add_argument(
        "--heads-first",
        type=int,
        default=0,
        help="steps for the heads of the losses alone, where --weights came without them",
    )
    args = parser.parse_args()
    if args.keep and args.vision_only < args.steps:
        parser.error("--keep leaves out parts of the pictures, so it cannot train the answers")
    args.tokens_per_view = TOKENS_PER_VIEW
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = source_of(args)
    if not (args.out / "tokenizer.json").exists():
        train_tokenizer().save(str(args.out / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    if source:
        model: Any = SmolVLMForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    else:
        model = SmolVLMForConditionalGeneration(make_config())
        whiten(model, Stage("train", args.sprites, args.photos))
    model.to(device).train()
    drawings = len(np.load(args.sprites)["concept"])
    losses = Losses(model, Prompts(tokenizer, TOKENS_PER_VIEW), device, drawings)
    heads = {name: getattr(losses, name) for name in ("bias", "scale", "sprites", "cells")}
    loop = Loop(model, heads, args)
    start = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": device,
        "from": str(source),
        "step": loop.step,
        "seed": args.seed,
        "vocabulary": tokenizer.get_vocab_size(),
    }
    print(json.dumps(start), flush=True)
    context = mp.get_context("spawn")
    ready, wishes = context.Queue(4), context.Queue()
    layouts, shares = parse_mix(args.mix)
    rng = np.random.default_rng(args.seed + loop.step)
    for _ in range(6):
        wishes.put(str(rng.choice(layouts, p=shares)))
    worker = context.Process(
        target=producer, args=(ready, wishes, args, args.seed + 1000 + loop.step), daemon=True
    )
    worker.start()

    def drawn() -> Batch:
        try:
            batch: Batch = ready.get(timeout=120)
        except queue.Empty:
            raise SystemExit(
                "the process that draws batches has died; see its error above"
            ) from None
        wishes.put(str(rng.choice(layouts, p=shares)))
        return batch

    def seen(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        """Visual tokens of a batch, the loss of what they lie on, and its record."""
        pixels, dense, sprite = (
            torch.from_numpy(v).flatten(0, 1) for v in (batch.pixels, batch.dense, batch.sprite)
        )
        kept, cells = None, torch.arange(TOKENS_PER_VIEW).expand(len(pixels), -1)
        if args.keep:
            cells = kept = torch.from_numpy(pick_cells(rng, sprite.numpy(), args.keep))
            rows = torch.arange(len(kept))[:, None]
            dense, sprite = dense[rows, kept], sprite[rows, kept]
        tokens = losses.visual_tokens(pixels, kept)
        aux = losses.dense_loss(tokens, dense.to(device))
        named = losses.sprite_loss(tokens, sprite.to(device, torch.long))
        placed = losses.cell_loss(tokens, cells.to(device))
        loss = DENSE_WEIGHT * aux + SPRITE_WEIGHT * named + CELL_WEIGHT * placed
        record = {"aux": aux, "sprite": named, "cell": placed}
        return tokens, loss, {name: float(value.detach()) for name, value in record.items()}

    if not loop.step:
        fit_heads(model, list(heads.values()), args.heads_first, lambda: seen(drawn()))
    while loop.running:
        batch = drawn()
        tokens, loss, record = seen(batch)
        if loop.step >= args.vision_only:
            asked = batch.questions
            grid = LAYOUTS[batch.layout][:2]
            pictures = tokens.unflatten(0, batch.pixels.shape[:2])[: len(asked.answers)]
            answer, blind, margin = losses.answer_loss(pictures, *grid, asked)
            loss = loss + answer + 0.1 * blind
            record |= {
                "answer": float(answer.detach()),
                "blind": float(blind.detach()),
                "auroc": auroc(margin.cpu().numpy().ravel(), asked.answers.ravel()),
            }
        loop.update(loss, record)
    worker.terminate()


if __name__ == "__main__":
    main()
