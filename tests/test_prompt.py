"""Prompts and labels in token ids: the family's strings, user text, the seam between them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

import tiny
from edgejudge.bundle import PromptRecord
from edgejudge.errors import ExportError
from edgejudge.models import smolvlm
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.prompt import Prompts
from edgejudge.models.tokenizer import Tokenizer, label_ids
from test_preprocess import make_spec

TEMPLATE = "Is {condition} visible?"
VISUAL_TOKENS = 4
SPECIALS = st.sampled_from(tiny.SPECIALS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny.make_tokenizer(path / "tokenizer.json")
    return path


@pytest.fixture(scope="module")
def plain(folder: Path) -> HfTokenizer:
    """The same tokenizer as transformers uses it: special tokens in text are special."""
    return HfTokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def record(tokenizer: Tokenizer) -> PromptRecord:
    config = HfConfig(tiny.make_model().config.to_dict(), "config.json")
    return smolvlm.prompt_record(tokenizer, smolvlm.read_spec(config), make_spec(), TEMPLATE)


@pytest.fixture(scope="module")
def prompts(record: PromptRecord, tokenizer: Tokenizer) -> Prompts:
    return Prompts(record, tokenizer.special("<image>"), lambda: tokenizer)


def rendered(plain: HfTokenizer, rows: int, cols: int, question: str) -> list[int]:
    """The chat template of the family, tokenized as one text."""
    image = get_image_prompt_string(
        rows,
        cols,
        VISUAL_TOKENS,
        fake_token_around_image="<fake_token_around_image>",
        image_token="<image>",
        global_image_token="<global-img>",
    )
    text = f"<|im_start|>User:{image}{question}<end_of_utterance>\nAssistant:"
    ids: list[int] = plain.encode(text).ids
    return ids


@pytest.mark.parametrize("grid", [(0, 0), (1, 1), (1, 4), (3, 2), (4, 4)])
def test_prefix_and_branch_join_to_the_whole_prompt(
    prompts: Prompts, plain: HfTokenizer, grid: tuple[int, int]
) -> None:
    found = prompts.prefix_ids(*grid) + prompts.branch_ids("a knife")
    assert found == rendered(plain, *grid, "Is a knife visible?")
    rows, cols = grid
    assert found.count(prompts.image_token_id) == VISUAL_TOKENS * (rows * cols + 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(condition=st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",))))
def test_the_seam_is_the_same_for_any_condition(
    prompts: Prompts, plain: HfTokenizer, condition: str
) -> None:
    whole = rendered(plain, 0, 0, f"Is {condition} visible?")
    assert prompts.prefix_ids(0, 0) + prompts.branch_ids(condition) == whole
    blind = f"<|im_start|>User: Is {condition} visible?<end_of_utterance>\nAssistant:"
    assert prompts.blind_ids(condition) == plain.encode(blind).ids


@settings(max_examples=30, deadline=None, derandomize=True)
@given(before=st.text(max_size=4), special=SPECIALS, after=st.text(max_size=4))
def test_special_tokens_in_user_text_are_text(
    prompts: Prompts, before: str, special: str, after: str
) -> None:
    body = prompts.branch_ids(before + special + after)[: -len(prompts.record.tail)]
    assert body and min(body) >= len(tiny.SPECIALS)


def test_a_condition_with_braces_is_text(prompts: Prompts) -> None:
    assert prompts.question("{condition} {0.__class__}") == "Is {condition} {0.__class__} visible?"


def test_the_tokenizer_is_not_loaded_for_prefixes(record: PromptRecord) -> None:
    def refuse() -> Tokenizer:
        raise AssertionError("loaded")

    assert Prompts(record, 4, refuse).prefix_ids(2, 2)


LEAD_IN = smolvlm.LEAD_IN


def test_labels_are_the_tokens_that_follow_the_rendered_prompt(
    tokenizer: Tokenizer, plain: HfTokenizer
) -> None:
    found = label_ids(tokenizer, LEAD_IN, {"yes": ("Yes", " Yes"), "no": ("No", " No")})
    assert found.labels == {"yes": (0, 1), "no": (2, 3)}
    for row, text in enumerate(("Yes", " Yes", "No", " No")):
        assert plain.encode(f"{LEAD_IN}{text}").ids[-1] == found.token_ids[row]


def test_variants_of_several_tokens_are_dropped(tokenizer: Tokenizer) -> None:
    found = label_ids(tokenizer, LEAD_IN, {"yes": ("Yes", "Certainly"), "no": ("No", "No")})
    assert found.labels == {"yes": (0,), "no": (1,)}


def test_a_label_without_any_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ExportError, match="label 'no': none of 'Certainly not' is one token"):
        label_ids(tokenizer, LEAD_IN, {"yes": ("Yes",), "no": ("Certainly not",)})


def test_labels_that_share_a_token_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ExportError, match="'Yes' is the token of another label"):
        label_ids(tokenizer, LEAD_IN, {"yes": ("Yes",), "no": ("Yes",)})


def test_a_tokenizer_without_a_needed_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ExportError, match="no token '<row_9_col_9>'"):
        tokenizer.special("<row_9_col_9>")


def test_a_grid_beyond_the_tile_tokens_is_refused(tokenizer: Tokenizer) -> None:
    config = HfConfig(tiny.make_model().config.to_dict(), "config.json")
    with pytest.raises(ExportError, match="no token '<row_1_col_7>'"):
        smolvlm.prompt_record(
            tokenizer, smolvlm.read_spec(config), make_spec(longest_edge=240), TEMPLATE
        )


def test_an_image_token_of_another_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    config = HfConfig(tiny.make_model(image_token_id=9).config.to_dict(), "config.json")
    with pytest.raises(ExportError, match="'image_token_id' is 9"):
        smolvlm.tokens_record(tokenizer, config)


def test_an_unreadable_tokenizer_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ExportError, match="tokenizer.json: not a readable"):
        Tokenizer(tmp_path / "tokenizer.json")
