"""One example judged: once, and as often again as the recipe says.

Takes an adapter and an example; gives its rows. Knows no files of a run and no metrics.
"""

from collections.abc import Sequence

from edgejudge.errors import InputError
from edgejudge.evaluation.adapters import Adapter, Judged
from edgejudge.evaluation.examples import Example
from edgejudge.evaluation.matching import make_row
from edgejudge.evaluation.perturbations import perturbed
from edgejudge.evaluation.recipe import Inferencer
from edgejudge.evaluation.rows import Row, Seen
from edgejudge.images import ImageInput, Limits, decode, read_bytes

__all__ = ["ask"]


def ask(adapter: Adapter, example: Example, how: Inferencer, limits: Limits) -> list[Row]:
    """A row per target. What is asked again is asked only where the first answer is one."""
    images: list[ImageInput] = [str(path) for path in example.images]
    first = adapter.judge(example, images)
    answered = any(said.why is None for said in first.said.values())
    again = [adapter.judge(example, images) for _ in range(how.repeats - 1)] if answered else []
    seen = _perturbed(adapter, example, how.perturbations, limits) if answered else {}
    exceptions = adapter.exceptions(example, images) if answered else ()
    rows = []
    for place, (target, said) in enumerate(first.said.items()):
        repeats = None
        if how.repeats > 1:
            rest = [each.said[target].prediction for each in again]
            repeats = (said.prediction, *rest) if answered else (None,) * how.repeats
        rows.append(
            make_row(
                example,
                target,
                adapter.data.kind,
                said.prediction,
                said.why,
                probabilities=said.probabilities,
                orders=said.orders,
                repeats=repeats,
                perturbed={
                    name: Seen(other.said[target].prediction, other.said[target].probabilities)
                    for name, other in seen.items()
                }
                or None,
                # Of the whole picture, so with one of its rows.
                exceptions=exceptions if exceptions and place == 0 else None,
                cost=first.cost,
                stages_ms=first.stages_ms,
            )
        )
    return rows


def _perturbed(
    adapter: Adapter, example: Example, names: Sequence[str], limits: Limits
) -> dict[str, Judged]:
    if not names:
        return {}
    try:
        pixels = [decode(read_bytes(path, limits), limits).rgb for path in example.images]
    except InputError:  # it was read a moment ago: the file has just gone
        return {}
    return {
        name: adapter.judge(example, [perturbed(rgb, name) for rgb in pixels]) for name in names
    }
