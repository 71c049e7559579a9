"""Which conditions a bundle claims to know: a specialist must not answer about anything else.

Takes a condition's text and the bundle's concepts; gives yes or no. Compares wording only: a
plural or a synonym that is no alias counts as unknown, which costs a verdict but invents none.
"""

from collections.abc import Iterable

from edgejudge.bundle import ConceptRecord

__all__ = ["known_names", "knows", "normalised"]

_ARTICLES = ("a ", "an ", "the ")


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


def knows(names: frozenset[str] | None, condition: str) -> bool:
    """Whether a bundle with these names may be asked for the condition."""
    return names is None or normalised(condition) in names
