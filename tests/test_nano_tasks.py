"""What nano is taught beside presence: the right answers, packed as the text model meets them."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import SmolVLMForConditionalGeneration

from edgejudge.answering import wordings
from edgejudge.bundle import Bundle
from edgejudge.models.concepts import known_names, knows
from edgejudge.models.prompt import Prompts
from edgejudge.reasoning import at_once

NANO = Path(__file__).parent.parent / "models" / "nano"


@pytest.fixture(scope="module")
def nano() -> dict[str, ModuleType]:
    """The scripts import each other by bare name, as they do when they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(NANO)
        names = ("concepts", "losses", "mosaics", "packs", "scene", "tasks", "train_text", "words")
        return {name: importlib.import_module(name) for name in names}


def some_items(nano: dict[str, ModuleType], seed: int) -> tuple[list, np.ndarray]:
    """A handful of things, some of them twice, and a photograph that shows a cat perhaps."""
    rng = np.random.default_rng(seed)
    pool = rng.integers(-1, 12, 6)
    items = [
        nano["scene"].Item(
            int(rng.choice(pool)), rng.random(), rng.random(), float(rng.uniform(40, 300))
        )
        for _ in range(int(rng.integers(0, 7)))
    ]
    present = np.zeros(len(nano["concepts"].CONCEPTS), np.int8)
    present[[i.concept for i in items if i.concept >= 0]] = 1
    present[40] = -1
    return items, present


def test_counts_are_what_is_there(nano: dict[str, ModuleType]) -> None:
    names = {c.name: i for i, c in enumerate(nano["concepts"].CONCEPTS)}
    kinds = set()
    for seed in range(60):
        items, present = some_items(nano, seed)
        for one in nano["tasks"].counts(np.random.default_rng(seed), items, present, 5):
            kinds.add(one.kind)
            if one.kind == "count":
                assert one.answer in {f" {n}" for n in range(5)}
                continue
            name = one.request.removeprefix(f"Is {one.kind} ").removesuffix(" visible?")
            times = sum(i.concept == names[name] for i in items)
            holds = times > 1 if one.kind == "more than one" else times == 1
            assert one.answer == (" Yes" if holds else " No"), (one, times)
    assert kinds == {"count", "more than one", "exactly one"}


def test_relations_are_as_things_lie(nano: dict[str, ModuleType]) -> None:
    phrases = {c.phrase: i for i, c in enumerate(nano["concepts"].CONCEPTS)}
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    held = {name: 0 for name in nano["tasks"].RELATIONS}
    for seed in range(150):
        items, present = some_items(nano, seed)
        for one in nano["tasks"].relations(np.random.default_rng(seed), items, present, 4):
            said = one.request.removeprefix("Is ").removesuffix(" visible?")
            name = next(n for n in nano["tasks"].RELATIONS if f" {n} " in said)
            a, b = (
                [i for i in items if i.concept == phrases[phrase]]
                for phrase in said.split(f" {name} ")
            )
            if one.kind == "relation to nothing":
                assert not a or not b
                assert one.answer == " No"
                continue
            assert len(a) == len(b) == 1, "a thing that is there twice has no one place"
            (first,), (second,) = a, b
            relation = nano["tasks"].RELATIONS
            assert relation[name](first, second) == (one.answer == " Yes")
            if name in opposite:
                assert relation[opposite[name]](second, first) == (one.answer == " Yes")
            held[name] += one.answer == " Yes"
    assert min(held.values()) > 5, held


def test_a_mention_ends_with_the_name_of_what_it_tells(nano: dict[str, ModuleType]) -> None:
    concepts, told = nano["concepts"].CONCEPTS, 0
    for seed in range(40):
        items, present = some_items(nano, seed)
        rng = np.random.default_rng(seed)
        asked = nano["tasks"].relations(rng, items, present, 4)
        asked += nano["tasks"].presence(rng, items, present, 6)
        asked += nano["tasks"].counts(rng, items, present, 3)
        for one in asked:
            for mention in one.mentions:
                concept = concepts[mention.concept]
                forms = (concept.phrase, concept.alias, concept.name)
                assert one.request[: mention.end].endswith(forms), (one, concept)
                alone = [i for i in items if i.concept == mention.concept]
                if len(alone) != 1 or present[mention.concept] != 1:
                    assert np.isnan(mention.where).all(), "no one place"
                    continue
                assert mention.where[1:3] == (alone[0].y, alone[0].x)
                told += 1
            if one.kind in ("left of", "above"):
                down, across, _, holds = one.mentions[1].apart
                lies = across if one.kind == "left of" else down
                assert (lies < 0) == (one.answer == " Yes") == holds
    assert told > 60


