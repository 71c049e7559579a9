"""LLaVA-OneVision's configs and prompts: what is refused by name, and every seam of a prompt."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
import tiny_llava
from edgejudge.errors import ExportError
from edgejudge.models import llava_onevision
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.prompt import Prompts
from edgejudge.models.tokenizer import Tokenizer

IMAGE = tiny_llava.IMAGE


def test_configs_of_old_and_new_transformers_mean_the_same() -> None:
    new = tiny_llava.make_model(tied=True).config.to_dict()
    old = json.loads(json.dumps(new))
    for key in ("projector_hidden_act", "multimodal_projector_bias", "vision_feature_layer"):
        del old[key]
    for key in ("vision_aspect_ratio", "vision_feature_select_strategy", "tie_word_embeddings"):
        del old[key]
    old["text_config"]["rope_theta"] = old["text_config"].pop("rope_parameters")["rope_theta"]
    old["vision_aspect_ratio"] = "anyres_max_3"
    configs = [HfConfig(value, "config.json") for value in (old, new)]
    specs = [llava_onevision.read_spec(config) for config in configs]
    assert specs[0] == specs[1] and specs[0].text.tie_word_embeddings
    assert tiny_llava.make_spec(configs[0]) == tiny_llava.make_spec(configs[1])


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (None, "projector_hidden_act", "relu", "'projector_hidden_act' is 'relu'"),
        (None, "multimodal_projector_bias", False, "'multimodal_projector_bias' is False"),
        (None, "vision_feature_layer", -2, "'vision_feature_layer' is -2"),
        (None, "vision_feature_select_strategy", "default", "strategy' is 'default'"),
        (None, "vision_aspect_ratio", "pad", "'vision_aspect_ratio' is 'pad', only 'anyres_max_N'"),
        (None, "vision_aspect_ratio", "anyres", "'vision_aspect_ratio' is 'anyres'"),
        (None, "vision_aspect_ratio", "anyres_max_0", "N must be from 1"),
        (None, "image_grid_pinpoints", [[18, 18]], "differs from that of config.json"),
        ("text_config", "model_type", "llama", "'model_type' is 'llama'"),
        ("text_config", "hidden_act", "gelu", "'hidden_act' is 'gelu'"),
        ("text_config", "use_sliding_window", True, "'use_sliding_window' is True"),
        ("text_config", "rope_scaling", {"type": "yarn"}, "'rope_scaling' is"),
        ("text_config", "rope_parameters", {"rope_type": "yarn"}, "'rope_type' is 'yarn'"),
        ("vision_config", "model_type", "clip_vision_model", "'model_type' is 'clip_vision"),
        ("vision_config", "hidden_act", "gelu", "'hidden_act' is 'gelu'"),
        ("vision_config", "num_channels", 4, "'num_channels' is 4"),
        ("vision_config", "vision_use_head", True, "'vision_use_head' is True"),
        ("vision_config", "image_size", 24, "makes views of 18 x 18 pixels, config.json means 24"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    section: str | None, key: str, value: object, message: str
) -> None:
    config = tiny_llava.make_model().config.to_dict()
    (config if section is None else config[section])[key] = value
    with pytest.raises(ExportError, match=message):
        tiny_llava.make_spec(HfConfig(config, "config.json"))


def test_the_image_token_of_both_keys_must_be_the_tokenizers() -> None:
    prompts, _ = _prompts()
    for key in ("image_token_index", "image_token_id"):
        with pytest.raises(ExportError, match=f"'{key}' is 77"):
            llava_onevision.tokens_record(
                prompts.tokenizer, HfConfig({key: 77, "text_config": {}}, "config.json")
            )


CHAT = "<|im_start|>user {image}\n{question}<|im_end|><|im_start|>assistant\n"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(condition=st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",))))
def test_the_seam_is_the_same_for_any_condition(condition: str) -> None:
    prompts, plain = _prompts()
    question = f"Is {condition} visible?"
    image = "<image>" * (16 + 2 * 4)
    whole = plain.encode(CHAT.format(image=image, question=question)).ids
    assert prompts.prefix_ids(2, 3) + prompts.branch_ids(condition) == whole
    blind = plain.encode(CHAT.format(image="", question=question)).ids
    assert prompts.blind_ids(condition) == blind
    assert prompts.prefix_positions(2, 3) is None
    two = plain.encode(CHAT.format(image=image * 2, question=question)).ids
    both = prompts.prefix_ids(2, 3) + prompts.image_ids(2, 3, first=False)
    assert both + prompts.branch_ids(condition) == two


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    before=st.text(max_size=4),
    special=st.sampled_from(tiny_llava.SPECIALS),
    after=st.text(max_size=4),
)
def test_special_tokens_in_user_text_are_text(before: str, special: str, after: str) -> None:
    prompts, _ = _prompts()
    text, tail = before + special + after, len(prompts.record.tail)
    for ids in (prompts.branch_ids(text), prompts.request_ids(text)):
        assert ids[:-tail] and min(ids[:-tail]) >= len(tiny_llava.SPECIALS)
    blind = prompts.blind_ids(text)[len(prompts.record.blind_head) : -tail]
    assert IMAGE not in blind


@cache
def _prompts() -> tuple[Prompts, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        plain = tiny.make_tokenizer(path, tiny_llava.SPECIALS)
        tokenizer = Tokenizer(path)
    config = HfConfig(tiny_llava.make_model().config.to_dict(), "config.json")
    spec, template = llava_onevision.read_spec(config), "Is {condition} visible?"
    image = tiny_llava.make_spec(config)
    record = llava_onevision.prompt_record(tokenizer, spec, image, template)
    return Prompts(record, IMAGE, lambda: tokenizer), plain
