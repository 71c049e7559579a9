"""A tokenizer.json of strangers: nothing in it runs without end or makes special tokens of text."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.errors import BundleError, InputError
from edgejudge.models.tokenizer import Tokenizer
from hostile import NANO, canonical, fixed, mutated

SMALL: dict[str, Any] = json.loads((NANO / "tokenizer.json").read_bytes())
CHARS = {chr(i): i - 33 for i in range(33, 127)}
SMALL["model"].update(vocab={**CHARS, "ab": 94, "\u0120": 95}, merges=[["a", "b"]])
# Their ids go on from there: the library counts them by itself, whatever the file says.
IMAGE, TOOL = 96, 97
SMALL["added_tokens"] = [
    {**SMALL["added_tokens"][0], "id": token, "content": text, "special": special}
    for token, text, special in ((IMAGE, "<image>", True), (TOOL, "<tool_call>", False))
]
VOCABULARY = 512


def opened(folder: Path, value: Any, vocabulary: int | None = VOCABULARY) -> Tokenizer:
    file = folder / "tokenizer.json"
    file.write_bytes(canonical(value) if not isinstance(value, bytes) else value)
    return Tokenizer(file, (), vocabulary, BundleError)


def changed(change: Callable[[Any], Any]) -> Any:
    value = json.loads(json.dumps(SMALL))
    change(value)
    return value


def split(pattern: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    "pattern", [r"(a+)+$", r"(a|a)*$", r"a*a*a*a*[bc]", "(", r"(?<=a)b", "", r"(\w+\s?)*$"]
)
def test_a_pattern_that_is_not_known_is_refused_before_anyone_compiles_it(
    pattern: str, tmp_path: Path
) -> None:
    for place, component in (
        ("pre_tokenizer", split({"Regex": pattern})),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [split({"Regex": pattern})]}),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}),
        ("decoder", {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}),
    ):
        with pytest.raises(BundleError, match=rf"{place}.*pattern: .* none of those"):
            opened(tmp_path, changed(lambda v, p=place, c=component: v.update({p: c})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["model"].update(dropout=0.5), "cut the same text differently"),
        (lambda v: v["model"].update(type="Unigram"), "'Unigram' is none of BPE"),
        (lambda v: v["model"]["vocab"].update(x=VOCABULARY), "model knows 512"),
        (lambda v: v["model"]["vocab"].update(x=-1), "no number from 0 on"),
        (lambda v: v["model"]["vocab"].update(x=True), "no number from 0 on"),
        (lambda v: v["added_tokens"][0].update(id=10**30), "the model knows 512"),
        (lambda v: v["added_tokens"][0].update(content=""), "expected 1 to 256 characters"),
        (lambda v: v["added_tokens"][0].update(content="y" * 10**6), "expected 1 to 256"),
        (lambda v: v["added_tokens"].extend([SMALL["added_tokens"][0]] * 70_000), "up to 65536"),
        (
            lambda v: v.update(normalizer={"type": "Prepend", "prepend": "y" * 10**6}),
            "normalizer.prepend: more than 16 characters",
        ),
        (
            lambda v: v.update(
                normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 99}
            ),
            "normalizer.content: more than 16",
        ),
        (lambda v: v.update(normalizer={"type": "Precompiled"}), "'Precompiled' is none of"),
        (lambda v: v.update(surprise=1), "surprise: unknown key"),
        (
            lambda v: v.update(
                normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 99}
            ),
            "list of up to 16",
        ),
    ],
)
def test_what_may_not_be_in_it_is_refused_by_name(
    change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=message):
        opened(tmp_path, changed(change))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model": 1}', b"null"]
)
def test_what_is_no_tokenizer_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="tokenizer.json: "):
        opened(tmp_path, data)


def test_one_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as stream:
        stream.truncate(1 << 36)
    with pytest.raises(BundleError, match="more than 67108864 bytes"):
        Tokenizer(file, error=BundleError)


@fixed(250)
@given(st.data())
def test_a_changed_tokenizer_is_refused_or_gives_ids_of_the_vocabulary(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """In this process: a component that crashes or panics would end the test run."""
    folder = tmp_path_factory.getbasetemp()
    at, value = data.draw(mutated(SMALL))
    began = time.process_time()
    try:
        tokenizer = opened(folder, value)
        ids = tokenizer.encode("ab <image> <tool_call> \u00e9\u4e2d aaaaaaaaaaaaaaaaaaaaaaaa!")
    except BundleError as error:
        assert str(error).isprintable() and len(str(error)) < 1500, at
    else:
        assert all(0 <= token < VOCABULARY for token in ids), at
        assert not {IMAGE, TOOL} & set(ids) or at[0] == "added_tokens", at
    assert time.process_time() - began < 2, at


def test_an_added_token_is_text_whether_it_is_called_special_or_not(tmp_path: Path) -> None:
    """Qwen's `<tool_call>` is not, and the library's own switch leaves such ones in force."""
    tokenizer = opened(tmp_path, SMALL)
    assert not {IMAGE, TOOL} & set(tokenizer.encode("<image><tool_call>"))
    assert tokenizer.special("<tool_call>") == TOOL
    spaces = changed(lambda v: v["added_tokens"][1].update(content="    "))
    assert TOOL in opened(tmp_path, spaces).encode("a    b"), "runs of spaces are text"


def test_a_vocabulary_that_makes_a_special_token_of_a_word_is_refused(tmp_path: Path) -> None:
    value = changed(lambda v: v["model"]["vocab"].update(ab=IMAGE))
    with pytest.raises(BundleError, match="makes a special token of plain text"):
        opened(tmp_path, value).encode("ab")
    file = tmp_path / "tokenizer.json"
    file.write_bytes(canonical(SMALL))
    reserved = Tokenizer(file, (94,), VOCABULARY, BundleError)
    with pytest.raises(BundleError, match="makes a special token of plain text"):
        reserved.encode("ab")


def test_half_a_character_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="half of a character"):
        opened(tmp_path, SMALL).encode("a \ud800 b")