def test_rationales_are_true_and_named_from_the_question(nano: dict[str, ModuleType]) -> None:
    concepts, ratings = nano["concepts"].CONCEPTS, []
    for seed in range(60):
        items, present = some_items(nano, seed)
        one = nano["tasks"].reason(np.random.default_rng(seed), items, present)
        document = json.loads(one.answer)
        ratings.append(document["rating"])
        why = document["rationale"]
        shown = [c for c in concepts if f"shows {c.phrase}." in why]
        assert all(present[concepts.index(c)] == 1 for c in shown)
        asked = one.request.removeprefix("Is ").removesuffix(" visible? Explain in JSON.")
        (meant,) = [c for c in concepts if asked in (c.phrase, c.alias, c.name)]
        assert (document["rating"] == "Yes") == (present[concepts.index(meant)] == 1)
    assert 10 < ratings.count("Yes") < 50


def test_wordings_are_those_of_the_package(nano: dict[str, ModuleType]) -> None:
    tasks = nano["tasks"]
    assert tasks.COUNT == wordings.COUNT
    assert tasks.PAIR == wordings.COMPARE
    assert tasks.CROWDED == wordings.fill(
        wordings.SCORE, ["criterion"], criterion="crowded", first="1", last="5"
    )
    question = nano["words"].TEMPLATE.format(condition="a cat")
    assert tasks.REASON.format(question=question) == at_once("a cat")


def test_patterns_cover_what_is_asked(nano: dict[str, ModuleType]) -> None:
    names = known_names(Bundle.open(NANO / "bundle").manifest.concepts)
    for seed in range(30):
        items, present = some_items(nano, seed)
        rng = np.random.default_rng(seed)
        asked = nano["tasks"].relations(rng, items, present, 3)
        asked += [a for a in nano["tasks"].counts(rng, items, present, 3) if a.kind != "count"]
        for one in asked:
            condition = one.request.removeprefix("Is ").removesuffix(" visible?")
            assert knows(names, condition, nano["tasks"].PATTERNS), condition
            assert not knows(names, condition)


@pytest.fixture(scope="module")
def trained(nano: dict[str, ModuleType]) -> tuple:
    folder = NANO / "checkpoint"
    prompts = nano["words"].Prompts(Tokenizer.from_file(str(folder / "tokenizer.json")), 16)
    model = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model, prompts


def test_a_pack_is_the_prompts_and_answers(nano: dict[str, ModuleType], trained: tuple) -> None:
    _, prompts = trained
    items, present = some_items(nano, 4)
    asked = nano["train_text"].questions(np.random.default_rng(3), present, items)
    packed = nano["packs"].pack(prompts, [asked, asked[:3]])
    bundle = Prompts.of(Bundle.open(NANO / "bundle"))
    for picture, each in enumerate([asked, asked[:3]]):
        for number, one in enumerate(each):
            mine = packed.branch[picture] == number
            target = packed.target[picture][mine]
            answer = [int(t) for t in target if t != nano["packs"].NOTHING]
            begins = int(np.flatnonzero(target != nano["packs"].NOTHING)[0])
            assert packed.ids[picture][mine][: begins + 1].tolist() == bundle.request_ids(
                one.request
            )
            assert prompts._t.decode(answer) == one.answer, "and the end of the turn"
            assert (packed.place[picture][mine] == np.arange(mine.sum())).all()
            named = packed.kind[picture][mine] == packed.kinds.index(nano["packs"].NAME)
            begin, end = one.name or (0, 0)
            assert prompts._t.decode(target[named].tolist()) == one.answer[begin:end]
            assert (one.kind == "reason") == (end > 0)


def test_packed_losses_are_those_of_each_request_alone(
    nano: dict[str, ModuleType], trained: tuple
) -> None:
    model, prompts = trained
    losses = nano["losses"].Losses(model, prompts, "cpu", 0)
    rng = np.random.default_rng(0)
    tokens = torch.randn(2, 2 * 32, model.config.text_config.hidden_size)
    prefix = prompts.prefix(1, 1, 2)
    where = nano["mosaics"].places(1, 1, 4, 2)
    assert where.shape == (64, 3)
    asked = []
    for seed in (5, 8):
        items, present = some_items(nano, seed)
        asked.append(nano["tasks"].counts(rng, items, present, 3))
    asked[1] = asked[1][:2]
    lies = torch.zeros(2, 64, len(nano["concepts"].CONCEPTS), dtype=torch.bool)
    with torch.no_grad():
        packed = nano["packs"].pack(prompts, asked)
        each, logits, _ = losses.packed_loss(tokens, prefix, packed, where, lies)
        assert "look" not in each, "there is nothing to look at"
        alone = [
            losses.packed_loss(
                tokens[[picture]], prefix, nano["packs"].pack(prompts, [[one]]), where, lies[[0]]
            )[1]
            for picture, each in enumerate(asked)
            for one in each
        ]
    assert torch.allclose(logits, torch.cat(alone), atol=2e-4)


