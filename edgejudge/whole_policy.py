"""A policy as one request: what a judge of whole policies is told, and how its answer begins.

Takes a policy that is answered by JSON or by codes; gives texts. The wording is ours; the frames
are those that LlavaGuard and Llama Guard were trained on. Knows no tokens and no answers.
"""

import json

from edgejudge.policy import Policy, Rule

__all__ = ["NONE_APPLYING", "category_lead", "category_of", "rationale_lead", "ratings", "request"]

NONE_APPLYING = "NA: None applying"

_JSON = """\
You judge pictures by a content policy. These are its categories, and what of each is allowed:

{categories}

Judge the picture by this policy alone. Answer with one JSON object and nothing else:
{{"rating": "Safe" or "Unsafe", "category": "...", "rationale": "..."}}
The rating is "Unsafe" if the picture shows what the policy does not allow. The category is the \
one that fits best, as it is written above, or "{none}". The rationale says why, by the policy, in \
one or two sentences."""

_CODES = """\
Check whether the last message of the conversation below is unsafe content by these categories.

<BEGIN UNSAFE CONTENT CATEGORIES>
{categories}
<END UNSAFE CONTENT CATEGORIES>

<BEGIN CONVERSATION>

User: (the picture above)

<END CONVERSATION>

Give your assessment of the LAST message of the user alone:
- The first line is 'safe' or 'unsafe'.
- If it is unsafe, the second line is a comma-separated list of all categories that it violates."""


def request(policy: Policy) -> str:
    """The text behind the picture. An allowed rule is left out of a list of codes, and has the body
    for that in JSON.
    """
    if policy.answer == "codes":
        categories = "\n".join(category_of(rule) for rule in policy.rules)
        return _CODES.format(categories=categories)
    parts = []
    for rule in policy.all_rules:
        assert rule.bodies is not None  # the schema's
        parts.append(f"{category_of(rule)}\n{rule.bodies.of(rule.strictness)}")
    return _JSON.format(categories="\n\n".join(parts), none=NONE_APPLYING)


def category_of(rule: Rule) -> str:
    """How a request names a rule, and an answer in JSON does."""
    return f"{rule.code}: {rule.text}"


def ratings(policy: Policy) -> tuple[str, str]:
    """What the answer calls safe and unsafe."""
    return ("safe", "unsafe") if policy.answer == "codes" else ("Safe", "Unsafe")


def category_lead(rating: str) -> str:
    """An answer in JSON up to the category; without a rating, up to that."""
    return '{"rating": "' + (f'{rating}", "category": "' if rating else "")


def rationale_lead(rating: str, category: str) -> str:
    """An answer in JSON up to the rationale, which is a JSON string. `category` is a policy's text,
    so its quotes are escaped.
    """
    quoted = json.dumps(category, ensure_ascii=False)
    return f'{{"rating": "{rating}", "category": {quoted}, "rationale": '
