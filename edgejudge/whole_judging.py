"""Judging by a whole policy at once: the rating read off the model, then what it writes.

Takes a prefix in the engine and a policy that is answered by JSON or by codes; gives its rules'
verdicts. The rating is a probability, read where the answer begins; text is written only where that
does not say "safe". Knows no pictures, and no bundle but through its prompts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgejudge.answering.label_scores import AskedLabels, LabelQuestion, LabelScoring
from edgejudge.bundle import Bundle
from edgejudge.decision import conclude, uncertain_between
from edgejudge.errors import ProviderError
from edgejudge.models.prompt import Prompts
from edgejudge.policy import Policy
from edgejudge.verdict import AlternativeVerdict, Note, RuleVerdict
from edgejudge.whole_answer import RATING_THRESHOLD, WholeAnswer, decide_answer, parse_answer
from edgejudge.whole_policy import (
    NONE_APPLYING,
    category_lead,
    category_of,
    ratings,
    rationale_lead,
    request,
)

if TYPE_CHECKING:
    from edgejudge.runtime.json_text import JsonText

__all__ = ["WholeJudging"]

MAX_RATIONALE_TOKENS = 96
MAX_CODES_TOKENS = 64
# Below it the model would mostly write something else than a rating, so its rating says little.
_LOW_MASS = 0.5


@dataclass(frozen=True, slots=True)
class _Compiled:
    """`head` is the request but for its `last` token, which each question and text begins with: a
    place that is read needs a token of its own.
    """

    head: tuple[int, ...]
    last: int
    rating: AskedLabels
    category: AskedLabels | None


@dataclass(frozen=True, slots=True)
class _Put:
    """The prefix with the request's head in it, and the token that is still to come."""

    after: Any
    last: int


