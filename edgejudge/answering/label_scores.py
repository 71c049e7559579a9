"""Label scores: how probable each label is as the answer to a question.

Takes a prefix in the engine and questions with their labels; gives a log score, a probability and
the mass for each. Labels of one token are read at one place: by the bundle's verdict head where it
has them, else by the LM head. Longer ones are branches of the same tree as the questions. Knows no
pictures, rubrics or decisions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgejudge.bundle import Bundle
from edgejudge.errors import InputError, ProviderError
from edgejudge.models.labels import label_tokens, lead_in_of
from edgejudge.models.prompt import Prompts
from edgejudge.models.tokenizer import ids_after
from edgejudge.verdict import Note

__all__ = ["AskedLabels", "LabelQuestion", "LabelScores", "LabelScoring", "softmax"]

_ROWS = 16  # of the LM head at once: a vocabulary has 150,000 columns
_LOW_MASS = 0.5

Head = Literal["verdict_head", "lm_head"]


class Engine(Protocol):
    """The part of an engine that answers with labels."""

    def ends(self, prefix: Any, branches: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...
    def full_logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def score(self, prefix: Any, branches: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...
    def score_blind(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class LabelQuestion:
    """`lead` is text that the answer is made to begin with. `per_token` takes the mean of a label's
    log probabilities in place of their sum; None does so where some label has several tokens.
    """

    text: str
    labels: tuple[str, ...]
    lead: str = ""
    per_token: bool | None = None


@dataclass(frozen=True, slots=True)
class LabelScores:
    """The answer to one question, label by label.

    `scores` are logarithms, up to a constant that all of them share: of logits that the verdict
    head gives, else of probabilities. `mass` is how probable the labels are together among all that
    the model could write; None where the verdict head was used, which does not know.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]  # among the labels; they add up to 1
    mass: float | None
    head: Head
    per_token: bool
    notes: tuple[Note, ...] = ()

    def at(self, temperature: float) -> tuple[float, ...]:
        """Probabilities among the labels, logits divided by the temperature."""
        return softmax(self.scores, temperature)


@dataclass(frozen=True, slots=True)
class AskedLabels:
    """A question in token ids. `rows` are its labels' rows of the verdict head, where it has them
    all.
    """

    question: LabelQuestion
    ids: tuple[int, ...]
    sequences: tuple[tuple[tuple[int, ...], ...], ...]  # [label][way][token]
    rows: tuple[tuple[int, ...], ...] | None
    per_token: bool


def softmax(scores: Sequence[float], temperature: float = 1.0) -> tuple[float, ...]:
    wide = np.asarray(scores, np.float64) / temperature
    powers = np.exp(wide - wide.max())
    return tuple((powers / powers.sum()).tolist())


