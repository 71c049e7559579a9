"""Trains nano's text model alone, on mosaics of views its finished tower has encoded once.

Takes the run of train.py (--weights), gives a run of the same form. Every step packs the questions
of some pictures behind their image prefixes. Resumable: the pool of encoded views is drawn again
from the seed. Does not know bundles or the runtime.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from batches import make_questions
from loop import Loop, add_arguments, source_of
from losses import Losses
from metrics import auroc
from model import TOKENS_PER_VIEW
from mosaics import Pool
from scene import Stage, base_rates
from tokenizers import Tokenizer
from transformers import SmolVLMForConditionalGeneration
from words import Prompts

# (rows, cols), pictures in a batch, questions a picture, share of the steps
LAYOUTS = (
    ((0, 0), 48, 10, 0.1),
    ((2, 4), 14, 28, 0.05),
    ((4, 2), 14, 28, 0.05),
    ((3, 4), 10, 32, 0.25),
    ((4, 3), 10, 32, 0.25),
    ((4, 4), 8, 32, 0.3),
)
WHOLE = {(3, 4): 440, (4, 3): 440, (4, 4): 640}  # pictures drawn whole, views and all
NOISE = 0.1  # of the visual tokens' own spread: the same views come back every few steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--views", type=int, default=12_000, help="views in the pool")
    parser.add_argument(
        "--whole-share", type=float, default=0.6, help="of the tiled steps, on whole pictures"
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
    pool = Pool.fill(
        losses,
        Stage("train", args.sprites, args.photos),
        np.random.default_rng([args.seed, 1]),
        args.views,
        WHOLE,
    )
    start = {"device": device, "from": str(source), "step": loop.step, "seed": args.seed}
    print(json.dumps(start | {"views": len(pool.views)}), flush=True)
    rates = base_rates()
    rng = np.random.default_rng([args.seed, 2, loop.step])
    shares = np.array([share for *_, share in LAYOUTS])
    while loop.running:
        (rows, cols), count, questions, _ = LAYOUTS[int(rng.choice(len(LAYOUTS), p=shares))]
        whole = (rows, cols) in pool.pictures and rng.random() < args.whole_share
        draw = pool.picture if whole else pool.mosaic
        drawn = [draw(rng, rows, cols) for _ in range(count)]
        asked = make_questions(rng, prompts, rates, [p for _, p in drawn], questions)
        tokens = torch.stack([t for t, _ in drawn]).to(device, torch.float32)
        tokens += NOISE * tokens.std() * torch.randn_like(tokens)
        answer, blind, margin = losses.answer_loss(tokens, rows, cols, asked)
        name = f"{rows}x{cols}{' whole' if whole else ''}"
        score = auroc(margin.cpu().numpy().ravel(), asked.answers.ravel())
        record = {"blind": float(blind.detach()), name: float(answer.detach())}
        loop.update(answer + 0.1 * blind, record | {f"auroc {name}": score})


if __name__ == "__main__":
    main()
