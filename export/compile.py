"""What a bundle carries so that a device can judge and check itself without a tokenizer.

Takes an opened checkpoint and a reference over the weights the bundle stores; gives compiled
policies, the canary and golden vectors. Numbers are rounded, so that a rebuild gives the same
manifest.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
from edgejudge.export.calibration import CalibrationPicture, read_calibration
from edgejudge.export.checkpoint import Checkpoint
from edgejudge.export.reference import Asked, Reference
from edgejudge.models.concepts import known_names, knows
from edgejudge.models.image import ImageSpec, canary_image, preprocess
from edgejudge.models.prompt import Prompts

__all__ = ["Compiler", "asked_of", "yes_probability"]

_DEFAULT_THRESHOLD = 0.5
_CANARY_CONDITIONS = ("a cat", "a red circle", "written text")
_GOLDEN_PICTURES = 2
_GOLDEN_CONDITIONS = 4


def yes_probability(
    logits: NDArray[np.float64], labels: dict[str, tuple[int, ...]]
) -> NDArray[np.float64]:
    """Label logits [B, R] -> P(yes) [B]: variants joined by log-sum-exp, then yes / (yes + no)."""
    yes, no = (np.logaddexp.reduce(logits[:, list(labels[name])], axis=1) for name in ("yes", "no"))
    probability: NDArray[np.float64] = 1 / (1 + np.exp(no - yes))
    return probability


def _golden_name(index: int) -> str:
    return f"golden-{index}.png"


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler made, ready for the manifest."""

    policies: tuple[CompiledPolicy, ...]
    canary: CanaryRecord
    golden: tuple[GoldenRecord, ...]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A golden record to be, and the question that gives its logits."""

    image: str | None
    rows: int
    cols: int
    asked: Asked


class Compiler:
    """Asks the reference everything in one run, since each run loads every weight.

    `decimals` is how far the reference's arithmetic can be reproduced on another machine.
    """

    def __init__(self, checkpoint: Checkpoint, stored: Reference, decimals: int) -> None:
        self._checkpoint = checkpoint
        self._stored = stored
        self._decimals = decimals
        self._prompts = checkpoint.prompts
        self._names = known_names(checkpoint.card.concepts)

    def compile(self, policies: Sequence[PolicyRecord], folder: Path, tolerance: float) -> Compiled:
        """Policies, canary and golden vectors; golden pictures are written to `folder`."""
        texts = list(
            dict.fromkeys(
                text
                for policy in policies
                for rule in policy.rules
                for either in rule.conditions
                for text in either
            )
        )
        blind = Asked([self._prompts.blind_ids(text) for text in texts])
        height, width = self._checkpoint.image.example_size
        canary = self._wanted("canary", canary_image(height, width), self._canary_conditions())
        wanted = [canary, *self._golden(folder)]
        labels = self._checkpoint.labels
        logits = self._stored.ask(
            [w.asked for w in wanted] + [blind] * bool(texts), labels.token_ids
        )
        priors = {}
        if texts:
            found = yes_probability(logits.pop(), labels.labels)
            priors = {t: round(float(p), self._decimals) for t, p in zip(texts, found, strict=True)}
        records = [self._record(w, found) for w, found in zip(wanted, logits, strict=True)]
        return Compiled(
            policies=tuple(self._policy(policy, priors) for policy in policies),
            canary=CanaryRecord(height, width, tolerance, records[0]),
            golden=tuple(records[1:]),
        )

    def canary_logits(self, reference: Reference) -> tuple[tuple[float, ...], ...]:
        """What a reference over the weights of another target says of the canary."""
        height, width = self._checkpoint.image.example_size
        rgb = canary_image(height, width)
        wanted = self._wanted("canary", rgb, self._canary_conditions())
        (logits,) = reference.ask([wanted.asked], self._checkpoint.labels.token_ids)
        return self._record(wanted, logits).label_logits

    def _policy(self, policy: PolicyRecord, priors: dict[str, float]) -> CompiledPolicy:
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
            rules=tuple(self._rule(rule, thresholds, priors) for rule in policy.rules),
            clue=policy.clue,
        )

    def _rule(
        self, rule: RuleRecord, thresholds: dict[str, float], priors: dict[str, float]
    ) -> CompiledRule:
        threshold = rule.threshold
        if threshold is None:
            threshold = thresholds.get(rule.id, _DEFAULT_THRESHOLD)
        return CompiledRule(
            id=rule.id,
            text=rule.text,
            category=rule.category,
            threshold=threshold,
            conditions=tuple(
                tuple(self._condition(text, priors[text]) for text in either)
                for either in rule.conditions
            ),
            objects=rule.objects,
        )

    def _condition(self, text: str, prior: float) -> CompiledCondition:
        return CompiledCondition(
            text=text,
            branch_ids=tuple(self._prompts.branch_ids(text)),
            language_prior=prior,
            known=knows(self._names, text, self._checkpoint.card.patterns),
        )

    def _golden(self, folder: Path) -> list[_Wanted]:
        """Whole prompts without an image, and calibration pictures.

        A checkpoint without a calibration set is checked on a second synthetic picture.
        """
        conditions = self._canary_conditions()
        prompts = Asked([self._prompts.blind_ids(text) for text in conditions])
        wanted = [_Wanted(None, 0, 0, prompts)]
        calibration = self._checkpoint.calibration_folder
        if calibration is None:
            height, width = self._checkpoint.image.example_size
            drawn = canary_image(width, height)
            Image.fromarray(drawn).save(folder / _golden_name(0))
            return [*wanted, self._wanted(_golden_name(0), drawn, conditions)]
        for index, picture in enumerate(read_calibration(calibration)[:_GOLDEN_PICTURES]):
            # Copied, not encoded again: a PNG's bytes depend on the version of its encoder.
            shutil.copyfile(calibration / picture.image, folder / _golden_name(index))
            texts = picture.conditions[:_GOLDEN_CONDITIONS]
            wanted.append(self._wanted(_golden_name(index), picture.rgb, texts))
        return wanted

    def _canary_conditions(self) -> tuple[str, ...]:
        names = tuple(concept.name for concept in self._checkpoint.card.concepts[:3])
        return names or _CANARY_CONDITIONS

    def _wanted(self, image: str, rgb: NDArray[np.uint8], conditions: Sequence[str]) -> _Wanted:
        return _Wanted(image, *_asked_about(self._prompts, self._checkpoint.image, rgb, conditions))

    def _record(self, wanted: _Wanted, logits: NDArray[np.float64]) -> GoldenRecord:
        rounded = tuple(tuple(round(float(v), self._decimals) for v in row) for row in logits)
        branches = tuple(map(tuple, wanted.asked.branches))
        return GoldenRecord(wanted.image, wanted.rows, wanted.cols, branches, rounded)


def _asked_about(
    prompts: Prompts, image: ImageSpec, rgb: NDArray[np.uint8], conditions: Sequence[str]
) -> tuple[int, int, Asked]:
    """Rows and columns of a picture, and the conditions asked of it."""
    seen = preprocess(rgb, image)
    grid = (seen.rows, seen.cols)
    branches = [prompts.branch_ids(text) for text in conditions]
    asked = Asked(branches, prompts.prefix_ids(*grid), seen.feeds, prompts.prefix_positions(*grid))
    return (*grid, asked)


def asked_of(checkpoint: Checkpoint, pictures: Sequence[CalibrationPicture]) -> list[Asked]:
    """The pictures' conditions, pixels and prompts made as the checkpoint itself says."""
    prompts, image = checkpoint.prompts, checkpoint.image
    return [_asked_about(prompts, image, p.rgb, p.conditions)[2] for p in pictures]