class LabelScoring:
    """Of one bundle. `compile` may run in any thread, `answer` by whoever has the engine."""

    def __init__(self, bundle: Bundle, engine: Engine, prompts: Prompts) -> None:
        self._engine, self._prompts = engine, prompts
        self._rows, ids = bundle.manifest.labels, bundle.manifest.label_rows
        self._known = {label: [ids[row] for row in rows] for label, rows in self._rows.items()}
        self._lead_in: str | None = None

    def compile(self, question: LabelQuestion, blind: bool = False) -> AskedLabels:
        """`blind` makes the whole prompt without a picture. Raises InputError for labels that
        cannot be told apart.
        """
        tokenizer = self._prompts.tokenizer
        make = self._prompts.blind_request_ids if blind else self._prompts.request_ids
        lead, lead_in = self.lead(question.lead)
        ids = [*make(question.text), *lead]
        names = None if question.lead else self._verdict_names(question.labels)
        known = {} if question.lead else self._known
        spelled = {
            label: known[name]
            for label in question.labels
            if (name := _name_in(known, label)) is not None
        }
        tokens = label_tokens(tokenizer, lead_in, question.labels, spelled)
        per_token = not tokens.single and question.per_token is not False
        rows = None if names is None else tuple(self._rows[name] for name in names)
        return AskedLabels(question, tuple(ids), tokens.sequences, rows, per_token)

    def lead(self, text: str) -> tuple[list[int], str]:
        """The tokens behind a prompt of what an answer is made to begin with, which may be nothing,
        and all text that the rest follows. Raises InputError where the tokenizer joins them.
        """
        tokenizer = self._prompts.tokenizer
        if self._lead_in is None:
            self._lead_in = lead_in_of(tokenizer, self._prompts.record.tail)
        if not text:
            return [], self._lead_in
        # A prompt that ends its line wants no space before the answer's first word.
        space = " " if self._lead_in and not self._lead_in[-1].isspace() else ""
        ids = ids_after(tokenizer, self._lead_in, space + text)
        if not ids:
            raise InputError("wording", f"the answer cannot begin with {text!r}")
        return ids, f"{self._lead_in}{space}{text}"

    def answer(self, prefix: Any, asked: Sequence[AskedLabels]) -> list[LabelScores]:
        """All questions over one prefix, packed; None is no prefix, of questions made blind. Raises
        ProviderError for logits that are not numbers.
        """
        found: dict[int, LabelScores] = {}
        for judge, wanted in ((self._by_rows, True), (self._by_words, False)):
            places = [i for i, one in enumerate(asked) if (one.rows is not None) == wanted]
            if places:
                scores = judge(prefix, [asked[i] for i in places])
                found |= dict(zip(places, scores, strict=True))
        return [found[i] for i in range(len(asked))]

    def _verdict_names(self, labels: Sequence[str]) -> list[str] | None:
        names = [_name_in(self._known, label) for label in labels]
        found = [name for name in names if name is not None]
        return found if len(found) == len(labels) else None

    def _by_rows(self, prefix: Any, asked: Sequence[AskedLabels]) -> list[LabelScores]:
        engine, branches = self._engine, [one.ids for one in asked]
        logits = engine.score_blind(branches) if prefix is None else engine.score(prefix, branches)
        wide = _checked(logits, "verdict head").astype(np.float64)  # [B, R]
        found = []
        for one, row in zip(asked, wide, strict=True):
            assert one.rows is not None
            scores = tuple(float(np.logaddexp.reduce(row[list(rows)])) for rows in one.rows)
            labels = one.question.labels
            found.append(
                LabelScores(labels, scores, softmax(scores), None, "verdict_head", one.per_token)
            )
        return found

    def _by_words(self, prefix: Any, asked: Sequence[AskedLabels]) -> list[LabelScores]:
        # Where a token is written -> the tokens whose probability is wanted there.
        places: dict[tuple[int, ...], dict[int, float]] = {}
        for one in asked:
            for way in (way for ways in one.sequences for way in ways):
                for index, token in enumerate(way):
                    places.setdefault((*one.ids, *way[:index]), {})[token] = 0.0
        ends = self._engine.ends(prefix, list(places))  # [P, D]
        at = list(places.values())
        for first in range(0, len(at), _ROWS):
            logits = self._engine.full_logits(ends[first : first + _ROWS])  # [<= _ROWS, vocabulary]
            wide = _checked(logits, "LM head").astype(np.float64)
            for row, wanted in zip(wide, at[first : first + _ROWS], strict=True):
                whole = float(np.logaddexp.reduce(row))
                wanted.update({token: float(row[token]) - whole for token in wanted})

        def log_probability(one: AskedLabels, way: tuple[int, ...]) -> float:
            return sum(places[*one.ids, *way[:i]][token] for i, token in enumerate(way))

        return [_from_words(one, lambda way, one=one: log_probability(one, way)) for one in asked]


def _from_words(one: AskedLabels, log_probability: Callable[..., float]) -> LabelScores:
    scores = []
    for ways in one.sequences:
        if one.per_token:
            # Means are no probabilities that could be added: the likeliest spelling counts.
            scores.append(max(log_probability(way) / len(way) for way in ways))
        else:
            scores.append(float(np.logaddexp.reduce([log_probability(way) for way in ways])))
    # One that another begins with is written whenever that one is.
    spelled = {way for ways in one.sequences for way in ways}
    first = [way for way in spelled if not any(way[:n] in spelled for n in range(1, len(way)))]
    mass = min(1.0, sum(float(np.exp(log_probability(way))) for way in first))
    labels = one.question.labels
    notes = _notes(labels, one.sequences, mass)
    return LabelScores(
        labels, tuple(scores), softmax(scores), mass, "lm_head", one.per_token, notes
    )


def _notes(
    labels: Sequence[str], sequences: Sequence[Sequence[tuple[int, ...]]], mass: float
) -> tuple[Note, ...]:
    notes = []
    if mass < _LOW_MASS:
        notes.append(
            Note(
                "low_mass",
                f"the labels are {mass:.2g} of what the model would write; word the question so "
                "that it names them",
            )
        )
    owner = {way: label for label, ways in zip(labels, sequences, strict=True) for way in ways}
    for way, label in owner.items():
        for length in range(1, len(way)):
            shorter = owner.get(way[:length], label)
            if shorter != label:
                notes.append(
                    Note("label_within", f"'{shorter}' is how '{label}' begins; word one otherwise")
                )
    return tuple(dict.fromkeys(notes))


def _name_in(known: dict[str, list[int]], label: str) -> str | None:
    """The bundle's name of a label: the same, or the same but for case where it is a word."""
    if label in known:
        return label
    alike = [name for name in known if name.casefold() == label.casefold()]
    return alike[0] if len(alike) == 1 and len(label) > 1 else None


def _checked(logits: NDArray[np.float32], head: str) -> NDArray[np.float32]:
    if not np.isfinite(logits).all():
        raise ProviderError(
            f"the {head} gave logits that are not numbers; check the bundle with "
            "`edgejudge screen --verify`, or export it again"
        )
    return logits
