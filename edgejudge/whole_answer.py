"""The answer of a judge of whole policies: as a record, from text, and as verdicts of its rules.

Takes what such a judge wrote, now or in a recording, and its policy; gives a `WholeAnswer` and what
follows of it. What cannot be read for certain is undecided, never safe: no word of the text alone
is taken for a rating. Knows no model.
"""

import ast
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from edgejudge.decision import conclude, uncertain_between
from edgejudge.policy import Policy, Rule
from edgejudge.verdict import AlternativeVerdict, Answered, Outcome, RuleVerdict
from edgejudge.whole_policy import category_of

__all__ = ["RATING_THRESHOLD", "WholeAnswer", "decide_answer", "parse_answer"]

Rating = Literal["safe", "unsafe"]

RATING_THRESHOLD = 0.5
_NONE = re.compile(r"\s*(na\b|n/a\b|none\b|$)", re.IGNORECASE)
_CODE_LIKE = re.compile(r"(?<![A-Za-z0-9])[A-Z]{1,3}\d{1,3}(?![A-Za-z0-9])", re.IGNORECASE)
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """`codes` are those of the policy that it names, in the policy's order; `unknown` are others.

    `problem` says why the answer decides nothing; `rating` is None where there is none.
    `probability` is that of the rating "unsafe", and `category_probabilities` are those of each
    code as the category, by code, where the answer was read off a model; a recording has neither.
    """

    rating: Rating | None
    codes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    rationale: str | None = None
    problem: str | None = None
    probability: float | None = None
    category_probabilities: tuple[tuple[str, float], ...] = ()

    @property
    def outcome(self) -> Outcome:
        """What a recording says of the picture; `unsafe` needs a rule that is named."""
        if self.problem is not None or self.rating is None:
            return "uncertain"
        return self.rating

    def to_json(self) -> dict[str, object]:
        return {
            "rating": self.rating,
            "codes": list(self.codes),
            "unknown": list(self.unknown),
            "rationale": self.rationale,
            "problem": self.problem,
            "probability": None if self.probability is None else round(self.probability, 6),
        }


def parse_answer(text: str, policy: Policy) -> WholeAnswer:
    """The text of one answer, in the form that the policy is answered in."""
    if policy.answer == "questions":
        raise ValueError(f"policy '{policy.name}' is answered question by question")
    return _parse_codes(text, policy) if policy.answer == "codes" else _parse_json(text, policy)


def decide_answer(policy: Policy, answer: WholeAnswer, band: float) -> tuple[RuleVerdict, ...]:
    """The rules that are judged, each decided by the answer alone.

    Where the rating has a probability, that decides, with the threshold 0.5 and its band; what the
    answer names is broken then. A list of codes is of all that is broken; a category is one, so
    what it does not name stays uncertain.
    """
    between = uncertain_between(RATING_THRESHOLD, band)
    low, high = between
    rating: Rating | None = answer.rating
    if answer.probability is not None:
        p = answer.probability
        rating = "unsafe" if p >= high else "safe" if p <= low else None
    judged = {rule.code for rule in policy.rules}
    if answer.problem is not None or (rating == "unsafe" and not judged & set(answer.codes)):
        rating = None
    named: Answered = "uncertain" if rating is None else "fails" if rating == "safe" else "holds"
    other: Answered = "fails" if rating == "safe" else "uncertain"
    if rating == "unsafe" and policy.answer == "codes":
        other = "fails"
    shares = dict(answer.category_probabilities)

    def decided(rule: Rule) -> RuleVerdict:
        is_named = rule.code in answer.codes
        probability = answer.probability
        if probability is not None and not is_named and shares:
            probability *= shares[rule.code or ""]
        elif not is_named and rating != "safe":
            probability = None  # the rating speaks of what is named
        question = AlternativeVerdict(
            category_of(rule),
            probability,
            True,
            outcome=named if is_named else other,
            test="answer",
            rationale=answer.rationale if is_named else None,
        )
        return conclude(rule.id, rule.text, rule.category, [[question]], RATING_THRESHOLD, between)

    return tuple(decided(rule) for rule in policy.rules)


