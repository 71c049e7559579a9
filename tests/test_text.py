"""Text is what transformers writes; JSON parses and meets its schema at every length limit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import tiny
from edgejudge import Judge
from edgejudge.errors import InputError, ProviderError
from edgejudge.fidelity import export_bundle
from edgejudge.models.image import canary_image
from edgejudge.runtime.text import Sampling, write
from edgejudge.turns import Stop

SLOW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PICTURE = Image.fromarray(canary_image(40, 60))
VERDICT = {
    "type": "object",
    "properties": {
        "rating": {"enum": ["Safe", "Unsafe"]},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "rationale": {"type": "string"},
        "rules": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "string", "minLength": 2},
                    "broken": {"type": "boolean"},
                },
                "required": ["id", "broken"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["rating", "score", "rationale", "rules"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("text")
    tiny.make_checkpoint(
        folder / "checkpoint", card=tiny.make_card(), tiling=False, vision_layers=1, text_layers=2
    )
    export_bundle(folder / "checkpoint", folder / "bundle", recipe="exact")
    return Judge.load(folder / "bundle", threads=1)


def meets(value: Any) -> bool:
    """VERDICT, checked by hand."""
    return (
        list(value) == ["rating", "score", "rationale", "rules"]
        and value["rating"] in ("Safe", "Unsafe")
        and value["score"] in (1, 2, 3, 4, 5)
        and isinstance(value["rationale"], str)
        and len(value["rules"]) >= 1
        and all(
            list(r) == ["id", "broken"] and len(r["id"]) >= 2 and r["broken"] in (True, False)
            for r in value["rules"]
        )
    )


def shortest(judge: Judge, schema: dict[str, Any]) -> int:
    with pytest.raises(InputError, match="the shortest document found") as error:
        judge.write(PICTURE, "Why?", schema=schema, max_tokens=1)
    assert error.value.code == "schema"
    return int(str(error.value).split("takes ")[1].split()[0])


@given(extra=st.integers(0, 120), seed=st.integers(0, 99), heat=st.sampled_from([0.0, 1.0, 3.0]))
@SLOW
def test_a_document_is_whole_at_any_limit(judge: Judge, extra: int, seed: int, heat: float) -> None:
    most = shortest(judge, VERDICT) + extra
    found = judge.write(
        PICTURE, "Why?", schema=VERDICT, max_tokens=most, temperature=heat, seed=seed
    )
    assert len(found.ids) <= most
    assert meets(json.loads(found.text)), found.text
    assert found.finish in ("end", "length")


def test_a_schema_without_bounds_ends_too(judge: Judge) -> None:
    inner: dict[str, Any] = {"type": "object", "properties": {"of": {"$ref": "#/$defs/node"}}}
    tree = {"$defs": {"node": inner}, "$ref": "#/$defs/node"}
    for schema in ({"type": "array", "items": {}}, {"type": "string"}, {}, tree):
        for most in (4, 9, 30):
            found = judge.write(PICTURE, "List", schema=schema, max_tokens=most, temperature=2.0)
            json.loads(found.text)
            assert len(found.ids) <= most


def test_schemas_that_cannot_be_met_are_named(judge: Judge) -> None:
    for schema in ({"type": "nonsense"}, {"type": "string", "pattern": "("}):
        with pytest.raises(InputError, match="cannot be followed"):
            judge.write(PICTURE, "Why?", schema=schema)
    assert judge.write(PICTURE, "Why?", max_tokens=2).ids


def test_greedy_text_is_that_of_the_whole_prompt(judge: Judge) -> None:
    """Each token is the most probable one of a fresh prefill of everything before it."""
    found = judge.write(PICTURE, "What is it?", max_tokens=12)
    assert len(found.ids) == 12 and found.finish == "length"
    engine: Any = judge.engine
    made = judge._way.prepare(PICTURE, Stop())
    asked = judge._prompts.request_ids("What is it?")
    for count, token in enumerate(found.ids):
        with judge._way.having([made], Stop(), judge._turns) as (prefix, *_):
            hidden = engine.ends(prefix, [[*asked, *found.ids[:count]]])
        logits = engine.full_logits(hidden)[0]
        assert logits[token] >= logits.max() - 1e-4
    assert judge.write(PICTURE, "What is it?", max_tokens=12) == found


def test_a_stop_string_ends_the_text_before_itself(judge: Judge) -> None:
    free = judge.write(PICTURE, "What is it?", max_tokens=20)
    cut = free.text[len(free.text) // 2 :][:3]
    found = judge.write(PICTURE, "What is it?", max_tokens=20, stop=["never there", cut])
    assert found.finish == "stop" and found.text == free.text[: free.text.find(cut)]


def test_sampling_follows_its_seed_and_nucleus(judge: Judge) -> None:
    def texts(**options: Any) -> list[tuple[int, ...]]:
        return [
            judge.write(PICTURE, "What?", max_tokens=8, temperature=1.0, seed=s, **options).ids
            for s in range(4)
        ]

    assert texts() == texts() and len(set(texts())) > 1
    greedy = judge.write(PICTURE, "What?", max_tokens=8).ids
    assert set(texts(top_p=1e-9)) == {greedy}
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match="temperature must be"):
            judge.write(PICTURE, "What?", **bad)


class _Table:
    """An engine that writes fixed tokens."""

    def __init__(self, tokens: list[int], wide: int = 10) -> None:
        self.tokens, self.wide = tokens, wide

    def append(self, ids: Any, *_: Any, after: Any) -> tuple[int, np.ndarray]:
        return after + 1, np.array([self.tokens[after]], np.float32)

    def step(self, token: int, after: int) -> tuple[int, np.ndarray]:
        return self.append([token], after=after)

    def room(self, prefix: int) -> int:
        return 99

    def full_logits(self, hidden: np.ndarray) -> np.ndarray:
        out = np.zeros((1, self.wide), np.float32)
        out[0, int(hidden[0, 0])] = np.nan if hidden[0, 0] == 9 else 1
        return out


def text_of(ids: Any) -> str:
    return "".join(map(str, ids))


def test_an_end_token_ends_and_is_not_part_of_the_text() -> None:
    found = write(_Table([5, 6, 2, 7]), 0, [1], text_of, {2}, 10, Sampling())
    assert (found.ids, found.text, found.finish) == ((5, 6), "56", "end")


def test_logits_that_are_no_numbers_are_no_text() -> None:
    with pytest.raises(ProviderError, match="not numbers"):
        write(_Table([5, 9]), 0, [1], text_of, {2}, 10, Sampling())


def test_verdicts_load_no_lm_head_and_text_does(judge: Judge) -> None:
    fresh = Judge.load(judge.bundle.path, threads=1)
    fresh.screen(PICTURE)
    assert "lm_head" not in fresh.engine.placement
    fresh.write(PICTURE, "Why?", max_tokens=1)
    assert "lm_head" in fresh.engine.placement
    assert fresh.screen(PICTURE).rules == judge.screen(PICTURE).rules


def test_what_cannot_be_used_is_named(judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        judge.write(tmp_path / "gone.png", "Why?")
    assert error.value.code == "missing"
    with pytest.raises(InputError) as error:
        judge.write(PICTURE, "why " * 3000)
    assert error.value.code == "too_long"
    with pytest.raises(InputError) as error:
        judge.write(PICTURE, "Why?", timeout=1e-6)
    assert error.value.code == "timeout"
    with pytest.raises(ValueError, match="takes no stop strings"):
        judge.write(PICTURE, "Why?", schema={}, stop=["x"])
    assert judge.screen(PICTURE).error is None
