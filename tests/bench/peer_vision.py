"""The vision tower alone: pixels of some views to visual tokens, by one engine.

`peer_vision.py ENGINE THREADS FILES...`; every engine of the bench that has one.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from peer import serve


class Ours:
    def __init__(self, threads: str, bundle: str) -> None:
        from edgejudge.bundle import Bundle
        from edgejudge.runtime import Engine

        opened = Bundle.open(Path(bundle), unsealed=True)
        self.engine = Engine.open(opened, threads=int(threads))
        self.about = {"engine": "edgejudge", "precision": opened.manifest.recipe}

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self.engine.encode_image({"pixel_values": pixels})


class OpenVino:
    def __init__(self, threads: str, folder: str) -> None:
        import openvino as ov

        options = {
            "INFERENCE_NUM_THREADS": int(threads),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
        }
        model = ov.Core().compile_model(f"{folder}/vision.xml", "CPU", options)
        self.request = model.create_infer_request()
        self.about = {"engine": f"OpenVINO {ov.__version__.split('-')[0]}", "precision": "int8"}

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        self.request.infer({0: pixels})
        return np.array(self.request.get_output_tensor(0).data)


class Transformers:
    def __init__(self, threads: str, name: str, cache: str, dtype: str) -> None:
        import torch
        import transformers
        from prepare_vision import float_tower
        from shapes import SHAPES, judge_checkpoint

        torch.set_num_threads(int(threads))
        self.dtype = getattr(torch, dtype)
        judge = judge_checkpoint(SHAPES[name]().preset, Path(cache, "judge", name), [])
        self.tower = float_tower(judge).to(self.dtype)
        self.about = {"engine": f"transformers {transformers.__version__}", "precision": dtype}

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = self.tower(torch.from_numpy(pixels).to(self.dtype))
        out: np.ndarray = found.float().numpy()
        return out


class LlamaCpp:
    """Through mtmd, which makes its views itself: the picture is one whose views are as many."""

    def __init__(self, threads: str, mmproj: str, text: str) -> None:
        import llama_cpp as ll
        from llama_cpp import mtmd_cpp as mtmd

        self.mtmd = mtmd
        model = ll.llama_model_load_from_file(text.encode(), ll.llama_model_default_params())
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.n_threads = False, int(threads)
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = mtmd.mtmd_init_from_file(mmproj.encode(), model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot load {mmproj}")
        self.width = ll.llama_model_n_embd(model)
        self.about = {"engine": "llama.cpp", "precision": "Q8_0"}

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        mtmd = self.mtmd
        # Two tiles side by side and the whole picture once more: three views.
        side = pixels.shape[2]
        wide = np.concatenate(list(pixels[:2].transpose(0, 2, 3, 1)), 1)
        rgb = np.ascontiguousarray(np.clip((wide + 1) * 127.5, 0, 255).astype(np.uint8))
        assert rgb.shape == (side, 2 * side, 3)
        bytes_ = (ctypes.c_uint8 * rgb.size).from_buffer(rgb)
        bitmap = mtmd.mtmd_bitmap_init(rgb.shape[1], rgb.shape[0], bytes_)
        chunks = mtmd.mtmd_input_chunks_init()
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(marker, len(marker), False, True)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if code := mtmd.mtmd_tokenize(self.context, chunks, ctypes.byref(text), bitmaps, 1):
            raise RuntimeError(f"mtmd_tokenize gave {code}")
        found = []
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                continue
            if code := mtmd.mtmd_encode_chunk(self.context, chunk):
                raise RuntimeError(f"mtmd_encode_chunk gave {code}")
            tokens = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            found.append(
                np.ctypeslib.as_array(
                    mtmd.mtmd_get_output_embd(self.context), (tokens * self.width,)
                ).copy()
            )
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return np.concatenate(found).reshape(-1, self.width)


ENGINES = {"ours": Ours, "openvino": OpenVino, "transformers": Transformers, "llama": LlamaCpp}


def make(engine: str, threads: str, *files: str) -> Any:
    return ENGINES[engine](threads, *files)


if __name__ == "__main__":
    serve(make)