def test_looking_is_told_by_the_model_s_own_attention(
    nano: dict[str, ModuleType], trained: tuple
) -> None:
    model, prompts = trained
    losses = nano["losses"].Losses(model, prompts, "cpu", 0)
    tokens = torch.randn(2, 32, model.config.text_config.hidden_size)
    prefix = prompts.prefix(1, 1)
    asked = [
        nano["tasks"].relations(np.random.default_rng(seed), *some_items(nano, seed), 3)
        for seed in (5, 8)
    ]
    packed = nano["packs"].pack(prompts, asked)
    lies = torch.rand(2, 32, len(nano["concepts"].CONCEPTS)) < 0.1
    seen: list[torch.Tensor] = []
    text = model.model.text_model
    hooks = [
        text.layers[index].self_attn.register_forward_hook(lambda *told: seen.append(told[2][1]))
        for index in (2, 3, 4, 5)
    ]
    before = text.config._attn_implementation
    text.config._attn_implementation = "eager"
    with torch.no_grad():
        where = nano["mosaics"].places(1, 1, 4, 1)
        each, _, _ = losses.packed_loss(tokens, prefix, packed, where, lies)
    text.config._attn_implementation = before
    for hook in hooks:
        hook.remove()
    visual = [at for at, token in enumerate(prefix) if token == prompts.image_id]
    looks = []
    for picture, name in zip(*np.nonzero(packed.about >= 0), strict=True):
        on = lies[picture, :, packed.about[picture, name]]
        if on.any():
            rows = [layer[picture, :, len(prefix) + name][:, visual] for layer in seen[:2]]
            looks.append(torch.cat([row[:, on].sum(1) for row in rows]).max())
    assert len(looks) > 5
    expected = -torch.log(torch.stack(looks)).mean()
    assert torch.allclose(each["look"], expected, rtol=1e-3)
    back = []
    for picture, name in zip(*np.nonzero(packed.before >= 0), strict=True):
        assert packed.branch[picture, packed.before[picture, name]] == packed.branch[picture, name]
        row = seen[2][picture, :, len(prefix) + name]
        back.append(row[:, len(prefix) + packed.before[picture, name]].max())
    assert torch.allclose(each["back"], -torch.log(torch.stack(back)).mean(), rtol=1e-3)
    last = []
    for picture, end in zip(*np.nonzero(packed.target >= 0), strict=True):
        mine = (packed.branch[picture] == packed.branch[picture, end]) & (
            packed.before[picture] >= 0
        )
        (name,) = np.flatnonzero(mine)
        last.append(seen[-1][picture, :, len(prefix) + end, len(prefix) + name].max())
    assert torch.allclose(each["last"], -torch.log(torch.stack(last)).mean(), rtol=1e-3)


def test_waking_moves_new_answers_alone(nano: dict[str, ModuleType], trained: tuple) -> None:
    model, prompts = trained
    table = model.get_input_embeddings().weight
    before = table.detach().clone()
    nano["train_text"].waken(model, prompts)
    moved = (table.detach() != before).any(1)
    (yes,), (no,), score = prompts.yes, prompts.no, prompts.ids(" 3")[0]
    known = {i for ids in prompts.branches for branch in ids.values() for i in branch}
    assert not moved[[yes, no, *known]].any()
    assert 20 < int(moved.sum()) < 100
    assert moved[score] or score in known
    with torch.no_grad():
        table.copy_(before)


def test_a_readout_reads_what_is_there_and_sends_the_gradient_to_where_it_is_not(
    nano: dict[str, ModuleType],
) -> None:
    rng = torch.Generator().manual_seed(3)
    readout = nano["losses"].Readout(12, 2, "cpu")
    map_ = torch.randn(12, generator=rng)
    found = []
    for _ in range(30):
        x = torch.randn(2, 20, 12, generator=rng, requires_grad=True)
        normed = torch.nn.functional.layer_norm(x, (12,)).detach()
        truth = torch.stack([normed @ map_, torch.randn(2, 20, generator=rng)], -1)
        truth[0, :15, 0] = float("nan")
        loss = readout.loss(x, truth)
        found.append(float(loss.detach()))
    assert found[0] == 0.0, "nothing is read from nothing"
    assert found[-1] == pytest.approx(float(truth[..., 1].var()) / 2, rel=0.4), (
        "one of two is noise"
    )
    loss.backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
