"""Pictures judged in batches, by an engine that reads its weights anew for each batch.

Takes some pictures and a plan; gives their verdicts together. A picture that cannot be judged is no
reason for the others. Knows no graph, provider or file format.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle
from edgejudge.cases import Cases
from edgejudge.errors import EdgeJudgeError, InputError
from edgejudge.images import ImageInput, Limits, Variant
from edgejudge.judging import Answerer, Judging, Prepared, failing
from edgejudge.models.image import preprocess
from edgejudge.models.prompt import Prompts
from edgejudge.plan import Plan
from edgejudge.turns import Stop, Turns
from edgejudge.verdict import RuleVerdict, Verdict

__all__ = ["BatchScorer", "Batches"]

_NO_TEXT = "reasoning needs the whole decoder in memory; load the judge without a memory budget"

_Decided = tuple[Prepared, tuple[RuleVerdict, ...]]


@runtime_checkable
class BatchScorer(Answerer, Protocol):
    """What a Judge needs of an engine that works in batches: runtime/sliced.py has one."""

    def ask(self, requests: Iterable[Any]) -> list[NDArray[np.float32] | EdgeJudgeError]: ...


class Batches(Judging):
    _engine: BatchScorer

    def __init__(
        self, bundle: Bundle, engine: BatchScorer, prompts: Prompts, limits: Limits
    ) -> None:
        super().__init__(bundle, engine, prompts, limits, None, [])

    def judge(
        self, images: Sequence[ImageInput], plan: Plan, stop: Stop, turns: Turns
    ) -> list[Verdict]:
        """In order. What ends the request ends all that have no verdict yet."""
        made = [Prepared(self._engine.new_trace()) for _ in images]
        tried: list[list[Prepared]] = [[] for _ in images]  # the variants of each
        decided: list[list[_Decided]] = [[] for _ in images]
        rules: list[tuple[RuleVerdict, ...]] = [() for _ in images]
        together = Prepared(self._engine.new_trace())
        with failing(together):
            priors = self._plan_priors(plan, stop, turns)
            with self._turn(together.trace, stop, turns):
                answers = self._engine.ask(self._requests(made, tried, images, plan, stop))
            asked = [
                (place, one)
                for place, some in enumerate(tried)
                for one in some
                if one.failure is None
            ]
            for (place, one), answer in zip(asked, answers, strict=True):
                with failing(one):
                    if isinstance(answer, EdgeJudgeError):
                        raise answer
                    one.prefixes = 1
                    one.use("tokens")
                    cases = Cases.of(plan, priors, lambda *_: ((), False))
                    cases.answer(self._probabilities(answer, range(len(plan.branches))))
                    decided[place].append((one, self._decided(one, cases, _NO_TEXT)))
            for place, one in enumerate(made):
                if tried[place]:
                    rules[place] = self._joined(one, tried[place], decided[place])
        for one in made:
            one.failure = one.failure or together.failure
        return [self._verdict(one, plan, found) for one, found in zip(made, rules, strict=True)]

    def _requests(
        self,
        made: Sequence[Prepared],
        tried: Sequence[list[Prepared]],
        images: Sequence[ImageInput],
        plan: Plan,
        stop: Stop,
    ) -> Iterator[Any]:
        """Of each picture that can be read, when it is wanted: its pixels take room. Fills `tried`
        with its variants.
        """
        from edgejudge.runtime.sliced import Request

        for one, some, image in zip(made, tried, images, strict=True):
            variants: tuple[Variant, ...] = ()
            with failing(one):
                variants = self._read(one, image, stop.check).variants
                if plan.whole is not None:
                    raise InputError(
                        "memory_budget",
                        f"policy '{plan.policy}' is judged as a whole, which needs the whole "
                        "decoder in memory; load the judge without a memory budget",
                    )
            if one.failure is not None:
                continue
            for variant in variants:
                this = one if not some else Prepared(one.trace, seen_in=variant.seen_in)
                some.append(this)
                with failing(this):
                    with this.trace.span("preprocess"):
                        seen = preprocess(variant.rgb, self._image_spec)
                    stop.check()
                    ids = self._prompts.prefix_ids(seen.rows, seen.cols)
                    positions = self._prompts.prefix_positions(seen.rows, seen.cols)
                if this.failure is None:
                    trace: Any = this.trace
                    yield Request(plan.branches, ids, positions, seen.feeds, trace=trace)
