"""JSON that a schema allows, token by token, and that can always be finished in the tokens left.

Takes a tokenizer.json and a JSON schema; gives which tokens may follow, and the shortest tail it
knows by which the document ends. The grammar is llguidance's; keeping room for the tail is ours.
Does not know the model or how a token is chosen.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgejudge.errors import InputError, ProviderError

__all__ = ["JsonGrammar", "JsonText"]

_MOST_TAIL = 512  # tokens; a grammar that cannot be ended by then is refused
# What a tail is made of where the grammar leaves a choice: ends before anything that goes on. A
# bracket within a string ends nothing, and there a letter may come that begins no value.
_CLOSING = ("}", "]", '"', ",", ":", *"0123456789", "n", "t", "f", "a", "A", "-", "{", "[")
_LETTER = "z"


class JsonGrammar:
    """A tokenizer's part, made once: a large vocabulary takes a second."""

    def __init__(self, tokenizer: str, vocabulary: int, eos: Sequence[int]) -> None:
        """`tokenizer` is the text of the file, as models.tokenizer has looked it through;
        `vocabulary` counts the rows of the LM head, which may be more than the tokenizer's.
        """
        try:
            import llguidance
        except ModuleNotFoundError:
            raise ProviderError(
                "text by a JSON schema needs the package llguidance; install it with "
                "`pip install 'edgejudge[text]'`"
            ) from None
        self._inner: Any = llguidance
        self.vocabulary = vocabulary
        self.tokenizer: Any = llguidance.LLTokenizer(
            tokenizer, n_vocab=vocabulary, eos_token=list(eos)
        )
        self.eos = frozenset(eos)
        closing = [self.tokenizer.greedy_tokenize(text) for text in _CLOSING]
        self.closing = np.array([ids[0] for ids in closing if len(ids) == 1])
        self.brackets = frozenset(ids[0] for ids in closing[:2])
        self.letter = int(self.tokenizer.greedy_tokenize(_LETTER)[0])

    def text(self, schema: Mapping[str, Any] | bool, most: int) -> "JsonText":
        """A document of at most `most` tokens. Raises InputError "schema" for a schema that no
        document of that length meets, or that the library cannot follow.
        """
        # Without flexible white space: a small model could go on with blanks for ever.
        grammar = self._inner.LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides={"whitespace_flexible": False}
        )
        matcher = self._inner.LLMatcher(self.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0]
            raise InputError("schema", f"the JSON schema cannot be followed: {reason}")
        text = JsonText(self, matcher)
        if len(text.tail) > most:
            raise InputError(
                "schema",
                f"the shortest document found for this JSON schema takes {len(text.tail)} tokens, "
                f"and {most} are allowed; allow more, or ask for less",
            )
        return text


class JsonText:
    """A document in the making. `tail` are tokens that end it from here."""

    def __init__(self, grammar: JsonGrammar, matcher: Any) -> None:
        self._grammar, self._matcher = grammar, matcher
        tail = self._tail(matcher)
        if tail is None:
            raise InputError(
                "schema",
                f"no end of a document was found within {_MOST_TAIL} tokens for this JSON schema; "
                "use plainer patterns and lengths",
            )
        self.tail: tuple[int, ...] = tail

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next [vocabulary]."""
        return self._allowed(self._matcher)

    def take(self, token: int, left: int) -> bool:
        """Goes on with an allowed token, if the document can be ended within the `left` tokens
        after it; False leaves it as it was.
        """
        ahead = self._matcher.deep_copy()
        if not ahead.consume_token(token):
            return False
        tail = self._tail(ahead)
        if tail is None or len(tail) > left:
            return False
        self._matcher, self.tail = ahead, tail
        return True

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _allowed(self, matcher: Any) -> NDArray[np.bool_]:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self._grammar.vocabulary]
        return mask.astype(bool)

    def _tail(self, matcher: Any) -> tuple[int, ...] | None:
        """A short way to an end; None where none was found."""
        found = self._way_out(matcher, brackets=True)
        return self._way_out(matcher, brackets=False) if found is None else found

    def _way_out(self, matcher: Any, brackets: bool) -> tuple[int, ...] | None:
        """What is forced, else the first of the closing tokens that may come, else the first token
        that may. Without `brackets` they are left out of it as long as something else may come.
        """
        grammar = self._grammar
        probe = matcher.deep_copy()
        tokens: list[int] = []
        while not probe.is_accepting():
            step = [t for t in probe.compute_ff_tokens() if t not in grammar.eos]
            if not step:
                allowed = self._allowed(probe)
                allowed[list(grammar.eos)] = False
                ways = [int(t) for t in grammar.closing if allowed[t]]
                if allowed[grammar.letter] or not brackets:
                    ways = [t for t in ways if t not in grammar.brackets] or ways
                if not ways:
                    ways = [int(t) for t in np.flatnonzero(allowed)[:1]]
                if not ways:
                    return None
                step = ways[:1]
            tokens += step
            if len(tokens) > _MOST_TAIL or not probe.consume_tokens(step):
                return None
        return tuple(tokens)
