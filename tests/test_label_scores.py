"""Label scores of real graphs: packed like one by one, by the verdict head like by the LM head, and
labels of several tokens like whole prompts.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
import tiny_qwen
from edgejudge import Judge
from edgejudge.answering.label_scores import LabelQuestion, LabelScoring
from edgejudge.answering.rubrics import rubric
from edgejudge.combinations import Spoken
from edgejudge.errors import ExportError, InputError
from edgejudge.export import export
from edgejudge.fidelity import export_bundle
from edgejudge.models.image import canary_image
from edgejudge.models.labels import label_tokens, lead_in_of
from edgejudge.runtime import Engine
from edgejudge.turns import Stop

PICTURES = [Image.fromarray(canary_image(*size)) for size in ((40, 60), (64, 48))]
SINGLE = LabelQuestion("Is it a cat or a dog?", ("A", "B", "C"))
SPELLED = LabelQuestion("Is a knife visible?", ("knife", "the knife", "a dog", "visible in"))
SUMMED = LabelQuestion("Is a knife visible?", SPELLED.labels, per_token=False)
LEAD = LabelQuestion("Is a dog visible?", ("good", "knife"), "The image is")
VERDICT = LabelQuestion("Is beer visible?", ("yes", "no"))
ALL = [SINGLE, SPELLED, SUMMED, LEAD, VERDICT]
NAMES = {"yes": ["Yes", " Yes", "yes", " yes"], "no": ["No", " No", "no", " no"]}
OTHERS = {label: [label, f" {label}"] for label in ("1", "2", "3", "4", "5", "A", "B")}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("labels")
    checkpoints = {
        "smolvlm": tiny.make_checkpoint(root / "smolvlm", card=tiny.make_card()),
        "qwen2_5_vl": tiny_qwen.make_checkpoint(root / "qwen"),
        "card": tiny.make_checkpoint(
            root / "card", card=tiny.make_card(labels={**NAMES, **OTHERS})
        ),
    }
    for name, folder in checkpoints.items():
        export_bundle(folder, root / f"{name}-bundle", recipe="exact")
    return {name: root / f"{name}-bundle" for name in checkpoints}


@pytest.fixture(scope="module")
def judge_of(bundles: dict[str, Path]) -> Callable[[str], Judge]:
    """By name; nano is the one that ships."""
    return cache(lambda name: Judge.load(bundles.get(name), threads=1))


def scores(judge: Judge, questions: list[LabelQuestion], pictures: list[Any]) -> list[Any]:
    scoring = LabelScoring(judge.bundle, judge.engine, judge._prompts)  # type: ignore[arg-type]
    made = [judge._way.prepare(picture, Stop()) for picture in pictures]  # type: ignore[union-attr]
    asked = [scoring.compile(question, not pictures) for question in questions]
    with judge._way.having(made, Stop(), judge._turns) as (prefix, *_):  # type: ignore[union-attr]
        return scoring.answer(prefix, asked)


def whole_prompts(judge: Judge, question: LabelQuestion, pictures: list[Any]) -> list[float]:
    """Every spelling of every label run as one prompt behind the pictures, token by token."""
    engine: Any = judge.engine
    scoring = LabelScoring(judge.bundle, engine, judge._prompts)
    one = scoring.compile(question, not pictures)
    made = [judge._way.prepare(picture, Stop()) for picture in pictures]  # type: ignore[union-attr]
    found = []
    for ways in one.sequences:
        each = []
        for way in ways:
            total = 0.0
            for index, token in enumerate(way):
                with judge._way.having(made, Stop(), judge._turns) as (prefix, *_):  # type: ignore[union-attr]
                    _, hidden = engine.append([*one.ids, *way[:index]], after=prefix)
                    logits = engine.full_logits(hidden[None])[0].astype(np.float64)
                total += logits[token] - np.logaddexp.reduce(logits)
            each.append(total / len(way) if one.per_token else total)
        found.append(max(each) if one.per_token else float(np.logaddexp.reduce(each)))
    return found


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl", "nano"])
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_packed_is_one_by_one(judge_of: Callable[[str], Judge], name: str, pictures: int) -> None:
    judge, shown = judge_of(name), PICTURES[:pictures]
    packed = scores(judge, ALL, shown)
    for question, together in zip(ALL, packed, strict=True):
        (alone,) = scores(judge, [question], shown)
        assert alone.probabilities == pytest.approx(together.probabilities, abs=1e-5)
        assert alone.scores == pytest.approx(together.scores, abs=1e-4)
        assert (alone.mass is None) == (question is VERDICT)
        assert sum(together.probabilities) == pytest.approx(1)
        assert together.mass is None or 0 <= together.mass <= 1
    assert [one.head for one in packed] == ["lm_head"] * 4 + ["verdict_head"]
    if name != "nano":
        assert max(packed[1].probabilities) - min(packed[1].probabilities) > 1e-3, "it can see"


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl", "nano"])
@pytest.mark.parametrize("question", [SINGLE, SPELLED, SUMMED, LEAD])
def test_labels_are_what_whole_prompts_give(
    judge_of: Callable[[str], Judge], name: str, question: LabelQuestion
) -> None:
    judge = judge_of(name)
    # nano's integers: another pass may round an activation to another level.
    near = 0.05 if name == "nano" else 1e-4
    (found,) = scores(judge, [question], PICTURES[:1])
    assert found.scores == pytest.approx(whole_prompts(judge, question, PICTURES[:1]), abs=near)


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl", "nano"])
def test_the_text_before_an_answer_is_found(judge_of: Callable[[str], Judge], name: str) -> None:
    judge = judge_of(name)
    wanted = "assistant\n" if name == "qwen2_5_vl" else "\nAssistant:"
    assert lead_in_of(judge._prompts.tokenizer, judge.bundle.manifest.prompt.tail) == wanted


def test_labels_are_rendered_and_not_guessed(judge_of: Callable[[str], Judge]) -> None:
    tokenizer = judge_of("smolvlm")._prompts.tokenizer
    found = label_tokens(tokenizer, "\nAssistant:", ["knife", "dog"], {})
    assert found.single
    for label, ways in zip(("knife", "dog"), found.sequences, strict=True):
        for (token,) in ways:
            assert tokenizer.decode([token]).strip().lower() == label
    assert [len(w) for w in label_tokens(tokenizer, "", ["A", "B"], {}).sequences] == [1, 1]
    with pytest.raises(InputError, match="'yes' and 'YES' are the same tokens"):
        label_tokens(tokenizer, "", ["yes", "YES"], {})


# --- labels of a judge card ----------------------------------------------------------------------


def test_labels_of_the_card_are_rows_of_the_verdict_head(judge_of: Callable[[str], Judge]) -> None:
    """And what they say is what the LM head of the same weights says, which is never loaded."""
    plain = judge_of("smolvlm")
    judge = Judge.load(judge_of("card").bundle.path, threads=1)
    labels = ("1", "2", "3", "4", "5")
    for question, some in (("How crowded is it?", labels), ("Which one, A or B?", ("A", "B"))):
        found = judge.ask(PICTURES[0], question, some)
        wanted = plain.ask(PICTURES[0], question, some)
        assert (found.head, wanted.head) == ("verdict_head", "lm_head")
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
        assert found.mass is None and wanted.mass is not None
        blind = judge.ask(None, question, some).probabilities
        assert blind == pytest.approx(plain.ask(None, question, some).probabilities, abs=1e-4)
    crowded = judge.score(PICTURES[0], "crowded")
    assert crowded.value == pytest.approx(plain.score(PICTURES[0], "crowded").value, abs=1e-4)
    held = judge.engine.held_stages  # type: ignore[union-attr]
    assert "lm_head" not in held and "writer" not in held and "verdict_head" in held
    judge.ask(PICTURES[0], "Which one?", ("A", "B", "C"))
    assert "lm_head" in judge.engine.held_stages  # type: ignore[union-attr]


def test_other_labels_leave_verdicts_as_they_are(judge_of: Callable[[str], Judge]) -> None:
    """P(yes) goes by name, and the gate's label mass is that of yes and no."""
    judge, plain = judge_of("card"), judge_of("smolvlm")
    manifest, engine = judge.bundle.manifest, judge.engine
    assert isinstance(engine, Engine)
    assert set(manifest.labels) == {"yes", "no", *OTHERS}
    prompts = [judge._prompts.blind_ids(text) for text in ("a knife", "a dog")]
    found = engine.label_probabilities(engine.score_blind(prompts))
    logits = engine.full_logits(engine.ends(None, prompts)).astype(np.float64)
    ids = {k: [manifest.label_rows[row] for row in manifest.labels[k]] for k in ("yes", "no")}
    yes, no = (np.logaddexp.reduce(logits[:, ids[name]], axis=1) for name in ("yes", "no"))
    assert found == pytest.approx(1 / (1 + np.exp(no - yes)), abs=1e-5)
    reports = manifest.fidelity, plain.bundle.manifest.fidelity
    masses = [one.decisions.label_mass.mean for one in reports if one and one.decisions]
    assert len(masses) == 2 and masses[0] == masses[1]


