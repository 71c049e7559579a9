"""A plan's rules on their way to a verdict: what was answered, and what is still worth asking.

Takes a plan, language priors, boxes of objects and answers as they come, in whatever portions;
gives the questions that are open and, at any time, the rules as far as they are decided. Rules
without CLUE's settings are decided by their calibration or threshold. Knows no engine and no
pixels.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from edgejudge.clue import decide
from edgejudge.clue_settings import ClueSettings
from edgejudge.decision import by_threshold, conclude, uncertain_between
from edgejudge.plan import Plan, PlannedRule, Question
from edgejudge.regions import Boxes
from edgejudge.strictness import sensitive_threshold
from edgejudge.verdict import AlternativeVerdict, RuleVerdict

__all__ = ["Case", "Cases", "asked_blind"]


def asked_blind(plan: Plan) -> list[str]:
    """The conditions whose language prior is needed."""
    return [
        question.text
        for rule in plan.rules
        if rule.clue is not None and rule.calibration is None
        for either in rule.conditions
        for question in either
        if question.known
    ]


@dataclass(slots=True)
class Case:
    """One question of one rule. `boxes` are of its object, `small` says that their cut-out is asked
    in place of the picture.
    """

    question: Question
    boxes: Boxes = ()
    small: bool = False
    p: float | None = None
    prior: float | None = None
    cut_out: float | None = None
    without: float | None = None
    reasoned: bool = False
    rating: bool | None = None
    rationale: str | None = None

    def by_clue(self, settings: ClueSettings) -> AlternativeVerdict:
        asked = AlternativeVerdict(
            self.question.text,
            self.cut_out if self.small else self.p,
            self.question.known,
            prior=self.prior,
            without_region=self.without,
            rationale=self.rationale,
        )
        if not self.question.known:
            return replace(asked, test="unknown_concept")
        if self.p is None or self.prior is None or asked.probability is None:
            return asked
        outcome, test = decide(
            self.p, self.prior, settings, self.without, self.rating, self.cut_out
        )
        return replace(asked, outcome=outcome, test=test)


@dataclass(slots=True)
class _Rule:
    plan: PlannedRule
    cases: list[list[Case]]
    band: float
    skipped: bool = False
    cosine: float | None = None

    @property
    def settings(self) -> ClueSettings | None:
        return None if self.plan.calibration is not None else self.plan.clue

    def verdict(self) -> RuleVerdict:
        plan, settings = self.plan, self.settings
        head = (plan.id, plan.text, plan.category)
        if self.skipped:
            decided = [
                [AlternativeVerdict(q.text, None, q.known, "fails", "relevance") for q in either]
                for either in plan.conditions
            ]
            return conclude(*head, decided, None, None, self.cosine)
        if settings is not None:
            decided = [[case.by_clue(settings) for case in either] for either in self.cases]
            return conclude(*head, decided, None, None, self.cosine)
        threshold, between = _limits(plan, self.band)
        decided = [[self._by_threshold(case, between) for case in each] for each in self.cases]
        return conclude(*head, decided, threshold, between, self.cosine)

    def _by_threshold(self, case: Case, between: tuple[float, float]) -> AlternativeVerdict:
        question, calibration = case.question, self.plan.calibration
        asked = AlternativeVerdict(question.text, case.p, question.known)
        if calibration is not None and case.p is not None:
            p = calibration.apply(case.p, question.text)
            asked = replace(asked, probability=p, raw_probability=case.p)
        return by_threshold(asked, between)


def _limits(rule: PlannedRule, band: float) -> tuple[float, tuple[float, float]]:
    """Threshold and interval, on the calibrated scale where there is a calibration."""
    found = rule.calibration
    if found is None:
        return rule.threshold, uncertain_between(rule.threshold, band)
    if not rule.sensitive:
        return found.threshold, found.uncertain
    low, high = map(sensitive_threshold, found.uncertain)
    return sensitive_threshold(found.threshold), (low, high)


@dataclass(slots=True)
class Cases:
    """All questions of a plan about one picture, with the answers that came, by branch."""

    plan: Plan
    rules: list[_Rule] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        plan: Plan,
        priors: Mapping[str, float],
        boxes: Callable[[PlannedRule, Question, ClueSettings], tuple[Boxes, bool]],
    ) -> "Cases":
        """`boxes` gives those of a question's object, and whether it is small."""
        made = cls(plan)
        for rule in plan.rules:
            entry = _Rule(rule, [], plan.band)
            settings = entry.settings
            for either in rule.conditions:
                some = []
                for question in either:
                    case = Case(question, prior=priors.get(question.text))
                    if settings is not None and question.known:
                        case.boxes, case.small = boxes(rule, question, settings)
                    some.append(case)
                entry.cases.append(some)
            made.rules.append(entry)
        return made

    def skip(self, cosines: Mapping[int, float], gate: float) -> None:
        """Rules whose text is not about the picture: cosines by place in the encoder."""
        for rule in self.rules:
            if rule.plan.gate is not None:
                rule.cosine = cosines[rule.plan.gate]
                rule.skipped = rule.cosine < gate

    def branches(self) -> list[int]:
        """Those that no answer has come for, of rules that are not skipped, in the plan's order."""
        return sorted({case.question.branch for case in self._cases() if case.p is None})

    def waiting(self) -> dict[str, list[int]]:
        """The same by rule, of those that have any."""
        found = {
            rule.plan.id: [q.question.branch for each in rule.cases for q in each if q.p is None]
            for rule in self.rules
            if not rule.skipped
        }
        return {rule: branches for rule, branches in found.items() if branches}

    def broken(self) -> bool:
        """Whether some rule is, by now."""
        return any(rule.verdict().verdict == "unsafe" for rule in self.rules)

    def answer(self, answers: Mapping[int, float]) -> None:
        for case in self._cases():
            case.p = answers.get(case.question.branch, case.p)

    def cut_outs(self) -> dict[Boxes, list[int]]:
        """Small objects whose cut-out is to be asked, with the branches."""
        return self._by_boxes(
            case
            for case in self._cases()
            if case.small and case.p is not None and case.cut_out is None
        )

    def answer_cut_out(self, boxes: Boxes, answers: Mapping[int, float]) -> None:
        for case in self._cases():
            if case.small and case.boxes == boxes:
                case.cut_out = answers.get(case.question.branch, case.cut_out)

    def regions(self) -> dict[Boxes, list[int]]:
        """Objects to be removed, for questions that are open."""
        return self._by_boxes(
            case for _, case in self._open() if case.boxes and case.without is None
        )

    def answer_without(self, boxes: Boxes, answers: Mapping[int, float]) -> None:
        for _, case in self._open():
            if case.boxes == boxes:
                case.without = answers.get(case.question.branch, case.without)

    def to_reason(self) -> Case | None:
        """The first open question that may be reasoned about and was not."""
        for settings, case in self._open():
            if settings.reasoning and not case.reasoned:
                return case
        return None

    def same(self, case: Case) -> Iterator[Case]:
        """The question wherever else it is asked about the same picture."""
        for other in self._cases():
            alike = (other.small, other.boxes if other.small else ())
            if other.question.branch == case.question.branch and alike == (
                case.small,
                case.boxes if case.small else (),
            ):
                yield other

    def verdicts(self) -> tuple[RuleVerdict, ...]:
        """The rules as far as they are decided."""
        return tuple(rule.verdict() for rule in self.rules)

    def _cases(self) -> Iterator[Case]:
        for rule in self.rules:
            if not rule.skipped:
                for either in rule.cases:
                    yield from either

    def _open(self) -> Iterator[tuple[ClueSettings, Case]]:
        """Questions in CLUE's grey zone on which a rule still depends, in the plan's order."""
        for rule in self.rules:
            settings = rule.settings
            if settings is None or rule.skipped:
                continue
            verdict = rule.verdict()
            if verdict.verdict != "uncertain":
                continue
            for condition, either in zip(verdict.conditions, rule.cases, strict=True):
                if condition.outcome == "uncertain":
                    for found, case in zip(condition.alternatives, either, strict=True):
                        if found.test == "undecided":
                            yield settings, case

    @staticmethod
    def _by_boxes(cases: Iterator[Case]) -> dict[Boxes, list[int]]:
        found: dict[Boxes, list[int]] = {}
        for case in cases:
            places = found.setdefault(case.boxes, [])
            if case.question.branch not in places:
                places.append(case.question.branch)
        return found
