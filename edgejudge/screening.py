"""The way of one picture: put into the engine, asked in steps, decided.

Takes one picture and a plan; gives a verdict, also for a picture that cannot be judged. A file with
several variants goes this way with each of them, and the worst counts. `prepare`
needs no turn with the engine and may run ahead; `finish` waits for one. What there is to ask, and
what the answers mean, is cases.py's to say. Knows no graph, provider or file format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.asking_order import by_information, passes, prior_texts, token_nodes, unasked
from edgejudge.bundle import Bundle
from edgejudge.cases import Case, Cases
from edgejudge.clue_settings import ClueSettings
from edgejudge.copies import copies
from edgejudge.errors import InputError, ProviderError
from edgejudge.images import ImageInput, Limits
from edgejudge.judging import ENDS, Found, failing, stages_ms
from edgejudge.models.prompt import Prompts
from edgejudge.plan import Plan, PlannedRule, Question
from edgejudge.policy import Policy
from edgejudge.prefix_cache import PrefixCache
from edgejudge.prefixes import OneAhead, Prefixes, Scorer
from edgejudge.reasoning import longest, reason
from edgejudge.regions import Boxes, Region, RegionProposer, cut_out, filled, find, is_small
from edgejudge.stability import Answers, mean_answers, steadied
from edgejudge.time_budget import Pace, Watch
from edgejudge.turns import Stop, Turns
from edgejudge.variants import worst_place
from edgejudge.verdict import Note, RuleVerdict, Verdict

if TYPE_CHECKING:
    from edgejudge.whole_judging import WholeJudging

__all__ = ["OneAhead", "Scorer", "Screening"]


class Screening(Prefixes):
    """`prepare` may run in any thread, `finish` takes turns."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Scorer,
        prompts: Prompts,
        limits: Limits,
        cache: PrefixCache | None,
        proposer: RegionProposer | None = None,
    ) -> None:
        """`proposer` is asked for the objects of CLUE's conditions, where the caller names none."""
        super().__init__(bundle, engine, prompts, limits, cache)
        self._proposer = proposer
        self._whole: WholeJudging | None = None
        self._pace = Pace()
        self._ordered: tuple[tuple[PlannedRule, ...], tuple[str, ...]] = (), ()

    def prepare(
        self,
        image: ImageInput,
        stop: Stop,
        plan: Plan | None = None,
        regions: Sequence[Region] = (),
    ) -> OneAhead:
        """Decodes and encodes, unless the cache knows the picture, or the plan's gate may do
        without its encoding, or its budget may. Without a plan of the first variant alone.
        """
        if plan is None:
            return super().prepare(image, stop)
        made = OneAhead(self._engine.new_trace())
        with failing(made):
            self._see(made, image, stop.check)
            for one in made.variants:
                self._find_regions(made, one, plan, regions)
            if plan.gate is None:
                for one in made.variants if plan.budget is None else (made,):
                    self._encode_ahead(one, stop)
        return made

    def _find_regions(
        self, made: OneAhead, one: OneAhead, plan: Plan, regions: Sequence[Region]
    ) -> None:
        """A caller's are of the first frame, a proposer is asked about each variant."""
        if regions:
            frames = [each.seen_in and each.seen_in.frame for each in (made, one)]
            one.regions = tuple(regions) if frames[0] == frames[1] else ()
        elif plan.clue is not None and self._proposer is not None:
            assert one.rgb is not None
            with made.trace.span("regions"):
                one.regions = tuple(self._proposer.propose(one.rgb, _objects(plan)))

    def finish(self, made: OneAhead, plan: Plan, stop: Stop, turns: Turns) -> Verdict:
        """Waits for a turn with the engine, asks and decides."""
        rules: tuple[RuleVerdict, ...] = ()
        tried: list[_Judged] = []
        if made.failure is None:
            with failing(made):
                rules = self._judge(made, tried, plan, stop, turns)
        kinds = {each.found for each in tried}
        found: Found = "miss" if "miss" in kinds else min(kinds, default="off")
        return self._verdict(made, plan, rules, found, sum(each.reused for each in tried))

    def _judge(
        self, made: OneAhead, tried: "list[_Judged]", plan: Plan, stop: Stop, turns: Turns
    ) -> tuple[RuleVerdict, ...]:
        """The rules of a file, from all its variants that the time allows; fills `tried`."""
        priors = {} if plan.whole is not None else self._plan_priors(plan, stop, turns)
        order = self._order(plan, stop, turns)
        watch = Watch(plan.budget, self._pace, made.trace)
        with self._turn(made.trace, stop, turns):
            for one in made.variants:
                if tried and not self._goes_on(tried, plan, watch):
                    left = len(made.variants) - len(tried)
                    message = f"{left} of {len(made.variants)} variants were not looked at in time"
                    made.notes += (Note("unseen", message, doubtful=True),)
                    break
                tried.append(_Judged(one))
                with failing(one):
                    self._judge_one(tried[-1], made, plan, priors, order, watch)
                if one.failure is not None and one.failure.code in ENDS:
                    break
            decided = [each for each in tried if each.one.failure is None]
            if plan.stable and decided:
                self._steady(
                    decided[worst_place([each.rules for each in decided])], plan, priors, watch
                )
        rules = self._joined(
            made, [each.one for each in tried], [(each.one, each.rules) for each in decided]
        )
        made.notes += unasked(rules, plan, "tokens" in made.used)
        return rules

    @staticmethod
    def _goes_on(tried: "Sequence[_Judged]", plan: Plan, watch: Watch) -> bool:
        """Whether there is time for one more variant, if it takes what they did on average."""
        if plan.budget is None:
            return True
        if plan.budget.first_broken and any(
            rule.verdict == "unsafe" for each in tried for rule in each.rules
        ):
            return False
        spent_ms = sum(stages_ms(tried[0].one.trace).values())
        return spent_ms / len(tried) <= watch.left_ms

    def _judge_one(
        self,
        judged: "_Judged",
        made: OneAhead,
        plan: Plan,
        priors: Mapping[str, float],
        order: Sequence[str],
        watch: Watch,
    ) -> None:
        """One variant of a file, by itself."""
        one = judged.one
        if plan.whole is not None:
            judged.prefix, judged.found, judged.reused = self._prefix([one])
            judged.rules = self._answered(one, judged.prefix, plan.whole, plan.band)
            return
        judged.cases = cases = Cases.of(plan, priors, partial(_boxes, one))
        why = None
        if plan.gate is not None:
            self._gate(one, cases, plan.gate)
        if cases.branches() and watch.left_ms > 0:
            # Where others were encoded too, their spans are not told from those of this one.
            alone = one is made and (plan.budget is not None or not made.others)
            begun = 0 if alone else len(one.trace.spans)
            judged.prefix, judged.found, judged.reused = self._prefix([one])
            self._pace.learn(one.trace.spans[begun:])
            for branches in passes(cases, plan, order, watch):
                one.use("tokens")
                answers = self._ask(one, judged.prefix, plan, branches)
                judged.answers |= answers
                cases.answer(answers)
            why = self._settle(one, cases, plan, judged.prefix, watch)
        judged.rules = self._decided(one, cases, why)

    def _steady(
        self, judged: "_Judged", plan: Plan, priors: Mapping[str, float], watch: Watch
    ) -> None:
        """Decides a variant again, by the mean over it and changed copies of it."""
        one, cases = judged.one, judged.cases
        if cases is None or not judged.answers:
            return
        assert one.rgb is not None
        one.use("stability")
        each: dict[str, Answers] = {"original": judged.answers}
        with one.trace.span("stability"):
            for name, rgb in copies(one.rgb, plan.stable):
                prefix = self._put_beside(one, rgb)
                each[name] = self._ask(one, prefix, plan, list(judged.answers))
        cases.answer(mean_answers([*each.values()]))
        why = self._settle(one, cases, plan, judged.prefix, watch)
        judged.rules, notes = steadied(self._decided(one, cases, why), plan, priors, each)
        one.notes += notes

    def _ask(
        self, made: OneAhead, prefix: Any, plan: Plan, branches: Sequence[int]
    ) -> dict[int, float]:
        """P(yes) of some of the plan's branches, packed over the prefix."""
        begun = len(made.trace.spans)
        logits = self._engine.score(prefix, [plan.branches[place] for place in branches])  # [B, R]
        self._pace.learn(made.trace.spans[begun:])
        with made.trace.span("decide"):
            return self._probabilities(logits, branches)

    def _answered(
        self, made: OneAhead, prefix: Any, policy: Policy, band: float
    ) -> tuple[RuleVerdict, ...]:
        """The rules of a policy that is judged as a whole, by one answer."""
        from edgejudge.whole_judging import WholeJudging

        if self._whole is None:
            self._whole = WholeJudging(self._bundle, self._engine, self._prompts, self.document)
        made.use("answer")
        with made.trace.span("answer"):
            rules, notes = self._whole.judge(prefix, policy, band)
        made.notes += notes
        return rules

    def _gate(self, made: OneAhead, cases: Cases, gate: float) -> None:
        """Skips the rules whose texts are not about the picture."""
        from edgejudge.models.crop import CropSpec, prepare_crop

        record = self._bundle.manifest.relevance
        assert record is not None and made.rgb is not None
        made.use("relevance")
        with made.trace.span("relevance"):
            pixels = prepare_crop(made.rgb, CropSpec.from_json(record.preprocessing))
            cosines = self._engine.relevance(pixels)  # [rules of the encoder]
        if not np.isfinite(cosines).all():
            raise ProviderError("the relevance encoder gave cosines that are not numbers")
        cases.skip(dict(enumerate(cosines.tolist())), gate)

    def _order(self, plan: Plan, stop: Stop, turns: Turns) -> Sequence[str]:
        """Of the rules, for a plan with a budget; the last one is kept, since many pictures have
        the same.
        """
        if plan.budget is None:
            return ()
        if plan.budget.order is not None:
            return plan.budget.order
        rules, order = self._ordered
        if rules is not plan.rules:
            order = by_information(plan, self.priors(prior_texts(plan), stop, turns, plan.question))
            self._ordered = plan.rules, order
        return order

    def _settle(
        self, made: OneAhead, cases: Cases, plan: Plan, prefix: Any, watch: Watch
    ) -> str | None:
        """CLUE's further steps for what tokens leave open, as far as they fit the time. Gives what
        keeps it from reasoning.
        """
        if plan.budget is not None and plan.budget.first_broken and cases.broken():
            return None
        for boxes, branches in cases.cut_outs().items():
            if not watch.fits_beside(_tokens(plan, branches)):
                break
            answers = self._ask_beside(made, plan, branches, boxes, cut=True)
            cases.answer_cut_out(boxes, answers)
        while regions := cases.regions():  # one by one: an answer may settle what others wait for
            boxes, branches = next(iter(regions.items()))
            if not watch.fits_beside(_tokens(plan, branches)):
                break
            answers = self._ask_beside(made, plan, branches, boxes, cut=False)
            cases.answer_without(boxes, answers)
        if cases.to_reason() is None or plan.clue is None:
            return None
        try:
            self._open_grammar()
        except ProviderError as error:
            return str(error)
        while (case := cases.to_reason()) is not None:
            if not watch.fits_reasoning(longest(plan.clue.turns)):
                return "there was no time left to reason about it"
            if not self._engine.holds(prefix):
                prefix = self._prefix([made])[0]
            self._reason(made, cases, case, prefix, plan.clue.turns)
        return None

    def _ask_beside(
        self, made: OneAhead, plan: Plan, branches: Sequence[int], boxes: Boxes, cut: bool
    ) -> dict[int, float]:
        """Of a part of the picture, or of the picture without it, in the place of the picture."""
        made.use("region")
        with made.trace.span("region"):
            return self._ask(made, self._beside(made, boxes, cut), plan, branches)

    def _beside(self, made: OneAhead, boxes: Boxes, cut: bool) -> Any:
        """The prefix of that, which takes the place of the picture's."""
        assert made.rgb is not None
        return self._put_beside(made, (cut_out if cut else filled)(made.rgb, boxes))

    def _put_beside(self, made: OneAhead, rgb: NDArray[np.uint8]) -> Any:
        """The prefix of other pixels, which takes the place of the picture's."""
        other = OneAhead(made.trace, rgb=rgb)
        if self._cache is not None:
            other.key = self._key(rgb)
        prefix = self._prefix([other])[0]
        made.prefixes += other.prefixes
        return prefix

    def _reason(self, made: OneAhead, cases: Cases, case: Case, prefix: Any, turns: int) -> None:
        """One condition, wherever it is asked."""
        made.use("reasoning")
        made.reasoned += 1
        begun = len(made.trace.spans)
        same, tokens = list(cases.same(case)), self._bundle.manifest.tokens
        for each in same:
            each.reasoned = True
        with made.trace.span("reason"):
            if case.small:
                prefix = self._beside(made, case.boxes, cut=True)
            text = case.question.text
            try:
                found = reason(
                    self._engine, self._prompts, tokens, prefix, text, turns, self.document
                )
            except InputError as error:
                if error.code != "too_long":
                    raise
                made.notes += (Note("not_reasoned", f"'{text}' stays undecided: {error}"),)
                return
        self._pace.learn([span for span in made.trace.spans[begun:] if span.name == "reason"])
        for each in same:
            each.rating, each.rationale = found.holds, found.rationale


