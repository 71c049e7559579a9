"""How well nano judges: AUROC per concept and F1 per policy rule, with N and intervals.

Takes a checkpoint (run by transformers) or a bundle (run by edgejudge) and drawn scenes of the val
and test splits; prints one JSON document. Thresholds come from val alone. Does not know how the
model was trained.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from concepts import CONCEPTS
from metrics import auroc
from numpy.typing import NDArray
from PIL import Image
from scene import VIEW, Scene, Stage

from edgejudge.calibrating.fitting import apply_map, choose, methods_for
from edgejudge.calibrating.thresholds import Aim, choose_threshold
from edgejudge.models.image import image_spec, preprocess
from edgejudge.models.tiles import TileSpec
from edgejudge.policy import load_policy

# (width, height) and share: what messengers and phones send. Screenshots carry the smallest
# stickers.
SIZES = (
    ((1080, 1080), 0.2),
    ((1280, 720), 0.2),
    ((720, 1280), 0.2),
    ((1920, 1080), 0.2),
    ((512, 512), 0.2),
)


def bootstrap(statistic: Any, n: int, rounds: int = 200, seed: int = 0) -> list[float]:
    """95 % percentile interval of `statistic(rows)` over resampled images."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(rounds)]
    return [round(float(v), 4) for v in np.nanpercentile(values, [2.5, 97.5])]


