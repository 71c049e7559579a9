"""llama.cpp through llama-cpp-python's low level: prefix once, copied to a sequence per question,
all questions in one batch.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from typing import Any

import llama_cpp as ll
import numpy as np
from peer import serve

CONTEXT, BATCH, SEQUENCES = 4096, 2048, 33


class LlamaCpp:
    ways = ("one batch", "one by one", "again")

    def __init__(self, file: str, threads: str) -> None:
        ll.llama_backend_init()
        self.model = ll.llama_model_load_from_file(file.encode(), ll.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        params = ll.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, BATCH, 512
        params.n_seq_max = SEQUENCES
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = int(threads)
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = ll.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = ll.llama_get_memory(self.context)
        self.words = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        description = ctypes.create_string_buffer(200)
        ll.llama_model_desc(self.model, description, 200)
        self.about = {
            "engine": f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})",
            "precision": description.value.decode(),
            "options": "flash attention, n_ubatch 512",
        }
        self._at = 0

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> np.ndarray:
        """(token, position, sequence, whether its logits are wanted) -> logits [wanted, V]."""
        batch = ll.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for i, (token, position, sequence, wanted) in enumerate(rows):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = wanted
            if code := ll.llama_decode(self.context, batch):
                raise RuntimeError(f"llama_decode gave {code}")
        finally:
            ll.llama_batch_free(batch)
        return np.stack(
            [
                np.ctypeslib.as_array(ll.llama_get_logits_ith(self.context, i), (self.words,))
                for i, row in enumerate(rows)
                if row[3]
            ]
        )

    def _append(self, ids: list[int], begin: int, sequence: int = 0) -> np.ndarray:
        last = len(ids) - 1
        rows = [(token, begin + i, sequence, i == last) for i, token in enumerate(ids)]
        return self._run(rows)[0]

    def prefill(self, ids: list[int]) -> np.ndarray:
        ll.llama_memory_clear(self.memory, False)
        self._last, self._at = self._append(ids, 0), len(ids)
        return self._last

    def logits(self, ids: list[int]) -> np.ndarray:
        return self.prefill(ids).copy()

    def decode(self, tokens: int) -> None:
        for _ in range(tokens):
            self._last = self._append([int(self._last.argmax())], self._at)
            self._at += 1

    def rules(self, prefix: list[int], questions: list[list[int]], way: str) -> Any:
        if way == "again":
            return [self.prefill(prefix + question) for question in questions]
        self.prefill(prefix)
        begin = len(prefix)
        if way == "one by one":
            found = []
            for question in questions:
                found.append(self._append(question, begin).copy())
                ll.llama_memory_seq_rm(self.memory, 0, begin, -1)
            return found
        rows = []
        for number, question in enumerate(questions, 1):
            ll.llama_memory_seq_cp(self.memory, 0, number, -1, -1)
            last = len(question) - 1
            rows += [(t, begin + i, number, i == last) for i, t in enumerate(question)]
        return self._run(rows)


serve(LlamaCpp)
