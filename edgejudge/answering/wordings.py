"""What the judge is asked, as templates: one place for every default wording.

Takes a template and its values; gives the text. A judge that was tuned with other words takes
another template in each call. Knows no tokens.
"""

import re
from collections.abc import Sequence

from edgejudge.errors import InputError

__all__ = [
    "ANSWERS",
    "CHOICE",
    "COMPARE",
    "COUNT",
    "COUNT_LABELS",
    "LETTERS",
    "QUALITY",
    "QUALITY_LEAD",
    "SCORE",
    "counting",
    "fill",
    "with_options",
]

SCORE = "How {criterion} is it, from {first} to {last}?"
# The answer's first word is read behind these words of the model's own, as Q-Bench does.
QUALITY = "Rate the {criterion} of the picture."
QUALITY_LEAD = "The {criterion} of the picture is"
COMPARE = "Which picture {criterion}, A or B?"
COUNT = "How many times is {condition} visible?"
COUNT_LABELS = ("0", "1", "2", "3", "4")
CHOICE = "{question}\n{options}\nAnswer with one letter."
ANSWERS = (
    "Here is a request, and two answers to it.\n"
    "[Request]\n{instruction}\n"
    "[Answer A]\n{a}\n[End of answer A]\n"
    "[Answer B]\n{b}\n[End of answer B]\n"
    "Pay no heed to length and order. Which answer {criterion}, A or B?"
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_FIELD = re.compile(r"\{(\w+)\}")


def fill(template: str, needed: Sequence[str], **values: str) -> str:
    """The template with its values; those `needed` must occur in it. Braces in a value are text.

    Raises InputError for a template that lacks one, or asks for what there is not.
    """
    fields = set(_FIELD.findall(template))
    for name in needed:
        if name not in fields:
            raise InputError("wording", f"wording {template!r} must contain {{{name}}}")
    for name in sorted(fields - values.keys()):
        names = ", ".join(f"{{{value}}}" for value in values)
        raise InputError("wording", f"wording {template!r} has {{{name}}}; it may have {names}")
    return _FIELD.sub(lambda match: values[match[1]], template)


def counting(condition: str) -> str:
    """The question that is asked with COUNT_LABELS."""
    return fill(COUNT, ["condition"], condition=condition)


def with_options(question: str, options: Sequence[str], wording: str | None = None) -> str:
    """A multiple choice, one lettered option a line."""
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return fill(
        wording or CHOICE, ["question", "options"], question=question, options="\n".join(lines)
    )