def size_of(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height of a picture as users send them."""
    return SIZES[int(rng.choice(len(SIZES), p=[p for _, p in SIZES]))][0]


def scenes(split: str, count: int, args: argparse.Namespace) -> Iterator[Scene]:
    """Pictures of the sizes users send, from photographs and drawn backgrounds of one split; with
    --grey without their colours.
    """
    seed = {"val": 11, "test": 29}[split]
    stage = Stage(split, args.sprites, args.photos)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        scene = stage.scene(rng, size=size_of(rng))
        yield replace(scene, image=scene.image.convert("L").convert("RGB")) if args.grey else scene


class BundleJudge:
    """Scores through the runtime, as users get them."""

    def __init__(self, bundle: Path) -> None:
        from edgejudge.bundle import Bundle
        from edgejudge.models.prompt import Prompts
        from edgejudge.runtime import Engine

        opened = Bundle.open(bundle)
        self.engine = Engine.open(opened)
        manifest = opened.manifest
        self.spec = image_spec(manifest.preprocessing)
        prompts = Prompts.of(opened)
        self.prefix_ids = prompts.prefix_ids
        self.branches = [prompts.branch_ids(c.phrase) for c in CONCEPTS]
        self.what = {
            "bundle": self.engine.bundle.manifest.name,
            "recipe": self.engine.bundle.manifest.recipe,
            "fingerprint": self.engine.bundle.fingerprint,
        }

    def probabilities(self, image: Image.Image) -> NDArray[np.float64]:
        seen = preprocess(np.asarray(image), self.spec)
        visual = self.engine.encode_image(seen.feeds)
        prefix = self.engine.prefill(self.prefix_ids(seen.rows, seen.cols), visual)
        out = self.engine.label_probabilities(self.engine.score(prefix, self.branches))
        self.engine.trace.clear()
        return out


class CheckpointJudge:
    """Scores through transformers: the outside truth, and the way to look at a run before it is
    exported.
    """

    def __init__(self, folder: Path, longest_edge: int | None) -> None:
        import torch
        from model import TOKENS_PER_VIEW
        from tokenizers import Tokenizer
        from transformers import SmolVLMForConditionalGeneration
        from words import Prompts

        self.torch = torch
        self.model: Any = SmolVLMForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.prompts = Prompts(Tokenizer.from_file(str(folder / "tokenizer.json")), TOKENS_PER_VIEW)
        self.spec = TileSpec(
            "tiles",
            longest_edge or VIEW,
            VIEW,
            longest_edge is not None,
            "LANCZOS",
            1 / 255,
            (0.5,) * 3,
            (0.5,) * 3,
        )
        self.what = {
            "checkpoint": folder.name,
            "longest_edge": self.spec.longest_edge,
            "tiling": self.spec.tiling,
        }

    def probabilities(self, image: Image.Image) -> NDArray[np.float64]:
        torch, core = self.torch, self.model.model
        seen = preprocess(np.asarray(image), self.spec)
        branches = [b["phrase"] for b in self.prompts.branches]
        with torch.inference_mode():
            visual = core.connector(
                core.vision_model(
                    pixel_values=torch.from_numpy(seen.feeds["pixel_values"])
                ).last_hidden_state
            )
            prefix = torch.tensor(self.prompts.prefix(seen.rows, seen.cols))
            hidden = core.text_model.embed_tokens(prefix)
            hidden[prefix == self.prompts.image_id] = visual.reshape(-1, visual.shape[-1])
            ids = torch.tensor([i for b in branches for i in b])
            owner = torch.tensor([n for n, b in enumerate(branches) for _ in b])
            place = torch.cat([torch.arange(len(b)) for b in branches]) + len(prefix)
            group = torch.cat([torch.full((len(prefix),), -1), owner])
            order = torch.arange(len(group))
            seen = (order[None] <= order[:, None]) & (
                (group[None] == -1) | (group[None] == group[:, None])
            )
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[
                None, None
            ]
            flow = torch.cat([hidden, core.text_model.embed_tokens(ids)])[None]
            position = torch.cat([torch.arange(len(prefix)), place])[None]
            out = core.text_model(
                inputs_embeds=flow, attention_mask=mask, position_ids=position, use_cache=False
            )
            ends = torch.tensor([len(b) for b in branches]).cumsum(0) - 1 + len(prefix)
            logits = self.model.lm_head(out.last_hidden_state[0, ends])
            margin = logits[:, self.prompts.yes[0]] - logits[:, self.prompts.no[0]]
        result: NDArray[np.float64] = torch.sigmoid(margin.double()).numpy()
        return result


def best_threshold(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """As `edgejudge calibrate --aim f1` has it, on the scale of the scores: halfway between the
    neighbours that it parts. 0.5 where there are too few labels of a kind.
    """
    truth = labels.astype(np.float64)
    methods = methods_for(truth)
    if not methods:
        return 0.5
    fitted = choose(scores, truth, [str(i) for i in range(len(scores))], methods).map
    beliefs = apply_map(fitted, scores)
    flagged = beliefs >= choose_threshold(Aim("fbeta", 1.0), beliefs, truth, 0.1).value
    return round(float((scores[flagged].min() + scores[~flagged].max()) / 2), 6)


def rule_table(
    policy: Any, probabilities: NDArray[Any], present: NDArray[Any]
) -> tuple[list[str], NDArray[Any], NDArray[Any]]:
    """Rule ids, rule scores [N, R] (maximum over alternatives, minimum over conditions) and labels
    [N, R] (-1: unknown).
    """
    names = {c.phrase: i for i, c in enumerate(CONCEPTS)}
    ids, scores, labels = [], [], []
    for rule in policy.rules:
        groups = [[names[text] for text in group] for group in rule.conditions]
        scores.append(np.min([probabilities[:, g].max(axis=1) for g in groups], axis=0))
        truth = []
        for g in groups:
            some, doubt = (present[:, g] == 1).any(axis=1), (present[:, g] == -1).any(axis=1)
            truth.append(np.where(some, 1, np.where(doubt, -1, 0)))
        labels.append(np.min(truth, axis=0))
        ids.append(rule.id)
    return ids, np.stack(scores, 1), np.stack(labels, 1)


def f1_of(decided: NDArray[Any], labels: NDArray[Any]) -> float:
    known = labels >= 0
    hit = int((decided & (labels == 1) & known).sum())
    return 2 * hit / max(1, int((decided & known).sum()) + int((labels == 1).sum()))


def measure(judge: Any, pictures: Iterable[Scene]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities [N, C] and what is there [N, C], one picture in memory at a time."""
    rows = [(judge.probabilities(s.image), s.present) for s in pictures]
    return np.stack([p for p, _ in rows]), np.stack([t for _, t in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path)
    source.add_argument("--checkpoint", type=Path)
    parser.add_argument(
        "--longest-edge",
        type=int,
        help="checkpoint only: tile pictures of this size; none is one view",
    )
    parser.add_argument("--sprites", type=Path, default=Path("work/sprites.npz"))
    parser.add_argument("--photos", type=Path, default=Path("work/photos.npz"))
    parser.add_argument("--count", type=int, default=1000, help="test pictures")
    parser.add_argument("--val-count", type=int, default=1000, help="pictures for the thresholds")
    parser.add_argument("--grey", action="store_true", help="take the colours from all pictures")
    parser.add_argument("--thresholds", type=Path, help="write the thresholds found on val here")
    args = parser.parse_args()
    judge: Any = (
        BundleJudge(args.bundle)
        if args.bundle
        else CheckpointJudge(args.checkpoint, args.longest_edge)
    )
    policy = load_policy("stickers")
    began = time.time()
    val_scores, val_truth = measure(judge, scenes("val", args.val_count, args))
    test_scores, truth = measure(judge, scenes("test", args.count, args))
    each = {c.name: auroc(test_scores[:, i], truth[:, i]) for i, c in enumerate(CONCEPTS)}

    def macro(rows: NDArray[Any]) -> float:
        return float(
            np.nanmean([auroc(test_scores[rows, i], truth[rows, i]) for i in range(len(CONCEPTS))])
        )

    def pooled(rows: NDArray[Any]) -> float:
        return auroc(test_scores[rows].ravel(), truth[rows].ravel())

    ids, rule_val, rule_val_truth = rule_table(policy, val_scores, val_truth)
    _, rule_test, rule_truth = rule_table(policy, test_scores, truth)
    cuts = np.array(
        [
            best_threshold(
                rule_val[rule_val_truth[:, r] >= 0, r], rule_val_truth[rule_val_truth[:, r] >= 0, r]
            )
            for r in range(len(ids))
        ]
    )
    decided = rule_test >= cuts
    every = np.arange(args.count)
    worst = sorted(each.items(), key=lambda kv: kv[1])
    report = {
        **judge.what,
        "machine": platform.processor() or platform.machine(),
        "grey": args.grey,
        "val_images": args.val_count,
        "test_images": args.count,
        "decisions": int((truth >= 0).sum()),
        "positives": int((truth == 1).sum()),
        "auroc_macro": round(macro(every), 4),
        "auroc_macro_95": bootstrap(macro, args.count),
        "auroc_pooled": round(pooled(every), 4),
        "auroc_pooled_95": bootstrap(pooled, args.count),
        "auroc_worst": {k: round(v, 4) for k, v in worst[:8]},
        "policy_micro_f1": round(f1_of(decided, rule_truth), 4),
        "policy_micro_f1_95": bootstrap(
            lambda rows: f1_of(decided[rows], rule_truth[rows]), args.count
        ),
        "policy_f1": {
            r: round(f1_of(decided[:, [i]], rule_truth[:, [i]]), 4) for i, r in enumerate(ids)
        },
        "thresholds": dict(zip(ids, map(float, cuts), strict=True)),
        "minutes": round((time.time() - began) / 60, 1),
    }
    if args.thresholds:
        args.thresholds.write_text(json.dumps(report["thresholds"], indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
