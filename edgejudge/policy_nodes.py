"""YAML as nodes, read strictly: every error names the file, the line and the key.

Takes YAML text; gives nodes, and typed values out of them or a `PolicyError`. Works on YAML's node
tree instead of plain dicts because those have lost line numbers and duplicate keys. Knows no keys.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import yaml

from edgejudge.errors import PolicyError
from edgejudge.policy import _NAME, MAX_TEXT_CHARS
from edgejudge.printable import brief, printable

__all__ = ["Reader", "compose"]

T = TypeVar("T", bound=str)
_MOST_NODES = 20_000  # several times those of the largest policy, read in a second
_MOST_LEVELS = 32
_MOST_CHARS = 600  # of what an error says
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
    """Safe composition without aliases: a few of them can stand for millions of nodes. Others are
    read one after another, and no more of them than a file of ours has.
    """

    nodes = 0
    level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self.nodes += 1
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = "anchors and aliases are not supported: write the text out"
        elif self.nodes > _MOST_NODES:
            problem = f"more than {_MOST_NODES} entries; split the file"
        elif self.level >= _MOST_LEVELS:
            problem = "nested too deeply; write it in fewer levels"
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.level += 1
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


class Reader:
    """Typed access to nodes; `where` is the dotted key, as in rules[2].conditions[0]."""

    def __init__(self, source_name: str) -> None:
        self.source_name = source_name

    def fail(self, node: yaml.Node, where: str, problem: str) -> PolicyError:
        line = node.start_mark.line + 1
        place = f"{brief(where)}: " if where else ""
        return PolicyError(
            f"{printable(self.source_name)}, line {line}: {place}{brief(problem, _MOST_CHARS)}"
        )

    def mapping(
        self, node: yaml.Node, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode) or _kind(node) != "a mapping":
            raise self.fail(node, where, f"expected a mapping, got {_kind(node)}")
        prefix = f"{where}." if where else ""
        found: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(key_node, where, f"a key is text, got {_kind(key_node)}")
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
        if not isinstance(node, yaml.SequenceNode) or _kind(node) != "a list":
            raise self.fail(node, where, f"expected a list, got {_kind(node)}")
        if not node.value and not empty_ok:
            raise self.fail(node, where, "the list is empty; it needs at least one entry")
        if len(node.value) > limit:
            raise self.fail(node, where, f"{len(node.value)} entries; at most {limit} are allowed")
        for index, item in enumerate(node.value):
            yield item, f"{where}[{index}]"

    def text(self, node: yaml.Node, where: str, most: int = MAX_TEXT_CHARS) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
            hint = "; put it in quotes" if isinstance(node, yaml.ScalarNode) else ""
            raise self.fail(node, where, f"expected text, got {_kind(node)}{hint}")
        value = " ".join(str(node.value).split())
        if not value:
            raise self.fail(node, where, "the text is empty")
        if len(value) > most:
            raise self.fail(node, where, f"{len(value)} characters; at most {most} are allowed")
        if not value.isprintable():
            raise self.fail(node, where, "contains characters that cannot be printed; remove them")
        return value

    def texts(self, node: yaml.Node, where: str, limit: int) -> tuple[str, ...]:
        """A list of texts, which may be empty."""
        return tuple(self.text(item, spot) for item, spot in self.items(node, where, limit, True))

    def choice(self, node: yaml.Node, where: str, choices: Sequence[T]) -> T:
        value = self.text(node, where)
        for choice in choices:
            if value == choice:
                return choice
        raise self.fail(node, where, f"'{value}' is none of {', '.join(choices)}")

    def yes_no(self, node: yaml.Node, where: str) -> bool:
        if _kind(node) == "a yes/no value" and isinstance(node, yaml.ScalarNode):
            return str(node.value).lower() in ("true", "yes", "on")
        raise self.fail(node, where, f"expected true or false, got {_shown(node)}")

    def number(self, node: yaml.Node, where: str, low: float, high: float) -> float:
        """Within `low` and `high`, both included."""
        value = _number(node)
        if not low <= value <= high:
            raise self.fail(
                node, where, f"expected a number from {low:g} to {high:g}, got {_shown(node)}"
            )
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
        value = _number(node)
        if not 0.0 < value < 1.0:
            raise self.fail(
                node, where, f"expected a number between 0 and 1, both excluded, got {_shown(node)}"
            )
        return value


def compose(text: str, source_name: str, keys: Sequence[str]) -> yaml.Node:
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = error.problem or error.context or "malformed"
        raise PolicyError(
            f"{printable(source_name)}{line}: not valid YAML: {brief(problem, _MOST_CHARS)}"
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter of \U99999999
        reason = brief(" ".join(str(error).split()), _MOST_CHARS)
        raise PolicyError(f"{printable(source_name)}: not valid YAML: {reason}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if root is None:
        listed = ", ".join(keys)
        raise PolicyError(f"{source_name}, line 1: the file is empty; it needs {listed}")
    return root


def _number(node: yaml.Node) -> float:
    """NaN where it is none."""
    try:
        return float(node.value) if _kind(node) == "a number" else math.nan
    except ValueError:  # YAML's 0x10 and 1_000 are numbers to YAML only
        return math.nan


def _kind(node: yaml.Node) -> str:
    return _KINDS.get(node.tag, f"a value tagged {node.tag}")


def _shown(node: yaml.Node) -> str:
    return f"'{node.value}'" if isinstance(node, yaml.ScalarNode) else _kind(node)