class WholeJudging:
    """Of one bundle. `judge` is for whoever has the engine."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Any,
        prompts: Prompts,
        document: Callable[[Mapping[str, Any], int], "JsonText"],
    ) -> None:
        """`document` makes a JSON document of a schema and at most so many tokens, to be written;
        it raises ProviderError where it cannot.
        """
        self._bundle, self._engine, self._prompts = bundle, engine, prompts
        self._document = document
        self._scoring = LabelScoring(bundle, engine, prompts)
        self._compiled: dict[str, _Compiled] = {}

    def judge(
        self, prefix: Any, policy: Policy, band: float
    ) -> tuple[tuple[RuleVerdict, ...], tuple[Note, ...]]:
        """The verdicts of the rules that are judged, and notes on how the answer was read.

        A bundle that lists its concepts was made for those, so it is not asked, and every rule is
        uncertain. Raises InputError "too_long" where the request does not fit into the context.
        """
        if self._bundle.manifest.concepts:
            return _not_asked(policy, band), ()
        compiled = self._compile(policy)
        after = self._engine.prefill(list(compiled.head), after=prefix)
        asked = [compiled.rating] + [compiled.category] * (compiled.category is not None)
        found = self._scoring.answer(after, [one for one in asked if one is not None])
        unsafe = found[0].probabilities[1]
        notes: list[Note] = []
        answer = WholeAnswer("unsafe" if unsafe >= RATING_THRESHOLD else "safe", probability=unsafe)
        mass = found[0].mass
        if mass is not None and mass < _LOW_MASS:
            problem = f"a rating is {mass:.2g} of what the model would write here"
            answer = replace(answer, problem=problem)
        elif policy.answer == "json":
            put = _Put(after, compiled.last)
            answer = self._json(policy, answer, found[1].probabilities, put, band, notes)
        elif unsafe > uncertain_between(RATING_THRESHOLD, band)[0]:
            put = _Put(after, compiled.last)
            answer = replace(self._codes(policy, put), probability=unsafe)
        if answer.problem is not None:
            notes.append(Note("unreadable_answer", f"{answer.problem}; nothing is decided by it"))
        if answer.unknown:
            listed = ", ".join(answer.unknown)
            notes.append(Note("unknown_code", f"the answer names {listed}, which the policy lacks"))
        return decide_answer(policy, answer, band), tuple(notes)

    def _compile(self, policy: Policy) -> _Compiled:
        key = policy.hash
        if key not in self._compiled:
            text, names = request(policy), ratings(policy)
            *head, last = self._prompts.request_ids(text)
            lead = category_lead("") if policy.answer == "json" else ""
            rating = self._scoring.compile(LabelQuestion(text, names, lead, per_token=False))
            category = None
            if policy.answer == "json":
                # With the colon, so that no code is how another begins.
                labels = tuple(f"{code}:" for code in _codes(policy))
                lead = category_lead(names[1])
                category = self._scoring.compile(LabelQuestion(text, labels, lead, per_token=False))
            self._compiled[key] = _Compiled(
                tuple(head), last, _behind(rating, head), category and _behind(category, head)
            )
        return self._compiled[key]

    def _json(
        self,
        policy: Policy,
        answer: WholeAnswer,
        categories: Sequence[float],
        put: "_Put",
        band: float,
        notes: list[Note],
    ) -> WholeAnswer:
        """The category is the most probable one behind "Unsafe"; the rationale is written behind
        both.
        """
        codes = _codes(policy)
        place = max(range(len(codes)), key=categories.__getitem__)
        shares = tuple(zip(codes, categories, strict=True))[1:]
        answer = replace(answer, category_probabilities=shares)
        assert answer.probability is not None
        if answer.probability <= uncertain_between(RATING_THRESHOLD, band)[0]:
            return answer
        rule = next((rule for rule in policy.all_rules if rule.code == codes[place]), None)
        category = NONE_APPLYING if rule is None else category_of(rule)
        if rule is not None:
            answer = replace(answer, codes=(codes[place],))
        if rule is None or rule.strictness == "allowed":
            problem = f"the answer is unsafe and its category is {category!r}"
            if rule is not None:
                problem += ", which is allowed here"
            answer = replace(answer, problem=problem)
        try:
            document = self._document({"type": "string"}, MAX_RATIONALE_TOKENS)
        except ProviderError as error:  # the verdict needs no text
            notes.append(Note("no_rationale", str(error)))
            return answer
        lead = rationale_lead(ratings(policy)[1], category)
        text = self._write(lead, put, MAX_RATIONALE_TOKENS, document)
        return replace(answer, rationale=str(json.loads(text)))

    def _codes(self, policy: Policy, put: "_Put") -> WholeAnswer:
        lead = f"{ratings(policy)[1]}\n"
        return parse_answer(lead + self._write(lead, put, MAX_CODES_TOKENS), policy)

    def _write(self, lead: str, put: "_Put", most: int, document: Any = None) -> str:
        from edgejudge.runtime.text import Sampling, write

        ids = [put.last, *self._scoring.lead(lead)[0]]
        tokens, decode = self._bundle.manifest.tokens, self._prompts.decode
        written = write(
            self._engine,
            put.after,
            ids,
            decode,
            tokens.eos,
            most,
            Sampling(),
            document=document,
            never=(tokens.image,),
        )
        return written.text


def _behind(asked: AskedLabels, head: Sequence[int]) -> AskedLabels:
    """The same question behind a prefix that holds its request already."""
    return replace(asked, ids=asked.ids[len(head) :])


def _codes(policy: Policy) -> tuple[str, ...]:
    """What a category may be: none, or a rule that is judged or allowed."""
    return ("NA", *(rule.code for rule in policy.all_rules if rule.code is not None))


def _not_asked(policy: Policy, band: float) -> tuple[RuleVerdict, ...]:
    between = uncertain_between(RATING_THRESHOLD, band)
    return tuple(
        conclude(
            rule.id,
            rule.text,
            rule.category,
            [[AlternativeVerdict(category_of(rule), None, False, test="unknown_concept")]],
            RATING_THRESHOLD,
            between,
        )
        for rule in policy.rules
    )
