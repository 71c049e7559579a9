"""Rows and what they are of: verdicts that come back, and everything that makes another run."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from bulk_runs import picture
from edgejudge.bulk.identity import Identity, identity_of
from edgejudge.bulk.rows import (
    content_key,
    content_of,
    make_row,
    regions_digest,
    shared_row,
    to_line,
    verdict_of,
)
from edgejudge.cascade import Cascade
from edgejudge.images import Limits
from edgejudge.judge import Judge
from edgejudge.policy import load_policy
from edgejudge.regions import Region
from fake_judge import ColourEngine, compiled, fake_judge, manifest


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    policy = compiled(load_policy("stickers").record())
    return fake_judge(tmp_path_factory.mktemp("one"), manifest((policy,)), ColourEngine())


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    policy = compiled(load_policy("stickers").record())
    named = replace(manifest((policy,)), name="second").signed()
    return fake_judge(tmp_path_factory.mktemp("two"), named, ColourEngine())


def animated() -> bytes:
    stream = BytesIO()
    first, *more = (Image.new("RGB", (8, 8), colour) for colour in ("green", "red", "blue"))
    first.save(stream, "GIF", save_all=True, append_images=more)
    return stream.getvalue()


def test_a_verdict_comes_back_from_its_row(judge: Judge, second: Judge, tmp_path: Path) -> None:
    red, grey, moving = tmp_path / "red.png", tmp_path / "grey.png", tmp_path / "moving.gif"
    red.write_bytes(picture((250, 10, 10)))
    grey.write_bytes(picture((128, 128, 128)))
    moving.write_bytes(animated())
    green = tmp_path / "green.png"
    green.write_bytes(picture((10, 250, 40)))
    files = [str(each) for each in (red, grey, green, moving, tmp_path / "none")]
    cascade = Cascade(judge, second)
    clue = judge.plan("stickers", method="clue", reasoning=False)
    verdicts = [
        *judge.screen(list(files)),
        *judge.screen(list(files), clue),
        *judge.screen(list(files), stable=3),
        *cascade.screen(list(files)),
    ]
    assert {verdict.verdict for verdict in verdicts} == {"safe", "unsafe", "uncertain", None}
    assert any(verdict.escalated for verdict in verdicts)
    assert any(rule.stability for verdict in verdicts for rule in verdict.rules)
    assert any(rule.seen_in for verdict in verdicts for rule in verdict.rules)
    for verdict in verdicts:
        assert verdict.path is not None
        row = json.loads(to_line(make_row(verdict, verdict.path, {})))
        back = verdict_of(row)
        assert back.to_json() == verdict.to_json()
        shared = verdict_of(shared_row(row, "other"))
        assert (shared.path, shared.total_ms, shared.image_prefixes) == ("other", 0, 0)
        assert [rule.verdict for rule in shared.rules] == [rule.verdict for rule in verdict.rules]
        assert replace(shared, path=None, escalated=None).broken == back.broken


def test_a_shared_row_names_the_first_of_its_bytes(judge: Judge, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(picture((250, 10, 10)))
    row = make_row(judge.screen(str(tmp_path / "a")), "a", {})
    assert shared_row(shared_row(row, "b"), "c")["shared_with"] == "a"
    assert content_of(shared_row(row, "b")) == content_of(row)


def test_regions_are_part_of_what_was_judged() -> None:
    one, other = Region("a gun", (1, 2, 3, 4)), Region("a gun", (1, 2, 3, 5))
    digests = [regions_digest([]), regions_digest([one]), regions_digest([other])]
    assert digests[0] is None and len({content_key("0" * 64, each) for each in digests}) == 3
    assert content_key(None, digests[1]) is None


def test_everything_that_decides_makes_another_run(
    judge: Judge, second: Judge, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nversion: 1\nrules:\n"
        "  - {id: arms, text: t, category: c, conditions: [a gun]}\n"
    )
    plain = identity_of(judge, judge.plan("stickers"))
    assert plain.settings == "{}"
    assert Identity.of_row(json.loads(json.dumps(plain.to_json()))) == plain
    assert plain.difference(replace(plain, bundle="renamed")) is None

    sparing = Judge(judge.bundle, ColourEngine(), Limits(frames=2))
    pair = Cascade(judge, second)
    others = {
        "policy 'mine'": identity_of(judge, judge.plan(str(tmp_path / "mine.yaml"))),
        "policy 'stickers'": identity_of(
            judge, judge.plan("stickers", strictness={"gore": "sensitive"})
        ),
        "bundle 'second'": identity_of(second, second.plan("stickers")),
        "method clue": identity_of(judge, judge.plan("stickers", method="clue")),
        "calibration cccc": replace(plain, calibration="c" * 64),
        'limits {"frames": 2}': identity_of(sparing, sparing.plan("stickers")),
        "stable 3": identity_of(judge, judge.plan("stickers", stable=3)),
        'budget {"first_broken": false, "ms": 200': identity_of(
            judge, judge.plan("stickers", budget_ms=200)
        ),
        'budget {"first_broken": true, "ms": "inf"': identity_of(
            judge, judge.plan("stickers", first_broken=True)
        ),
        'second bundle {"bundle": "second"': identity_of(pair, pair.plan("stickers")),
    }
    for name, other in others.items():
        mine, its = plain.difference(other) or ("", "")
        assert its.startswith(name) and mine != its
        assert other.difference(plain) == (its, mine)
    assert len({replace(each, policy_sha256="") for each in [plain, *others.values()]}) >= 9
    reasoned = identity_of(judge, judge.plan("stickers", method="clue", reasoning=False))
    mine, its = others["method clue"].difference(reasoned) or ("", "")
    assert '"reasoning": true' in mine and '"reasoning": false' in its
    gated = identity_of(judge, replace(judge.plan("stickers"), gate=0.2))
    assert plain.difference(gated) == ("no gate", "gate 0.2")
    unread = Judge(judge.bundle, ColourEngine(), Limits(max_bytes=1000))
    assert identity_of(unread, unread.plan("stickers")) == plain
