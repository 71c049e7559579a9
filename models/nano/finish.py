"""A training run -> the checkpoint that is committed: ordinary Hugging Face files in bf16, and the
judge card.

Takes the run's folder and the thresholds that evaluate.py found on val; gives checkpoint/ with
config, weights, tokenizer, image processor and judge.json. Does not know how the run was trained.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from concepts import CONCEPTS
from scene import VIEW
from tasks import PATTERNS
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from words import CHAT_TEMPLATE, SPECIALS, TEMPLATE

YES_NO = {"yes": ("Yes", " Yes", "yes", " yes"), "no": ("No", " No", "no", " no")}
# What else is answered by one token: times and scores, and which of two.
LABELS = YES_NO | {label: (f" {label}",) for label in (*"012345", *"AB")}


def card(
    name: str,
    known: Collection[str],
    thresholds: dict[str, float],
    band: float,
    pictures: str,
    labels: Mapping[str, Sequence[str]],
    patterns: Sequence[str] = (),
) -> dict[str, object]:
    """judge.json: what the judge claims to know, beside concepts in `patterns` of them, and how it
    wants to be asked; `pictures` is the folder of its calibration set.
    """
    return {
        "schema_version": 1,
        "name": name,
        "question_template": TEMPLATE,
        "labels": {name: list(variants) for name, variants in labels.items()},
        "concepts": [
            {
                "name": c.name,
                "aliases": list(dict.fromkeys((c.phrase, c.alias))),
                "category": c.category,
            }
            for c in CONCEPTS
            if c.name in known
        ],
        "patterns": list(patterns),
        "policies": [{"policy": "stickers", "thresholds": thresholds}] if thresholds else [],
        "band": band,
        "calibration_set": pictures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("checkpoint"))
    parser.add_argument("--thresholds", type=Path, help="JSON written by evaluate.py")
    parser.add_argument(
        "--longest-edge", type=int, help="tile pictures of this size; none is one view"
    )
    parser.add_argument("--band", type=float, default=0.05)
    args = parser.parse_args()
    if args.out.exists():
        shutil.rmtree(args.out)
    model: Any = SmolVLMForConditionalGeneration.from_pretrained(args.run, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(args.run / "tokenizer.json"),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|endoftext|>",
        extra_special_tokens=SPECIALS[3:],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(args.out)
    # The trained file, byte for byte: what transformers writes back differs between its versions.
    shutil.copyfile(args.run / "tokenizer.json", args.out / "tokenizer.json")
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": args.longest_edge or VIEW},
        max_image_size={"longest_edge": VIEW},
        do_image_splitting=args.longest_edge is not None,
    )
    processor.save_pretrained(args.out)
    thresholds = json.loads(args.thresholds.read_text()) if args.thresholds else {}
    names = [c.name for c in CONCEPTS]
    judge = card("nano", names, thresholds, args.band, "../calibration", LABELS, PATTERNS)
    (args.out / "judge.json").write_text(json.dumps(judge, indent=1) + "\n")
    for file in sorted(args.out.iterdir()):
        print(f"{file.name}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
