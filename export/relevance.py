"""A CLIP or SigLIP encoder as an optional stage: is a rule about anything in this picture?

Takes an encoder's checkpoint folder and texts; gives one ONNX graph, pictures to unit vectors, and
the texts' own vectors. Optimum's exporter makes the graph: these are no MLLMs, and it knows them
already. It needs transformers below 4.58, so it runs in an environment of its own. Does not know
bundles.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.utils import Extractor

from edgejudge.errors import ExportError
from edgejudge.models.crop import CropSpec, read_crop_spec
from edgejudge.models.hf_config import HfConfig, read_json

__all__ = ["Encoder", "export_encoder"]

_FAMILIES = ("clip", "siglip")
_PICTURE, _VECTOR = "pixel_values", "image_embeds"


class Encoder(NamedTuple):
    graph: bytes  # pixel_values [1, 3, S, S] -> image_embeds [1, D], of length one
    texts: NDArray[np.float32]  # [T, D], of length one
    preprocessing: CropSpec
    family: str
    model: Any  # the whole model in torch, to compare with

    def cosines(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[T], of a picture with each text, as the checkpoint itself computes them."""
        import torch

        with torch.inference_mode():
            found = self.model.get_image_features(pixel_values=torch.from_numpy(pixel_values))[0]
        vector: NDArray[np.float32] = (found / found.norm()).numpy()
        return self.texts @ vector


def export_encoder(folder: Path, texts: Sequence[str]) -> Encoder:
    """Raises ExportError for a folder that is no such encoder, or without Optimum."""
    try:
        from optimum.exporters.onnx import main_export
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ExportError(
            f"exporting an encoder needs Optimum ({error}); in an environment of its own, "
            "`pip install optimum-onnx==0.1.0 torch` beside edgejudge (`make test-gate` makes one)"
        ) from None
    config = HfConfig(read_json(folder / "config.json"), str(folder / "config.json"))
    family = config.value.get("model_type")
    if family not in _FAMILIES:
        raise ExportError(
            f"{config.where}: 'model_type' is {family!r}, expected one of {', '.join(_FAMILIES)}"
        )
    file = folder / "preprocessor_config.json"
    spec = read_crop_spec(HfConfig(read_json(file), str(file)))
    with tempfile.TemporaryDirectory() as scratch:
        # Not for constant shapes: the task has texts in it, which are cut off below.
        main_export(str(folder), scratch, task="feature-extraction", do_validation=False)
        whole = onnx.load(str(Path(scratch) / "model.onnx"))
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Encoder(
        graph=_picture_side(whole),
        texts=_encode(model, tokenizer, texts, family),
        preprocessing=spec,
        family=family,
        model=model,
    )


def _picture_side(whole: onnx.ModelProto) -> bytes:
    """What leads from the picture to its vector."""
    names = {value.name for value in whole.graph.output}
    if _VECTOR not in names:
        raise ExportError(f"Optimum's graph gives {', '.join(sorted(names))}, not {_VECTOR}")
    return bytes(Extractor(whole).extract_model([_PICTURE], [_VECTOR]).SerializeToString())


def _encode(model: Any, tokenizer: Any, texts: Sequence[str], family: str) -> NDArray[np.float32]:
    import torch

    # SigLIP was trained on texts padded to its full length.
    padding = "max_length" if family == "siglip" else True
    tokens = tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        found = model.get_text_features(**tokens)
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(found, dim=-1).numpy()
    return vectors
