"""Reads policy YAML: which keys there are, what they may hold, and which go together.

Takes YAML text; gives a `Policy` or a `PolicyError` that names the file, the line and the key.
Knows the schema and nothing else.
"""

from typing import get_args

import yaml

from edgejudge.clue_settings import ClueSettings
from edgejudge.errors import PolicyError
from edgejudge.moderation_keys import OPENAI, OPENAI_KEYS
from edgejudge.policy import (
    MAX_BODY_CHARS,
    MAX_POLICY_BYTES,
    MAX_QUESTIONS,
    MAX_RULES,
    Answer,
    Bodies,
    Method,
    Policy,
    Rule,
    source_sha256,
)
from edgejudge.policy_nodes import Reader, compose

__all__ = ["parse_policy"]

_POLICY_KEYS = ("name", "version", "rules")
_POLICY_OPTIONAL_KEYS = ("question", "method", "clue", "answer")
# By how the policy is answered: needed keys of a rule, and optional ones.
_RULE_KEYS: dict[Answer, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "questions": (
        ("id", "text", "category", "conditions"),
        ("threshold", "near_misses", "code", "objects", "maps_to"),
    ),
    "json": (("id", "text", "category", "code", "bodies"), ("near_misses", "maps_to")),
    "codes": (("id", "text", "category", "code"), ("near_misses", "maps_to")),
}
_BODIES = ("default", "allowed", "sensitive")
_CLUE_RANGES = {
    "reject": (-1.0, 0.0),
    "accept": (0.0, 1.0),
    "region": (0.0, 1.0),
    "relevance": (-1.0, 1.0),
    "region_confidence": (0.0, 1.0),
    "small_region": (0.0, 1.0),
}
_CLUE_KEYS = (*_CLUE_RANGES, "reasoning", "turns")


def parse_policy(source: str | bytes, source_name: str) -> Policy:
    """YAML text -> Policy. Raises PolicyError naming `source_name`, the line and the key."""
    data = source.encode() if isinstance(source, str) else source
    if len(data) > MAX_POLICY_BYTES:
        raise PolicyError(f"{source_name}: larger than {MAX_POLICY_BYTES} bytes; split the policy")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(f"{source_name}, line {line}: not UTF-8; save it as UTF-8") from error
    reader = Reader(source_name)
    root = compose(text, source_name, _POLICY_KEYS)
    fields = reader.mapping(root, "", _POLICY_KEYS, _POLICY_OPTIONAL_KEYS)
    name = reader.name(fields["name"], "name")
    version = reader.version(fields["version"], "version")
    answer: Answer = "questions"
    if "answer" in fields:
        answer = reader.choice(fields["answer"], "answer", get_args(Answer))
    if answer != "questions":
        for key in ("question", "method", "clue"):
            if key in fields:
                raise reader.fail(
                    fields[key], key, f"goes with answer: questions, not with {answer}; remove it"
                )
    method, clue = _parse_method(reader, fields)
    return Policy(
        name,
        version,
        _parse_rules(reader, fields["rules"], answer),
        source_sha256(data),
        question=_parse_question(reader, fields["question"]) if "question" in fields else None,
        method=method,
        clue=clue,
        answer=answer,
    )


def _parse_question(reader: Reader, node: yaml.Node) -> str:
    question = reader.text(node, "question")
    if question.count("{condition}") != 1:
        raise reader.fail(
            node, "question", "needs {condition} once, where a condition is to be put in"
        )
    return question


def _parse_method(
    reader: Reader, fields: dict[str, yaml.Node]
) -> tuple[Method, ClueSettings | None]:
    method: Method = "thresholds"
    if "method" in fields:
        method = reader.choice(fields["method"], "method", get_args(Method))
    if method == "thresholds":
        if "clue" in fields:
            raise reader.fail(fields["clue"], "clue", "read by method: clue alone; add that")
        return method, None
    if "clue" not in fields:
        return method, ClueSettings()
    found = reader.mapping(fields["clue"], "clue", (), _CLUE_KEYS)
    numbers = {
        key: reader.number(found[key], f"clue.{key}", low, high)
        for key, (low, high) in _CLUE_RANGES.items()
        if key in found
    }
    reasoning, turns = True, 2
    if "reasoning" in found:
        reasoning = reader.yes_no(found["reasoning"], "clue.reasoning")
    if "turns" in found:
        value = reader.number(found["turns"], "clue.turns", 1, 2)
        if value not in (1, 2):
            raise reader.fail(found["turns"], "clue.turns", "expected 1 or 2")
        turns = int(value)
    return method, ClueSettings(**numbers, reasoning=reasoning, turns=turns)


