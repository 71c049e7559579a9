"""Tiny judges of every family with Core ML programs, and what their label logits should be.

Takes a family; gives a bundle in three parts, a picture and questions about it, and what the
reference over the same weights answers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle
from edgejudge.coreml_packages import write_packages
from edgejudge.export import (
    Asked,
    Cut,
    Reference,
    Stored,
    export,
    open_checkpoint,
    prepared,
    seal,
)
from edgejudge.export.recipe import Recipe
from edgejudge.models.image import canary_image, preprocess
from edgejudge.policy import load_policy
from families import FAMILIES
from real_devices import UNMEASURED

__all__ = ["BAND", "ORDINARY", "WRITTEN", "Case", "made"]

# Of label logits that reach 4, computed in 16 bits.
BAND = 6e-2
CONDITIONS = ("a knife", "beer", "a dog")
WRITTEN = (70, 71, 72)  # tokens
ORDINARY = "smolvlm"


@dataclass
class Case:
    """`root` has the bundle, and its packages; `wanted` are label logits [B, R], and `written`
    those behind each of the tokens that are written after the prompt.
    """

    root: Path
    opened: Any
    bundle: Bundle
    wanted: NDArray[np.float64]
    written: NDArray[np.float64]
    image: dict[str, Any]
    ids: list[int]
    positions: Any
    branches: list[list[int]]


def made(
    family: str,
    root: Path,
    target: str = "coreml",
    stored_by: Callable[[Recipe], Recipe] = Recipe.for_gpu,
) -> Case:
    """`stored_by` says how the target stores weights in a bundle of a recipe."""
    checkpoint = FAMILIES[family].make_checkpoint(root / "checkpoint")
    opened, plan = prepared(open_checkpoint(checkpoint), "small")
    policies = [load_policy("stickers").record()]
    export(opened, root / "bundle", plan, Cut(3), policies, targets=("cpu", target))
    seal(root / "bundle", UNMEASURED)
    bundle = Bundle.open(root / "bundle")
    write_packages(bundle, root / "packages")
    seen = preprocess(canary_image(70, 100), opened.image)
    prompts, grid = opened.prompts, (seen.rows, seen.cols)
    ids, positions = prompts.prefix_ids(*grid), prompts.prefix_positions(*grid)
    branches = [prompts.branch_ids(text) for text in CONDITIONS]
    stored = Stored(opened.weights, plan.for_target(stored_by(plan.recipe)))
    reference = Reference(opened.spec, stored, opened.tokens.image)
    asked = Asked(branches, ids, seen.feeds, positions)
    (wanted,) = reference.ask([asked], opened.labels.token_ids)
    reference.prefill(ids, reference.encode(seen.feeds), positions)
    written = reference.logits(reference.extend(WRITTEN), opened.labels.token_ids).numpy()
    feeds = dict(seen.feeds)
    return Case(root, opened, bundle, wanted, written, feeds, ids, positions, branches)
