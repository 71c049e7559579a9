"""A tokenizer.json of strangers, looked through before a library reads it.

Takes the file; gives its text, in which no added token can be met by plain text. Refuses what could
run without end, draw lots, or make much of little: unknown components, patterns that are not those
of known tokenizers, long replacements, ids outside the vocabulary. Knows no library.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgejudge.errors import EdgeJudgeError
from edgejudge.file_bytes import file_bytes
from edgejudge.printable import brief

__all__ = ["read_tokenizer"]

_MOST_BYTES = 64 << 20
_MOST_ADDED = 1 << 16
_MOST_CHARS = 256  # of an added token
_MOST_PUT_IN = 16  # characters that a replacement puts in for each that it finds
_MOST_IN_SEQUENCE = 16
_KEYS = {
    *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer"),
    *("post_processor", "decoder", "model"),
}
# A component's place -> the kinds of it that only cut and replace.
_KINDS = {
    "normalizer": {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Replace", "Prepend", "Sequence"},
    "pre_tokenizer": {
        *("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "Whitespace"),
        *("WhitespaceSplit", "Sequence"),
    },
    "post_processor": {"ByteLevel", "TemplateProcessing", "Sequence"},
    "decoder": {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip", "Sequence"},
    "model": {"BPE", "WordLevel"},
}
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")  # of a sequence
# Some patterns take time without end over a short text, and no reader of them can tell all of these
# from the rest. These are known, of GPT-2, Qwen2, Llama 3 and o200k, in which a word takes a step.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATTERNS = {
    ".",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    *(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
        for digits in ("", "{1,3}")
    ),
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
}


def read_tokenizer(path: Path, vocabulary: int | None, error: type[EdgeJudgeError]) -> str:
    """`vocabulary` is how many tokens the model knows. Every added token comes out as a special
    one, but for runs of spaces, which are text.
    """
    try:
        value: Any = json.loads(file_bytes(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"{path}: not a readable tokenizer.json ({problem})") from None
    for place, what in _problems(value, vocabulary):
        raise error(f"{path}: {place}: {what}; take the tokenizer of a known checkpoint")
    for token in value["added_tokens"]:
        token["special"] = token["special"] or bool(token["content"].strip())
    return json.dumps(value)


def _problems(value: Any, vocabulary: int | None) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        yield "model", "expected an object"
        return
    if unknown := value.keys() - _KEYS:
        yield brief(min(unknown)), "unknown key"
    for place in _KINDS:
        if value.get(place) is not None:
            yield from _component(value[place], place, place)
    model = value["model"]
    if model.get("dropout"):
        yield "model.dropout", "it would cut the same text differently each time"
    yield from _vocabulary(model.get("vocab"), vocabulary)
    yield from _added(value.setdefault("added_tokens", []), vocabulary)


def _vocabulary(words: Any, vocabulary: int | None) -> Iterator[tuple[str, str]]:
    if not isinstance(words, dict) or not words:
        yield "model.vocab", "expected an object of words and ids"
    elif not all(type(i) is int for i in words.values()) or min(words.values()) < 0:
        yield "model.vocab", "an id is no number from 0 on"
    elif vocabulary is not None and max(words.values()) >= vocabulary:
        yield "model.vocab", f"id {max(words.values())}, the model knows {vocabulary}"


def _added(tokens: Any, vocabulary: int | None) -> Iterator[tuple[str, str]]:
    if not isinstance(tokens, list) or len(tokens) > _MOST_ADDED:
        yield "added_tokens", f"expected a list of up to {_MOST_ADDED}"
        return
    for index, token in enumerate(tokens):
        place = f"added_tokens[{index}]"
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            yield place, "expected an object with content"
        elif not 0 < len(token["content"]) <= _MOST_CHARS:
            yield f"{place}.content", f"expected 1 to {_MOST_CHARS} characters"
        elif type(token.get("id")) is not int or token["id"] < 0:
            yield f"{place}.id", "expected a number from 0 on"
        elif vocabulary is not None and token["id"] >= vocabulary:
            yield f"{place}.id", f"{token['id']}, the model knows {vocabulary}"
        elif not all(type(token.get(key)) is bool for key in ("special", "normalized")):
            yield place, "expected special and normalized, true or false"


def _component(value: Any, kind: str, place: str) -> Iterator[tuple[str, str]]:
    found = value.get("type") if isinstance(value, dict) else None
    if not isinstance(found, str) or found not in _KINDS[kind]:
        yield place, f"'{brief(str(found))}' is none of {', '.join(sorted(_KINDS[kind]))}"
        return
    for name in _LISTS:
        inner = value.get(name, [])
        if not isinstance(inner, list) or len(inner) > _MOST_IN_SEQUENCE:
            yield f"{place}.{name}", f"expected a list of up to {_MOST_IN_SEQUENCE}"
            return
        for index, each in enumerate(inner):
            if isinstance(each, Mapping) and each.get("type") == "Sequence":
                yield f"{place}.{name}[{index}]", "a sequence within a sequence"
            else:
                yield from _component(each, kind, f"{place}.{name}[{index}]")
    yield from _pattern(value.get("pattern"), place)
    for name in ("content", "prepend", "replacement"):
        if len(str(value.get(name, ""))) > _MOST_PUT_IN:
            yield f"{place}.{name}", f"more than {_MOST_PUT_IN} characters"


def _pattern(pattern: Any, place: str) -> Iterator[tuple[str, str]]:
    if pattern is None or (isinstance(pattern, dict) and pattern.keys() == {"String"}):
        if pattern is not None and not pattern["String"]:
            yield f"{place}.pattern", "it is empty"
        return
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str) or regex not in _PATTERNS:
        yield f"{place}.pattern", f"'{brief(str(pattern))}' is none of those that are known"
