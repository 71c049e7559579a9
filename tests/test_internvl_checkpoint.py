"""InternVL3's checkpoints: what config and chat template may say, and the bundles made of them."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
import tiny_internvl
from edgejudge.errors import BundleError, ExportError
from edgejudge.export import open_checkpoint
from edgejudge.fidelity import export_bundle
from edgejudge.models import internvl
from edgejudge.models.fitting import check_fit
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.prompt import Prompts
from edgejudge.models.spec import ModelSpec
from edgejudge.models.tokenizer import Tokenizer

torch.set_num_threads(1)
IMAGE = tiny_internvl.IMAGE
PROCESSOR = HfConfig(tiny_internvl.PROCESSOR, "preprocessor_config.json")

# --- config --------------------------------------------------------------------------------------


def hub_config() -> dict[str, Any]:
    """The keys of a released checkpoint: numbers that equal a default are left out."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 256,
        "image_token_id": 151667,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "hidden_act": "silu",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 70,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "use_sliding_window": False,
            "vocab_size": 151674,
        },
        "vision_config": {
            "attention_bias": True,
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "image_size": [448, 448],
            "intermediate_size": 4096,
            "layer_norm_eps": 1e-06,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": 16,
            "num_channels": 3,
            "num_hidden_layers": 24,
            "patch_size": [14, 14],
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": False,
        },
    }


def read(value: dict[str, Any]) -> ModelSpec:
    return internvl.read_spec(HfConfig(value, "config.json"))


def test_the_hub_form_means_what_transformers_reads_in_it() -> None:
    from transformers import InternVLConfig

    spec = read(hub_config())
    new = InternVLConfig(**hub_config()).to_dict()
    assert "rope_parameters" in new["text_config"] and "rope_theta" not in new["text_config"]
    # What ties weights is said by no key of theirs; version 5 would, were there no head of its own.
    new["tie_word_embeddings"] = False
    assert read(new) == spec
    assert (spec.text.rope_theta, spec.text.head_dim, spec.view_tokens) == (1e6, 64, 256)
    assert not spec.text.tie_word_embeddings and (spec.vision.grid, spec.vision.eps) == (32, 1e-6)


def test_absent_sizes_have_the_defaults_of_transformers() -> None:
    from transformers import InternVLConfig

    bare: dict[str, Any] = {"model_type": "internvl", "tie_word_embeddings": True}
    bare |= {"vision_config": {"attention_bias": True}, "text_config": {"model_type": "qwen2"}}
    assert read(bare) == read(InternVLConfig(vision_config={"attention_bias": True}).to_dict())
    one = {**bare, "vision_config": {"attention_bias": True, "image_size": 448, "patch_size": 14}}
    assert read(one) == read(bare)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (None, "downsample_ratio", 0.25, "'downsample_ratio' is 0.25"),
        (None, "projector_hidden_act", "relu", "'projector_hidden_act' is 'relu'"),
        (None, "vision_feature_layer", -2, "'vision_feature_layer' is -2"),
        (None, "vision_feature_select_strategy", "full", "'vision_feature_select_strategy' is"),
        (None, "image_seq_length", 255, "'image_seq_length' is 255, only 4"),
        ("vision_config", "attention_bias", False, "'attention_bias' is False"),
        ("vision_config", "attention_bias", None, "'attention_bias' is None"),
        ("vision_config", "use_qk_norm", True, "'use_qk_norm' is True"),
        ("vision_config", "norm_type", "rms_norm", "'norm_type' is 'rms_norm'"),
        ("vision_config", "use_mask_token", True, "'use_mask_token' is True"),
        ("vision_config", "use_mean_pooling", False, "'use_mean_pooling' is False"),
        ("vision_config", "use_absolute_position_embeddings", False, "'use_absolute_position_e"),
        ("vision_config", "hidden_act", "quick_gelu", "'hidden_act' is 'quick_gelu'"),
        ("vision_config", "num_channels", 4, "'num_channels' is 4"),
        ("vision_config", "image_size", [32, 40], r"'image_size' must be the side .* \[32, 40\]"),
        ("vision_config", "image_size", 40, "a grid of 5 patches cannot be halved"),
        ("vision_config", "patch_size", "8", "'patch_size' must be the side of a square"),
        ("text_config", "model_type", "qwen3", "'model_type' is 'qwen3'"),
        ("text_config", "model_type", "llama", "'model_type' is 'llama'"),
        ("text_config", "use_sliding_window", True, "'use_sliding_window' is True"),
        ("text_config", "hidden_act", "gelu", "'hidden_act' is 'gelu'"),
        ("text_config", "rope_parameters", {"rope_type": "yarn"}, "'rope_type' is 'yarn'"),
        ("text_config", "rope_scaling", {"type": "linear"}, "'type' is 'linear'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    section: str | None, key: str, value: object, message: str
) -> None:
    config = tiny_internvl.make_model().config.to_dict()
    (config if section is None else config[section])[key] = value
    with pytest.raises(ExportError, match=message):
        read(config)


