"""Reasoning about one condition that token scores leave open: CLUE's cascade, in two turns or one.

Takes an engine with a picture in it and a condition; gives Yes or No with the reason. In the first
turn the model writes freely, step by step; in the second it sums up as JSON, which a grammar keeps
to its schema. Knows no rules and no thresholds.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgejudge.bundle import TokensRecord
from edgejudge.errors import InputError
from edgejudge.models.prompt import Prompts

if TYPE_CHECKING:
    from edgejudge.runtime.json_text import JsonText
    from edgejudge.runtime.text import Engine

__all__ = ["SCHEMA", "Reasoned", "at_once", "first_turn", "longest", "reason", "second_turn"]

_STEPS = 256  # tokens of the free turn
_SUMMARY = 96  # tokens of the document
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"rating": {"enum": ["Yes", "No"]}, "rationale": {"type": "string"}},
    "required": ["rating", "rationale"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Reasoned:
    """`holds` is the rating; `steps` is the free turn, empty where there was none."""

    holds: bool
    rationale: str
    steps: str


def first_turn(condition: str) -> str:
    """The request for free reasoning about what can be seen, and nothing else."""
    return (
        f"Is the following visible in this image: {condition}? Think step by step. Say what can be "
        "seen that speaks for it and what speaks against it. Judge the visible content alone: "
        "leave aside the setting, what anyone may intend, and whether it is allowed."
    )


def second_turn(condition: str) -> str:
    """The request to sum up."""
    return (
        'Sum up your answer as JSON: {"rating": "Yes" or "No", "rationale": "one sentence"}. '
        f"The rating is Yes if it is visible ({condition}), else No."
    )


def at_once(condition: str) -> str:
    """The request of a judge that was tuned to answer in one turn."""
    return f"Is {condition} visible? Explain in JSON."


def longest(turns: int) -> int:
    """Tokens that it may write."""
    return _SUMMARY + (_STEPS if turns == 2 else 0)


def reason(
    engine: "Engine",
    prompts: Prompts,
    tokens: TokensRecord,
    prefix: Any,
    condition: str,
    turns: int,
    document: Callable[[Mapping[str, Any], int], "JsonText"],
) -> Reasoned:
    """Behind the picture's prefix. `document` makes the grammar's document of a schema within a
    number of tokens. Raises InputError "too_long" where the context has no room for it.
    """
    from edgejudge.runtime.text import Sampling, continued

    greedy, decode, eos = Sampling(), prompts.decode, tokens.eos
    steps, request = "", prompts.request_ids(at_once(condition))
    if turns == 2:
        ids, then = (
            prompts.request_ids(first_turn(condition)),
            prompts.next_ids(second_turn(condition)),
        )
        most = min(_STEPS, engine.room(prefix) - len(ids) - len(then) - _SUMMARY)
        if most < 1:
            raise InputError("too_long", "the context has no room for two turns")
        first = continued(engine, prefix, ids, decode, eos, most, greedy, never=(tokens.image,))
        # What was written lies behind the prefix; the next turn goes on from there.
        steps, prefix = first.written.text, first.prefix
        request = [*first.unread, *then]
    made = document(SCHEMA, _SUMMARY)
    last = continued(engine, prefix, request, decode, eos, _SUMMARY, greedy, document=made)
    value = json.loads(last.written.text)
    return Reasoned(value["rating"] == "Yes", value["rationale"], steps.strip())
