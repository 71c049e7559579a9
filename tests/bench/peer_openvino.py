"""OpenVINO: the optimum-intel export with logits of the last position alone. Questions one by one
behind a kept state, or in one continuous batch with the prefix cache of OpenVINO GenAI.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
from peer import serve


class OpenVino:
    def __init__(self, folder: str, threads: str, group: str, what: str, batched: str) -> None:
        self.options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": int(threads),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
        }
        self.batched = bool(batched)
        if self.batched:
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.enable_prefix_caching = True
            scheduler.cache_size = 1
            scheduler.max_num_batched_tokens = 2048
            self.pipeline = openvino_genai.ContinuousBatchingPipeline(
                folder, scheduler, "CPU", self.options
            )
            self.ways: tuple[str, ...] = ("continuous batch",)
        else:
            core = ov.Core()
            model = core.read_model(f"{folder}/openvino_model.xml")
            _keep_last_position(model)
            self.request = core.compile_model(model, "CPU", self.options).create_infer_request()
            self.ways = ("one by one", "again")
        self.about = {
            "engine": f"OpenVINO {ov.__version__.split('-')[0]}",
            "precision": what,
            "options": f"DYNAMIC_QUANTIZATION_GROUP_SIZE {group}, last position's logits",
        }
        self._at = 0

    def _run(self, ids: list[int]) -> np.ndarray:
        count = len(ids)
        self.request.infer(
            {
                "input_ids": np.array([ids], np.int64),
                "attention_mask": np.ones((1, self._at + count), np.int64),
                "position_ids": np.arange(self._at, self._at + count, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            },
            share_inputs=True,
        )
        self._at += count
        out: np.ndarray = self.request.get_tensor("logits").data[0, -1]
        return out

    def prefill(self, ids: list[int]) -> np.ndarray:
        if self.batched:
            return np.array(self._generate([ids], 1))
        self.request.reset_state()
        self._at = 0
        self._last = self._run(ids)
        return self._last

    def logits(self, ids: list[int]) -> np.ndarray:
        return self.prefill(ids).copy()

    def decode(self, tokens: int) -> None:
        for _ in range(tokens):
            self._last = self._run([int(self._last.argmax())])

    def rules(self, prefix: list[int], questions: list[list[int]], way: str) -> Any:
        if way == "continuous batch":
            return self._batch(prefix, questions)
        if way == "again":
            return [self.prefill(prefix + question).copy() for question in questions]
        self.prefill(prefix)
        kept = [(s, s.state) for s in self.request.query_state()]
        kept = [(s, ov.Tensor(np.array(value.data))) for s, value in kept]
        found = []
        for question in questions:
            found.append(self._run(question).copy())
            for state, value in kept:
                state.state = value
            self._at = len(prefix)
        return found

    def _batch(self, prefix: list[int], questions: list[list[int]]) -> Any:
        """The prefix by itself, so that its blocks are kept, and all questions behind it."""
        self._generate([prefix], 1)
        return self._generate([prefix + q for q in questions], 1)

    def _generate(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        ids = [ov.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        found = self.pipeline.generate(ids, [config] * len(ids))
        return [list(one.m_generation_ids[0]) for one in found]


def _keep_last_position(model: ov.Model) -> None:
    """A slice before the LM head, as OpenVINO GenAI puts it."""
    from openvino import opset13 as ops

    (result,) = [r for r in model.get_results() if "logits" in r.input_value(0).names]
    node = result.input_value(0).node
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).node
    hidden = node.input_value(0)
    last = ops.slice(
        hidden, ops.constant([-1]), ops.constant([2**31 - 1]), ops.constant([1]), ops.constant([1])
    )
    node.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


serve(OpenVino)
