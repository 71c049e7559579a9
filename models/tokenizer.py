"""A checkpoint's tokenizer.json: text to token ids, with special tokens only by their id.

Takes the file; gives ids. Text is always encoded with every added token inert, so a question that
contains `<image>` is those seven characters and not an image. Knows no prompt format.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edgejudge.bundle import TokensRecord
from edgejudge.errors import EdgeJudgeError, ExportError, InputError
from edgejudge.models.hf_config import HfConfig
from edgejudge.models.tokenizer_file import read_tokenizer

__all__ = ["Tokenizer", "VerdictLabels", "ids_after", "label_ids", "special_tokens"]


T = TypeVar("T")


class Tokenizer:
    """`text` is the file as it was read, with every added token a special one."""

    def __init__(
        self,
        path: Path,
        reserved: Collection[int] = (),
        vocabulary: int | None = None,
        error: type[EdgeJudgeError] = ExportError,
    ) -> None:
        """`reserved` are ids that no text may have, beside those of special tokens; `vocabulary` is
        how many ids the model knows. Raises `error` for a file that is none, or not to be trusted.
        """
        # Imported here: a compiled policy is judged without it, and it costs start-up time.
        from tokenizers import Tokenizer as HfTokenizer

        self._path, self._error = path, error
        self.text = read_tokenizer(path, vocabulary, error)
        self._inner = self._safely(lambda: HfTokenizer.from_str(self.text))
        # The default turns `<image>` inside a question into the image token.
        self._inner.encode_special_tokens = True
        self._inner.no_truncation()
        self._inner.no_padding()
        added = self._inner.get_added_tokens_decoder()
        special = (token for token, entry in added.items() if entry.special)
        self._reserved = frozenset((*reserved, *special))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; no special token can come out of it. Raises InputError "text" for half
        a character, which no token stands for.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                "text", "a text holds half of a character (a surrogate); remove it"
            ) from None
        ids: list[int] = self._safely(
            lambda: self._inner.encode(text, add_special_tokens=False)
        ).ids
        if not self._reserved.isdisjoint(ids):
            raise self._error(
                f"{self._path}: it makes a special token of plain text; take the tokenizer of a "
                "known checkpoint"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out; bytes that are no whole character are `\ufffd`."""
        return self._safely(lambda: str(self._inner.decode(list(ids), skip_special_tokens=True)))

    def _safely(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except BaseException as error:
            # The library raises bare Exception, and something that is not even that where it meets
            # what it did not expect.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise self._error(f"{self._path}: not a readable tokenizer.json ({error})") from None

    def special(self, token: str) -> int:
        """The id of a token that the checkpoint must have."""
        found = self._inner.token_to_id(token)
        if found is None:
            raise ExportError(f"the tokenizer has no token {token!r}, which this family needs")
        return int(found)

    def find(self, token: str) -> int | None:
        found = self._inner.token_to_id(token)
        return None if found is None else int(found)


def special_tokens(tokenizer: Tokenizer, config: HfConfig, *, image: str, end: str) -> TokensRecord:
    """The ids of the image token and the end of a turn, with every id that ends a text.

    Raises ExportError where config.json means another image token than the tokenizer.
    """
    image_id, end_id = tokenizer.special(image), tokenizer.special(end)
    configured = config.read(int, "image_token_id", image_id)
    if configured != image_id:
        raise ExportError(
            f"{config.where}: 'image_token_id' is {configured}, the tokenizer says {image_id}"
        )
    text = config.value.get("text_config") or config.value  # older configs are flat
    listed: Any = text.get("eos_token_id")
    eos = {end_id, *([listed] if isinstance(listed, int) else listed or [])}
    return TokensRecord(image=image_id, end_of_turn=end_id, eos=tuple(sorted(eos)))


class VerdictLabels(NamedTuple):
    labels: dict[str, tuple[int, ...]]  # label -> rows of the verdict head
    token_ids: tuple[int, ...]  # row -> token id


def ids_after(tokenizer: Tokenizer, lead_in: str, text: str) -> list[int]:
    """The ids that `text` has behind `lead_in`; none where the tokenizer joins the two."""
    start, ids = tokenizer.encode(lead_in), tokenizer.encode(lead_in + text)
    return ids[len(start) :] if ids[: len(start)] == start else []


def label_ids(
    tokenizer: Tokenizer, lead_in: str, variants: dict[str, tuple[str, ...]]
) -> VerdictLabels:
    """The one-token variants of each label, found by rendering them after `lead_in`.

    A variant that the tokenizer joins with the lead-in, or cuts in several tokens, is dropped: it
    is not one next token. A label left without any is an error.
    """
    token_ids: list[int] = []
    labels: dict[str, tuple[int, ...]] = {}
    for label, texts in variants.items():
        rows = []
        for text in texts:
            ids = ids_after(tokenizer, lead_in, text)
            if len(ids) != 1:
                continue
            if ids[0] not in token_ids:
                token_ids.append(ids[0])
                rows.append(len(token_ids) - 1)
            elif token_ids.index(ids[0]) not in rows:
                raise ExportError(
                    f"label {label!r}: {text!r} is the token of another label; "
                    "labels must differ in their first token"
                )
        if not rows:
            raise ExportError(
                f"label {label!r}: none of {', '.join(map(repr, texts))} is one token after "
                f"{lead_in!r}; give it a variant that is"
            )
        labels[label] = tuple(rows)
    return VerdictLabels(labels, tuple(token_ids))
