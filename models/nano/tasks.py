"""What nano is asked beside "is it there": how many, where, how crowded, which of two, and why.

Takes the items of one picture, or of two; gives questions with their answers as text. The wordings
are those of the package's own calls, so that `score`, `compare`, `ask` and reasoning meet a judge
that was taught them. Does not know pixels, tokens or the model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from concepts import CONCEPTS
from scene import Item
from words import TEMPLATE, ask, form_of

COUNT = "How many times is {condition} visible?"  # answered by 0 to 4, 4 being that or more
CROWDED = "How crowded is it, from 1 to 5?"
PAIR = "Which picture {criterion}, A or B?"
REASON = "{question} Explain in JSON."
SHOWS = "The picture shows"  # and then what
MOST = 4
LEVELS = (1, 2, 4, 6)  # a picture with at most so many stickers is 1, 2, 3, 4 crowded, else 5
CLEAR = 0.06  # of the picture's edge: how far apart middles must lie to be asked which is where
BIGGER = 1.25  # how much longer one edge must be than the other to be asked which is bigger
PATTERNS = (  # what judge.json says of conditions beside the concepts
    *("more than one {a}", "exactly one {a}"),
    *(
        "{a} left of {b}",
        "{a} right of {b}",
        "{a} above {b}",
        "{a} below {b}",
        "{a} bigger than {b}",
    ),
)
PLACES = (
    *("top left", "top", "top right", "left", "middle", "right"),
    *("bottom left", "bottom", "bottom right"),
)
ANSWERS = (  # every word of an answer that is no concept's
    *(f" {n}" for n in range(6)),
    *(" A", " B"),
    '{"rating":"Yes","rationale":"The picture shows a b. It is at the c."}',
    '{"rating":"No","rationale":"The picture shows no sticker. There is no b. It is in the c."}',
    *(f" {place}" for place in PLACES),
)
EDGE = 576  # of the pictures that train, in pixels: what sizes are told against
CROWDED_PAIR = "is more crowded"
UNKNOWN = (float("nan"),) * 4


@dataclass(frozen=True, slots=True)
class Mention:
    """A thing that a request names: `end` characters of the request go to the end of its name.
    `where` is in which of the pictures it is, how far down and across, and how large, each about
    0..1, and NaN where it is not asked for, or is there more than once; `apart` how much lower,
    further right and larger what was named before it is, and whether the request's answer is yes.
    """

    end: int
    concept: int
    where: tuple[float, float, float, float]
    apart: tuple[float, float, float, float] = (float("nan"),) * 4


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with the answer that is right. `kind` groups them for the log and the figures;
    `mentions` are what a model that is to learn the answer may be told on the way. `name` is the
    stretch of the answer that says what was seen, where it says more than that.
    """

    kind: str
    request: str
    answer: str
    mentions: tuple[Mention, ...] = ()
    name: tuple[int, int] | None = None


Relation = Callable[[Item, Item], int]  # 1 it holds, 0 it does not, -1 it is not clear


def _apart(a: float, b: float) -> int:
    return -1 if abs(a - b) < CLEAR else int(a < b)


RELATIONS: dict[str, Relation] = {
    "left of": lambda a, b: _apart(a.x, b.x),
    "right of": lambda a, b: _apart(b.x, a.x),
    "above": lambda a, b: _apart(a.y, b.y),
    "below": lambda a, b: _apart(b.y, a.y),
    "bigger than": lambda a, b: (
        -1 if max(a.edge, b.edge) < BIGGER * min(a.edge, b.edge) else int(a.edge > b.edge)
    ),
}


def word(rng: np.random.Generator, concept: int) -> str:
    """A concept's phrase, paraphrase or name."""
    return str(getattr(CONCEPTS[concept], form_of(rng)))


def asks(kind: str, condition: str, answer: str, *named: tuple[str, int, Item | None]) -> Asked:
    """The question whether a condition holds; `named` are the beginnings of the condition that end
    with something it names, its concept, and the item where it is there once.
    """
    first = UNKNOWN
    mentions: list[Mention] = []
    for beginning, concept, item in named:
        end, here = TEMPLATE.index("{") + len(beginning), where(item)
        _, down, across, large = (a - b for a, b in zip(first, here, strict=True))
        holds = float(answer == " Yes") if mentions else float("nan")
        mentions.append(Mention(end, concept, here, (down, across, large, holds)))
        first = here
    return Asked(kind, TEMPLATE.format(condition=condition), answer, tuple(mentions))


def where(item: Item | None) -> tuple[float, float, float, float]:
    if item is None:
        return UNKNOWN
    return float("nan"), item.y, item.x, 1 + float(np.log2(item.edge / EDGE)) / 4


def alone(items: Sequence[Item], present: np.ndarray) -> dict[int, Item]:
    """Concept -> its item, of those that are there once."""
    found = counted(items, present)
    return {i.concept: i for i in items if found.get(i.concept) == 1}


def presence(
    rng: np.random.Generator, items: Sequence[Item], present: np.ndarray, n: int
) -> list[Asked]:
    """`n` questions whether something is there."""
    once, out = alone(items, present), []
    for concept in ask(rng, present, n):
        text = word(rng, concept)
        answer = " Yes" if present[concept] == 1 else " No"
        out.append(asks("presence", text, answer, (text, concept, once.get(concept))))
    return out


def counted(items: Sequence[Item], present: np.ndarray) -> Counter[int]:
    """How often each concept is there that may be asked about."""
    return Counter(i.concept for i in items if i.concept >= 0 and present[i.concept] >= 0)


