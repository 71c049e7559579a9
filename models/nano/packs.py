"""Requests of several pictures with their answers, packed for one pass of the text model.

Takes requests and answers as text; gives arrays of token ids, of which branch each belongs to, and
of the tokens to be learned. Does not know pictures or the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tasks import Asked, Mention
from words import Prompts

NAME = "name"  # the kind of an answer's tokens that name what was seen
NOTHING = -100  # no token is to be learned here; what torch's cross-entropy ignores


@dataclass(slots=True)
class Pack:
    """All [B, M]: token ids, branch (-2: padding), place within the branch, token to be learned;
    `kinds` are the names of tasks and `kind` [B, M] their indices. `about` [B, M] is the concept a
    token's mention names, where it ends one, and -1 elsewhere; `before` [B, M] the token that ends
    the mention before it in its request, or -1; `where` and `apart` [B, M, 4] are the mention's,
    and NaN elsewhere.
    """

    ids: np.ndarray
    branch: np.ndarray
    place: np.ndarray
    target: np.ndarray
    kind: np.ndarray
    kinds: tuple[str, ...]
    about: np.ndarray
    before: np.ndarray
    where: np.ndarray
    apart: np.ndarray


def pack(prompts: Prompts, asked: Sequence[Sequence[Asked]]) -> Pack:
    """What is asked of each of B pictures, one branch a request."""
    kinds = tuple(dict.fromkeys(a.kind for each in asked for a in each))
    if any(a.name for each in asked for a in each):
        kinds = (*kinds, NAME)
    rows: list[list[tuple[int, int, int, int, int]]] = []
    told: list[tuple[int, int, int, Mention]] = []
    for each in asked:
        row: list[tuple[int, int, int, int, int]] = []
        for number, one in enumerate(each):
            prompt = prompts.ids(one.request + prompts.CLOSING)
            answer = prompts.ids(one.answer)
            if len(answer) > 1:
                answer = [*answer, prompts.end]
            ids = [*prompt, *answer[:-1]]
            targets = [NOTHING] * (len(prompt) - 1) + answer
            of = [kinds.index(one.kind)] * len(ids)
            if one.name is not None:
                begin, end = (
                    len(prompt) - 1 + len(prompts.ids(one.answer[:at])) for at in one.name
                )
                of[begin:end] = [kinds.index(NAME)] * (end - begin)
            last = -1
            for mention in one.mentions:  # words are encoded one by one, whatever follows
                end = len(row) + len(prompts.ids(one.request[: mention.end])) - 1
                told.append((len(rows), end, last, mention))
                last = end
            row += [
                (token, number, at, target, kind)
                for at, (token, target, kind) in enumerate(zip(ids, targets, of, strict=True))
            ]
        rows.append(row)
    out = np.zeros((5, len(rows), max(map(len, rows))), np.int64)
    out[1], out[3] = -2, NOTHING
    for i, row in enumerate(rows):
        out[:, i, : len(row)] = np.array(row).T
    about, before = np.full((2, *out.shape[1:]), -1, np.int64)
    where, apart = np.full((2, *out.shape[1:], 4), np.nan, np.float32)
    for picture, at, last, mention in told:
        about[picture, at], before[picture, at] = mention.concept, last
        where[picture, at], apart[picture, at] = mention.where, mention.apart
    return Pack(out[0], out[1], out[2], out[3], out[4], kinds, about, before, where, apart)
