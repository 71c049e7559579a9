"""Muon: momentum whose update matrices are made nearly orthogonal (K. Jordan et al., 2024).

Takes the 2-D weights of hidden layers; steps them. torch.optim.Muon does its Newton-Schulz steps in
bfloat16, which a CPU without bf16 arithmetic runs a hundred times slower; this one works in fp32
and on all equal shapes at once.
"""

from collections.abc import Iterable
from typing import Any

import torch

_A, _B, _C = (
    3.4445,
    -4.7750,
    2.0315,
)  # the quintic whose iteration pulls singular values towards one


def orthogonalise(stack: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """[N, rows, cols] -> the same with singular values near one."""
    flip = stack.shape[1] > stack.shape[2]
    x = stack.transpose(1, 2) if flip else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.transpose(1, 2) if flip else x


class Muon(torch.optim.Optimizer):
    """`lr` is the spectral size of a step; about 0.01 to 0.02 where AdamW would take 1e-3."""

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Any]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, members in shapes.items():
                updates = []
                for p in members:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(state["momentum"], group["momentum"]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(members, orthogonalise(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)