def _parse_rules(reader: Reader, rules_node: yaml.Node, answer: Answer) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    ids: dict[str, int] = {}
    codes: dict[str, int] = {}
    question_count = 0
    for node, where in reader.items(rules_node, "rules", MAX_RULES):
        rule = _parse_rule(reader, node, where, answer)
        line = node.start_mark.line + 1
        for key, value, taken in (("id", rule.id, ids), ("code", rule.code, codes)):
            if value is None:
                continue
            if value in taken:
                raise reader.fail(
                    node, f"{where}.{key}", f"'{value}' is taken by line {taken[value]}"
                )
            taken[value] = line
        question_count += sum(len(alternatives) for alternatives in rule.conditions)
        if question_count > MAX_QUESTIONS:
            raise reader.fail(node, where, f"more than {MAX_QUESTIONS} conditions in one policy")
        rules.append(rule)
    return tuple(rules)


def _parse_rule(reader: Reader, node: yaml.Node, where: str, answer: Answer) -> Rule:
    fields = reader.mapping(node, where, *_RULE_KEYS[answer])

    def texts(key: str) -> tuple[str, ...]:
        return reader.texts(fields[key], f"{where}.{key}", MAX_QUESTIONS) if key in fields else ()

    threshold = None
    if "threshold" in fields:
        threshold = reader.threshold(fields["threshold"], f"{where}.threshold")
    return Rule(
        id=reader.name(fields["id"], f"{where}.id"),
        text=reader.text(fields["text"], f"{where}.text"),
        category=reader.text(fields["category"], f"{where}.category"),
        conditions=_parse_conditions(reader, fields, where),
        threshold=threshold,
        near_misses=texts("near_misses"),
        code=reader.name(fields["code"], f"{where}.code") if "code" in fields else None,
        objects=texts("objects"),
        bodies=_parse_bodies(reader, fields, where),
        maps_to=_parse_maps_to(reader, fields, where),
    )


def _parse_conditions(
    reader: Reader, fields: dict[str, yaml.Node], where: str
) -> tuple[tuple[str, ...], ...]:
    if "conditions" not in fields:  # a rule of a policy that is judged as a whole
        return ()
    conditions: list[tuple[str, ...]] = []
    for item, place in reader.items(fields["conditions"], f"{where}.conditions", MAX_QUESTIONS):
        if isinstance(item, yaml.SequenceNode):
            alternatives = reader.items(item, place, MAX_QUESTIONS)
            conditions.append(tuple(reader.text(entry, spot) for entry, spot in alternatives))
        else:
            conditions.append((reader.text(item, place),))
    return tuple(conditions)


def _parse_bodies(reader: Reader, fields: dict[str, yaml.Node], where: str) -> Bodies | None:
    if "bodies" not in fields:
        return None
    found = reader.mapping(fields["bodies"], f"{where}.bodies", _BODIES)
    return Bodies(
        *(reader.text(found[key], f"{where}.bodies.{key}", MAX_BODY_CHARS) for key in _BODIES)
    )


def _parse_maps_to(reader: Reader, fields: dict[str, yaml.Node], where: str) -> tuple[str, ...]:
    if "maps_to" not in fields:
        return ()
    keys = []
    for node, spot in reader.items(fields["maps_to"], f"{where}.maps_to", MAX_QUESTIONS, True):
        key = reader.text(node, spot)
        taxonomy, colon, name = key.partition(":")
        if not (taxonomy and colon and name):
            raise reader.fail(node, spot, f"'{key}' is no TAXONOMY:KEY, like openai:violence")
        if taxonomy == OPENAI and name not in OPENAI_KEYS:
            known = ", ".join(OPENAI_KEYS)
            raise reader.fail(node, spot, f"'{name}' is none of OpenAI's keys: {known}")
        keys.append(key)
    return tuple(keys)