def _some_absent(rng: np.random.Generator, present: np.ndarray) -> int:
    return int(rng.choice(np.flatnonzero(present == 0)))


def counts(
    rng: np.random.Generator, items: Sequence[Item], present: np.ndarray, n: int
) -> list[Asked]:
    """`n` questions how often something is there, mostly about what is."""
    found, once = counted(items, present), alone(items, present)
    out = []
    for _ in range(n):
        there = list(found)
        concept = (
            int(rng.choice(there)) if there and rng.random() < 0.8 else _some_absent(rng, present)
        )
        times = found[concept]
        text = word(rng, concept)
        kind = rng.random()
        if kind < 0.5:
            told = Mention(COUNT.index("{") + len(text), concept, where(once.get(concept)))
            answer = f" {min(times, MOST)}"
            out.append(Asked("count", COUNT.format(condition=text), answer, (told,)))
        else:
            name = CONCEPTS[concept].name
            form, holds = (
                ("more than one", times > 1) if kind < 0.8 else ("exactly one", times == 1)
            )
            text = f"{form} {name}"
            named = text, concept, once.get(concept)
            out.append(asks(form, text, " Yes" if holds else " No", named))
    return out


def relations(
    rng: np.random.Generator, items: Sequence[Item], present: np.ndarray, n: int
) -> list[Asked]:
    """At most `n` questions which of two things is where, or bigger. Concepts that are there once
    are asked about in both directions equally often; now and then one of the two is not there.
    """
    once = alone(items, present)
    out: list[Asked] = []
    for _ in range(4 * n):
        if len(out) == n:
            break
        name = str(rng.choice(list(RELATIONS)))
        if len(once) >= 2 and rng.random() < 0.85:
            a, b = (int(c) for c in rng.choice(list(once), 2, replace=False))
            holds = RELATIONS[name](once[a], once[b])
            kind = name
        elif once:
            a, b = int(rng.choice(list(once))), _some_absent(rng, present)
            a, b = (a, b) if rng.random() < 0.5 else (b, a)
            holds, kind = 0, "relation to nothing"
        else:
            break
        if holds >= 0:
            first, text = CONCEPTS[a].phrase, f"{CONCEPTS[a].phrase} {name} {CONCEPTS[b].phrase}"
            named = (first, a, once.get(a)), (text, b, once.get(b))
            out.append(asks(kind, text, " Yes" if holds else " No", *named))
    return out


def level(items: Sequence[Item]) -> int:
    """How crowded a picture is, 1 to 5."""
    return 1 + int(np.searchsorted(LEVELS, len(items)))


def crowd(items: Sequence[Item]) -> Asked:
    return Asked("crowd", CROWDED, f" {level(items)}")


def place(item: Item) -> str:
    """Where an item lies, in words."""
    words = PLACES[3 * min(2, int(item.y * 3)) + min(2, int(item.x * 3))]
    return f"in the {words}" if words == "middle" else f"at the {words}"


def reason(rng: np.random.Generator, items: Sequence[Item], present: np.ndarray) -> Asked:
    """One rationale in JSON: what is there and where, or what is there instead."""
    found = counted(items, present)
    absent = np.flatnonzero(present == 0)
    named = [i for i in items if i.concept in found]
    largest = max(named, key=lambda i: i.edge, default=None)
    if found and rng.random() < 0.5:
        concept = int(rng.choice(list(found)))
        shown = max((i for i in items if i.concept == concept), key=lambda i: i.edge)
        rating = "Yes"
        why = f"{SHOWS} {CONCEPTS[concept].phrase}. It is {place(shown)}."
    else:
        near = {CONCEPTS[c].category for c in found}
        alike = [int(c) for c in absent if CONCEPTS[c].category in near]
        pool = alike if alike and rng.random() < 0.5 else absent
        concept = int(rng.choice(pool))
        seen = "no sticker" if largest is None else CONCEPTS[largest.concept].phrase
        rating = "No"
        why = f"{SHOWS} {seen}. There is no {CONCEPTS[concept].name}."
    question = TEMPLATE.format(condition=word(rng, concept))
    document = json.dumps({"rating": rating, "rationale": why}, separators=(",", ":"))
    begin = document.index(SHOWS) + len(SHOWS)
    name = begin, document.index(".", begin)
    return Asked("reason", REASON.format(question=question), document, name=name)


Shown = tuple[Sequence[Item], np.ndarray]  # items of a picture, and which concepts it shows


def pairs(rng: np.random.Generator, first: Shown, second: Shown, n: int) -> list[Asked]:
    """At most `n` questions which of two pictures it is."""
    out = []
    if abs(len(first[0]) - len(second[0])) >= 2:
        more = " A" if len(first[0]) > len(second[0]) else " B"
        out.append(Asked("pair crowded", PAIR.format(criterion=CROWDED_PAIR), more))
    differ = np.flatnonzero((first[1] >= 0) & (second[1] >= 0) & (first[1] != second[1]))
    for concept in rng.permutation(differ)[: n - len(out)]:
        text = f"shows {word(rng, int(concept))}"
        in_first = bool(first[1][concept])
        where_it_is = float(not in_first), *UNKNOWN[1:]
        told = Mention(PAIR.index("{") + len(text), int(concept), where_it_is)
        request = PAIR.format(criterion=text)
        out.append(Asked("pair shows", request, " A" if in_first else " B", (told,)))
    return out
