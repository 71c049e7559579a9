"""Prompts of families that speak ChatML: `<|im_start|>role`, text, `<|im_end|>`.

Takes a tokenizer and what a family does its own way; gives its PromptRecord. Knows no family.
"""

from edgejudge.bundle import PromptRecord
from edgejudge.models.tokenizer import Tokenizer

__all__ = ["LEAD_IN", "chatml_record"]

LEAD_IN = "assistant\n"  # the text that an answer follows


def chatml_record(
    tokenizer: Tokenizer,
    template: str,
    layout: str,
    *,
    visual_tokens: int = 0,
    around: tuple[str, str] | None = None,
    system: str | None = None,
    after_role: str = "\n",
    after_turn: str = "\n",
    between_pictures: str = "",
    behind_picture: str = "",
    before_text: str = "",
) -> PromptRecord:
    """`around` are the special tokens that enclose a picture, `system` what the template says where
    nobody gives it a system turn. Between a picture and its question stands `behind_picture`;
    `before_text` stands before a question that has none.
    """
    start, end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
    turn = tuple(tokenizer.encode(after_turn)) if after_turn else ()
    said = (
        ()
        if system is None
        else (start, *tokenizer.encode(f"system{after_role}{system}"), end, *turn)
    )
    user = f"user{after_role}"
    opening, closing = ((), ()) if around is None else ((tokenizer.special(t),) for t in around)
    tiles = layout == "tiles"
    return PromptRecord(
        question_template=template,
        layout=layout,
        head=(*said, start, *tokenizer.encode(user)),
        image_open=opening if tiles else (),
        image_break=tuple(tokenizer.encode(between_pictures)) if between_pictures else (),
        tile_open=(),
        row_break=(),
        last_break=(),
        view_open=() if tiles else opening,
        view_close=closing,
        visual_tokens=visual_tokens,
        text_open=behind_picture,
        tail=(end, *turn, start, *tokenizer.encode(LEAD_IN)),
        blind_head=(*said, start),
        blind_text=user + before_text,
        next_turn=(end, *turn, start),
        next_text=user + before_text,
    )
