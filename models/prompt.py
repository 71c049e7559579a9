"""Prompts as token ids: the shared prefix with its image tokens, and the branches behind it.

Takes a bundle's PromptRecord, and a tokenizer only for text that was not compiled. Gives lists of
ids. Knows no family: a family's strings are already ids in the record.
"""

from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle, PromptRecord
from edgejudge.errors import BundleError
from edgejudge.models.image import canary_image, image_spec, preprocess
from edgejudge.models.tokenizer import Tokenizer

__all__ = ["Prompts", "screen_ids"]


def screen_ids(bundle: Bundle) -> list[int]:
    """The prompt of a picture that fills a screen of 1,920 x 1,080, its image tokens among it: what
    sizes of work are measured by.
    """
    seen = preprocess(canary_image(1080, 1920), image_spec(bundle.manifest.preprocessing))
    return Prompts.of(bundle).prefix_ids(seen.rows, seen.cols)


class Prompts:
    """`tokenizer` is called when text has to be encoded for the first time."""

    def __init__(
        self, record: PromptRecord, image_token_id: int, tokenizer: Callable[[], Tokenizer]
    ) -> None:
        self.record = record
        self.image_token_id = image_token_id
        self._make_tokenizer = tokenizer
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Those of an opened bundle."""
        manifest = bundle.manifest
        # Opened late: `file` checks what it gives, and a compiled policy needs no tokenizer.
        return cls(
            manifest.prompt,
            manifest.tokens.image,
            lambda: _tokenizer(bundle),
        )

    def prefix_ids(self, rows: int, cols: int) -> list[int]:
        """Everything before the question about one picture."""
        return [*self.record.head, *self.image_ids(rows, cols)]

    def prefix_positions(self, rows: int, cols: int) -> NDArray[np.int64] | None:
        """Rope positions [3, S] (time, row, column) of `prefix_ids`; None where they count up one
        by one.
        """
        head = len(self.record.head)
        image = self.image_positions(rows, cols, head)
        if image is None:
            return None
        return np.concatenate([np.broadcast_to(np.arange(head), (3, head)), image], axis=1)

    def image_ids(self, rows: int, cols: int, first: bool = True) -> list[int]:
        """One picture, behind the head or, unless it is the `first`, behind another: of rows x cols
        tiles (0 x 0 is one view), or of so many visual tokens where the family keeps the picture's
        grid, or its lines.
        """
        record = self.record
        count = {
            "tiles": record.visual_tokens,
            "grid": rows * cols,
            "lines": record.visual_tokens + rows * (cols + 1),
        }[record.layout]
        view = [self.image_token_id] * count
        ids = [*(() if first else record.image_break), *record.image_open]
        for row in range(rows if record.layout == "tiles" else 0):
            for col in range(cols):
                ids += [*self._tile_open(row, col), *view]
            ids += record.row_break if row + 1 < rows else record.last_break
        return [*ids, *record.view_open, *view, *record.view_close]

    def _tile_open(self, row: int, col: int) -> tuple[int, ...]:
        rows = self.record.tile_open
        return rows[row][col] if rows else ()

    def image_positions(
        self, rows: int, cols: int, start: int, first: bool = True
    ) -> NDArray[np.int64] | None:
        """Rope positions [3, S] of `image_ids` whose first token stands at `start`; None where they
        count up.

        Image tokens share one time and take their place in the grid; what follows goes on after the
        largest (Qwen2-VL, section 2.1).
        """
        record = self.record
        if record.layout != "grid":
            return None
        before = start + len(record.image_open) + len(record.view_open)
        before += 0 if first else len(record.image_break)
        y, x = np.divmod(np.arange(rows * cols, dtype=np.int64), cols)
        image = before + np.stack([np.zeros_like(y), y, x])
        ends = (
            np.arange(start, before),
            before + max(rows, cols) + np.arange(len(record.view_close)),
        )
        text = [np.broadcast_to(p, (3, len(p))) for p in ends]
        return np.concatenate([text[0], image, text[1]], axis=1)

    def branch_ids(self, condition: str, template: str | None = None) -> list[int]:
        """One question's tokens behind a prefix, up to where the answer token is read. A `template`
        with {condition} goes before the bundle's.
        """
        return self.request_ids(self.question(condition, template))

    def request_ids(self, text: str) -> list[int]:
        """A free request's tokens behind a prefix, up to where the answer begins."""
        return [*self._encode(self.record.text_open + text), *self.record.tail]

    def next_ids(self, text: str) -> list[int]:
        """A further request's tokens behind an answer, up to where the next answer begins."""
        record = self.record
        return [*record.next_turn, *self._encode(record.next_text + text), *record.tail]

    def blind_ids(self, condition: str, template: str | None = None) -> list[int]:
        """The whole prompt of the same question without any image."""
        return self.blind_request_ids(self.question(condition, template))

    def blind_request_ids(self, text: str) -> list[int]:
        """The whole prompt of a free request without any image."""
        record = self.record
        return [*record.blind_head, *self._encode(record.blind_text + text), *record.tail]

    def question(self, condition: str, template: str | None = None) -> str:
        if template is None:
            template = self.record.question_template
        # Not str.format: a condition with braces is text.
        return template.replace("{condition}", condition)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._opened()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._opened().decode(ids)

    def _encode(self, text: str) -> list[int]:
        return self._opened().encode(text)

    def _opened(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        return self._tokenizer


def _tokenizer(bundle: Bundle) -> Tokenizer:
    tokens, table = bundle.manifest.tokens, bundle.manifest.embeddings
    reserved = (tokens.image, tokens.end_of_turn, *tokens.eos)
    return Tokenizer(bundle.file("tokenizer.json"), reserved, table.rows, BundleError)
