"""What a Judge answers beside screening: `ask`, `score`, `checklist`, `compare`, `compare_answers`
and `rank`.

Takes pictures and what to ask; gives the records of answers and comparisons. The work is done in
asking and comparing, which are imported with the first call: screening starts without them.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from edgejudge.bundle import Bundle
from edgejudge.images import ImageInput
from edgejudge.models.prompt import Prompts
from edgejudge.turns import Stop, Turns

if TYPE_CHECKING:
    from edgejudge.answering.answers import Answer, ChecklistResult, Score
    from edgejudge.answering.comparing import Comparing
    from edgejudge.answering.comparisons import Comparison, Ranking
    from edgejudge.answering.rubrics import Checklist, Rubric, Tasks

__all__ = ["EPSILON", "Calls", "Images"]

# A picture, several in one prompt, or none.
Images: TypeAlias = ImageInput | list[ImageInput] | tuple[ImageInput, ...] | None

EPSILON = 0.02  # of a probability, within which two are a tie


class Calls:
    """A part of Judge.

    Each call raises InputError for a picture or a question that cannot be used, for a timeout, with
    the code `too_many_images` for more pictures than the context holds, and within a memory budget;
    ProviderError for logits that are not numbers.
    """

    bundle: Bundle
    engine: Any
    _way: Any
    _turns: Turns
    _prompts: Prompts

    def ask(
        self,
        images: Images,
        question: str,
        labels: Sequence[str],
        *,
        choices: bool = False,
        per_token: bool | None = None,
        wording: str | None = None,
        timeout: float | None = None,
    ) -> "Answer":
        """How probable each label is as the answer to a free question about a picture, several in
        one prompt, or none.

        With `choices` the labels are options that are shown under letters, in as many orders as
        there are options: every option stands under every letter once, and the mean counts, so that
        a preference for a letter cancels. `per_token` takes the mean of a label's log probabilities
        in place of their sum; None does so where some label has several tokens. `wording` has
        {question}, and of choices {options}.
        """
        return self._calls.ask(
            images, question, tuple(labels), choices, per_token, wording, Stop(timeout)
        )

    def score(
        self,
        images: Images,
        criterion: "str | Rubric | Tasks",
        method: str = "rubric",
        *,
        wording: str | None = None,
        temperature: float = 1.0,
        timeout: float | None = None,
    ) -> "Score":
        """How much of a criterion a picture has, or several in one prompt: the expectation over a
        rubric's labels, their logits divided by `temperature`.

        A criterion in words, like "crowded", is asked by a `method`: "rubric" is 1 to 5, "reward" 0
        to 5, "quality" good or poor, "count" 0 to 4; `wording` has {criterion}. A Rubric or Tasks
        brings its own.
        """
        return self._calls.score(images, criterion, method, wording, temperature, Stop(timeout))

    def checklist(
        self, images: Images, checklist: "Checklist", *, timeout: float | None = None
    ) -> "ChecklistResult":
        """Which criteria a picture meets, and the weighted share of those that it does: all are
        asked packed over one prefix.
        """
        return self._calls.checklist(images, checklist, Stop(timeout))

    def compare(
        self,
        a: ImageInput,
        b: ImageInput,
        criterion: str,
        *,
        wording: str | None = None,
        epsilon: float = EPSILON,
        timeout: float | None = None,
    ) -> "Comparison":
        """Which of two pictures a criterion fits better, like "is more crowded": both in one
        prompt, in both orders.

        `wording` has {criterion}; its answers are A for the first picture and B for the second.
        """
        return self._calls.compare(a, b, criterion, wording, epsilon, Stop(timeout))

    def compare_answers(
        self,
        images: Images,
        instruction: str,
        a: str,
        b: str,
        criterion: str = "follows the request better",
        *,
        wording: str | None = None,
        epsilon: float = EPSILON,
        timeout: float | None = None,
    ) -> "Comparison":
        """Which of two texts about a picture, several or none is the better answer to an
        instruction, like the pairs of MLLM-as-a-Judge. Both orders are packed over the picture.

        `wording` has {instruction}, {a} and {b}, and may have {criterion}.
        """
        return self._calls.compare_answers(
            images, instruction, a, b, criterion, wording, epsilon, Stop(timeout)
        )

    def rank(
        self,
        images: Sequence[ImageInput],
        criterion: str,
        *,
        method: Literal["pairs", "yes"] = "pairs",
        pairs: int | None = None,
        wording: str | None = None,
        epsilon: float = EPSILON,
        timeout: float | None = None,
    ) -> "Ranking":
        """Pictures by how well a criterion fits them, best first.

        "pairs" compares every two in both orders, or as few as `pairs` says, and fits strengths to
        the mean probabilities (Bradley and Terry, 1952); the criterion is as in `compare`. "yes"
        asks each picture by itself and sorts by P(yes), as RagVL does; the criterion is a
        condition, as in a policy. A picture that cannot be judged is listed as unranked; fewer than
        two that can are an InputError.
        """
        return self._calls.rank(
            list(images), criterion, method, pairs, wording, epsilon, Stop(timeout)
        )

    @cached_property
    def _calls(self) -> "Comparing":
        from edgejudge.answering.comparing import Comparing

        return Comparing(self.bundle, self.engine, self._way, self._turns, self._prompts)
