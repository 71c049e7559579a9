"""What the gate measures of precisions that meet: text graphs over the cache of those that judge,
and exact columns beside integers.

Takes an engine or a checkpoint with its plan; gives hidden states and records. Decides nothing.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgejudge.manifest import SideRecord

if TYPE_CHECKING:
    from edgejudge.export import CalibrationPicture, Checkpoint, Plan, Source, Weights
    from edgejudge.runtime import Engine
    from edgejudge.runtime.engine import Prefix

__all__ = ["side_record", "written_ends"]


def written_ends(
    engine: "Engine", prefix: "Prefix", branches: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Hidden states [B, D] at the end of each branch, whose last token alone passes the graphs that
    write. Frees those that judge.
    """
    before = []
    for branch in branches:
        behind = engine.prefill(branch[:-1], after=prefix) if len(branch) > 1 else None
        before.append((behind, None if behind is None else engine.snapshot(behind, prefix)))
    engine.release("decoder")  # two decoders of a large bundle do not fit the memory together
    ends = []
    for branch, (behind, rows) in zip(branches, before, strict=True):
        after = prefix
        if behind is not None:
            if rows is None:
                raise ValueError("the cache holds what is no number")
            after = engine.restore(rows, behind.position, prefix)
        ends.append(engine.step(branch[-1], after)[1])
    return np.stack(ends)


def side_record(
    checkpoint: "Checkpoint",
    prepared: "Source",
    plan: "Plan",
    pictures: "Sequence[CalibrationPicture]",
    matrices: int,
) -> SideRecord:
    """What exact columns are worth. `prepared` are the checkpoint's weights as the plan quantized
    them, `matrices` how many of them meet integers.
    """
    from edgejudge.export import Exact, Reference, Stored, asked_of

    spec = checkpoint.spec
    kept = sum(bool(plan.exact_columns(n)) for n, _ in checkpoint.family.weight_names(spec))
    if checkpoint.random_weights or not kept:
        return SideRecord(kept, matrices, 0, None, None)
    asked = asked_of(checkpoint, pictures)

    def answers(weights: "Weights") -> NDArray[np.float64]:
        reference = Reference(spec, weights, checkpoint.tokens.image)
        return np.concatenate(reference.ask(asked, checkpoint.labels.token_ids))

    truth = answers(Exact(checkpoint.weights))

    def error(chosen: "Plan") -> float:
        found = answers(Stored(prepared, chosen))
        return round(float(np.sqrt(np.square(found - truth).mean())), 4)

    return SideRecord(kept, matrices, len(asked), error(plan), error(plan.with_exact({})))
