"""Recipes: what is measured, and how, in one YAML file of four sections (ChEF, arXiv 2311.02692).

Takes a file; gives a frozen `Recipe`, or an `InputError` that names the file, the line and the key.
Paths in it are relative to it. Reads no data and loads no judge.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from edgejudge.errors import InputError, PolicyError
from edgejudge.evaluation.metrics import METRICS, Choice
from edgejudge.evaluation.rows import KINDS, Kind
from edgejudge.evaluation.scenario import COLUMNS, RECORDED_COLUMNS, Scenario
from edgejudge.policy import Strictness
from edgejudge.policy_nodes import Reader, compose

__all__ = ["INFERENCERS", "Change", "Inferencer", "Instruction", "Recipe", "read_recipe"]

_MAX_BYTES = 1 << 20
_MOST = 256
_LONGEST = 4000  # characters of a question or wording
INFERENCERS = ("screen", "ask", "score", "compare", "rank", "recorded")
PERTURBATIONS = ("resize", "recompress", "flip")
# What each inferencer is told: needed keys, and optional ones.
_INSTRUCTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "screen": ((), ("policy",)),
    "ask": ((), ("question", "labels", "wording")),
    "score": ((), ("criterion", "rubric", "method", "wording")),
    "compare": ((), ("criterion", "wording")),
    "rank": ((), ("criterion", "method", "wording")),
    "recorded": ((), ("labels",)),
}
_METHODS: tuple[Literal["clue", "thresholds"], ...] = ("clue", "thresholds")
_PATHS = ("bundle", "calibration", "outputs")
_SWITCHES = ("reasoning", "relevance_gate")
_RUNNING = ("bundle", "perturbations", "repeats")
_SCREENING = ("calibration", "method", *_SWITCHES, "exceptions")
_SETTINGS: dict[str, tuple[str, ...]] = {
    "screen": (*_RUNNING, *_SCREENING),
    "ask": _RUNNING,
    "score": _RUNNING,
    "compare": _RUNNING,
    "rank": _RUNNING,
    "recorded": ("outputs", "columns"),
}
_LOADER_KEYS: dict[str, tuple[str, ...]] = {
    "table": ("images", "kind", "columns", "rules"),
    "multiple_choice": ("images", "columns"),
    "folders": ("unsafe",),
    "calibration_set": ("policy", "question"),
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the judge is told. `policy` is a built-in name or a path, `rubric` a path."""

    policy: str = "stickers"
    question: str | None = None
    labels: tuple[str, ...] = ()
    criterion: str | None = None
    rubric: Path | None = None
    method: str | None = None
    wording: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A category or rule judged otherwise, and the column that says what is right then; without one
    it follows from the rules' truths.
    """

    name: str
    strictness: str
    column: str | None

    @property
    def title(self) -> str:
        return f"{self.name}: {self.strictness}"


@dataclass(frozen=True, slots=True)
class Inferencer:
    """How it is asked, `repeats` times in all. `method`, `reasoning` and `relevance_gate` are as in
    Judge.plan, `outputs` and `columns` are of recorded ones.
    """

    name: str
    bundle: Path | None = None
    calibration: Path | None = None
    perturbations: tuple[str, ...] = ()
    repeats: int = 1
    exceptions: tuple[Change, ...] = ()
    method: Literal["clue", "thresholds"] | None = None
    reasoning: bool | None = None
    relevance_gate: bool = False
    outputs: Path | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """`source` is the text, by sections, as plain values: what the hashes are of."""

    path: Path
    scenario: Scenario
    instruction: Instruction
    inferencer: Inferencer
    metrics: tuple[Choice, ...]
    lines: tuple[int, ...]  # of the metrics
    source: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of what it says: comments and layout do not change it."""
        return _sha256(self.source)

    @property
    def judged_sha256(self) -> str:
        """Without the metrics: rows that were judged stay as they are when others are chosen."""
        return _sha256({key: value for key, value in self.source.items() if key != "metrics"})

    def place(self, index: int) -> str:
        return f"{self.path}, line {self.lines[index]}: metrics[{index}]"


