"""transformers, bf16 (or float32, the truth that others are compared with), sdpa attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from peer import serve
from transformers import AutoModelForCausalLM, DynamicCache


class Transformers:
    ways = ("prefix kept", "again")

    def __init__(self, folder: str, threads: str, dtype: str) -> None:
        torch.set_num_threads(int(threads))
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model.eval()
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.about = {"engine": version, "precision": dtype}
        self._cache: Any = None

    @torch.inference_mode()
    def _run(self, ids: list[int]) -> torch.Tensor:
        out = self.model(
            torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    def prefill(self, ids: list[int]) -> torch.Tensor:
        self._cache = DynamicCache()
        self._last = self._run(ids)
        return self._last

    def logits(self, ids: list[int]) -> np.ndarray:
        return self.prefill(ids).float().numpy()

    def decode(self, tokens: int) -> None:
        last = self._last
        for _ in range(tokens):
            last = self._run([int(last.argmax())])

    def rules(self, prefix: list[int], questions: list[list[int]], way: str) -> Any:
        if way == "again":
            return [self.prefill(prefix + question) for question in questions]
        self.prefill(prefix)
        found = []
        for question in questions:
            found.append(self._run(question))
            self._cache.crop(-len(question))
        return found


serve(Transformers)
