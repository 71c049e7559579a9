"""The judge around its engine: inputs, policies, notes, failures. The engine itself is a table."""

import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgejudge.errors import BundleError, PolicyError, ProviderError
from edgejudge.judge import Judge
from edgejudge.policy import Policy, load_policy
from edgejudge.verdict import Verdict
from fake_judge import FakeEngine, compiled, fake_judge, manifest

STICKERS = compiled(load_policy("stickers").record())
TWO_RULES = """\
name: two
version: 1
rules:
  - {id: blades, text: t, category: c, conditions: [[a knife, an axe], a hand]}
  - {id: fire, text: t, category: c, conditions: [fire], threshold: 0.3}
"""


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def judge(tmp_path: Path, engine: FakeEngine) -> Judge:
    return fake_judge(tmp_path, manifest((STICKERS,)), engine)


def picture() -> Image.Image:
    return Image.new("RGB", (20, 10), (10, 200, 30))


def png(image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_every_kind_of_input_and_lists_of_them(judge: Judge, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    inputs = [path, str(path), png(), bytearray(png()), picture(), np.asarray(picture())]
    verdicts = judge.screen(inputs)
    assert [verdict.verdict for verdict in verdicts] == ["safe"] * 6
    assert [verdict.path for verdict in verdicts] == [str(path)] * 2 + [None] * 4
    assert len({verdict.sha256 for verdict in verdicts[:4]}) == 1
    assert verdicts[4].sha256 is None
    assert isinstance(judge.screen(path), Verdict)
    assert judge.screen([]) == []
    with pytest.raises(TypeError):
        judge.screen(3)  # type: ignore[call-overload]


def test_a_broken_rule_is_reported_whole(judge: Judge, engine: FakeEngine) -> None:
    engine.answers = {"a gun": 0.9, "fire": 0.5, "beer": 0.7}
    verdict = judge.screen(picture())
    assert verdict.verdict == "unsafe"
    assert [rule.id for rule in verdict.broken] == ["weapons", "alcohol"]
    outcomes = {rule.id: rule.verdict for rule in verdict.rules}
    assert outcomes["fire_explosives"] == "uncertain" and outcomes["gore"] == "safe"
    weapons = verdict.rules[0]
    assert weapons.probability == pytest.approx(0.9, abs=1e-6)
    assert [a.text for a in weapons.conditions[0].alternatives][:2] == ["a knife", "a gun"]
    assert set(verdict.stages_ms) == {"decode", "preprocess", "vision", "score", "decide"}
    assert verdict.placement == {"vision": "FakeProvider"}
    assert verdict.policy_sha256 == load_policy("stickers").hash
    assert verdict.bundle_sha256 == judge.bundle.fingerprint


def test_the_json_form_is_plain_and_complete(judge: Judge, engine: FakeEngine) -> None:
    engine.answers = {"a gun": 0.9}
    verdict = judge.screen(png())
    row = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert row == verdict.to_json()
    assert list(row) == [
        "path",
        "sha256",
        "verdict",
        "rules",
        "notes",
        "error",
        "bundle",
        "policy",
        "calibration",
        "stages_used",
        "stages_ms",
        "placement",
        "prefix_cache",
        "reused_tokens",
        "image_prefixes",
        "reasoning_calls",
        "escalated",
    ]
    assert row["policy"]["method"] == "thresholds" and row["calibration"] is None
    assert (row["stages_used"], row["image_prefixes"]) == (["tokens"], 1)
    assert row["rules"][0]["conditions"][0]["alternatives"][1] == {
        "text": "a gun",
        "probability": 0.9,
        "raw_probability": None,
        "known": True,
        "outcome": "holds",
        "test": "threshold",
        "prior": None,
        "without_region": None,
        "rationale": None,
    }
    assert row["rules"][0]["conditions"][0]["decided_by"] == "a gun"


def test_verdicts_are_values(judge: Judge) -> None:
    verdict = judge.screen(picture())
    with pytest.raises(AttributeError):
        verdict.verdict = "safe"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(verdict)) == verdict
    assert hash(verdict) == hash(pickle.loads(pickle.dumps(verdict)))


def test_failures_are_rows_and_never_safe(judge: Judge, engine: FakeEngine, tmp_path: Path) -> None:
    whole = png(Image.effect_noise((64, 64), 90))
    missing, cut, judged = judge.screen([tmp_path / "no.png", whole[:900], whole])
    assert (missing.verdict, missing.rules, missing.sha256) == (None, (), None)
    assert missing.error is not None and missing.error.code == "missing"
    assert cut.error is not None and cut.error.code == "truncated" and cut.sha256 is not None
    assert judged.verdict == "safe"
    for failure in (ProviderError("no numbers"), MemoryError()):
        engine.failure = failure
        verdict = judge.screen(picture())
        assert verdict.verdict is None and verdict.error is not None
        assert verdict.to_json()["rules"] == []
    engine.failure = BundleError("cpu.vision.onnx is damaged")
    with pytest.raises(BundleError):
        judge.screen(picture())


def test_a_doubtful_input_is_uncertain_unless_it_is_unsafe(
    judge: Judge, engine: FakeEngine
) -> None:
    nothing = png(Image.new("RGBA", (20, 10)))
    verdict = judge.screen(nothing)
    assert verdict.verdict == "uncertain"
    assert [note.code for note in verdict.notes] == ["transparent"]
    engine.answers = {"a gun": 0.9}
    assert judge.screen(nothing).verdict == "unsafe"


def test_concepts_outside_a_specialist_are_uncertain(tmp_path: Path, engine: FakeEngine) -> None:
    judge = fake_judge(tmp_path, manifest(concepts=("knife", "axe", "fire")), engine)
    policy = Policy.from_yaml(TWO_RULES.replace("a hand", "The Fire."))
    assert judge.screen(picture(), policy).verdict == "safe"
    policy = Policy.from_yaml(TWO_RULES.replace("fire]", "a unicorn]"))
    verdict = judge.screen(picture(), policy)
    assert verdict.verdict == "uncertain"
    assert [note.code for note in verdict.notes] == ["unknown_concept"] * 2
    blades, unicorn = verdict.rules
    assert blades.verdict == "safe"  # no blade: what the hand does cannot break the rule
    assert unicorn.verdict == "uncertain" and not unicorn.conditions[0].alternatives[0].known


def test_a_generalist_knows_everything(judge: Judge) -> None:
    policy = Policy.from_yaml(TWO_RULES)
    assert judge.screen(picture(), policy).notes == ()


def test_equal_questions_are_asked_once(judge: Judge, engine: FakeEngine) -> None:
    judge.screen(picture(), Policy.from_yaml(TWO_RULES.replace("a hand", "a knife")))
    assert engine.asked == [["a knife", "an axe", "fire"]]


def test_thresholds(tmp_path: Path, engine: FakeEngine) -> None:
    """The policy's own, else the bundle's for an unchanged rule of that policy, else one half."""
    fitted = Policy.from_yaml(TWO_RULES.replace("a hand]}", "a hand], threshold: 0.8}"))
    judge = fake_judge(tmp_path, manifest((compiled(fitted.record()),)), engine)

    def thresholds(text: str) -> list[float]:
        return [rule.threshold for rule in judge.plan(Policy.from_yaml(text)).rules]

    assert thresholds(TWO_RULES) == [0.8, 0.3]
    assert thresholds(TWO_RULES.replace("0.3", "0.4")) == [0.8, 0.4]
    assert thresholds(TWO_RULES.replace("an axe", "a saw")) == [0.5, 0.3]
    assert thresholds(TWO_RULES.replace("name: two", "name: other")) == [0.5, 0.3]


def test_a_compiled_policy_is_used_only_while_it_is_the_same(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgejudge.policy

    judge = fake_judge(tmp_path, manifest((STICKERS,)), engine)
    compiled_ids = judge.plan("stickers").branches
    assert compiled_ids[0] == (*map(ord, "a knife"), 3)
    source = edgejudge.policy.builtin_bytes("stickers")
    assert source is not None
    (tmp_path / "stickers.yaml").write_bytes(source.replace(b"a knife", b"a spoon"))
    monkeypatch.setattr(edgejudge.policy, "_BUILTIN_FOLDER", tmp_path)
    edited = fake_judge(tmp_path, manifest((STICKERS,)), engine).plan("stickers")
    assert edited.sha256 != STICKERS.sha256
    assert edited.rules[0].conditions[0][0].text == "a spoon"


def test_a_malformed_policy_stops_before_any_picture(judge: Judge, engine: FakeEngine) -> None:
    with pytest.raises(PolicyError):
        judge.stream([picture()], "no such policy")
    assert engine.asked == []


def test_a_compiled_policy_needs_neither_yaml_nor_tokenizers(tmp_path: Path) -> None:
    import subprocess

    fake_judge(tmp_path, manifest((STICKERS,)), FakeEngine())
    script = """if True:
        import sys
        from edgejudge.bundle import Bundle
        from edgejudge.judge import Judge
        from types import SimpleNamespace
        from edgejudge.runtime.fleet import Fleet
        from PIL import Image
        class Off:
            def find_spec(self, name, path=None, target=None):
                assert name.split(".")[0] not in ("yaml", "tokenizers", "rich", "torch"), name
        sys.meta_path.insert(0, Off())
        sys.path.insert(0, sys.argv[2])
        judge = Judge(Bundle.open(sys.argv[1]), SimpleNamespace(fleet=Fleet()))
        assert len(judge.plan("stickers").rules) == 10
    """
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), tests], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
