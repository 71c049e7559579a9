"""Reasoning in turns: the prompts that a chat template writes, tokens kept between turns, JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgejudge.bundle import Bundle
from edgejudge.errors import InputError
from edgejudge.export import export
from edgejudge.models.prompt import Prompts
from edgejudge.reasoning import SCHEMA, at_once, first_turn, reason, second_turn
from edgejudge.runtime import Engine
from edgejudge.runtime.json_text import JsonGrammar, JsonText
from edgejudge.runtime.text import Sampling, continued, write
from families import FAMILIES

torch.set_num_threads(1)
ANSWER = {name: "I see a knife." for name in FAMILIES} | {"smolvlm": " I see a knife."}
# What stands before an answer in a template, and not before one that it asks for.
BLANK = {"llava_onevision": ("assistant \n", "assistant\n")}
CONDITION = "a knife <image>"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: maker.make_checkpoint(root / name) for name, maker in FAMILIES.items()}


@pytest.fixture(scope="module")
def bundles(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        name: Bundle.open(export(folder, root / name, "exact"), unsealed=True)
        for name, folder in checkpoints.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_two_turns_are_what_the_chat_template_writes(
    checkpoints: dict[str, Path], bundles: dict[str, Bundle], family: str
) -> None:
    from transformers import PreTrainedTokenizerFast

    folder, prompts = checkpoints[family], Prompts.of(bundles[family])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    template = FAMILIES[family].CHAT_TEMPLATE
    answer = ANSWER[family]
    first, second = first_turn("a knife"), second_turn("a knife")
    turns = [("user", first), ("assistant", answer.strip()), ("user", second)]
    messages = [{"role": role, "content": [{"type": "text", "text": t}]} for role, t in turns]
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    theirs = tokenizer.encode(
        str(rendered).replace(*BLANK.get(family, ("", ""))), add_special_tokens=False
    )
    ours = [
        *prompts.blind_request_ids(first),
        *tokenizer.encode(answer, add_special_tokens=False),
        *prompts.next_ids(second),
    ]
    assert list(theirs) == ours
    assert prompts.next_ids(second)[-len(prompts.record.tail) :] == list(prompts.record.tail)


def test_a_condition_is_only_text(bundles: dict[str, Bundle]) -> None:
    for bundle in bundles.values():
        prompts, image = Prompts.of(bundle), bundle.manifest.tokens.image
        for text in (first_turn(CONDITION), second_turn(CONDITION), at_once(CONDITION)):
            assert CONDITION in text
            assert image not in prompts.request_ids(text) + prompts.next_ids(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_goes_on_from_what_was_written(
    bundles: dict[str, Bundle], family: str
) -> None:
    """The prefix after a turn, and the tokens it still lacks, are the whole of it."""
    bundle = bundles[family]
    engine, prompts = Engine.open(bundle, threads=1), Prompts.of(bundle)
    eos = bundle.manifest.tokens.eos
    start = engine.prefill(prompts.blind_request_ids("a knife"))
    ask = prompts.next_ids("a dog")
    for most in (1, 5):
        turn = continued(engine, start, ask, prompts.decode, eos, most, Sampling())
        written = turn.written.ids
        assert written[len(written) - len(turn.unread) :] == turn.unread
        assert turn.prefix.length == start.length + len(ask) + len(written) - len(turn.unread)
        more = [*turn.unread, *prompts.next_ids("a cat")]
        _, kept = engine.append(more, after=turn.prefix)
        whole = [*prompts.blind_request_ids("a knife"), *ask, *written, *prompts.next_ids("a cat")]
        _, fresh = engine.append(whole)
        assert np.abs(kept - fresh).max() < 1e-3
        start = engine.prefill(prompts.blind_request_ids("a knife"))
    again = write(engine, start, ask, prompts.decode, eos, 5, Sampling())
    assert again == turn.written


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_a_model_thinks_it_says_yes_or_no(
    bundles: dict[str, Bundle], family: str, turns: int
) -> None:
    pytest.importorskip("llguidance")
    bundle = bundles[family]
    engine, prompts = Engine.open(bundle, threads=1), Prompts.of(bundle)
    tokens, rows = bundle.manifest.tokens, bundle.manifest.embeddings.rows
    grammar = JsonGrammar(bundle.file("tokenizer.json").read_text("utf-8"), rows, tokens.eos)
    texts = []

    def document(schema: Mapping[str, Any], most: int) -> JsonText:
        assert schema == SCHEMA
        texts.append(most)
        return grammar.text(schema, most)

    start = engine.prefill(prompts.blind_request_ids("a knife"))
    found = [reason(engine, prompts, tokens, start, "a dog", turns, document) for _ in range(2)]
    assert found[0] == found[1] and len(texts) == 2, "greedy, and the prefix is as it was"
    assert isinstance(found[0].holds, bool) and isinstance(found[0].rationale, str)
    assert (found[0].steps == "") or turns == 2
    assert json.loads(json.dumps(found[0].rationale)) == found[0].rationale
    # The context of these models is 2,048 tokens.
    full = engine.prefill([60] * 1900)
    if turns == 2:
        with pytest.raises(InputError, match="no room for two turns"):
            reason(engine, prompts, tokens, full, "a dog", turns, document)
