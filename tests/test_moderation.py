"""OpenAI's moderation form: what maps, what does not, and what is never silently false."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgejudge.bundle import Bundle
from edgejudge.cli import main
from edgejudge.errors import InputError
from edgejudge.judge import Judge
from edgejudge.moderation import keys_of, moderation
from edgejudge.moderation_keys import OPENAI_KEYS
from edgejudge.policy import Policy, load_policy
from edgejudge.verdict import Verdict
from fake_judge import ColourEngine, FakeEngine, compiled, fake_judge, manifest

PICTURE = Image.new("RGB", (16, 16), (200, 30, 30))
POLICY = Policy.from_yaml("""\
name: mapped
version: 1
rules:
  - {id: gore, text: t, category: harm, conditions: [blood],
     maps_to: [openai:violence, openai:violence/graphic, "mlcommons:violent-crimes"]}
  - {id: fight, text: t, category: harm, conditions: [a fight], maps_to: [openai:violence]}
  - {id: nude, text: t, category: body, conditions: [skin], maps_to: [openai:sexual]}
  - {id: cat, text: t, category: pets, conditions: [a cat]}
""")


def screened(folder: Path, policy: Policy, answers: dict[str, float]) -> Verdict:
    judge = fake_judge(folder, manifest(), FakeEngine(answers))
    verdict = judge.screen(PICTURE, policy)
    assert isinstance(verdict, Verdict)
    return verdict


def results(verdict: Verdict, policy: Any) -> dict[str, Any]:
    value = json.loads(json.dumps(moderation(verdict, policy).to_json(), allow_nan=False))
    (result,) = value["results"]
    for name in ("categories", "category_scores", "category_applied_input_types"):
        assert tuple(result[name]) == OPENAI_KEYS
    return dict(result)


def test_rules_give_their_keys_and_other_keys_are_null(tmp_path: Path) -> None:
    result = results(screened(tmp_path, POLICY, {"blood": 0.9, "a fight": 0.3}), POLICY)
    assert result["flagged"] is True and result["broken_rules"] == ["gore"]
    judged = {"violence", "violence/graphic", "sexual"}
    assert {key for key, flag in result["categories"].items() if flag} == judged - {"sexual"}
    assert result["categories"]["sexual"] is False
    assert result["category_scores"]["violence"] == pytest.approx(0.9, abs=1e-5)
    assert result["category_scores"]["sexual"] == pytest.approx(0.01, abs=1e-5)
    assert set(result["not_judged"]) == set(OPENAI_KEYS) - judged and result["undecided"] == []
    for key in result["not_judged"]:
        assert result["categories"][key] is None and result["category_scores"][key] is None
        assert result["category_applied_input_types"][key] == []
    assert result["category_applied_input_types"]["sexual"] == ["image"]


def test_what_is_uncertain_is_null_and_one_broken_rule_is_enough(tmp_path: Path) -> None:
    result = results(screened(tmp_path, POLICY, {"blood": 0.5}), POLICY)
    assert result["flagged"] is None and result["undecided"] == ["violence", "violence/graphic"]
    assert result["categories"]["violence"] is None
    assert result["category_scores"]["violence"] == pytest.approx(0.5, abs=1e-5)
    result = results(screened(tmp_path, POLICY, {"blood": 0.5, "a fight": 0.9}), POLICY)
    assert result["flagged"] is True and result["categories"]["violence"] is True
    assert result["categories"]["violence/graphic"] is None


def test_a_rule_without_a_key_still_flags(tmp_path: Path) -> None:
    result = results(screened(tmp_path, POLICY, {"a cat": 0.9}), POLICY)
    assert result["flagged"] is True and result["broken_rules"] == ["cat"]
    assert True not in result["categories"].values()


def test_what_is_allowed_is_not_judged(tmp_path: Path) -> None:
    policy = POLICY.with_strictness({"body": "allowed"})
    verdict = screened(tmp_path, policy, {"skin": 0.9})
    result = results(verdict, policy)
    assert result["flagged"] is False and "sexual" in result["not_judged"]
    with pytest.raises(InputError, match="another content of policy 'mapped'.* same strictness"):
        moderation(verdict, POLICY)


def test_a_failure_has_no_result(tmp_path: Path) -> None:
    judge = fake_judge(tmp_path, manifest(), FakeEngine())
    verdict = judge.screen(tmp_path / "nothing.png", POLICY)
    assert isinstance(verdict, Verdict)
    found = moderation(verdict, POLICY)
    value = json.loads(json.dumps(found.to_json()))
    assert value["results"] == [] and value["error"]["code"] == "missing"
    assert found.flagged is None and len(found.not_judged) == 13


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["blood", "a fight", "skin", "a cat"]), st.floats(0.01, 0.99))
)
def test_no_key_is_safer_than_its_rules(
    tmp_path_factory: pytest.TempPathFactory, answers: dict[str, float]
) -> None:
    verdict = screened(tmp_path_factory.mktemp("judge"), POLICY, answers)
    found = moderation(verdict, POLICY)
    by_id = {rule.id: rule.verdict for rule in verdict.rules}
    for each in found.categories:
        outcomes = {by_id[r.id] for r in POLICY.rules if each.key in keys_of(POLICY, r)}
        expected = True if "unsafe" in outcomes else False if outcomes == {"safe"} else None
        assert each.flagged is expected and each.judged == bool(outcomes)
    assert (found.flagged is False) == (verdict.verdict == "safe")


def test_the_stickers_policy_maps_where_it_fits_and_no_further() -> None:
    policy = load_policy("stickers")
    mapped = {rule.id: keys for rule in policy.rules if (keys := keys_of(policy, rule))}
    assert mapped == {"gore": ("violence", "violence/graphic")}
    strict = policy.with_strictness({"violence": "sensitive"})
    assert {rule.id for rule in strict.rules if keys_of(strict, rule)} == {"gore"}
    other = Policy.from_yaml(
        "name: stickers\nversion: 1\nrules:\n"
        "  - {id: gore, text: t, category: c, conditions: [a red heart]}\n"
    )
    assert keys_of(other, other.rules[0]) == ()


def test_the_bundled_judge_says_uncertain_about_what_it_was_not_made_for() -> None:
    judge = Judge.load()
    for name, code in (
        ("llavaguard", "unknown_question"),
        ("llamaguard", "unknown_question"),
        ("shieldgemma", "unknown_question"),
        ("mlcommons", "unknown_concept"),
    ):
        verdict = judge.screen(PICTURE, name)
        assert isinstance(verdict, Verdict) and verdict.error is None
        assert verdict.verdict == "uncertain" and code in {note.code for note in verdict.notes}
        assert verdict.broken == ()
        if code == "unknown_question":
            assert {rule.verdict for rule in verdict.rules} == {"uncertain"}
        result = results(verdict, name)
        assert result["flagged"] is None and True not in result["categories"].values()
        assert set(result["undecided"] + result["not_judged"]) <= set(OPENAI_KEYS)


def test_strictness_of_the_bundled_judge_is_another_plan_and_no_reload() -> None:
    judge = Judge.load()
    usual = judge.plan("stickers")
    strict = judge.plan("stickers", strictness={"violence": "sensitive", "adult_sign": "allowed"})
    thresholds = {rule.id: rule.threshold for rule in usual.rules}
    assert {rule.id for rule in strict.rules} == set(thresholds) - {"adult_sign"}
    for rule in strict.rules:
        if rule.category == "violence":
            assert rule.threshold < thresholds[rule.id]
        else:
            assert rule.threshold == thresholds[rule.id]
    assert {note.code for note in strict.notes} == {"allowed"}
    verdict = judge.screen(PICTURE, "stickers", strictness={"violence": "sensitive"})
    assert isinstance(verdict, Verdict) and verdict.policy_sha256 != usual.sha256


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    (folder := tmp_path / "bundle").mkdir()
    fake_judge(folder, manifest((compiled(load_policy("stickers").record()),)), FakeEngine())

    def load(*_: Any, **__: Any) -> Judge:
        return Judge(Bundle.open(folder), ColourEngine())

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(["screen", *arguments])
        except SystemExit as stopped:  # argparse's
            code = int(stopped.code or 0)
        return code, *capsys.readouterr()

    monkeypatch.setattr(Judge, "load", load)
    return run


def test_the_command(screen: Command, tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"  # perhaps a gun, by this engine
    Image.new("RGB", (16, 16), (128, 128, 128)).save(grey)
    lost = str(tmp_path / "lost.png")
    code, out, _ = screen("--moderation", str(grey), lost)
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 3 and first["path"] == str(grey) and first["results"][0]["flagged"] is None
    assert second["results"] == [] and second["error"]["code"] == "missing"

    rows = tmp_path / "rows.jsonl"
    how = ("--strictness", "weapons=sensitive", "--out", str(rows))
    code, out, error = screen("--moderation", *how, str(grey))
    assert code == 1, error
    assert json.loads(out)["results"][0]["broken_rules"] == ["weapons"]
    assert json.loads(rows.read_text())["verdict"] == "unsafe", "rows stay rows"

    allowed = ("--strictness", "weapons=allowed")
    code, out, error = screen("--json", *allowed, str(grey))
    assert code == 0 and "warning" not in error
    assert [note["code"] for note in json.loads(out)["notes"]] == ["allowed"]

    for arguments, expected in (
        (("--strictness", "weapon=allowed"), "no category or rule 'weapon'; its categories are ad"),
        (("--strictness", "weapons=strict"), "'strict', which is none of allowed, default, sensit"),
        (("--strictness", "weapons"), "'weapons' is no NAME=HOW, like violence=sensitive"),
        (("--json", "--moderation"), "not allowed with argument"),
    ):
        code, out, error = screen(*arguments, str(grey))
        assert code == 2 and out == "" and expected in error
