"""Reads policy YAML node by node, so that every error names the file, the line and the key.

Takes YAML text; gives a `Policy` or a `PolicyError`. Knows the schema and nothing else. Works on
YAML's node tree instead of plain dicts because those have lost line numbers and duplicate keys.
"""

import math
from collections.abc import Iterator

import yaml

from edgejudge.errors import PolicyError
from edgejudge.policy import (
    _NAME,
    MAX_POLICY_BYTES,
    MAX_QUESTIONS,
    MAX_RULES,
    MAX_TEXT_CHARS,
    Policy,
    Rule,
    source_sha256,
)

__all__ = ["parse_policy"]

_POLICY_KEYS = ("name", "version", "rules")
_RULE_KEYS = ("id", "text", "category", "conditions")
_RULE_OPTIONAL_KEYS = ("threshold", "near_misses")
_KINDS = {
    "tag:yaml.org,2002:str": "text",
    "tag:yaml.org,2002:bool": "a yes/no value",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:timestamp": "a date",
    "tag:yaml.org,2002:map": "a mapping",
    "tag:yaml.org,2002:seq": "a list",
}


class _Loader(yaml.SafeLoader):
    """Safe composition without aliases: a few of them can stand for millions of nodes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not supported: write the text out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


class _Reader:
    """Typed access to nodes; `where` is the dotted key, as in rules[2].conditions[0]."""

    def __init__(self, source_name: str) -> None:
        self.source_name = source_name

    def fail(self, node: yaml.Node, where: str, problem: str) -> PolicyError:
        line = node.start_mark.line + 1
        place = f"{where}: " if where else ""
        return PolicyError(f"{self.source_name}, line {line}: {place}{problem}")

    def mapping(
        self, node: yaml.Node, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, where, f"expected a mapping, got {_kind(node)}")
        prefix = f"{where}." if where else ""
        found: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key not in required + optional:
                keys = ", ".join(required + optional)
                raise self.fail(key_node, prefix + key, f"unknown key; the keys here are {keys}")
            if key in found:
                raise self.fail(key_node, prefix + key, "given twice; keep one")
            found[key] = value_node
        for key in required:
            if key not in found:
                raise self.fail(node, prefix + key, "missing; add it")
        return found

    def items(
        self, node: yaml.Node, where: str, limit: int, empty_ok: bool = False
    ) -> Iterator[tuple[yaml.Node, str]]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.fail(node, where, f"expected a list, got {_kind(node)}")
        if not node.value and not empty_ok:
            raise self.fail(node, where, "the list is empty; it needs at least one entry")
        if len(node.value) > limit:
            raise self.fail(node, where, f"{len(node.value)} entries; at most {limit} are allowed")
        for index, item in enumerate(node.value):
            yield item, f"{where}[{index}]"

    def text(self, node: yaml.Node, where: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
            hint = "; put it in quotes" if isinstance(node, yaml.ScalarNode) else ""
            raise self.fail(node, where, f"expected text, got {_kind(node)}{hint}")
        value = " ".join(str(node.value).split())
        if not value:
            raise self.fail(node, where, "the text is empty")
        if len(value) > MAX_TEXT_CHARS:
            raise self.fail(
                node, where, f"{len(value)} characters; at most {MAX_TEXT_CHARS} are allowed"
            )
        if not value.isprintable():
            raise self.fail(node, where, "contains characters that cannot be printed; remove them")
        return value

    def name(self, node: yaml.Node, where: str) -> str:
        value = self.text(node, where)
        if not _NAME.fullmatch(value):
            raise self.fail(
                node, where, f"'{value}' is no name; use letters, digits, '_', '-' and '.' (max 64)"
            )
        return value

    def version(self, node: yaml.Node, where: str) -> str:
        # Kept as written, so that 1.10 does not become 1.1.
        number_or_text = ("text", "a number", "a date")
        if not isinstance(node, yaml.ScalarNode) or _kind(node) not in number_or_text:
            raise self.fail(node, where, f"expected a number or text, got {_kind(node)}")
        value = str(node.value).strip()
        if not value or len(value) > 64 or not value.isprintable():
            raise self.fail(node, where, "expected 1 to 64 printable characters")
        return value

    def threshold(self, node: yaml.Node, where: str) -> float:
        try:
            value = float(node.value) if _kind(node) == "a number" else math.nan
        except ValueError:  # YAML's 0x10 and 1_000 are numbers to YAML only
            value = math.nan
        if not 0.0 < value < 1.0:
            raise self.fail(
                node, where, f"expected a number between 0 and 1, both excluded, got {_shown(node)}"
            )
        return value


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
    reader = _Reader(source_name)
    root = _compose(text, source_name)
    fields = reader.mapping(root, "", _POLICY_KEYS)
    name = reader.name(fields["name"], "name")
    version = reader.version(fields["version"], "version")
    rules: list[Rule] = []
    seen_lines: dict[str, int] = {}
    question_count = 0
    for node, where in reader.items(fields["rules"], "rules", MAX_RULES):
        rule = _parse_rule(reader, node, where)
        if rule.id in seen_lines:
            first = seen_lines[rule.id]
            raise reader.fail(node, f"{where}.id", f"'{rule.id}' is taken by line {first}")
        seen_lines[rule.id] = node.start_mark.line + 1
        question_count += sum(len(alternatives) for alternatives in rule.conditions)
        if question_count > MAX_QUESTIONS:
            raise reader.fail(node, where, f"more than {MAX_QUESTIONS} conditions in one policy")
        rules.append(rule)
    return Policy(name, version, tuple(rules), source_sha256(data))


def _compose(text: str, source_name: str) -> yaml.Node:
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = error.problem or error.context or "malformed"
        raise PolicyError(f"{source_name}{line}: not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise PolicyError(f"{source_name}: not valid YAML: {reason}") from error
    except RecursionError as error:
        raise PolicyError(f"{source_name}: nested too deeply; a policy has four levels") from error
    finally:
        if loader is not None:
            loader.dispose()
    if root is None:
        keys = ", ".join(_POLICY_KEYS)
        raise PolicyError(f"{source_name}, line 1: the file is empty; a policy has {keys}")
    return root


def _parse_rule(reader: _Reader, node: yaml.Node, where: str) -> Rule:
    fields = reader.mapping(node, where, _RULE_KEYS, _RULE_OPTIONAL_KEYS)
    conditions: list[tuple[str, ...]] = []
    for item, place in reader.items(fields["conditions"], f"{where}.conditions", MAX_QUESTIONS):
        if isinstance(item, yaml.SequenceNode):
            alternatives = reader.items(item, place, MAX_QUESTIONS)
            conditions.append(tuple(reader.text(entry, spot) for entry, spot in alternatives))
        else:
            conditions.append((reader.text(item, place),))
    threshold = None
    if "threshold" in fields:
        threshold = reader.threshold(fields["threshold"], f"{where}.threshold")
    near_misses: tuple[str, ...] = ()
    if "near_misses" in fields:
        entries = reader.items(fields["near_misses"], f"{where}.near_misses", MAX_QUESTIONS, True)
        near_misses = tuple(reader.text(entry, spot) for entry, spot in entries)
    return Rule(
        id=reader.name(fields["id"], f"{where}.id"),
        text=reader.text(fields["text"], f"{where}.text"),
        category=reader.text(fields["category"], f"{where}.category"),
        conditions=tuple(conditions),
        threshold=threshold,
        near_misses=near_misses,
    )


def _kind(node: yaml.Node) -> str:
    return _KINDS.get(node.tag, f"a value tagged {node.tag}")


def _shown(node: yaml.Node) -> str:
    return f"'{node.value}'" if isinstance(node, yaml.ScalarNode) else _kind(node)
