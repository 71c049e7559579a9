"""What a bundle carries so that a device can judge and check itself without a tokenizer.

Takes an opened checkpoint and a reference over the weights the bundle stores; gives compiled
policies, the canary and golden vectors. Numbers are rounded, so that a rebuild gives the same
manifest.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgejudge.bundle import (
    CanaryRecord,
    CompiledCondition,
    CompiledPolicy,
    CompiledRule,
    GoldenRecord,
    PolicyRecord,
    RuleRecord,
)
from edgejudge.errors import ExportError
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.reference import Reference
from edgejudge.models.concepts import known_names, knows
from edgejudge.models.image import canary_image, preprocess
from edgejudge.models.prompt import Prompts

__all__ = ["CalibrationPicture", "Compiler", "read_calibration", "yes_probability"]

_DEFAULT_THRESHOLD = 0.5
_CANARY_CONDITIONS = ("a cat", "a red circle", "written text")
_GOLDEN_PICTURES = 2
_GOLDEN_CONDITIONS = 4


@dataclass(frozen=True, slots=True)
class CalibrationPicture:
    """`image` is the file's name; `conditions` are what to ask of it."""

    image: str
    rgb: NDArray[np.uint8]
    conditions: tuple[str, ...]


def read_calibration(folder: Path) -> list[CalibrationPicture]:
    """A folder of PNG files with questions.json: a list of {image, conditions: [{text, label}]}."""
    file = folder / "questions.json"
    try:
        entries: Any = json.loads(file.read_bytes())
        pictures = []
        for entry in entries:
            name = str(entry["image"])
            if Path(name).name != name:
                raise ValueError(f"{name!r} does not lie in the folder")
            with Image.open(folder / name) as picture:
                if picture.mode != "RGB":
                    raise ValueError(f"{name} is {picture.mode}, calibration pictures are RGB")
                rgb = np.asarray(picture)
            texts = tuple(str(condition["text"]) for condition in entry["conditions"])
            pictures.append(CalibrationPicture(name, rgb, texts))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{file}: not a readable calibration set ({error})") from None
    if not pictures:
        raise ExportError(f"{file}: holds no pictures")
    return pictures


def yes_probability(
    logits: NDArray[np.float64], labels: dict[str, tuple[int, ...]]
) -> NDArray[np.float64]:
    """Label logits [B, R] -> P(yes) [B]: variants joined by log-sum-exp, then yes / (yes + no)."""
    yes, no = (np.logaddexp.reduce(logits[:, list(labels[name])], axis=1) for name in ("yes", "no"))
    probability: NDArray[np.float64] = 1 / (1 + np.exp(no - yes))
    return probability


def _golden_name(index: int) -> str:
    return f"golden-{index}.png"


class Compiler:
    """`decimals` is how far the reference's arithmetic can be reproduced on another machine."""

    def __init__(self, checkpoint: Checkpoint, stored: Reference, decimals: int) -> None:
        self._checkpoint = checkpoint
        self._stored = stored
        self._decimals = decimals
        self._prompts = Prompts(
            checkpoint.prompt, checkpoint.tokens.image, lambda: checkpoint.tokenizer
        )

    def policy(self, policy: PolicyRecord) -> CompiledPolicy:
        thresholds: dict[str, float] = {}
        for entry in self._checkpoint.card.policies:
            if entry.policy == policy.name:
                thresholds = entry.thresholds
        if unknown := sorted(set(thresholds) - {rule.id for rule in policy.rules}):
            raise ExportError(
                f"the judge card has a threshold for rule {unknown[0]!r}, "
                f"which policy {policy.name!r} does not have"
            )
        return CompiledPolicy(
            name=policy.name,
            version=policy.version,
            sha256=policy.sha256,
            source_sha256=policy.source_sha256,
            mask="prefix and own branch, causal",
            positions="each branch continues the prefix",
            rules=tuple(self._rule(rule, thresholds) for rule in policy.rules),
        )

    def _rule(self, rule: RuleRecord, thresholds: dict[str, float]) -> CompiledRule:
        threshold = rule.threshold
        if threshold is None:
            threshold = thresholds.get(rule.id, _DEFAULT_THRESHOLD)
        return CompiledRule(
            id=rule.id,
            text=rule.text,
            category=rule.category,
            threshold=threshold,
            conditions=tuple(tuple(map(self._condition, either)) for either in rule.conditions),
        )

    def _condition(self, text: str) -> CompiledCondition:
        checkpoint = self._checkpoint
        logits = self._stored.score_blind(
            [self._prompts.blind_ids(text)], checkpoint.labels.token_ids
        )
        prior = float(yes_probability(logits, checkpoint.labels.labels)[0])
        return CompiledCondition(
            text=text,
            branch_ids=tuple(self._prompts.branch_ids(text)),
            language_prior=round(prior, self._decimals),
            known=knows(known_names(checkpoint.card.concepts), text),
        )

    def canary(self, tolerance: float) -> CanaryRecord:
        """A small picture through vision, prefix and packed questions, at little cost."""
        height, width = self._checkpoint.image.example_size
        golden = self._golden("canary", canary_image(height, width), self._canary_conditions())
        return CanaryRecord(height, width, tolerance, golden)

    def golden(self, folder: Path) -> tuple[GoldenRecord, ...]:
        """Whole prompts without an image, and calibration pictures, which are written to `folder`.

        A checkpoint without a calibration set is checked on a second synthetic picture.
        """
        conditions = self._canary_conditions()
        prompts = tuple(tuple(self._prompts.blind_ids(text)) for text in conditions)
        logits = self._stored.score_blind(prompts, self._checkpoint.labels.token_ids)
        records = [GoldenRecord(None, 0, 0, prompts, self._rounded(logits))]
        calibration = self._checkpoint.calibration_folder
        if calibration is None:
            height, width = self._checkpoint.image.example_size
            drawn = canary_image(width, height)
            Image.fromarray(drawn).save(folder / _golden_name(0))
            records.append(self._golden(_golden_name(0), drawn, conditions))
            return tuple(records)
        for index, picture in enumerate(read_calibration(calibration)[:_GOLDEN_PICTURES]):
            # Copied, not encoded again: a PNG's bytes depend on the version of its encoder.
            shutil.copyfile(calibration / picture.image, folder / _golden_name(index))
            texts = picture.conditions[:_GOLDEN_CONDITIONS]
            records.append(self._golden(_golden_name(index), picture.rgb, texts))
        return tuple(records)

    def _canary_conditions(self) -> tuple[str, ...]:
        names = tuple(concept.name for concept in self._checkpoint.card.concepts[:3])
        return names or _CANARY_CONDITIONS

    def _golden(
        self, image: str, rgb: NDArray[np.uint8], conditions: Sequence[str]
    ) -> GoldenRecord:
        seen = preprocess(rgb, self._checkpoint.image)
        grid = (seen.rows, seen.cols)
        self._stored.prefill(
            self._prompts.prefix_ids(*grid),
            self._stored.encode(seen.feeds),
            self._prompts.prefix_positions(*grid),
        )
        branches = tuple(tuple(self._prompts.branch_ids(text)) for text in conditions)
        logits = self._stored.score(branches, self._checkpoint.labels.token_ids)
        return GoldenRecord(image, *grid, branches, self._rounded(logits))

    def _rounded(self, logits: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(round(float(v), self._decimals) for v in row) for row in logits)
