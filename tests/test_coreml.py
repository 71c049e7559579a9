"""The Core ML target: packages read from their files and run by an interpreter of their own give
what the reference gives over the same weights, packed or one by one, and mutated ones do not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("coremltools", reason="the extra coreml is not installed")

from coreml_judge import CoremlJudge
from edgejudge.bundle import Bundle
from edgejudge.cli import main
from edgejudge.coreml_packages import function_name, write_packages
from edgejudge.errors import BundleError, ExportError
from edgejudge.export import (
    Asked,
    Cut,
    Reference,
    Stored,
    export,
    open_checkpoint,
    prepared,
    yes_probability,
)
from edgejudge.models.image import canary_image, preprocess
from families import FAMILIES
from mil_program import Package

torch.set_num_threads(1)
# Of label logits that reach 4, computed in 16 bits.
BAND = 6e-2
CONDITIONS = ("a knife", "beer", "a dog")
ORDINARY = "smolvlm"


@dataclass
class Case:
    opened: Any
    bundle: Bundle
    packages: Path
    wanted: np.ndarray  # label logits [B, R] of the reference over the stored weights
    image: dict[str, Any]
    ids: list[int]
    positions: Any
    branches: list[list[int]]

    def asked(self, packed: bool = True, change: Callable[[CoremlJudge], None] | None = None) -> Any:
        judge = CoremlJudge(self.bundle, self.packages)
        if change is not None:
            change(judge)
        position = judge.prefill(self.ids, judge.encode(self.image), self.positions)
        return judge.ask(self.branches, position, packed)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(ORDINARY, tmp_path_factory.mktemp("one"))


def made(family: str, root: Path) -> Case:
    checkpoint = FAMILIES[family].make_checkpoint(root / "checkpoint")
    opened, plan = prepared(open_checkpoint(checkpoint), "small")
    export(opened, root / "out", plan, Cut(2), targets=("cpu", "coreml"))
    bundle = Bundle.open(root / "out", unsealed=True)
    write_packages(bundle, root / "packages")
    seen = preprocess(canary_image(70, 100), opened.image)
    prompts, grid = opened.prompts, (seen.rows, seen.cols)
    ids, positions = prompts.prefix_ids(*grid), prompts.prefix_positions(*grid)
    branches = [prompts.branch_ids(text) for text in CONDITIONS]
    stored = Stored(opened.weights, plan.for_target(plan.recipe.for_gpu()))
    reference = Reference(opened.spec, stored, opened.tokens.image)
    asked = Asked(branches, ids, seen.feeds, positions)
    (wanted,) = reference.ask([asked], opened.labels.token_ids)
    return Case(
        opened, bundle, root / "packages", wanted, dict(seen.feeds), ids, positions, branches
    )


def test_packages_give_what_the_reference_gives(case: Case) -> None:
    found = case.asked()
    assert np.abs(found - case.wanted).max() < BAND
    labels = case.opened.labels.labels
    for ours, theirs in zip(found, case.wanted, strict=True):
        p, q = (yes_probability(x.astype(np.float64), labels) for x in (ours, theirs))
        assert abs(p - q) < 0.02 and (p > 0.5) == (q > 0.5)


def test_packed_questions_are_separate_ones(case: Case) -> None:
    assert np.abs(case.asked() - case.asked(packed=False)).max() < BAND / 3


def test_a_fork_is_a_fresh_prompt(one: Case) -> None:
    judge = CoremlJudge(one.bundle, one.packages)
    position = judge.prefill(one.ids, judge.encode(one.image), one.positions)
    first = judge.ask(one.branches, position, True)
    judge.ask([[70] * 40], position, True)  # written over the same rows
    assert (judge.ask(one.branches, position, True) == first).all()


def swapped_states(judge: CoremlJudge) -> None:
    run = judge.run

    def mutated(graph: Any, feeds: Any, state: Any = None) -> Any:
        if state is not None:
            state["keys"], state["values"] = state["values"].copy(), state["keys"].copy()
        return run(graph, feeds, state)

    judge.run = mutated  # type: ignore[method-assign]


def a_row_late(judge: CoremlJudge) -> None:
    run = judge.run

    def mutated(graph: Any, feeds: Any, state: Any = None) -> Any:
        if "begin" in feeds:
            feeds = {**feeds, "begin": [feeds["begin"][0] + 1]}
        return run(graph, feeds, state)

    judge.run = mutated  # type: ignore[method-assign]


def weights_of_the_other_part(judge: CoremlJudge) -> None:
    first, second = (judge.package(judge.graphs("decoder", part)[0]) for part in (0, 1))
    blobs = [next(iter((p.folder / "weights").iterdir())).read_bytes() for p in (first, second)]
    size = min(map(len, blobs))
    judge.states = judge.states
    for package, blob in zip((first, second), reversed(blobs), strict=True):
        package.replace_weights(blob if len(blob) >= size else blobs[0])


@pytest.mark.parametrize("change", [swapped_states, a_row_late], ids=lambda f: f.__name__)
def test_what_is_wrong_is_seen(one: Case, change: Callable[[CoremlJudge], None]) -> None:
    assert np.abs(one.asked() - one.wanted).max() < BAND
    assert np.abs(one.asked(change=change) - one.wanted).max() > 3 * BAND
