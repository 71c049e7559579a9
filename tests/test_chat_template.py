"""A checkpoint's chat template must write what the bundle asks with."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import tiny
import tiny_llava
import tiny_qwen
from edgejudge.errors import ExportError
from edgejudge.export import open_checkpoint
from families import FAMILIES

torch.set_num_threads(1)
Change = Callable[[Path], object]


def moved_to(name: str, wrap: Callable[[str], object]) -> Change:
    """The template, kept where other versions of transformers keep it."""

    def change(folder: Path) -> None:
        template = _template(folder)
        for old in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
            (folder / old).unlink(missing_ok=True)
        (folder / name).write_text(json.dumps(wrap(template)))

    return change


def _template(folder: Path) -> str:
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text()
    (file,) = (
        f for n in ("chat_template.json", "tokenizer_config.json") if (f := folder / n).exists()
    )
    found: str = json.loads(file.read_text())["chat_template"]
    return found


def edited(old: str, new: str, count: int = -1) -> Change:
    def change(folder: Path) -> None:
        template = _template(folder)
        assert old in template
        (folder / "chat_template.jinja").write_text(template.replace(old, new, count))

    return change


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        moved_to("chat_template.json", lambda t: {"chat_template": t}),
        moved_to("tokenizer_config.json", lambda t: {"chat_template": t}),
        moved_to(
            "tokenizer_config.json",
            lambda t: {
                "chat_template": [
                    {"name": "tool_use", "template": "no"},
                    {"name": "default", "template": t},
                ]
            },
        ),
    ],
)
def test_a_template_is_found_wherever_it_lies(
    family: ModuleType, change: Change, tmp_path: Path
) -> None:
    folder = family.make_checkpoint(tmp_path / "checkpoint")
    change(folder)
    open_checkpoint(folder)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (tiny, lambda f: (f / "chat_template.jinja").unlink(), "holds no chat template"),
        (tiny, moved_to("tokenizer_config.json", lambda _: {}), "holds no chat template"),
        (tiny, edited("'Assistant:'", "'Judge:'"), "its chat template writes .*Judge:.*Assistant:"),
        (tiny, edited("else ': '", "else ':'"), "its chat template writes"),
        (tiny_qwen, edited("You are a helpful", "You are a strict"), "writes .*strict.*helpful"),
        (
            tiny,
            edited("_utterance>\\n'", "_utterance>\\n' * loop.index0"),
            "its chat template writes",
        ),
        (tiny_qwen, edited("'<|im_end|>\\n'", "'<|im_end|>\\n' * loop.index"), "There is one"),
        (tiny_llava, edited("['role'] + ' '", "['role'] + '\\n'"), "its chat template writes"),
        (tiny_llava, edited("'\\n' + part", "part"), "its chat template writes"),
        (tiny_llava, edited("generation -%}", "generation -%}well: ", 1), "There is one"),
        (tiny, edited("{% if add", "{% wrong add"), "cannot be rendered"),
        (tiny, edited("part['text']", "part['text'].missing()"), "cannot be rendered"),
        (tiny, edited("part['text']", "''.__class__.__mro__"), "cannot be rendered|writes"),
        (tiny, moved_to("tokenizer_config.json", lambda _: [1]), "not readable"),
    ],
)
def test_another_format_is_refused(
    family: ModuleType, change: Change, message: str, tmp_path: Path
) -> None:
    folder = family.make_checkpoint(tmp_path / "checkpoint")
    change(folder)
    with pytest.raises(ExportError, match=message):
        open_checkpoint(folder)
