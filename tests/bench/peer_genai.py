"""onnxruntime-genai: the model builder's graph, rewound to the prefix between questions."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import numpy as np
import onnxruntime_genai as og
from peer import serve


class GenAi:
    ways = ("rewound", "again")

    def __init__(self, folder: str, threads: str) -> None:
        config = og.Config(folder)
        options = {"session_options": {"intra_op_num_threads": int(threads)}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        self.model = og.Model(config)
        self.about = {
            "engine": f"onnxruntime-genai {version('onnxruntime-genai')}",
            "precision": "int4, block 32, accuracy_level 4 (model builder, cpu)",
            "options": "logits for every position",
        }
        self._generator: Any = None

    def _fresh(self) -> Any:
        params = og.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, max_length=2048, min_length=0)
        self._generator = None  # two would hold two caches
        self._generator = og.Generator(self.model, params)
        return self._generator

    def prefill(self, ids: list[int]) -> np.ndarray:
        generator = self._fresh()
        generator.append_tokens(np.array(ids, np.int32))
        return np.asarray(generator.get_logits()).reshape(-1)

    def logits(self, ids: list[int]) -> np.ndarray:
        return self.prefill(ids)

    def decode(self, tokens: int) -> None:
        for _ in range(tokens):
            self._generator.generate_next_token()

    def rules(self, prefix: list[int], questions: list[list[int]], way: str) -> Any:
        if way == "again":
            return [self.prefill(prefix + question) for question in questions]
        self.prefill(prefix)
        found = []
        for question in questions:
            self._generator.append_tokens(np.array(question, np.int32))
            found.append(np.asarray(self._generator.get_logits()).reshape(-1))
            self._generator.rewind_to(len(prefix))
        return found


serve(GenAi)
