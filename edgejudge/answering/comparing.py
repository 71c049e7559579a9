"""Pictures and texts against each other: how `compare`, `compare_answers` and `rank` are done.

Takes pictures and a criterion; gives the records of comparisons. Everything is asked in both
orders. Knows no tokens and no graph.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Literal

from edgejudge.answering import wordings
from edgejudge.answering.answers import PictureName
from edgejudge.answering.asking import Asking, Record
from edgejudge.answering.comparisons import Comparison, Pair, Ranked, Ranking, Unranked
from edgejudge.answering.label_scores import LabelQuestion, LabelScores
from edgejudge.answering.pairing import Both, both_orders, bradley_terry, pairs_within, ranks
from edgejudge.calls import Images
from edgejudge.errors import InputError
from edgejudge.images import ImageInput
from edgejudge.screening import OneAhead
from edgejudge.turns import Stop

__all__ = ["Comparing"]

_A_OR_B = ("A", "B")


class Comparing(Asking):
    """As Asking, of two pictures or texts and more."""

    def compare(
        self,
        a: ImageInput,
        b: ImageInput,
        criterion: str,
        wording: str | None,
        epsilon: float,
        stop: Stop,
    ) -> Comparison:
        record = Record()
        question = _compare_question(criterion, wording)
        first, second = self._prepared([a, b], stop, record)
        (ab,) = self._ask([first, second], [question], stop, record)
        (ba,) = self._ask([second, first], [question], stop, record)
        return self._comparison(criterion, ab, ba, epsilon, record)

    def compare_answers(
        self,
        images: Images,
        instruction: str,
        a: str,
        b: str,
        criterion: str,
        wording: str | None,
        epsilon: float,
        stop: Stop,
    ) -> Comparison:
        record = Record()
        made = self._prepared(images, stop, record)
        asked = [
            LabelQuestion(
                wordings.fill(
                    wording or wordings.ANSWERS,
                    ["instruction", "a", "b"],
                    instruction=instruction,
                    a=one,
                    b=other,
                    criterion=criterion,
                ),
                _A_OR_B,
            )
            for one, other in ((a, b), (b, a))
        ]
        ab, ba = self._ask(made, asked, stop, record)
        return self._comparison(criterion, ab, ba, epsilon, record)

    def rank(
        self,
        images: Sequence[ImageInput],
        criterion: str,
        method: Literal["pairs", "yes"],
        pairs: int | None,
        wording: str | None,
        epsilon: float,
        stop: Stop,
    ) -> Ranking:
        if method not in ("pairs", "yes"):
            raise ValueError(f"method is {method!r}, expected 'pairs' or 'yes'")
        if not 0 <= epsilon < 0.5:
            raise InputError("epsilon", f"epsilon is {epsilon}, expected 0 to 0.5")
        record = Record()
        kept: list[tuple[int, OneAhead]] = []
        unranked = []
        for index, image in enumerate(images):
            one = self._prepare(image, stop, record)
            if one.failure is not None:
                unranked.append(Unranked(index, one.path, one.failure))
                continue
            if one.encoded is not None:
                one.rgb = None  # pixels of all pictures together would take much memory
            kept.append((index, one))
        stop.check()  # else every picture would be to blame for what was too little time
        if len(kept) < 2:
            why = f" ({unranked[0].error.message})" if unranked else ""
            raise InputError(
                "too_few_images",
                f"{len(kept)} of {len(images)} pictures can be judged{why}; give at least two",
            )
        record.pictures = [one for _, one in kept]
        compared: list[Pair] = []
        if method == "yes":
            question = LabelQuestion(self._yes_no(criterion, wording), ("yes", "no"))
            scores = [
                self._ask([one], [question], stop, record)[0].probabilities[0] for _, one in kept
            ]
        else:
            chosen = pairs_within(len(kept), pairs)
            compared = self._pairs(kept, chosen, criterion, wording, epsilon, stop, record)
            wins = [pair.probability_a for pair in compared]
            scores = bradley_terry(len(kept), chosen, wins).tolist()
        ranked = tuple(
            Ranked(
                rank,
                kept[place][0],
                PictureName(kept[place][1].path, kept[place][1].sha256),
                scores[place],
            )
            for rank, place in ranks(scores, epsilon, method == "pairs")
        )
        return Ranking(
            criterion=criterion,
            method=method,
            ranked=ranked,
            unranked=tuple(unranked),
            epsilon=epsilon,
            pairs=tuple(compared),
            possible_pairs=len(kept) * (len(kept) - 1) // 2,
            made=record.provenance(self._bundle),
        )

    def _pairs(
        self,
        kept: Sequence[tuple[int, OneAhead]],
        pairs: Sequence[tuple[int, int]],
        criterion: str,
        wording: str | None,
        epsilon: float,
        stop: Stop,
        record: Record,
    ) -> list[Pair]:
        question = _compare_question(criterion, wording)
        # By the first picture: it is computed once for all that stand behind it.
        both = sorted(chain.from_iterable(((i, j), (j, i)) for i, j in pairs))
        found = {
            (i, j): self._ask([kept[i][1], kept[j][1]], [question], stop, record)[0]
            for i, j in both
        }
        compared = []
        for i, j in pairs:
            result = _orders(found[i, j], found[j, i], epsilon)
            compared.append(Pair(kept[i][0], kept[j][0], result.a, result.gap, result.winner))
        return compared

    def _comparison(
        self, criterion: str, ab: LabelScores, ba: LabelScores, epsilon: float, record: Record
    ) -> Comparison:
        both = _orders(ab, ba, epsilon)
        made = record.provenance(self._bundle)
        return Comparison(
            criterion, both.winner, both.a, both.b, both.gap, epsilon, both.orders, made
        )


def _compare_question(criterion: str, wording: str | None) -> LabelQuestion:
    text = wordings.fill(wording or wordings.COMPARE, ["criterion"], criterion=criterion)
    return LabelQuestion(text, _A_OR_B)


def _orders(ab: LabelScores, ba: LabelScores, epsilon: float) -> Both:
    return both_orders(ab.probabilities, ba.probabilities, (ab.mass, ba.mass), epsilon)