def test_views_of_another_size_than_the_towers_are_refused() -> None:
    spec = read(tiny_internvl.make_model().config.to_dict())
    config = {**tiny_internvl.PROCESSOR, "size": {"height": 48, "width": 48}}
    with pytest.raises(ExportError, match="makes views of 48 pixels, config.json means 32"):
        internvl.read_image_spec(HfConfig(config, "preprocessor_config.json"), spec, PROCESSOR)


# --- prompt --------------------------------------------------------------------------------------

CHAT = "<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n"


def shown(views: int) -> str:
    """A picture as the processor writes it, and the line's end that the template puts behind."""
    return "<img>" + "<IMG_CONTEXT>" * 4 * views + "</img>\n"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    condition=st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",))),
    template=st.sampled_from(["Is {condition} visible?", "{condition}", "\n {condition}"]),
)
def test_the_seam_is_the_same_for_any_condition(condition: str, template: str) -> None:
    prompts, plain = _prompts()
    question = template.replace("{condition}", condition)
    for grid, views in (((0, 0), 1), ((2, 3), 7)):
        whole = plain.encode(CHAT.format(image=shown(views), question=question)).ids
        assert prompts.prefix_ids(*grid) + prompts.branch_ids(condition, template) == whole
        assert prompts.prefix_positions(*grid) is None
    blind = plain.encode(CHAT.format(image="", question=question)).ids
    assert prompts.blind_ids(condition, template) == blind


def test_pictures_are_a_line_apart() -> None:
    prompts, plain = _prompts()
    ids = prompts.prefix_ids(0, 0) + prompts.image_ids(1, 2, first=False) + prompts.branch_ids("x")
    both = CHAT.format(image=shown(1) + shown(3), question="Is x visible?")
    assert ids == plain.encode(both).ids


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    before=st.text(max_size=4),
    special=st.sampled_from(tiny_internvl.SPECIALS),
    after=st.text(max_size=4),
)
def test_special_tokens_in_user_text_are_text(before: str, special: str, after: str) -> None:
    prompts, _ = _prompts()
    text, tail = before + special + after, len(prompts.record.tail)
    for ids in (prompts.branch_ids(text), prompts.request_ids(text)):
        assert ids[:-tail] and min(ids[:-tail]) >= len(tiny_internvl.SPECIALS)
    blind = prompts.blind_ids(text)[len(prompts.record.blind_head) : -tail]
    assert not {IMAGE, *prompts.record.image_open, *prompts.record.view_close} & set(blind)


@cache
def _prompts() -> tuple[Prompts, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        plain = tiny.make_tokenizer(path, tiny_internvl.SPECIALS)
        tokenizer = Tokenizer(path)
    spec = read(tiny_internvl.make_model().config.to_dict())
    image = internvl.read_image_spec(PROCESSOR, spec, PROCESSOR)
    record = internvl.prompt_record(tokenizer, spec, image, "Is {condition} visible?")
    return Prompts(record, IMAGE, lambda: tokenizer), plain


# The template of released checkpoints, whole; of 481 bytes.
RELEASED = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{'<|im_start|>assistant\n' }}{% endif %}"
)


def test_the_released_template_is_the_familys(tmp_path: Path) -> None:
    folder = tiny_internvl.make_checkpoint(tmp_path / "checkpoint")
    (folder / "chat_template.jinja").write_text(RELEASED)
    open_checkpoint(folder)
    for old, new in (("'<IMG_CONTEXT>\n'", "'<IMG_CONTEXT>'"), ("CONTEXT>\n", "CONTEXT>\n\n")):
        assert old in RELEASED
        (folder / "chat_template.jinja").write_text(RELEASED.replace(old, new))
        with pytest.raises(ExportError, match="its chat template writes"):
            open_checkpoint(folder)


# --- the whole way -------------------------------------------------------------------------------


def test_the_gate_seals_a_bundle_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tiny_internvl.make_checkpoint(tmp_path / "checkpoint")
    manifest = export_bundle(tmp_path / "checkpoint", tmp_path / "out", "exact")
    assert manifest.fidelity is not None and manifest.fidelity.decisions is not None
    assert manifest.family == "internvl" and manifest.preprocessing["kind"] == "mosaic"
    check_fit(manifest, "x")
    for change, message in (
        ({"view": 48}, "preprocessing.view: 48, the spec says 32"),
        ({"max_tiles": 1}, "a picture of 64 x 32 is cut otherwise"),
    ):
        changed = replace(manifest, preprocessing={**manifest.preprocessing, **change})
        with pytest.raises(BundleError, match=message):
            check_fit(changed, "x")


def test_pixels_cannot_be_bounded(tmp_path: Path) -> None:
    checkpoint = tiny_internvl.make_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match="this one cuts pictures into tiles of 32 pixels"):
        open_checkpoint(checkpoint, 1000)
