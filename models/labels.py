"""Labels as tokens: what a model would write to give one of them as its answer.

Takes a tokenizer, the text that an answer follows and the labels; gives their token sequences.
Knows no engine and no question.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgejudge.errors import InputError
from edgejudge.models.tokenizer import Tokenizer, ids_after

__all__ = ["LabelTokens", "label_tokens", "lead_in_of"]

MAX_LABELS = 256


@dataclass(frozen=True, slots=True)
class LabelTokens:
    """`sequences` are the ways to write each label, [label][way][token]. `single` says that every
    one of them is one token, so that one place in the prompt decides.
    """

    sequences: tuple[tuple[tuple[int, ...], ...], ...]
    single: bool


def lead_in_of(tokenizer: Tokenizer, tail: Sequence[int]) -> str:
    """The text right before an answer: what stands behind the last special token of a prompt's
    tail.
    """
    for begin in range(len(tail)):
        some = list(tail[begin:])
        text = tokenizer.decode(some)
        if tokenizer.encode(text) == some:  # not where a special token was left out of the text
            return text
    return ""


def label_tokens(
    tokenizer: Tokenizer,
    lead_in: str,
    labels: Sequence[str],
    known: Mapping[str, Sequence[int]],
) -> LabelTokens:
    """Of `known` labels these are the tokens; others are rendered behind `lead_in`, with a space or
    none, and in lower case or with a capital where they are longer than one letter.

    If every label has such a form of one token, these forms are taken. Otherwise every label is
    spelled out as it was given, so that all of a set are treated alike. Raises InputError for
    labels that cannot be told apart.
    """
    _check(labels)
    single = []
    for label in labels:
        found = [(token,) for token in known.get(label, ())]
        if not found:
            ways = [tuple(ids_after(tokenizer, lead_in, text)) for text in _forms(label)]
            found = [way for way in ways if len(way) == 1]
        single.append(tuple(dict.fromkeys(found)))
    if all(single):
        _check_distinct(labels, single)
        return LabelTokens(tuple(single), True)
    spelled = []
    for label in labels:
        ways = [tuple(ids_after(tokenizer, lead_in, text)) for text in (label, f" {label}")]
        spelled.append(tuple(dict.fromkeys(way for way in ways if way)))
        if not spelled[-1]:
            raise InputError(
                "labels",
                f"the tokenizer joins label {label!r} with the text before it; word it otherwise",
            )
    _check_distinct(labels, spelled)
    return LabelTokens(tuple(spelled), False)


def _forms(label: str) -> list[str]:
    words = [label]
    if len(label) > 1:  # "a" is an article where "A" is a letter
        words += [label.lower(), label[0].upper() + label[1:]]
    return [form for word in dict.fromkeys(words) for form in (word, f" {word}")]


def _check(labels: Sequence[str]) -> None:
    if not 2 <= len(labels) <= MAX_LABELS:
        raise InputError("labels", f"{len(labels)} labels; give 2 to {MAX_LABELS}")
    for label in labels:
        if not label or label != label.strip():
            raise InputError(
                "labels", f"label {label!r} is empty or has spaces around it; give its text alone"
            )
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InputError("labels", f"label {twice!r} is given twice; keep one")


def _check_distinct(
    labels: Sequence[str], sequences: Sequence[tuple[tuple[int, ...], ...]]
) -> None:
    owner: dict[tuple[int, ...], str] = {}
    for label, ways in zip(labels, sequences, strict=True):
        for way in ways:
            if owner.setdefault(way, label) != label:
                raise InputError(
                    "labels",
                    f"labels {owner[way]!r} and {label!r} are the same tokens; labels must differ "
                    "in more than case",
                )