def _parse_json(text: str, policy: Policy) -> WholeAnswer:
    value = _object(text)
    if value is None:
        return WholeAnswer(None, problem=f"no JSON object in {_shown(text)}")
    rating_text = value.get("rating")
    rating = _rating(rating_text) if isinstance(rating_text, str) else None
    if rating is None:
        return WholeAnswer(None, problem=f"the rating is {_shown(rating_text)}, not Safe or Unsafe")
    category = value.get("category", "")
    parts = category if isinstance(category, list) else [category]
    if not all(isinstance(part, str) for part in parts):
        return WholeAnswer(rating, problem=f"the category is {_shown(category)}, which is no text")
    known: set[str] = set()
    unknown: list[str] = []
    for part in parts:
        # The name behind a code may hold commas and words that look like another one.
        found = _codes_in(part.partition(":")[0], policy)
        known |= set(found[0])
        unknown += found[1]
        if not found[0] and not found[1] and not _NONE.match(part):
            unknown.append(part.strip())
    rationale = value.get("rationale")
    return _answer(
        policy, rating, known, unknown, rationale if isinstance(rationale, str) else None
    )


def _parse_codes(text: str, policy: Policy) -> WholeAnswer:
    lines = [line.strip() for line in _plain(text).splitlines() if line.strip()]
    rating = _rating(lines[0]) if lines else None
    if rating is None:
        return WholeAnswer(None, problem=f"the first line of {_shown(text)} is not safe or unsafe")
    rest = " ".join(lines[1:])
    if rating == "safe":
        problem = f"{_shown(rest)} follows after 'safe'" if rest else None
        return WholeAnswer("safe", problem=problem)
    names = {rule.code.casefold(): rule.code for rule in policy.all_rules if rule.code}
    words = [word.strip(".") for word in re.split(r"[,;\s]+", rest)]
    known = {names[word.casefold()] for word in words if word.casefold() in names}
    unknown = [word for word in words if word and word.casefold() not in names]
    return _answer(policy, "unsafe", known, unknown, None)


def _answer(
    policy: Policy, rating: Rating, known: set[str], unknown: list[str], rationale: str | None
) -> WholeAnswer:
    codes = tuple(r.code for r in policy.all_rules if r.code is not None and r.code in known)
    problem = None
    if rating == "unsafe" and not {r.code for r in policy.rules} & known:
        allowed = f"{', '.join(codes)}, which is allowed here" if codes else "no rule of the policy"
        other = f" but {', '.join(map(_shown, unknown))}" if unknown else ""
        problem = f"the answer is unsafe and names {allowed}{other}"
    return WholeAnswer(rating, codes, tuple(dict.fromkeys(unknown)), rationale, problem)


def _rating(text: str) -> Rating | None:
    word = text.strip().strip(".!'\"").casefold()
    return "safe" if word == "safe" else "unsafe" if word == "unsafe" else None


def _codes_in(text: str, policy: Policy) -> tuple[list[str], list[str]]:
    """Codes of the policy in the text, and what only looks like one."""
    known = [
        rule.code
        for rule in policy.all_rules
        if rule.code
        and re.search(
            rf"(?<![A-Za-z0-9]){re.escape(rule.code)}(?![A-Za-z0-9])", text, re.IGNORECASE
        )
    ]
    folded = {code.casefold() for code in known}
    return known, [code for code in _CODE_LIKE.findall(text) if code.casefold() not in folded]


def _plain(text: str) -> str:
    """Without the marks of a text's begin and end, and of code, that models leave around."""
    return re.sub(r"</?s>|```[a-z]*|<\|[a-z_]+\|>", "", text)


def _object(text: str) -> dict[str, Any] | None:
    """The first {...}, where it is an object of JSON or of Python, as LlavaGuard's own reader has
    it.
    """
    plain = _plain(text)
    start = plain.find("{")
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(plain, start)
    except (ValueError, RecursionError):
        end = plain.find("}", start)  # of an object that holds no other
        try:
            value = ast.literal_eval(plain[start : end + 1])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}...")
