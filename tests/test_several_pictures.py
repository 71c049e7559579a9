"""Several pictures in one prompt: as the chat template and transformers have them, kept as a chain,
and refused by name where the context cannot hold them.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    InternVLForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from edgejudge import Judge
from edgejudge.errors import InputError
from edgejudge.fidelity import export_bundle
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.turns import Stop
from families import FAMILIES

PICTURES = [Image.fromarray(canary_image(*size)) for size in ((40, 60), (64, 48), (30, 30))]
REQUEST = "Which is a knife?"
NAMES = tuple(name for name in FAMILIES if name != "qwen3_vl")  # whose pictures are Qwen2.5-VL's


class Family(NamedTuple):
    judge: Judge
    checkpoint: Path
    template: str


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("several")
    found = {}
    for name in NAMES:
        maker = FAMILIES[name]
        folder = maker.make_checkpoint(root / name)
        export_bundle(folder, root / f"{name}-bundle", recipe="exact")
        judge = Judge.load(root / f"{name}-bundle", threads=1)
        found[name] = Family(judge, folder, maker.CHAT_TEMPLATE)
    return found


def logits_of(judge: Judge, pictures: list[Image.Image]) -> tuple[np.ndarray, str, int]:
    """After the request about the pictures; whether their prefix was kept, and what was reused."""
    screening = judge._way
    made = [screening.prepare(picture, Stop()) for picture in pictures]
    with screening.having(made, Stop(), judge._turns) as (prefix, found, reused):
        hidden = judge.engine.ends(prefix, [judge._prompts.request_ids(REQUEST)])  # type: ignore[attr-defined]
        return judge.engine.full_logits(hidden)[0], found, reused


def rendered(family: Family, pictures: int) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(family.checkpoint / "tokenizer.json"))
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": REQUEST}]
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=family.template,
            add_generation_prompt=True,
            tokenize=False,
        )
    )


def truth(name: str, family: Family, pictures: list[Image.Image]) -> np.ndarray:
    """What transformers computes for the template's text, in which each picture's place is widened
    to its tokens.
    """
    manifest = family.judge.bundle.manifest
    spec = image_spec(manifest.preprocessing)
    seen = [preprocess(np.asarray(picture), spec) for picture in pictures]
    text = rendered(family, len(pictures))
    inputs: dict[str, Any] = {}
    if name == "smolvlm":
        for one in seen:
            image = get_image_prompt_string(
                one.rows,
                one.cols,
                manifest.prompt.visual_tokens,
                fake_token_around_image="<fake_token_around_image>",
                image_token="<IMAGE>",
                global_image_token="<global-img>",
            )
            text = text.replace("<image>", image, 1)
        text = text.replace("<IMAGE>", "<image>")
        views = np.concatenate([one.feeds["pixel_values"] for one in seen])
        inputs["pixel_values"] = torch.from_numpy(views)[None]
        kind: Any = SmolVLMForConditionalGeneration
    elif name == "internvl":
        for one in seen:
            count = manifest.prompt.visual_tokens * len(one.feeds["pixel_values"])
            text = text.replace("<IMG_CONTEXT>", f"<img>{'<PAD>' * count}</img>", 1)
        text = text.replace("<PAD>", "<IMG_CONTEXT>")
        views = np.concatenate([one.feeds["pixel_values"] for one in seen])
        inputs["pixel_values"] = torch.from_numpy(views)
        kind = InternVLForConditionalGeneration
    elif name == "llava_onevision":
        for one in seen:
            count = manifest.prompt.visual_tokens + one.rows * (one.cols + 1)
            text = text.replace("<image>", "<PAD>" * count, 1)
        text = text.replace("<PAD>", "<image>")
        views = np.concatenate([one.feeds["pixel_values"] for one in seen])
        inputs["pixel_values"] = torch.from_numpy(views)
        # Without `batch_num_images`, so that each keeps its crops.
        inputs["image_sizes"] = torch.tensor([[one.height, one.width] for one in pictures])
        kind = LlavaOnevisionForConditionalGeneration
    else:
        for one in seen:
            text = text.replace("<|image_pad|>", "<PAD>" * (one.rows * one.cols), 1)
        text = text.replace("<PAD>", "<|image_pad|>")
        patches = [one.feeds["patches"][one.feeds["slots"]] for one in seen]
        inputs["pixel_values"] = torch.from_numpy(np.concatenate(patches))
        inputs["image_grid_thw"] = torch.tensor([[1, 2 * o.rows, 2 * o.cols] for o in seen])
        kind = Qwen2_5_VLForConditionalGeneration
    tokenizer = Tokenizer.from_file(str(family.checkpoint / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(text).ids])
    if name == "qwen2_5_vl":
        inputs["mm_token_type_ids"] = (ids == manifest.tokens.image).int()
    model = kind.from_pretrained(family.checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: np.ndarray = model(input_ids=ids, **inputs).logits[0, -1].numpy()
    return logits


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers(families: dict[str, Family], name: str, count: int) -> None:
    family = families[name]
    found, *_ = logits_of(family.judge, PICTURES[:count])
    wanted = truth(name, family, PICTURES[:count])
    assert np.abs(found - wanted).max() < 1e-4 and np.abs(wanted).max() > 1


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_kept_as_a_chain(families: dict[str, Family], name: str) -> None:
    judge = Judge.load(families[name].judge.bundle.path, threads=1)
    one, two, three = PICTURES
    first, *how = logits_of(judge, [one, two])
    assert how == ["miss", 0]
    again, found, reused = logits_of(judge, [one, two])
    assert found == "hit" and np.abs(again - first).max() < 1e-5
    # Another second picture keeps the first; another order keeps neither; alone is not behind.
    after, found, part = logits_of(judge, [one, three])
    head = len(judge.bundle.manifest.prompt.head)
    assert found == "miss" and head < part < reused
    turned, found, part = logits_of(judge, [two, one])
    assert found == "miss" and part == head and np.abs(turned - first).max() > 1e-3
    _, found, part = logits_of(judge, [two])
    assert found == "hit"
    fresh = Judge.load(judge.bundle.path, threads=1, prefix_cache_bytes=0)
    assert np.abs(logits_of(fresh, [one, three])[0] - after).max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_more_than_the_context_holds_is_an_error_with_a_name(
    families: dict[str, Family], name: str
) -> None:
    judge = families[name].judge
    before = judge.write(PICTURES[:2], REQUEST, max_tokens=4)
    with pytest.raises(InputError, match=r"of 400 pictures fill the context \(") as error:
        judge.write(PICTURES[:1] * 400, REQUEST)
    assert error.value.code == "too_many_images"
    with pytest.raises(InputError, match="at least one") as error:
        judge.write([], REQUEST)
    assert error.value.code == "no_image"
    with pytest.raises(InputError) as error:
        judge.write([PICTURES[0], b"no picture"], REQUEST)
    assert error.value.code == "not_an_image"
    assert judge.write(PICTURES[:2], REQUEST, max_tokens=4) == before


def test_text_ends_where_the_context_ends(families: dict[str, Family]) -> None:
    judge = families["smolvlm"].judge
    engine: Any = judge.engine
    made = judge._way.prepare(PICTURES[2], Stop())
    with judge._way.having([made], Stop(), judge._turns) as (prefix, *_):
        filler = engine.room(prefix) - 9
    found = judge.write(PICTURES[2], "!" * filler, max_tokens=50)
    assert found.finish == "length" and 1 <= len(found.ids) < 50
