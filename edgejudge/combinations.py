"""What the gate measures of precisions that meet: text graphs over the cache of those that judge,
and exact columns beside integers.

Takes an engine or a checkpoint with its plan; gives hidden states and records. Decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgejudge.manifest import SideRecord

if TYPE_CHECKING:
    from edgejudge.export import CalibrationPicture, Checkpoint, Plan, Source, Weights
    from edgejudge.runtime import Engine
    from edgejudge.runtime.engine import Prefix

__all__ = ["Spoken", "side_record", "written_ends"]


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


@dataclass(slots=True)
class Spoken:
    """What the judge would say where it was asked for a verdict: the likeliest word of its whole
    vocabulary, by the graphs that write.
    """

    words: int = 0  # that are a label
    agree: int = 0  # of them, those that say what the label rows say

    def add(
        self, engine: "Engine", ends: NDArray[np.float32], probabilities: NDArray[np.float64]
    ) -> None:
        """`ends` [B, D] are what `written_ends` gives, `probabilities` [B] of yes by the graphs
        that judge.
        """
        manifest = engine.bundle.manifest
        said = {
            manifest.label_rows[row]: label == "yes"
            for label, rows in manifest.labels.items()
            if label in ("yes", "no")  # others answer other questions
            for row in rows
        }
        tokens = engine.full_logits(ends).argmax(1).tolist()
        for token, probability in zip(tokens, probabilities.tolist(), strict=True):
            if token in said:
                self.words += 1
                self.agree += said[token] == (probability >= 0.5)


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