def read_recipe(path: Path) -> Recipe:
    """Raises InputError "recipe"."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError("recipe", f"recipe {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise InputError("recipe", f"{path}: larger than {_MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("recipe", f"{path}, line {line}: not UTF-8; save it as UTF-8") from error
    if not text.strip():
        raise InputError("recipe", f"{path}: the file is empty; it needs {', '.join(_KEYS)}")
    try:
        root = compose(text, str(path), _KEYS)
        return _Parser(path).recipe(root)
    except PolicyError as error:
        raise InputError("recipe", str(error)) from error


_KEYS = ("scenario", "instruction", "inferencer", "metrics")


class _Parser(Reader):
    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def recipe(self, root: yaml.Node) -> Recipe:
        fields = self.mapping(root, "", ("scenario", "inferencer", "metrics"), ("instruction",))
        name_node = self._keyed(fields["inferencer"], "inferencer").get("name")
        if name_node is None:
            raise self.fail(fields["inferencer"], "inferencer.name", "missing; add it")
        name = self.choice(name_node, "inferencer.name", INFERENCERS)
        inferencer = self._inferencer(fields["inferencer"], name)
        metrics = list(self.items(fields["metrics"], "metrics", _MOST))
        return Recipe(
            self.path,
            self._scenario(fields["scenario"]),
            self._instruction(fields.get("instruction"), name),
            inferencer,
            tuple(self._metric(node, where) for node, where in metrics),
            tuple(node.start_mark.line + 1 for node, _ in metrics),
            _plain(root),
        )

    def _scenario(self, node: yaml.Node) -> Scenario:
        where = "scenario"
        loader_node = self._keyed(node, where).get("loader")
        if loader_node is None:
            raise self.fail(node, "scenario.loader", "missing; add it")
        loader = self.choice(loader_node, "scenario.loader", tuple(COLUMNS))
        own = _LOADER_KEYS.get(loader, ("images",))
        fields = self.mapping(node, where, ("loader", "path"), ("subset", "seed", *own))
        kind: Kind = "label"
        if "kind" in fields:
            kind = self.choice(fields["kind"], "scenario.kind", KINDS)
        columns = {}
        if "columns" in fields:
            columns = self._columns(fields["columns"], "scenario.columns", COLUMNS[loader])
        question = None
        if "question" in fields:
            question = self.text(fields["question"], "scenario.question")
            if question.count("{condition}") != 1:
                raise self.fail(
                    fields["question"],
                    "scenario.question",
                    "needs {condition} once, where a condition is to be put in",
                )
            if "policy" in fields:
                raise self.fail(
                    fields["policy"], "scenario.policy", "goes without a question; remove one"
                )
        if "rules" in fields and kind != "label":
            raise self.fail(fields["rules"], "scenario.rules", "goes with kind: label alone")
        return Scenario(
            loader,
            self._path(fields["path"], "scenario.path"),
            self._path(fields["images"], "scenario.images") if "images" in fields else None,
            self._whole(fields["subset"], "scenario.subset", 1) if "subset" in fields else None,
            self._whole(fields["seed"], "scenario.seed", 0) if "seed" in fields else 0,
            kind,
            columns,
            self._names(fields, "scenario", "rules"),
            self._names(fields, "scenario", "unsafe"),
            self._policy(fields, where),
            question,
        )

    def _instruction(self, node: yaml.Node | None, name: str) -> Instruction:
        if node is None:
            return Instruction()
        fields = self.mapping(node, "instruction", *_INSTRUCTIONS[name])
        long = {
            key: self.text(fields[key], f"instruction.{key}", _LONGEST)
            for key in ("question", "criterion", "method", "wording")
            if key in fields
        }
        if "rubric" in fields and long:
            raise self.fail(
                fields["rubric"], "instruction.rubric", "brings its own criterion and wording"
            )
        rubric = None
        if "rubric" in fields:
            rubric = self._path(fields["rubric"], "instruction.rubric")
        labels = self._names(fields, "instruction", "labels")
        if labels and (len(labels) < 2 or len(set(labels)) < len(labels)):
            raise self.fail(
                fields["labels"], "instruction.labels", "expected two or more, each once"
            )
        return Instruction(
            self._policy(fields, "instruction"), labels=labels, rubric=rubric, **long
        )

    def _inferencer(self, node: yaml.Node, name: str) -> Inferencer:
        where = "inferencer"
        fields = self.mapping(node, where, ("name",), _SETTINGS[name])
        paths = {key: self._path(fields[key], f"{where}.{key}") for key in _PATHS if key in fields}
        perturbations = []
        if "perturbations" in fields:
            place = f"{where}.perturbations"
            for item, spot in self.items(fields["perturbations"], place, _MOST):
                perturbations.append(self.choice(item, spot, PERTURBATIONS))
        changes = []
        if "exceptions" in fields:
            place = f"{where}.exceptions"
            for item, spot in self.items(fields["exceptions"], place, _MOST):
                found = self.mapping(item, spot, ("name", "strictness"), ("label",))
                changes.append(
                    Change(
                        self.text(found["name"], f"{spot}.name"),
                        self.choice(
                            found["strictness"], f"{spot}.strictness", get_args(Strictness)
                        ),
                        self.text(found["label"], f"{spot}.label") if "label" in found else None,
                    )
                )
        method: Literal["clue", "thresholds"] | None = None
        if "method" in fields:
            method = self.choice(fields["method"], f"{where}.method", _METHODS)
        said = {
            key: self.yes_no(fields[key], f"{where}.{key}") for key in _SWITCHES if key in fields
        }
        columns = {}
        if "columns" in fields:
            known = ("id", "image", "target", *RECORDED_COLUMNS)
            columns = self._columns(fields["columns"], f"{where}.columns", known)
            if "outputs" not in fields:
                raise self.fail(
                    fields["columns"],
                    f"{where}.columns",
                    "is of the file in inferencer.outputs; without one, use scenario.columns",
                )
        repeats = 1
        if "repeats" in fields:
            repeats = self._whole(fields["repeats"], f"{where}.repeats", 1)
        return Inferencer(
            name,
            bundle=paths.get("bundle"),
            calibration=paths.get("calibration"),
            perturbations=tuple(dict.fromkeys(perturbations)),
            repeats=repeats,
            exceptions=tuple(changes),
            method=method,
            reasoning=said.get("reasoning"),
            relevance_gate=said.get("relevance_gate", False),
            outputs=paths.get("outputs"),
            columns=columns,
        )

    def _metric(self, node: yaml.Node, where: str) -> Choice:
        if isinstance(node, yaml.ScalarNode):
            return Choice(self.choice(node, where, tuple(METRICS)))
        fields = self.mapping(node, where, ("name",), ("by_target", "positive"))
        name = self.choice(fields["name"], f"{where}.name", tuple(METRICS))
        if "positive" in fields and not METRICS[name].positive:
            taking = ", ".join(each for each, metric in METRICS.items() if metric.positive)
            raise self.fail(
                fields["positive"], f"{where}.positive", f"goes with {taking}, not with {name}"
            )
        by_target = "by_target" in fields and self.yes_no(fields["by_target"], f"{where}.by_target")
        positive = None
        if "positive" in fields:
            positive = self.text(fields["positive"], f"{where}.positive")
        return Choice(name, by_target, positive)

    def _policy(self, fields: dict[str, yaml.Node], where: str) -> str:
        if "policy" not in fields:
            return "stickers"
        policy = self.text(fields["policy"], f"{where}.policy")
        there = self.path.parent / policy
        return str(there) if there.is_file() else policy

    # --- values ----------------------------------------------------------------------------------

    def _keyed(self, node: yaml.Node, where: str) -> dict[str, yaml.Node]:
        """By key, whatever the keys are: what decides which may be there is one of them."""
        keys = (
            (str(key.value) for key, _ in node.value) if isinstance(node, yaml.MappingNode) else ()
        )
        return self.mapping(node, where, (), tuple(keys))

    def _path(self, node: yaml.Node, where: str) -> Path:
        return self.path.parent / self.text(node, where)

    def _whole(self, node: yaml.Node, where: str, least: int) -> int:
        value = self.number(node, where, least, 2**31)
        if value != int(value):
            raise self.fail(node, where, "expected a whole number")
        return int(value)

    def _names(self, fields: dict[str, yaml.Node], where: str, key: str) -> tuple[str, ...]:
        if key not in fields:
            return ()
        place = f"{where}.{key}"
        made = []
        for item, spot in self.items(fields[key], place, _MOST):
            # YAML takes a bare no for a truth value, and 1 for a number.
            if isinstance(item, yaml.ScalarNode) and item.tag != "tag:yaml.org,2002:null":
                made.append(str(item.value))
            else:
                made.append(self.text(item, spot))
        return tuple(made)

    def _columns(self, node: yaml.Node, where: str, known: tuple[str, ...]) -> dict[str, str]:
        fields = self.mapping(node, where, (), known)
        return {key: self.text(value, f"{where}.{key}") for key, value in fields.items()}


def _plain(node: yaml.Node) -> Any:
    """As plain values; scalars as they are written."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    return str(node.value)


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
