"""How far our pixels are from those of transformers' default, which resizes with torchvision:
`make preprocess-distance`.

Takes nothing; prints one row for each family: the largest and the mean difference of a pixel value,
in levels of 0 to 255, over pictures of several sizes. Not a test: our pixels equal the processors
that resize with Pillow, which test_preprocess.py holds, and this says what choosing those means.
"""

import sys
from typing import Any

import numpy as np
import torch

SIZES = ((480, 640), (1080, 1920), (1920, 1080), (333, 500), (1024, 1024))


def import_torchvision() -> None:
    """torchvision without its compiled operators, which come for CUDA alone: resizing is torch's
    own arithmetic, and only its registry asks for two operators nobody calls here.
    """
    for name in ("nms", "qnms"):
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", signature)
    import torchvision  # noqa: F401


def pictures() -> list[np.ndarray]:
    """Smooth shapes with sharp edges and noise, as photographs and screens have."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in SIZES:
        y, x = np.mgrid[:height, :width] / 97.0
        base = 128 + 80 * np.sin(x[..., None] * [1, 2, 3]) * np.cos(y[..., None] * [3, 1, 2])
        base[height // 4 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
        made.append(np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8))
    return made


def processors() -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """Family -> the processor that resizes with Pillow, the default one, and their settings."""
    from transformers.models.got_ocr2 import image_processing_got_ocr2 as got
    from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as got_pillow
    from transformers.models.llava_onevision import image_processing_llava_onevision as llava
    from transformers.models.llava_onevision import (
        image_processing_pil_llava_onevision as llava_pillow,
    )
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as qwen_pillow
    from transformers.models.qwen2_vl import image_processing_qwen2_vl as qwen
    from transformers.models.smolvlm import image_processing_pil_smolvlm as smol_pillow
    from transformers.models.smolvlm import image_processing_smolvlm as smol

    tiles = {"size": {"longest_edge": 4 * 384}, "max_image_size": {"longest_edge": 384}}
    mosaic = {"size": {"height": 448, "width": 448}, "crop_to_patches": True}
    return {
        "smolvlm": (smol_pillow.SmolVLMImageProcessorPil, smol.SmolVLMImageProcessor, tiles),
        "qwen2_5_vl": (qwen_pillow.Qwen2VLImageProcessorPil, qwen.Qwen2VLImageProcessor, {}),
        "internvl": (got_pillow.GotOcr2ImageProcessorPil, got.GotOcr2ImageProcessor, mosaic),
        "llava_onevision": (
            llava_pillow.LlavaOnevisionImageProcessorPil,
            llava.LlavaOnevisionImageProcessor,
            {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        ),
    }


def main() -> None:
    try:
        import_torchvision()
    except ModuleNotFoundError:
        sys.exit("error: torchvision is not here; run `make preprocess-distance`, which brings it")
    print("| family | pictures | largest difference | mean difference |")
    print("|---|---|---|---|")
    for family, (pillow, default, settings) in processors().items():
        worst, means = 0.0, []
        for picture in pictures():
            ours, theirs = (
                np.asarray(kind(**settings)(images=[picture], return_tensors="np").pixel_values)
                for kind in (pillow, default)
            )
            std = np.mean(pillow(**settings).image_std)
            levels = np.abs(ours - theirs) * std * 255
            worst = max(worst, float(levels.max()))
            means.append(float(levels.mean()))
        print(f"| {family} | {len(means)} | {worst:.1f} of 255 | {np.mean(means):.3f} of 255 |")


if __name__ == "__main__":
    main()
