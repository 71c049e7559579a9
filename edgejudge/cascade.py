"""Two judges, one behind the other: what the first leaves open is asked of the second.

Takes two judges and pictures; gives one verdict a picture, which says by which bundle and by which
test each rule was decided. Knows no graph and no test: each judge decides as it does by itself.

A cascade of judges, of which a later one sees only what the earlier ones did not decide, is that of
"Trust or Escalate" (Jung, Brahman and Choi, ICLR 2025, arXiv 2407.18370); a calibration gives each
stage the interval in which it passes a rule on.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from edgejudge.decision import decide_picture
from edgejudge.errors import InputError
from edgejudge.images import ImageInput
from edgejudge.plan import Plan, only
from edgejudge.regions import Regions, regions_of
from edgejudge.verdict import Escalation, InputFailure, Note, RuleVerdict, Verdict

if TYPE_CHECKING:
    from edgejudge.judge import Judge, PolicyLike

__all__ = ["Cascade", "Plans"]

_MEMORY = 0.7  # of how long the second took, against the last time


@dataclass(frozen=True, slots=True)
class Plans:
    """One policy, made ready for both bundles."""

    first: Plan
    second: Plan

    @property
    def notes(self) -> tuple[Note, ...]:
        """What stays so whichever bundle is asked."""
        return tuple(note for note in self.first.notes if note in self.second.notes)


class Cascade:
    """Safe to use from several threads, as its judges are."""

    def __init__(self, first: "Judge", second: "Judge") -> None:
        self.first, self.second = first, second
        self._second_ms = 0.0  # how long it takes, as far as that is known

    def plan(
        self, policy: "PolicyLike", *, strictness: Mapping[str, str] | None = None, **first: Any
    ) -> Plans:
        """Further arguments are those of Judge.plan, and for the first alone: the second decides
        as the policy and its own calibration say, without the relevance gate and in the time it
        takes. Raises PolicyError and InputError as Judge.plan does, and for a plan of one bundle.
        """
        if isinstance(policy, Plan):
            raise InputError("plan", "a plan is for one bundle; give a cascade the policy")
        return Plans(
            self.first.plan(policy, strictness=strictness, **first),
            self.second.plan(policy, strictness=strictness),
        )

    @overload
    def screen(
        self,
        image: ImageInput,
        policy: "PolicyLike | Plans" = "stickers",
        timeout: float | None = None,
        *,
        regions: Regions | None = None,
        strictness: Mapping[str, str] | None = None,
    ) -> Verdict: ...

    @overload
    def screen(
        self,
        image: list[ImageInput] | tuple[ImageInput, ...],
        policy: "PolicyLike | Plans" = "stickers",
        timeout: float | None = None,
        *,
        regions: Regions | None = None,
        strictness: Mapping[str, str] | None = None,
    ) -> list[Verdict]: ...

    def screen(
        self,
        image: ImageInput | list[ImageInput] | tuple[ImageInput, ...],
        policy: "PolicyLike | Plans" = "stickers",
        timeout: float | None = None,
        *,
        regions: Regions | None = None,
        strictness: Mapping[str, str] | None = None,
    ) -> Verdict | list[Verdict]:
        """As Judge.screen, one verdict per picture. `timeout` is for each of the judges.

        A second judge that fails leaves `uncertain` what was, and a note `second_failed` says why.
        """
        plans = policy if isinstance(policy, Plans) else self.plan(policy, strictness=strictness)
        if isinstance(image, list | tuple):
            return list(self.stream(image, plans, timeout, regions=regions))
        verdict = self.first.screen(image, plans.first, timeout, regions=regions)
        return self._escalated(verdict, image, plans, timeout, regions)

    def stream(
        self,
        images: Iterable[ImageInput],
        policy: "PolicyLike | Plans" = "stickers",
        timeout: float | None = None,
        *,
        regions: Regions | None = None,
    ) -> Iterator[Verdict]:
        """As Judge.stream: while one picture is judged, the next one is made ready for the first
        judge.
        """
        plans = policy if isinstance(policy, Plans) else self.plan(policy)
        waiting: deque[ImageInput] = deque()

        def kept() -> Iterator[ImageInput]:
            for image in images:
                waiting.append(image)
                yield image

        verdicts = self.first.stream(kept(), plans.first, timeout, regions=regions)
        return (
            self._escalated(verdict, waiting.popleft(), plans, timeout, regions)
            for verdict in verdicts
        )

    def _escalated(
        self,
        verdict: Verdict,
        image: ImageInput,
        plans: Plans,
        timeout: float | None,
        regions: Regions | None,
    ) -> Verdict:
        budget = plans.first.budget
        if budget is not None and budget.first_broken and verdict.verdict == "unsafe":
            return verdict
        open_rules = tuple(
            rule
            for rule in verdict.rules
            if rule.verdict == "uncertain" and not (budget is not None and _was_left_out(rule))
        )
        if not open_rules:
            return verdict
        left_ms = None if budget is None else budget.ms - verdict.total_ms
        if left_ms is not None and left_ms < self._second_ms:
            message = (
                f"{self.second.bundle.manifest.name} was not asked: it takes about "
                f"{self._second_ms:.0f} ms, and {max(left_ms, 0.0):.0f} were left"
            )
            return replace(verdict, notes=(*verdict.notes, Note("over_time", message)))
        plan = only(plans.second, {rule.id for rule in open_rules})
        there = regions_of(image, regions) if plan.clue is not None else None
        other = self.second.screen(image, plan, timeout, regions=there)
        known = self._second_ms or other.total_ms
        self._second_ms = _MEMORY * known + (1 - _MEMORY) * other.total_ms
        failure = other.error
        if failure is None and other.sha256 != verdict.sha256:
            failure = InputFailure("changed", "the picture is another one by now")
        return _joined(verdict, other, open_rules, failure)


def _joined(
    first: Verdict,
    second: Verdict,
    before: tuple[RuleVerdict, ...],
    failure: InputFailure | None,
) -> Verdict:
    """The first verdict with what the second says of the rules `before`, or why it says nothing."""
    escalated = Escalation(
        bundle=second.bundle,
        bundle_sha256=second.bundle_sha256,
        calibration=second.calibration,
        method=second.method,
        before=before,
        error=failure,
        stages_used=second.stages_used,
        stages_ms=second.stages_ms,
        placement=second.placement,
    )
    if failure is not None:
        note = Note("second_failed", f"{second.bundle} decided nothing: {failure.message}")
        return replace(first, notes=(*first.notes, note), escalated=escalated)
    answers = {rule.id: replace(rule, bundle=second.bundle) for rule in second.rules}
    wanted = {rule.id for rule in before}
    rules = tuple(answers[rule.id] if rule.id in wanted else rule for rule in first.rules)
    notes = tuple(dict.fromkeys((*first.notes, *second.notes)))
    return replace(
        first,
        verdict=decide_picture(rules, notes),
        rules=rules,
        notes=notes,
        escalated=escalated,
    )


def _was_left_out(rule: RuleVerdict) -> bool:
    """Whether there was no time to ask all of it: a slower judge would take more."""
    return any(each.test == "not_asked" for part in rule.conditions for each in part.alternatives)
