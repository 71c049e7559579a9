"""Which conditions a bundle claims to know: a specialist must not answer about anything else.

Takes a condition's text, the bundle's concepts and its patterns, such as "more than one {a}" or
"{a} left of {b}"; gives yes or no. Compares wording only: a plural or a synonym that is no alias
counts as unknown, which costs a verdict but invents none.
"""

import re
from collections.abc import Iterable, Iterator

from edgejudge.bundle import ConceptRecord

__all__ = ["known_names", "knows", "normalised", "pattern_problem"]

_ARTICLES = ("a ", "an ", "the ")
_PLACE = re.compile(r"\{[^{}]*\}")


def normalised(text: str) -> str:
    """Lower case, single spaces, no leading article, no closing full stop."""
    plain = " ".join(text.casefold().split()).removesuffix(".").rstrip()
    for article in _ARTICLES:
        if plain.startswith(article):
            return plain.removeprefix(article)
    return plain


def known_names(concepts: Iterable[ConceptRecord]) -> frozenset[str] | None:
    """Every wording the bundle knows, or None for a generalist, which lists no concepts."""
    names = frozenset(
        normalised(name) for concept in concepts for name in (concept.name, *concept.aliases)
    )
    return names or None


def pattern_problem(pattern: str) -> str | None:
    """What is wrong with a pattern: it has the place {a}, perhaps {b}, each once, and text that
    tells it from a concept and its places from one another.
    """
    places = _PLACE.findall(pattern)
    if not places or set(places) - {"{a}", "{b}"} or "{a}" not in places:
        found = ", ".join(places) or "none"
        return f"has the places {found}; expected {{a}}, and {{b}} for a second concept"
    before, *between, after = (text.strip() for text in _PLACE.split(pattern))
    if len(set(places)) < len(places) or "{" in "".join((before, *between, after)):
        return "has a place twice, or a brace that is none"
    if not all(between) or not (before or after or between):
        return "has no text between its places, or none at all"
    return None


def knows(names: frozenset[str] | None, condition: str, patterns: Iterable[str] = ()) -> bool:
    """Whether a bundle with these names and patterns may be asked for the condition: a place of a
    pattern stands for any known wording of a concept, with or without an article.
    """
    if names is None or normalised(condition) in names:
        return True
    text = normalised(condition)
    return any(
        all(normalised(place) in names for place in places)
        for pattern in patterns
        for places in _places(text, normalised(pattern))
    )


def _places(text: str, pattern: str) -> Iterator[tuple[str, ...]]:
    """Every way in which the pattern's places can be filled to give the text."""
    before, *between, after = _PLACE.split(pattern)
    if len(text) < len(before) + len(after):
        return
    if not (text.startswith(before) and text.endswith(after)):
        return
    inner = text[len(before) : len(text) - len(after)]
    if not between:
        yield (inner,)
        return
    start = inner.find(between[0])
    while start >= 0:
        yield inner[:start], inner[start + len(between[0]) :]
        start = inner.find(between[0], start + 1)
