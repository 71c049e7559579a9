"""Questions with labels, asked of pictures: how `ask`, `score` and `checklist` are done.

Takes pictures and what to ask; gives the records of answers.py. The pictures are one prefix, and
everything that is asked of them is packed behind it. Knows no tokens and no graph.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import fsum
from typing import Any

from edgejudge.answering import wordings
from edgejudge.answering.answers import (
    Answer,
    ChecklistResult,
    CriterionResult,
    LabelAnswer,
    PictureName,
    Provenance,
    Score,
)
from edgejudge.answering.label_scores import AskedLabels, LabelQuestion, LabelScores, LabelScoring
from edgejudge.answering.rubrics import Checklist, Rubric, Tasks, rubric
from edgejudge.bundle import Bundle
from edgejudge.calls import Images
from edgejudge.errors import InputError
from edgejudge.images import ImageInput
from edgejudge.judging import Found, stages_ms
from edgejudge.models.concepts import known_names, knows
from edgejudge.models.prompt import Prompts
from edgejudge.screening import OneAhead, Screening
from edgejudge.turns import Stop, Turns
from edgejudge.verdict import Note, Table

__all__ = ["Asking", "Record"]

_YES_NO = ("yes", "no")


class Record:
    """What became of one request, over all the turns that it took."""

    def __init__(self) -> None:
        self.pictures: list[OneAhead] = []
        self.traces: dict[int, Any] = {}  # by identity: a picture may come in several prompts
        self.questions = 0
        self.found: set[Found] = set()
        self.reused = 0
        self.notes: list[Note] = []

    def provenance(self, bundle: Bundle) -> Provenance:
        notes = [note for one in self.pictures for note in one.notes] + self.notes
        notes += [Note(*mark) for trace in self.traces.values() for mark in trace.marks]
        ran = {name: where for trace in self.traces.values() for name, where in trace.ran.items()}
        found: Found = "off"
        if self.found:
            found = "miss" if "miss" in self.found else min(self.found)
        return Provenance(
            bundle=bundle.manifest.name,
            bundle_sha256=bundle.fingerprint,
            images=tuple(PictureName(one.path, one.sha256) for one in self.pictures),
            questions=self.questions,
            notes=tuple(dict.fromkeys(notes)),
            stages_ms=stages_ms(*self.traces.values()),
            placement=Table(ran),
            prefix_cache=found,
            reused_tokens=self.reused,
        )


class Asking:
    """Of one judge, whose parts these are; defaults and what is raised are those of Calls."""

    def __init__(
        self, bundle: Bundle, engine: Any, way: Any, turns: Turns, prompts: Prompts
    ) -> None:
        if not isinstance(way, Screening):
            raise InputError(
                "memory_budget",
                "free labels need the whole decoder in memory; load the judge without a memory "
                "budget",
            )
        self._bundle, self._engine, self._way = bundle, engine, way
        self._turns, self._prompts = turns, prompts
        self._labels = LabelScoring(bundle, engine, prompts)

    def ask(
        self,
        images: Images,
        question: str,
        labels: Sequence[str],
        choices: bool,
        per_token: bool | None,
        wording: str | None,
        stop: Stop,
    ) -> Answer:
        record = Record()
        made = self._prepared(images, stop, record)
        if not choices:
            if wording is not None:
                question = wordings.fill(wording, ["question"], question=question)
            (found,) = self._ask(
                made, [LabelQuestion(question, tuple(labels), per_token=per_token)], stop, record
            )
            return self._answer(question, labels, [found], [found.probabilities], record)
        asked, orders = _orders(question, labels, wording)
        found_all = self._ask(made, asked, stop, record)
        each = [
            tuple(found.probabilities[order.index(place)] for place in range(len(labels)))
            for found, order in zip(found_all, orders, strict=True)
        ]
        return self._answer(question, labels, found_all, each, record)

    def score(
        self,
        images: Images,
        criterion: str | Rubric | Tasks,
        method: str,
        wording: str | None,
        temperature: float,
        stop: Stop,
    ) -> Score:
        if isinstance(criterion, str):
            criterion = rubric(criterion, method, wording=wording, temperature=temperature)
        elif wording is not None or temperature != 1.0 or method != "rubric":
            raise ValueError("a rubric has its own method, wording and temperature")
        tasks = criterion if isinstance(criterion, Tasks) else None
        rubrics = (criterion,) if isinstance(criterion, Rubric) else criterion.rubrics
        record = Record()
        made = self._prepared(images, stop, record)
        found = self._ask(made, [each.question() for each in rubrics], stop, record)
        scores = tuple(each.score(one) for each, one in zip(rubrics, found, strict=True))
        value = normalised = 0.0
        if tasks is None:
            value, normalised = scores[0].value, scores[0].normalised
        else:
            value = normalised = tasks.combine(scores)
        return Score(
            name=criterion.name,
            value=value,
            normalised=normalised,
            combination=None if tasks is None else tasks.combination,
            tasks=scores,
            made=record.provenance(self._bundle),
        )

    def checklist(self, images: Images, checklist: Checklist, stop: Stop) -> ChecklistResult:
        record = Record()
        made = self._prepared(images, stop, record)
        asked = [
            LabelQuestion(self._yes_no(each.text, checklist.wording), _YES_NO)
            for each in checklist.criteria
        ]
        found = self._ask(made, asked, stop, record)
        names = known_names(self._bundle.manifest.concepts)
        band = self._bundle.manifest.band if checklist.band is None else checklist.band
        results = []
        for each, scores in zip(checklist.criteria, found, strict=True):
            probability = scores.probabilities[0 if each.wanted else 1]
            known = knows(names, each.text, self._bundle.manifest.patterns)
            if not known:
                message = f"'{each.text}' is none of the concepts this bundle was made for"
                record.notes.append(Note("unknown_concept", message))
            sure = known and abs(probability - 0.5) > band
            results.append(
                CriterionResult(
                    each.id,
                    each.text,
                    "yes" if each.wanted else "no",
                    each.weight,
                    "uncertain" if not sure else "met" if probability > 0.5 else "unmet",
                    probability,
                    known,
                )
            )
        whole = sum(each.weight for each in results)

        def share(*outcomes: str) -> float:
            return sum(each.weight for each in results if each.outcome in outcomes) / whole

        return ChecklistResult(
            name=checklist.name,
            score=sum(each.weight * each.probability for each in results) / whole,
            between=(share("met"), share("met", "uncertain")),
            band=band,
            criteria=tuple(results),
            made=record.provenance(self._bundle),
        )

    # --- what the other calls use too ------------------------------------------------------------

    def _prepare(self, image: ImageInput, stop: Stop, record: Record) -> OneAhead:
        """Read and encoded; with its `failure` where it cannot be."""
        one = self._way.prepare(image, stop)
        record.traces[id(one.trace)] = one.trace
        return one

    def _prepared(self, images: Images, stop: Stop, record: Record) -> list[OneAhead]:
        listed = images if isinstance(images, list | tuple) else [] if images is None else [images]
        for image in listed:
            one = self._prepare(image, stop, record)
            if one.failure is not None:
                place = f"{one.path}: " if one.path else ""
                raise InputError(one.failure.code, f"{place}{one.failure.message}")
            record.pictures.append(one)
        return list(record.pictures)

    def _ask(
        self,
        made: Sequence[OneAhead],
        questions: Sequence[LabelQuestion],
        stop: Stop,
        record: Record,
    ) -> list[LabelScores]:
        """All questions over the pictures, one behind the other, or over none."""
        asked = [self._labels.compile(question, not made) for question in questions]
        return self._answers(made, asked, stop, record)

    def _answers(
        self, made: Sequence[OneAhead], asked: Sequence[AskedLabels], stop: Stop, record: Record
    ) -> list[LabelScores]:
        with self._having(made, stop, record) as prefix:
            found = self._labels.answer(prefix, asked)
        record.questions += len(asked)
        record.notes += [note for one in found for note in one.notes]
        return found

    @contextmanager
    def _having(self, made: Sequence[OneAhead], stop: Stop, record: Record) -> Iterator[Any]:
        with self._way.having(made, stop, self._turns) as (prefix, found, reused):
            trace = self._engine.trace
            record.traces[id(trace)] = trace
            record.found.add(found)
            record.reused += reused
            yield prefix

    def _yes_no(self, condition: str, wording: str | None) -> str:
        if wording is None:
            return self._prompts.question(condition)
        return wordings.fill(wording, ["criterion"], criterion=condition)

    def _answer(
        self,
        question: str,
        labels: Sequence[str],
        found: Sequence[LabelScores],
        orders: Sequence[Sequence[float]],
        record: Record,
    ) -> Answer:
        """`orders` are the probabilities of the labels in each order they were shown in."""
        each = [[order[place] for order in orders] for place in range(len(labels))]
        means = [fsum(values) / len(values) for values in each]
        best = means.index(max(means))
        masses = [one.mass for one in found if one.mass is not None]
        return Answer(
            question=question,
            label=labels[best],
            labels=tuple(
                LabelAnswer(label, mean, max(values) - min(values))
                for label, mean, values in zip(labels, means, each, strict=True)
            ),
            mass=fsum(masses) / len(masses) if masses else None,
            head=found[0].head,
            per_token=found[0].per_token,
            orders=len(orders),
            agreeing=sum(list(order).index(max(order)) == best for order in orders),
            made=record.provenance(self._bundle),
        )


def _orders(
    question: str, options: Sequence[str], wording: str | None
) -> tuple[list[LabelQuestion], list[list[int]]]:
    """A question for each turn of the options, and which option each of its letters stands for.

    They are turned from their alphabetical order, so that the order in which a caller gives them
    cannot matter.
    """
    most = len(wordings.LETTERS)
    if not 2 <= len(options) <= most or len(set(options)) < len(options):
        raise InputError(
            "labels", f"{len(options)} options; give 2 to {most} that differ from each other"
        )
    if not all(option.strip() for option in options):
        raise InputError("labels", "an option is empty; give its text")
    letters = tuple(wordings.LETTERS[: len(options)])
    start = sorted(range(len(options)), key=lambda place: options[place])
    asked, orders = [], []
    for turn in range(len(options)):
        order = start[turn:] + start[:turn]
        text = wordings.with_options(question, [options[place] for place in order], wording)
        asked.append(LabelQuestion(text, letters))
        orders.append(order)
    return asked, orders