@dataclass(slots=True)
class _Judged:
    """One variant and what became of it; the rest is there for its copies."""

    one: OneAhead
    rules: tuple[RuleVerdict, ...] = ()
    found: Found = "off"
    reused: int = 0
    cases: Cases | None = None
    prefix: Any = None
    answers: dict[int, float] = field(default_factory=dict)


def _objects(plan: Plan) -> list[str]:
    """What a proposer is to look for."""
    rules = [rule for rule in plan.rules if rule.clue is not None and rule.calibration is None]
    texts = [q.text for rule in rules for either in rule.conditions for q in either if q.known]
    return list(dict.fromkeys([*texts, *(name for rule in rules for name in rule.objects)]))


def _tokens(plan: Plan, branches: Sequence[int]) -> int:
    """Of a pass over some of the plan's branches."""
    return len(frozenset().union(*token_nodes([plan.branches[place] for place in branches])))


def _boxes(
    made: OneAhead, rule: PlannedRule, question: Question, settings: ClueSettings
) -> tuple[Boxes, bool]:
    """Of a question's object: regions with the condition's own name go before the rule's."""
    if not made.regions or made.rgb is None:
        return (), False
    boxes = find(made.regions, (question.text, *rule.objects), settings, made.rgb.shape)
    return boxes, is_small(boxes, made.rgb.shape, settings)
