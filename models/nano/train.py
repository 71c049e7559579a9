"""Trains the nano judge: a small SmolVLM, from nothing, on drawn scenes.

Takes sprites.npz and photos.npz, gives a Hugging Face checkpoint folder (and state.pt to go on
from). Every step packs the questions of a picture behind one image prefix; an auxiliary loss asks
each visual token what sticker it lies on. Resumes from state.pt, or from the weights alone. Does
not know bundles or the runtime.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import queue
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from batches import LAYOUTS, Batch, producer
from concepts import CONCEPTS
from metrics import auroc
from model import TOKENS_PER_VIEW, make_config, whiten
from muon import Muon
from scene import IGNORE, Stage
from tokenizers import Tokenizer
from transformers import SmolVLMForConditionalGeneration
from words import Prompts, train_tokenizer

DENSE_WEIGHT = 12.0  # of the auxiliary loss against the answers


class Trainer:
    """Model, auxiliary bias and the two losses."""

    def __init__(self, model: Any, prompts: Prompts, device: str) -> None:
        self.model, self.prompts, self.device = model, prompts, device
        self.scale = torch.nn.Parameter(torch.tensor(10.0, device=device))
        self.bias = torch.nn.Parameter(torch.full((len(CONCEPTS),), -4.0, device=device))
        names = [prompts.ids(" " + c.name) for c in CONCEPTS]
        width = max(map(len, names))
        self.name_ids = torch.tensor([n + [0] * (width - len(n)) for n in names], device=device)
        self.name_mask = torch.tensor(
            [[1.0] * len(n) + [0.0] * (width - len(n)) for n in names], device=device
        )

    def visual_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, S, S] -> [N, T, D]."""
        x = pixels.to(self.device).float().div_(127.5).sub_(1.0)
        core = self.model.model
        return core.connector(core.vision_model(pixel_values=x).last_hidden_state)

    def dense_loss(self, tokens: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Each visual token against the mean word embedding of each concept. tokens [N, T, D],
        dense [N, T, C].
        """
        table = self.model.model.text_model.embed_tokens(self.name_ids) * self.name_mask[..., None]
        words = F.normalize(table.sum(1), dim=-1)  # [C, D]
        logits = self.scale * F.normalize(tokens, dim=-1) @ words.T + self.bias
        wanted = (dense == 1).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=None)
        weight = (dense != IGNORE).to(logits.dtype) * (1 + 4 * wanted)
        return (loss * weight).sum() / weight.sum() * 1.0

    def answer_loss(
        self, tokens: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cross-entropy over the whole vocabulary at the end of each packed branch, and of each
        blind prompt.
        """
        rows, cols = LAYOUTS[batch.layout][:2]
        count, questions = batch.answers.shape
        tokens = tokens.unflatten(0, batch.pixels.shape[:2])[:count]  # [B, V, T, D]
        core = self.model.model.text_model
        prefix_ids = torch.tensor(self.prompts.prefix(rows, cols), device=self.device)
        prefix = core.embed_tokens(prefix_ids).expand(count, -1, -1).clone()
        prefix[:, prefix_ids == self.prompts.image_id] = tokens.reshape(count, -1, tokens.shape[-1])
        ids = torch.from_numpy(batch.branches).to(self.device)
        length, start = ids.shape[2], len(prefix_ids)
        hidden = torch.cat([prefix, core.embed_tokens(ids.reshape(count, -1))], 1)
        total = hidden.shape[1]
        place = torch.arange(total, device=self.device)
        position = torch.where(place < start, place, start + (place - start) % length)
        branch = torch.where(place < start, -1, (place - start) // length)
        seen = (place[None] <= place[:, None]) & (
            (branch[None] == -1) | (branch[None] == branch[:, None])
        )
        mask = torch.zeros(total, total, device=self.device).masked_fill(
            ~seen, torch.finfo(torch.float32).min
        )
        out = core(
            inputs_embeds=hidden,
            attention_mask=mask[None, None].expand(count, 1, -1, -1),
            position_ids=position[None],
            use_cache=False,
        ).last_hidden_state
        ends = (
            torch.from_numpy(batch.ends).to(self.device)
            + start
            + length * torch.arange(questions, device=self.device)
        )
        logits = self.model.lm_head(
            out.gather(1, ends[..., None].expand(-1, -1, out.shape[-1]))
        )  # [B, Q, vocabulary]
        answers = torch.from_numpy(batch.answers).to(self.device)
        target = torch.where(answers == 1, self.prompts.yes[0], self.prompts.no[0])
        seen_loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        margin = logits[..., self.prompts.yes[0]] - logits[..., self.prompts.no[0]]
        blind = core(
            input_ids=torch.from_numpy(batch.blind).to(self.device), use_cache=False
        ).last_hidden_state
        last = blind[
            torch.arange(len(blind), device=self.device),
            torch.from_numpy(batch.blind_ends).to(self.device),
        ]
        logp = F.log_softmax(self.model.lm_head(last), -1)
        rate = torch.from_numpy(batch.blind_targets).to(self.device, logp.dtype)
        blind_loss = -(
            rate * logp[:, self.prompts.yes[0]] + (1 - rate) * logp[:, self.prompts.no[0]]
        ).mean()
        return seen_loss, blind_loss, margin.detach()


def parse_mix(text: str) -> tuple[list[str], np.ndarray]:
    parts = dict(p.split("=") for p in text.split(","))
    share = np.array([float(v) for v in parts.values()])
    return list(parts), share / share.sum()


def save(model: Any, folder: Path) -> None:
    """The weights and config as an ordinary checkpoint, atomically enough to survive a kill."""
    model.save_pretrained(folder / "new")
    for file in (folder / "new").iterdir():
        file.replace(folder / file.name)
    (folder / "new").rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sprites", type=Path, default=Path("work/sprites.npz"))
    parser.add_argument("--photos", type=Path, default=Path("work/photos.npz"))
    parser.add_argument("--out", type=Path, default=Path("work/run"))
    parser.add_argument(
        "--steps",
        type=int,
        required=True,
        help="length of the schedule, steps already done included",
    )
    parser.add_argument(
        "--mix", default="single=1", help="layouts and shares, e.g. single=0.5,3x4=0.5"
    )
    parser.add_argument(
        "--vision-only", type=int, default=0, help="first steps that train the auxiliary loss alone"
    )
    parser.add_argument(
        "--answer-share", type=float, default=0.5, help="share of the pictures that have questions"
    )
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--weights", type=Path, help="go on from these weights alone, with a fresh optimiser"
    )
    parser.add_argument("--minutes", type=float, help="stop after this long")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.tokens_per_view = TOKENS_PER_VIEW
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    if args.weights:  # token ids are part of what the weights mean
        shutil.copyfile(args.weights / "tokenizer.json", args.out / "tokenizer.json")
    elif not (args.out / "tokenizer.json").exists():
        train_tokenizer().save(str(args.out / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    prompts = Prompts(tokenizer, TOKENS_PER_VIEW)
    source = args.weights or (args.out if (args.out / "model.safetensors").exists() else None)
    if source:
        model: Any = SmolVLMForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    else:
        model = SmolVLMForConditionalGeneration(make_config())
        whiten(model, Stage("train", args.sprites, args.photos))
    model.to(device).train()
    trainer = Trainer(model, prompts, device)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    chosen = {id(p) for p in hidden}
    decay = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in chosen]
    rest = [p for p in model.parameters() if p.ndim < 2] + [trainer.bias, trainer.scale]
    muon = Muon(hidden, lr=args.muon_rate, weight_decay=0.05)
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=args.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    step = 0
    state_file = args.out / "state.pt"
    if state_file.exists() and not args.weights:
        state = torch.load(state_file, map_location=device, weights_only=True)
        optimiser.load_state_dict(state["optimiser"])
        muon.load_state_dict(state["muon"])
        trainer.bias.data.copy_(state["bias"])
        trainer.scale.data.copy_(state["scale"])
        step = state["step"]
    print(
        json.dumps(
            {
                "parameters": sum(p.numel() for p in model.parameters()),
                "device": device,
                "from": str(source),
                "step": step,
                "seed": args.seed,
                "vocabulary": tokenizer.get_vocab_size(),
            }
        ),
        flush=True,
    )
    context = mp.get_context("spawn")
    ready, wishes = context.Queue(4), context.Queue()
    layouts, shares = parse_mix(args.mix)
    rng = np.random.default_rng(args.seed + step)
    for _ in range(6):
        wishes.put(str(rng.choice(layouts, p=shares)))
    worker = context.Process(
        target=producer, args=(ready, wishes, args, args.seed + 1000 + step), daemon=True
    )
    worker.start()
    started = window = time.time()
    seen = []
    while step < args.steps:
        try:
            batch = ready.get(timeout=120)
        except queue.Empty:
            raise SystemExit(
                "the process that draws batches has died; see its error above"
            ) from None
        wishes.put(str(rng.choice(layouts, p=shares)))
        ramp = min(1.0, (step + 1) / args.warmup)
        ramp *= 0.02 + 0.49 * (1 + math.cos(math.pi * step / args.steps))
        for group, rate in [(g, args.rate) for g in optimiser.param_groups] + [
            (g, args.muon_rate) for g in muon.param_groups
        ]:
            group["lr"] = rate * ramp
        tokens = trainer.visual_tokens(torch.from_numpy(batch.pixels).flatten(0, 1))
        aux = trainer.dense_loss(tokens, torch.from_numpy(batch.dense).flatten(0, 1).to(device))
        loss = DENSE_WEIGHT * aux
        record = {"aux": float(aux.detach())}
        if step >= args.vision_only:
            answer, blind, margin = trainer.answer_loss(tokens, batch)
            loss = loss + answer + 0.1 * blind
            record |= {
                "answer": float(answer.detach()),
                "blind": float(blind.detach()),
                "auroc": auroc(margin.cpu().numpy().ravel(), batch.answers.ravel()),
            }
        optimiser.zero_grad(set_to_none=True)
        muon.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        muon.step()
        step += 1
        seen.append(record)
        over = args.minutes is not None and time.time() - started > 60 * args.minutes
        if step % 25 == 0 or step == args.steps or over:
            mean = {
                k: round(float(np.nanmean([r[k] for r in seen if k in r])), 4) for k in seen[-1]
            }
            pace = (time.time() - window) / len(seen)
            print(json.dumps({"step": step, **mean, "s_per_step": round(pace, 2)}), flush=True)
            seen, window = [], time.time()
        if step % 200 == 0 or step == args.steps or over:
            save(model, args.out)
            torch.save(
                {
                    "optimiser": optimiser.state_dict(),
                    "muon": muon.state_dict(),
                    "bias": trainer.bias.data,
                    "scale": trainer.scale.data,
                    "step": step,
                },
                args.out / "state.new",
            )
            (args.out / "state.new").replace(state_file)
        if over:
            break
    worker.terminate()


if __name__ == "__main__":
    main()