def test_what_is_written_in_place_of_yes_or_no_is_no_answer(
    judge_of: Callable[[str], Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = judge_of("card").engine
    assert isinstance(engine, Engine)
    manifest = engine.bundle.manifest
    first = [manifest.label_rows[manifest.labels[name][0]] for name in ("yes", "no", "A")]
    logits = np.zeros((3, manifest.embeddings.rows), np.float32)
    logits[np.arange(3), first] = 1
    monkeypatch.setattr(Engine, "full_logits", lambda *_: logits)
    spoken = Spoken()
    spoken.add(engine, np.zeros((3, 64), np.float32), np.array([0.9, 0.9, 0.1]))
    assert (spoken.words, spoken.agree) == (2, 1)


def test_cards_whose_labels_cannot_be_used(tmp_path: Path) -> None:
    def problem(name: str, labels: dict[str, list[str]]) -> str:
        folder = tiny.make_checkpoint(tmp_path / name, card=tiny.make_card(labels=labels))
        with pytest.raises(ExportError) as error:
            export(folder, tmp_path / f"{name}-out", "exact")
        return str(error.value)

    spelled = problem("spelled", {**NAMES, "rare": ["certainly not"]})
    assert "label 'rare': none of 'certainly not' is one token" in spelled
    assert "'labels' must be 'yes' and 'no'" in problem("missing", {"yes": ["Yes"], "1": ["1"]})
    assert "token of another label" in problem("shared", {**NAMES, "sure": ["Yes"]})


# --- the calls on real graphs --------------------------------------------------------------------


def test_the_calls_on_the_bundled_judge(judge_of: Callable[[str], Judge]) -> None:
    judge = judge_of("nano")
    one, two = PICTURES
    score = judge.score(one, "crowded")
    assert 1 <= score.value <= 5
    there, back = (
        judge.compare(one, two, "is more crowded"),
        judge.compare(two, one, "is more crowded"),
    )
    assert back.probability_a == pytest.approx(there.probability_b, abs=1e-4)
    assert back.gap == pytest.approx(there.gap, abs=1e-4)
    assert there.made.prefix_cache == "miss" and back.made.prefix_cache == "hit"
    ranking = judge.rank([one, two, one], "is more crowded")
    assert len(ranking.ranked) == 3 and len(ranking.pairs) == 3
    again = judge.ask(one, "What is it?", ("a cat", "a dog", "a bird"), choices=True)
    assert again.orders == 3 and sum(again.probabilities.values()) == pytest.approx(1)
    yes = judge.rank([one, two], "a cat", method="yes")
    asked = judge.ask(one, judge._prompts.question("a cat"), ("yes", "no"))
    (found,) = [each.score for each in yes.ranked if each.index == 0]
    assert found == pytest.approx(asked.probabilities["yes"], abs=1e-4)
    own = rubric("a cat", labels={"no": 0, "yes": 1}, wording="Is {criterion} visible?")
    assert found == pytest.approx(judge.score(one, own).value, abs=1e-4)


def test_threads_take_turns(judge_of: Callable[[str], Judge]) -> None:
    judge = judge_of("smolvlm")

    def ask(place: int) -> tuple[float, ...]:
        picture, question = PICTURES[place % 2], f"Is a knife visible? {place % 3}"
        found = judge.ask(picture, question, ("A", "B", "the knife"))
        return tuple(each.probability for each in found.labels)

    alone = [ask(place) for place in range(6)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, list(range(6)) * 3))
    for place, found in enumerate(together):
        assert found == pytest.approx(alone[place % 6], abs=1e-5)


def test_more_pictures_than_the_context_holds(judge_of: Callable[[str], Judge]) -> None:
    with pytest.raises(InputError, match="pictures fill the context") as error:
        judge_of("smolvlm").ask(PICTURES[:1] * 400, "Which?", ("A", "B"))
    assert error.value.code == "too_many_images"


def test_a_long_question_is_an_error_of_its_own(judge_of: Callable[[str], Judge]) -> None:
    with pytest.raises(InputError) as error:
        judge_of("smolvlm").ask(PICTURES[0], "?" * 5000, ("A", "B"))
    assert error.value.code == "too_long"
