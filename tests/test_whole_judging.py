"""Judging by a whole policy: a model that answers as it is told, and real graphs that babble."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import tiny
import tiny_qwen
from edgejudge import whole_judging
from edgejudge.answering.label_scores import LabelScores, LabelScoring
from edgejudge.batches import Batches
from edgejudge.bundle import Bundle
from edgejudge.errors import InputError, ProviderError
from edgejudge.export import export
from edgejudge.judge import Judge
from edgejudge.policy import Policy, load_policy
from edgejudge.runtime import Engine
from edgejudge.verdict import Verdict
from edgejudge.whole_answer import parse_answer
from edgejudge.whole_policy import rationale_lead, request
from fake_judge import END, FakeEngine, Length, fake_judge, manifest

torch.set_num_threads(1)
VOCABULARY = 128
PICTURE = Image.new("RGB", (16, 16), (200, 30, 30))
SMALL = Policy.from_yaml("""\
name: small
version: 1
answer: json
rules:
  - {id: harm, text: Harm, category: a, code: O1, bodies: {default: d, allowed: e, sensitive: f}}
  - {id: drugs, text: Drugs, category: b, code: O2, bodies: {default: g, allowed: h, sensitive: i}}
""")


class Text(Length):
    """A prefix that knows its tokens as text, with the ends of the request between them."""

    text: str

    def __new__(cls, length: int, text: str) -> "Text":
        made = super().__new__(cls, length)
        made.text = text
        return made


class WritingEngine(FakeEngine):
    """A language model over whole answers: each has a weight, and a letter's probability follows.

    What is none of them, as after a forced beginning, is followed by nothing but noise.
    """

    def __init__(self, answers: Mapping[str, float], noise: float = 1e-6) -> None:
        super().__init__()
        self.weights, self.noise = answers, noise
        self.requests: set[str] = set()
        self.steps = 0
        self._ends: list[str] = []

    def _put(self, after: Any, ids: Sequence[int]) -> Text:
        text = "".join(map(chr, ids))
        return Text((after or 0) + len(ids), (after.text if isinstance(after, Text) else "") + text)

    def prefill(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> Any:
        prefix = super().prefill(ids, visual, positions, after)
        if visual is not None or after is None:
            return prefix
        self.prefixes[-1] = self._put(after, ids)
        return self.prefixes[-1]

    def _hidden(self, text: str) -> float:
        request, _, written = text.partition(chr(END))
        self.requests.add(request)
        self._ends.append(written)
        return len(self._ends) - 1

    def ends(self, prefix: Any, branches: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        texts = [self._put(prefix, ids).text for ids in branches]
        return np.array([[self._hidden(text)] for text in texts], np.float32)

    def append(
        self,
        ids: Sequence[int],
        visual: NDArray[np.float32] | None = None,
        positions: NDArray[np.int64] | None = None,
        after: Any = None,
    ) -> tuple[Any, NDArray[np.float32]]:
        prefix = self._put(after, ids)
        return prefix, np.array([self._hidden(prefix.text)], np.float32)

    def step(self, token: int, after: Any) -> tuple[Any, NDArray[np.float32]]:
        self.steps += 1
        return self.append([token], after=after)

    def room(self, prefix: Any) -> int:
        return 1000

    def full_logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        found = np.full((len(hidden), VOCABULARY), self.noise)
        for row, place in zip(found, hidden[:, 0].astype(int), strict=True):
            written = self._ends[place]
            for answer, weight in self.weights.items():
                # The fake tokenizer has no line breaks.
                if (answer := answer.replace("\n", " ")).startswith(written):
                    row[ord(answer[len(written)]) if len(answer) > len(written) else END] += weight
        return np.log(found / found.sum(axis=1, keepdims=True)).astype(np.float32)


class Free:
    """A document that may be anything."""

    complete = False
    tail = ()

    def allowed(self) -> NDArray[np.bool_]:
        return np.ones(VOCABULARY, bool)

    def take(self, token: int, left: int) -> bool:
        return True


Make = Callable[..., tuple[Judge, WritingEngine]]


@pytest.fixture
def make(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Make:
    def judge(
        answers: Mapping[str, float], noise: float = 1e-6, concepts: tuple[str, ...] = ()
    ) -> tuple[Judge, WritingEngine]:
        engine = WritingEngine(answers, noise)
        made = fake_judge(tmp_path_factory.mktemp("judge"), manifest(concepts=concepts), engine)
        # The fake tokenizer would decode with spaces between its characters.
        monkeypatch.setattr(made._prompts, "decode", lambda ids: "".join(map(chr, ids)))
        monkeypatch.setattr(made._way, "document", lambda schema, most: Free())
        return made, engine

    return judge


def screened(judge: Judge, policy: Any, **more: Any) -> Verdict:
    verdict = judge.screen(PICTURE, policy, **more)
    assert isinstance(verdict, Verdict)
    json.dumps(verdict.to_json(), allow_nan=False)
    return verdict


def said(rating: str, category: str, rationale: str) -> str:
    return rationale_lead(rating, category) + json.dumps(rationale)


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {rule.id: rule.verdict for rule in verdict.rules}


UNSAFE = said("Unsafe", "O2: Drugs", "A syringe.")


def test_a_rating_is_read_and_a_rationale_written(make: Make) -> None:
    judge, engine = make({UNSAFE: 0.8, said("Safe", "NA: None applying", "A cat."): 0.2})
    verdict = screened(judge, SMALL)
    assert verdict.verdict == "unsafe" and outcomes(verdict) == {
        "harm": "uncertain",
        "drugs": "unsafe",
    }
    (broken,) = verdict.broken
    assert broken.probability == pytest.approx(0.8, abs=1e-3)
    assert (broken.conditions[0].test, broken.conditions[0].deciding.rationale) == (
        "answer",
        "A syringe.",
    )
    assert verdict.rules[0].probability == pytest.approx(0, abs=1e-3)
    assert engine.requests == {re.sub("\n+", " ", request(SMALL))}
    assert verdict.stages_used == ("answer",) and verdict.notes == ()


def test_a_safe_rating_needs_no_writing(make: Make) -> None:
    judge, engine = make({UNSAFE: 0.1, said("Safe", "NA: None applying", "A cat."): 0.9})
    verdict = screened(judge, SMALL)
    assert verdict.verdict == "safe" and set(outcomes(verdict).values()) == {"safe"}
    assert engine.steps == 0
    assert verdict.rules[1].probability == pytest.approx(0.1, abs=1e-3)


def test_an_undecided_rating_leaves_all_open(make: Make) -> None:
    judge, _ = make({UNSAFE: 0.5, said("Safe", "NA: None applying", "A cat."): 0.5})
    verdict = screened(judge, SMALL)
    assert verdict.verdict == "uncertain" and set(outcomes(verdict).values()) == {"uncertain"}


@pytest.mark.parametrize(
    ("answers", "strictness", "expected"),
    [
        ({said("Unsafe", "NA: None applying", "x"): 1.0}, {}, "category is 'NA: None applying'"),
        ({UNSAFE: 1.0}, {"drugs": "allowed"}, "'O2: Drugs', which is allowed here"),
        ({"I would rather not say.": 1.0}, {}, "of what the model would write here"),
    ],
)
def test_what_cannot_be_read_is_never_safe(
    make: Make, answers: dict[str, float], strictness: dict[str, str], expected: str
) -> None:
    judge, _ = make(answers)
    verdict = screened(judge, SMALL, strictness=strictness)
    assert verdict.verdict == "uncertain" and set(outcomes(verdict).values()) == {"uncertain"}
    (note,) = (note for note in verdict.notes if note.code == "unreadable_answer")
    assert expected in note.message
    assert ("allowed" in {note.code for note in verdict.notes}) == bool(strictness)


def test_strictness_is_told_to_the_model_without_a_new_judge(make: Make) -> None:
    judge, engine = make({UNSAFE: 1.0})
    before = screened(judge, SMALL)
    after = screened(judge, SMALL, strictness={"a": "allowed", "drugs": "sensitive"})
    assert after.policy_sha256 != before.policy_sha256
    assert outcomes(after) == {"drugs": "unsafe"}
    asked = " O1: Harm e O2: Drugs i "
    assert [asked in text for text in sorted(engine.requests)].count(True) == 1
    with pytest.raises(InputError, match="no category or rule 'weapons'; its categories are a, b"):
        judge.screen(PICTURE, SMALL, strictness={"weapons": "allowed"})
    with pytest.raises(InputError, match="a plan is made with its strictness"):
        judge.screen(PICTURE, judge.plan(SMALL), strictness={"a": "allowed"})
    with pytest.raises(InputError, match="'small' is judged as a whole; it has no method"):
        judge.plan(SMALL, method="clue")


def test_without_the_grammar_a_verdict_has_no_rationale(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, engine = make({UNSAFE: 1.0})

    def missing(schema: Any, most: int) -> Any:
        raise ProviderError("install it with `pip install 'edgejudge[text]'`")

    monkeypatch.setattr(judge._way, "document", missing)
    verdict = screened(judge, SMALL)
    assert outcomes(verdict)["drugs"] == "unsafe" and engine.steps == 0
    assert [note.code for note in verdict.notes] == ["no_rationale"]


@pytest.mark.parametrize(
    ("answers", "broken", "verdict", "notes"),
    [
        ({"unsafe\nS1,S10": 1.0}, {"violent_crimes", "hate"}, "unsafe", []),
        ({"unsafe\nS3": 0.6, "safe": 0.4}, {"sex_crimes"}, "unsafe", []),
        ({"unsafe\nS3": 0.4, "safe": 0.6}, set(), "safe", []),
        ({"unsafe\nS3": 0.5, "safe": 0.5}, set(), "uncertain", []),
        ({"unsafe\nS2,S77": 1.0}, {"non_violent_crimes"}, "unsafe", ["unknown_code"]),
        ({"unsafe\nS77": 1.0}, set(), "uncertain", ["unreadable_answer", "unknown_code"]),
        ({"unsafe\n": 1.0}, set(), "uncertain", ["unreadable_answer"]),
        ({"What a nice picture!": 1.0}, set(), "uncertain", ["unreadable_answer"]),
    ],
)
def test_codes(
    make: Make, answers: dict[str, float], broken: set[str], verdict: str, notes: list[str]
) -> None:
    judge, _ = make(answers)
    found = screened(judge, "llamaguard")
    assert found.verdict == verdict and {rule.id for rule in found.broken} == broken
    assert [note.code for note in found.notes] == notes
    if broken:
        assert {rule.verdict for rule in found.rules} == {"unsafe", "safe"}


def test_a_specialist_is_not_asked(make: Make) -> None:
    judge, engine = make({"safe": 1.0}, concepts=("a gun",))
    for name in ("llamaguard", "llavaguard"):
        verdict = screened(judge, name)
        assert verdict.verdict == "uncertain" and set(outcomes(verdict).values()) == {"uncertain"}
        assert {rule.conditions[0].test for rule in verdict.rules} == {"unknown_concept"}
        assert [note.code for note in verdict.notes] == ["unknown_question"]
    assert engine.requests == set()


def test_failures_stay_failures(make: Make) -> None:
    judge, engine = make({"safe": 1.0})
    assert screened(judge, "llamaguard").verdict == "safe"
    engine.failure = InputError("too_long", "it does not fit")
    verdict = screened(judge, "llamaguard")
    assert verdict.verdict is None and verdict.error is not None and verdict.rules == ()
    assert verdict.error.code == "too_long"


class Sliced:
    """What a memory budget leaves of an engine."""

    placement: dict[str, str] = {}
    trace: Any = None
    interrupt: Any = None

    def new_trace(self) -> Any:
        return FakeEngine().new_trace()

    def ask(self, requests: Any) -> list[Any]:
        assert list(requests) == []
        return []

    def score_blind(self, prompts: Any) -> Any: ...
    def label_probabilities(self, logits: Any) -> Any: ...


def test_a_memory_budget_gives_one_clear_row(make: Make) -> None:
    judge, _ = make({"safe": 1.0})
    small = Judge(judge.bundle, Sliced())
    assert isinstance(small._way, Batches)
    (verdict,) = small.screen([PICTURE], "llavaguard")
    assert verdict.verdict is None and verdict.error is not None
    assert verdict.error.code == "memory_budget"
    assert "'llavaguard' is judged as a whole, which needs the whole decoder" in str(
        verdict.error.message
    )


@pytest.fixture(scope="module")
def babblers(tmp_path_factory: pytest.TempPathFactory) -> list[Judge]:
    made = []
    for maker in (tiny, tiny_qwen):
        folder = tmp_path_factory.mktemp(maker.__name__)
        checkpoint = maker.make_checkpoint(folder / "checkpoint")
        bundle = Bundle.open(export(checkpoint, folder / "bundle", "exact"), unsealed=True)
        made.append(Judge(bundle, Engine.open(bundle, threads=1)))
    return made


def test_what_no_judge_of_policies_says_decides_nothing(babblers: list[Judge]) -> None:
    for judge in babblers:
        for policy in (SMALL, "llamaguard"):
            verdict = screened(judge, policy)
            assert verdict.verdict == "uncertain" and verdict.error is None
            assert [note.code for note in verdict.notes] == ["unreadable_answer"]
        assert screened(judge, "llavaguard").error is not None  # 2048 positions are too few


@pytest.mark.parametrize("unsafe", [0.5, 0.97])
def test_real_graphs_write_answers_that_always_parse(
    babblers: list[Judge], monkeypatch: pytest.MonkeyPatch, unsafe: float
) -> None:
    answered = LabelScoring.answer

    def believed(self: Any, prefix: Any, asked: Any) -> list[LabelScores]:
        rating, *more = answered(self, prefix, asked)
        return [replace(rating, probabilities=(1 - unsafe, unsafe), mass=1.0), *more]

    monkeypatch.setattr(LabelScoring, "answer", believed)
    monkeypatch.setattr(whole_judging, "MAX_RATIONALE_TOKENS", 24)
    rng = np.random.default_rng(0)
    for judge in babblers:
        for _ in range(3):
            picture = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
            verdict = judge.screen(picture, SMALL)
            assert isinstance(verdict, Verdict) and verdict.error is None
            assert verdict.verdict == ("unsafe" if unsafe > 0.9 else "uncertain") or {
                note.code for note in verdict.notes
            } == {"unreadable_answer"}
            for rule in verdict.broken:
                deciding = rule.conditions[0].deciding
                assert deciding.rationale is not None
                text = said("Unsafe", deciding.text, deciding.rationale) + "}"
                again = parse_answer(text, SMALL)
                assert again.outcome == "unsafe" and again.rationale == deciding.rationale
            codes = judge.screen(picture, "llamaguard")  # babble is no code
            assert isinstance(codes, Verdict) and codes.verdict == "uncertain"


def test_shieldgemma_is_asked_its_own_question(babblers: list[Judge]) -> None:
    judge = babblers[0]
    policy = load_policy("shieldgemma")
    plan = judge.plan(policy)
    assert policy.question is not None
    (text,) = policy.rules[0].conditions[0]
    ids = judge._prompts.request_ids(policy.question.replace("{condition}", text))
    assert plan.branches[0] == tuple(ids)
    verdict = screened(judge, policy)
    assert verdict.verdict is not None and len(verdict.rules) == 3
    priors = judge.language_priors(policy)
    plain = judge._way.priors([text], _stop(), judge._turns)
    assert priors[text] != plain[text], "the prior is of the question that is asked"


def _stop() -> Any:
    from edgejudge.turns import Stop

    return Stop()
