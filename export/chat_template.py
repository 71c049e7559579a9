"""The checkpoint's chat template against the family's prompt format.

Takes a checkpoint folder and the prompts a bundle would ask with; refuses a checkpoint that was
taught another format. The template is only rendered here, in a sandbox: bundles carry token ids.
"""

import json
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from edgejudge.errors import ExportError
from edgejudge.models.prompt import Prompts

__all__ = ["check_chat_template"]

_CONDITION = "a knife"
_ANSWER = "There is one."


class _Generation(Extension):
    """`{% generation %}`: what a model is trained to write, which is written as it stands."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_chat_template(folder: Path, prompts: Prompts) -> None:
    """Asks one question with and one without a picture, and one after another, as the template and
    as the bundle do.

    Image tokens and what encloses them are left out of the comparison: the processor writes those.
    """
    template = _read(folder)
    if template is None:
        raise ExportError(
            f"{folder}: holds no chat template (chat_template.jinja, or in tokenizer_config.json); "
            "a judge has to be a checkpoint that was tuned to follow instructions"
        )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    record = prompts.record
    around = (*record.image_open, *record.view_open, *record.view_close)
    picture = {prompts.image_token_id, *around}
    text = {"type": "text", "text": prompts.question(_CONDITION)}
    grid = (1, 1) if record.layout == "grid" else (0, 0)
    asked = (
        ([{"type": "image"}, text], [*prompts.prefix_ids(*grid), *prompts.branch_ids(_CONDITION)]),
        ([text], prompts.blind_ids(_CONDITION)),
    )
    for content, ours in asked:
        rendered = _render(folder, template, [{"role": "user", "content": content}])
        theirs = tokenizer.encode(rendered, add_special_tokens=False).ids
        theirs = [i for i in theirs if i not in picture]
        ours = [i for i in ours if i not in picture]
        if theirs != ours:
            raise _differ(folder, tokenizer, theirs, ours)
    # What stands between the lead-in and an answer is the model's to write: a blank, or nothing.
    # Some templates have a blank of their own there, which is not before an answer that they ask
    # for; it is the same text but for blanks.
    turns = [("user", [text]), ("assistant", [{"type": "text", "text": _ANSWER}]), ("user", [text])]
    rendered = _render(folder, template, [{"role": r, "content": c} for r, c in turns])
    theirs = tokenizer.encode(rendered, add_special_tokens=False).ids
    first, second = prompts.blind_ids(_CONDITION), prompts.next_ids(prompts.question(_CONDITION))
    asked_text = tokenizer.decode(first, skip_special_tokens=False).rstrip()
    before = tokenizer.decode(theirs[: -len(second)], skip_special_tokens=False)
    answer = before.removeprefix(asked_text).strip()
    if theirs[-len(second) :] != second or answer != _ANSWER:
        ours = [*first, *tokenizer.encode(_ANSWER, add_special_tokens=False).ids, *second]
        raise _differ(folder, tokenizer, theirs, ours)


def _differ(folder: Path, tokenizer: Tokenizer, theirs: list[int], ours: list[int]) -> ExportError:
    return ExportError(
        f"{folder}: its chat template writes {_text(tokenizer, theirs)}, its family "
        f"{_text(tokenizer, ours)}; asked in a format that it was not taught, a judge "
        "gives other verdicts, so export the checkpoint with the family's template"
    )


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return repr(tokenizer.decode(ids, skip_special_tokens=False))


def _read(folder: Path) -> str | None:
    """The default template, wherever transformers has kept it over the years."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            value: Any = json.loads(file.read_bytes())
            found = value.get("chat_template")
            if isinstance(found, list):
                found = {entry["name"]: entry["template"] for entry in found}.get("default")
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise ExportError(f"{file}: not readable ({error})") from None
        if isinstance(found, str):
            return found
    return None


def _render(folder: Path, template: str, messages: list[dict[str, Any]]) -> str:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=True
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise ExportError(f"{folder}: its chat template cannot be rendered ({error})") from None
