"""The gate of an export: a bundle is measured against the reference, and only then sealed.

Takes a checkpoint; gives a sealed bundle, or an ExportError and no bundle. Two things are told
apart: what the runtime computes from the stored weights must equal the reference over the same
weights, and what quantization changed must flip few decisions against the fp32 checkpoint.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import (
    Bundle,
    FidelityRecord,
    GoldenRecord,
    LabelMassRecord,
    Manifest,
    PolicyRecord,
)
from edgejudge.errors import ExportError
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgejudge.export import CalibrationPicture, Checkpoint
    from edgejudge.runtime import Engine

__all__ = ["DEFAULT_MAX_FLIP_RATE", "export_bundle", "graph_error"]

DEFAULT_MAX_FLIP_RATE = 0.01
_SYNTHETIC = "synthetic"
_SYNTHETIC_SIDES = ((1, 1), (1, 2), (2, 1), (3, 4), (4, 3), (1, 4), (2, 3), (3, 3))
_MOST_CONDITIONS = 32

Progress = Callable[[str], None]


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    recipe: str = "w8",
    layers_per_part: int | None = None,
    policies: Sequence[PolicyRecord] = (),
    max_flip_rate: float = DEFAULT_MAX_FLIP_RATE,
    force: bool = False,
    max_pixels: int | None = None,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Exports, measures, seals; the folder `out` appears only if all three went well.

    `policies` are compiled into the bundle. `force` replaces a bundle that is there already.
    `max_pixels` bounds the pictures of a family that keeps their own grid.
    """
    try:
        from edgejudge import export as exporting
    except ModuleNotFoundError as error:
        raise ExportError(
            f"exporting needs the package {error.name}; install it with "
            "`pip install 'edgejudge[export]'`"
        ) from None
    target = Path(out).resolve()
    exporting.check_target(target, force)
    with exporting.workplace(target, "unsealed") as partial:
        progress("exporting graphs and weights")
        exporting.export(
            checkpoint, partial, recipe, layers_per_part, policies, max_pixels=max_pixels
        )
        opened = exporting.open_checkpoint(checkpoint, max_pixels)
        record = _measure(Bundle.open(partial, unsealed=True), opened, progress)
        if record.flip_rate > max_flip_rate:
            raise ExportError(
                f"{record.flips} of {record.decisions} decisions differ from the fp32 reference "
                f"({record.flip_rate:.4f}), allowed are {max_flip_rate}; use a recipe with more "
                "bits, or allow it with --max-flip-rate"
            )
        manifest = exporting.seal(partial, record)
        exporting.publish(partial, target, force)
    return manifest


def graph_error(bundle: Bundle, engine: "Engine") -> float:
    """Largest |engine - reference| on a label logit of the canary and the golden vectors."""
    manifest = bundle.manifest
    canary = manifest.canary
    worst = 0.0
    for golden in (canary.golden, *manifest.golden):
        if golden.image is None:
            found = engine.score_blind(golden.branches)
        else:
            if golden.image == "canary":
                rgb = canary_image(canary.image_height, canary.image_width)
            else:
                rgb = _read_png(bundle.file(golden.image))
            found = _score(bundle, engine, rgb, golden)
        error = float(np.abs(found - np.array(golden.label_logits)).max())
        if not math.isfinite(error):
            return math.inf
        worst = max(worst, error)
    return worst


def _score(
    bundle: Bundle, engine: "Engine", rgb: NDArray[np.uint8], golden: GoldenRecord
) -> NDArray[np.float32]:
    seen = preprocess(rgb, image_spec(bundle.manifest.preprocessing))
    prompts, grid = _prompts(bundle), (golden.rows, golden.cols)
    visual = engine.encode_image(seen.feeds)
    prefix = engine.prefill(prompts.prefix_ids(*grid), visual, prompts.prefix_positions(*grid))
    return engine.score(prefix, golden.branches)


def _prompts(bundle: Bundle) -> Prompts:
    manifest = bundle.manifest
    return Prompts(
        manifest.prompt, manifest.tokens.image, lambda: Tokenizer(bundle.file("tokenizer.json"))
    )


def _read_png(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@dataclass(slots=True)
class _Tally:
    """What the questions asked so far have shown."""

    decisions: int = 0
    flips: int = 0
    errors: list[float] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)

    def add(
        self,
        found: NDArray[np.float64],
        wanted: NDArray[np.float64],
        thresholds: NDArray[np.float64],
        mass: NDArray[np.float64],
    ) -> None:
        self.decisions += len(found)
        self.flips += int(((found >= thresholds) != (wanted >= thresholds)).sum())
        self.errors += np.abs(found - wanted).tolist()
        self.masses += mass.tolist()


