"""The optimisers, the schedule, the log and the saved state that both training scripts share.

Takes a model and a loss each step; writes checkpoints and state.pt, prints one JSON line every 25
steps. Does not know what the loss is made of.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from muon import Muon

LOG_EVERY = 25
SAVE_EVERY = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every training script."""
    parser.add_argument("--sprites", type=Path, default=Path("work/sprites.npz"))
    parser.add_argument("--photos", type=Path, default=Path("work/photos.npz"))
    parser.add_argument("--out", type=Path, default=Path("work/run"))
    parser.add_argument(
        "--steps", type=int, required=True, help="length of the schedule, steps done included"
    )
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--muon-rate", type=float, default=0.014)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--weights", type=Path, help="start from these weights, with fresh optimisers"
    )
    parser.add_argument("--minutes", type=float, help="stop after this long")
    parser.add_argument("--threads", type=int, default=2)


def source_of(args: argparse.Namespace) -> Path | None:
    """Where the weights come from: the run itself when it has begun, else --weights, else nowhere.

    Brings the tokenizer along: token ids are part of what the weights mean.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.out / "state.pt").exists():
        return Path(args.out)
    if args.weights:
        shutil.copyfile(args.weights / "tokenizer.json", args.out / "tokenizer.json")
    return Path(args.weights) if args.weights else None


class Loop:
    """Steps Muon on hidden matrices and AdamW on the rest, on a cosine after a warm-up."""

    def __init__(
        self, model: Any, heads: dict[str, torch.nn.Parameter], args: argparse.Namespace
    ) -> None:
        """Steps what of the model asks for a gradient, and `heads`, which are saved in the state
        alone.
        """
        self.model, self.heads, self.args = model, heads, args
        params = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        hidden = [p for n, p in params if p.ndim == 2 and "embed" not in n]
        chosen = {id(p) for p in hidden}
        free = [p for _, p in params if id(p) not in chosen] + list(heads.values())
        self.muon = Muon(hidden, lr=args.muon_rate, weight_decay=0.05)
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in free if p.ndim >= 2], "weight_decay": 0.05},
                {"params": [p for p in free if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=args.rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step = 0
        self._state = args.out / "state.pt"
        begun = self._state.exists()
        before = self._state if begun else (args.weights or args.out) / "state.pt"
        if before.exists():  # of a run with other heads, --weights is read and its state is not
            state = torch.load(before, map_location="cpu", weights_only=True)
            for name, head in heads.items():
                if begun or (name in state and state[name].shape == head.shape):
                    head.data.copy_(state[name])
            if begun:
                self.adam.load_state_dict(state["adam"])
                self.muon.load_state_dict(state["muon"])
                self.step = state["step"]
        self._started = self._window = time.time()
        self._seen: list[dict[str, float]] = []
        self._over = False

    @property
    def running(self) -> bool:
        """False after the last step, or when the minutes are over."""
        return self.step < self.args.steps and not self._over

    def update(self, loss: torch.Tensor, record: dict[str, float]) -> None:
        """One step down `loss`; `record` goes into the log."""
        ramp = min(1.0, (self.step + 1) / self.args.warmup)
        ramp *= 0.02 + 0.49 * (1 + math.cos(math.pi * self.step / self.args.steps))
        for group in self.adam.param_groups:
            group["lr"] = self.args.rate * ramp
        for group in self.muon.param_groups:
            group["lr"] = self.args.muon_rate * ramp
        self.adam.zero_grad(set_to_none=True)
        self.muon.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        moved = [p for p in self.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(moved, 1.0)
        self.adam.step()
        self.muon.step()
        self.step += 1
        self._seen.append(record)
        minutes = self.args.minutes
        self._over = minutes is not None and time.time() - self._started > 60 * minutes
        if self.step % LOG_EVERY == 0 or not self.running:
            self._log()
        if self.step % SAVE_EVERY == 0 or not self.running:
            self._save()

    def _log(self) -> None:
        names = list(dict.fromkeys(k for r in self._seen for k in r))
        kept = {k: [r[k] for r in self._seen if not math.isnan(r.get(k, math.nan))] for k in names}
        line: dict[str, float] = {"step": self.step}
        line |= {k: round(float(np.mean(v)), 4) for k, v in kept.items() if v}
        line["s_per_step"] = round((time.time() - self._window) / len(self._seen), 2)
        print(json.dumps(line), flush=True)
        self._seen, self._window = [], time.time()

    def _save(self) -> None:
        """The weights as an ordinary checkpoint, then the state; each file replaced whole."""
        folder = self.args.out
        self.model.save_pretrained(folder / "new")
        for file in (folder / "new").iterdir():
            file.replace(folder / file.name)
        (folder / "new").rmdir()
        state = {"adam": self.adam.state_dict(), "muon": self.muon.state_dict(), "step": self.step}
        state |= {name: head.data for name, head in self.heads.items()}
        torch.save(state, folder / "state.new")
        (folder / "state.new").replace(self._state)
