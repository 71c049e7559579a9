"""Each engine's own form of a shape's weights, made by the engine's own tools, once.

Takes a shape and a cache folder; gives the command line of each peer's process. A conversion that
fails is that peer's failure, in words, and no one else's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from prepare_vision import mmproj, openvino_tower, vocabulary
from shapes import SHAPES, Shape, judge_checkpoint, text_checkpoint

from edgejudge.export import Checkpoint, export

__all__ = ["Entrant", "entrants", "truth", "vision_entrants"]

HERE = Path(__file__).parent
_OURS = ("fast", "fast8")


class Entrant(NamedTuple):
    """`command` is None where `failure` says why there is none."""

    name: str
    command: list[str] | None
    failure: str = ""

    @property
    def mib(self) -> float:
        """What its files take, all that it was given."""
        if self.command is None:
            return float("nan")
        given = Path(self.command[2])
        files = given.iterdir() if given.is_dir() else [given]
        return sum(f.stat().st_size for f in files if f.is_file()) / 2**20


def entrants(
    name: str, cache: Path, threads: int, only: list[str], optimum_cli: str
) -> list[Entrant]:
    """Everyone who can be started on this machine; `only` keeps names that begin so. `optimum_cli`
    is of an environment of its own: it wants an older transformers.
    """
    shape: Shape = SHAPES[name]()
    judge = judge_checkpoint(shape.preset, cache / "judge" / name, ["a cat", "a dog"])
    text = text_checkpoint(shape, judge, cache / "text")
    makers: dict[str, Callable[[], list[str]]] = {}
    for recipe in _OURS:
        makers[f"edgejudge {recipe}"] = lambda r=recipe: [
            "peer_edgejudge.py",
            str(_ours(judge, cache / "ours" / f"{name}-{r}", r)),
            str(threads),
        ]
    makers["llama.cpp Q4_0"] = lambda: [
        "peer_llama_cpp.py",
        str(_gguf(shape, text, cache / "gguf" / f"{name}.gguf")),
        str(threads),
    ]
    makers["ONNX Runtime GenAI int4"] = lambda: [
        "peer_genai.py",
        str(_genai(text, cache / "genai" / name)),
        str(threads),
    ]
    for bits, group in (("int8", "128"), ("int4", "32")):
        for batched in ("", "batched"):
            makers[f"OpenVINO {bits}{' ' + batched if batched else ''}"] = (
                lambda b=bits, g=group, t=batched: [
                    "peer_openvino.py",
                    str(_openvino(optimum_cli, text, cache / "openvino" / f"{name}-{b}", b)),
                    str(threads),
                    g,
                    b,
                    t,
                ]
            )
    makers["transformers bf16"] = lambda: [
        "peer_transformers.py",
        str(text),
        str(threads),
        "bfloat16",
    ]
    return _made(makers, only)


def vision_entrants(name: str, cache: Path, threads: int, only: list[str]) -> list[Entrant]:
    """Those who can run the tower of a shape that has one."""
    shape: Shape = SHAPES[name]()
    if not shape.views:
        return []
    judge = judge_checkpoint(shape.preset, cache / "judge" / name, ["a cat", "a dog"])
    folder = cache / "vision" / name

    def peer(engine: str, *files: Path | str) -> list[str]:
        return ["peer_vision.py", engine, str(threads), *map(str, files)]

    def ov(out: Path) -> None:
        openvino_tower(judge, out, shape.views)

    makers: dict[str, Callable[[], list[str]]] = {
        f"edgejudge {recipe}": lambda r=recipe: peer(
            "ours", _ours(judge, cache / "ours" / f"{name}-{r}", r)
        )
        for recipe in _OURS
    }
    makers["llama.cpp Q8_0"] = lambda: peer(
        "llama",
        _once(folder / "mmproj.gguf", lambda out: mmproj(judge, out)),
        _once(folder / "vocabulary.gguf", lambda out: vocabulary(judge, out)),
    )
    makers["OpenVINO int8"] = lambda: peer("openvino", _once(folder / "openvino", ov))
    makers["transformers bf16"] = lambda: peer("transformers", name, cache, "bfloat16")
    return _made(makers, only)


def _made(makers: dict[str, Callable[[], list[str]]], only: list[str]) -> list[Entrant]:
    found = []
    for entrant, make in makers.items():
        if only and not any(entrant.startswith(o) for o in only):
            continue
        print(f"preparing {entrant}", file=sys.stderr, flush=True)
        try:
            script, *rest = make()
            found.append(Entrant(entrant, [sys.executable, str(HERE / script), *rest]))
        except subprocess.CalledProcessError as error:
            last = (error.stderr or "").strip().splitlines()[-1:]
            found.append(Entrant(entrant, None, f"{' '.join(error.cmd[:4])} ...: {last}"))
        except Exception as error:
            found.append(Entrant(entrant, None, f"{type(error).__name__}: {error}"))
    return found


def truth(name: str, cache: Path, threads: int) -> list[str]:
    """The command of the float32 reference, of which errors are told."""
    script = str(HERE / "peer_transformers.py")
    return [sys.executable, script, str(cache / "text" / name), str(threads), "float32"]


def _once(place: Path, make: Callable[[Path], None]) -> Path:
    if not place.exists():
        partial = place.with_name(place.name + ".partial")
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        make(partial)
        partial.rename(place)
    return place


def _run(command: list[str]) -> None:
    print("  " + " ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, capture_output=True, text=True)


def _ours(judge: Checkpoint, place: Path, recipe: str) -> Path:
    return _once(place, lambda out: print(export(judge, out, recipe), file=sys.stderr))


def _genai(text: Path, place: Path) -> Path:
    def make(out: Path) -> None:
        options = ["int4_accuracy_level=4", "int4_block_size=32"]
        _run(
            [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(text), "-o"]
            + [str(out), "-p", "int4", "-e", "cpu", "-c", str(out) + ".cache", "--extra_options"]
            + options
        )

    return _once(place, make)


def _openvino(optimum_cli: str, text: Path, place: Path, bits: str) -> Path:
    def make(out: Path) -> None:
        more = ["--group-size", "64", "--ratio", "1.0"] if bits == "int4" else []
        _run(
            [optimum_cli, "export", "openvino"]
            + ["--model", str(text), "--task", "text-generation-with-past"]
            + ["--weight-format", bits, *more, str(out)]
        )

    return _once(place, make)


def _gguf(shape: Shape, text: Path, place: Path) -> Path:
    """BF16 by the gguf package, then Q4_0 by llama.cpp's own quantizer."""
    import llama_cpp

    def make(out: Path) -> None:
        whole = out.with_suffix(".bf16")
        _write_gguf(shape, text, whole)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
        code = llama_cpp.llama_model_quantize(str(whole).encode(), str(out).encode(), params)
        whole.unlink()
        if code:
            raise RuntimeError(f"llama_model_quantize gave {code}")

    return _once(place, make)


def _write_gguf(shape: Shape, text: Path, file: Path) -> None:
    import gguf
    import numpy as np
    from safetensors import safe_open

    from edgejudge.export.weights import CheckpointWeights

    config, weights = shape.text, CheckpointWeights(text)
    with safe_open(text / "model.safetensors", "np") as opened:
        tensors = list(opened.keys())
    arch = {"qwen2": gguf.MODEL_ARCH.QWEN2, "llama": gguf.MODEL_ARCH.LLAMA}[config["model_type"]]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name in tensors:
        stem, _, kind = name.rpartition(".")
        values = weights(name)
        projection = stem.rpartition(".")[2]
        if arch == gguf.MODEL_ARCH.LLAMA and projection in heads:
            # llama.cpp turns neighbouring rows together, the checkpoint halves of a head.
            split = values.reshape(heads[projection], 2, -1, *values.shape[1:])
            values = split.swapaxes(1, 2).reshape(values.shape)
        target = f"{names.get_name(stem)}.{kind}"
        if values.ndim == 1:
            writer.add_tensor(target, values)
            continue
        bits = (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)
        writer.add_tensor(target, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