def _measure(bundle: Bundle, checkpoint: "Checkpoint", progress: Progress) -> FidelityRecord:
    from edgejudge.export import Exact, Reference, recipe_named, yes_probability
    from edgejudge.runtime import Engine

    manifest, labels = bundle.manifest, checkpoint.labels
    engine = Engine.open(bundle)
    progress("comparing the graphs with the reference")
    worst = graph_error(bundle, engine)
    tolerance = recipe_named(manifest.recipe).tolerance
    if not worst <= tolerance:
        raise ExportError(
            f"the runtime's label logits are {worst:.2g} off the reference over the same weights, "
            f"allowed are {tolerance}; this is a fault of the export, not of the checkpoint"
        )
    # In float32: the report's four decimals do not show the difference, and it is much faster.
    reference = Reference(checkpoint.spec, Exact(checkpoint.weights), checkpoint.tokens.image)
    prompts = _prompts(bundle)
    thresholds = _thresholds(manifest)
    tally = _Tally()
    name, pictures = _pictures(checkpoint, manifest)
    for index, picture in enumerate(pictures):
        progress(f"comparing decisions, picture {index + 1} of {len(pictures)}")
        seen = preprocess(picture.rgb, checkpoint.image)
        ids = prompts.prefix_ids(seen.rows, seen.cols)
        positions = prompts.prefix_positions(seen.rows, seen.cols)
        branches = [prompts.branch_ids(text) for text in picture.conditions]
        prefix = engine.prefill(ids, engine.encode_image(seen.feeds), positions)
        found = yes_probability(engine.score(prefix, branches).astype(np.float64), labels.labels)
        reference.prefill(ids, reference.encode(seen.feeds), positions)
        logits = reference.score(branches, None)  # [B, vocab]
        rows = logits[:, list(labels.token_ids)]
        wanted = yes_probability(rows, labels.labels)
        mass = np.exp(np.logaddexp.reduce(rows, 1) - np.logaddexp.reduce(logits, 1))
        limits = np.array([thresholds.get(text, 0.5) for text in picture.conditions])
        tally.add(found, wanted, limits, mass)
    return FidelityRecord(
        calibration_set=name,
        pictures=len(pictures),
        decisions=tally.decisions,
        flips=tally.flips,
        flip_rate=round(tally.flips / tally.decisions, 6),
        max_probability_error=_up(max(tally.errors)),
        mean_probability_error=_up(float(np.mean(tally.errors))),
        max_graph_error=_power_of_ten(worst),
        label_mass=LabelMassRecord(
            tally.decisions,
            round(float(np.mean(tally.masses)), 4),
            round(min(tally.masses), 4),
        ),
    )


def _pictures(
    checkpoint: "Checkpoint", manifest: Manifest
) -> tuple[str, "list[CalibrationPicture]"]:
    """The calibration set, or drawn pictures with the conditions the bundle is made for."""
    from edgejudge.export import CalibrationPicture, read_calibration

    folder = checkpoint.calibration_folder
    if folder is not None:
        return folder.name, read_calibration(folder)
    texts = [concept.name for concept in manifest.concepts]
    for policy in manifest.policies:
        texts += [c.text for rule in policy.rules for either in rule.conditions for c in either]
    conditions = tuple(dict.fromkeys(texts or ["a cat", "a person", "written text"]))
    side = checkpoint.image.example_size[0]
    return _SYNTHETIC, [
        CalibrationPicture(
            f"{_SYNTHETIC}-{height}x{width}",
            canary_image(side * height, side * width),
            conditions[:_MOST_CONDITIONS],
        )
        for height, width in _SYNTHETIC_SIDES
    ]


def _thresholds(manifest: Manifest) -> dict[str, float]:
    """Condition -> the threshold its answer meets in the bundle's policies."""
    return {
        condition.text: rule.threshold
        for policy in manifest.policies
        for rule in policy.rules
        for either in rule.conditions
        for condition in either
    }


def _up(value: float) -> float:
    """Rounded up to four decimals: a report promises no more than was measured."""
    return math.ceil(value * 1e4) / 1e4


def _power_of_ten(value: float) -> float:
    """The next power of ten: the digits below it change with the machine."""
    return float(f"1e{math.ceil(math.log10(value))}") if value > 0 else 0.0
