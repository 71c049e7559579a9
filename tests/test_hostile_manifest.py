"""Manifests of strangers, signed by themselves: refused by the name of a field, or harmless."""

import copy
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgejudge.bundle import Bundle, manifest_of
from edgejudge.errors import BundleError, EdgeJudgeError, InputError, ProviderError
from edgejudge.judge import Judge
from edgejudge.models.fitting import check_fit
from edgejudge.policy import Policy
from hostile import DEEP, HUGE, NANO, Path_, Strange, fixed, kind_of, mutated, places, put, signed
from hostile import get as value_at

MANIFEST = json.loads((NANO / "bundle.json").read_bytes())
OWN = Policy.from_yaml(
    "{name: own, version: 1, rules: [{id: r, text: t, category: c, conditions: [[a knife, fire]]}]}"
)
# What a bundle decides by and nobody else can know: another value is another judge, with another
# fingerprint, which every verdict names. SECURITY.md says so.
ITS_OWN_WORD = (
    *("band", "labels", "concepts", "patterns"),
    *("policies.*.name", "policies.*.rules.*.threshold"),
    *("policies.*.rules.*.conditions.*.*.language_prior", "policies.*.clue"),
)
# Found by the canary, whose error names it and no field: what pixels and tokens become.
NEAR = 2e-3  # of a probability: graphs of the same weights differ in the last bits


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strange]:
    folder = tmp_path_factory.mktemp("manifest")
    before = os.environ.get("EDGEJUDGE_CACHE")
    os.environ["EDGEJUDGE_CACHE"] = str(folder / "cache")
    yield Strange(folder / "bundle")
    if before is None:
        del os.environ["EDGEJUDGE_CACHE"]
    else:
        os.environ["EDGEJUDGE_CACHE"] = before


def numbers(folder: Path) -> list[tuple[str, str, float | None]]:
    """Rules of two policies over one picture, as a judge of the folder decides them."""
    judge = Judge.load(folder, threads=1)
    found = []
    for policy in ("stickers", OWN):
        verdict = judge.screen(Image.new("RGB", (64, 48), (200, 30, 30)), policy)
        if verdict.error is not None:
            raise InputError(verdict.error.code, verdict.error.message)
        found += [(rule.id, rule.verdict, rule.probability) for rule in verdict.rules]
    return found


@pytest.fixture(scope="module")
def truth(strange: Strange) -> list[tuple[str, str, float | None]]:
    strange.write(strange.manifest)
    return numbers(strange.folder)


def check(value: Any) -> None:
    """The manifest alone: refused with an error of ours, or read."""
    check_fit(manifest_of(signed(value), Path("bundle.json")), "bundle")


def test_every_kind_of_field_refuses_what_does_not_belong_there() -> None:
    """Each kind of place once with each of a few things, and once without it."""
    kinds: dict[Path_, Path_] = {}
    for at in places(MANIFEST):
        if at and at != ("sha256",):
            kinds.setdefault(kind_of(at), at)
    refused = tried = 0
    for at in kinds.values():
        old = value_at(MANIFEST, at)
        for item in (None, True, -1, HUGE, 1e308, "\ud800", [], DEEP):
            if type(item) is type(old) and item == old:
                continue
            tried += 1
            try:
                check(put(MANIFEST, at, item))
            except BundleError as error:
                refused += 1
                assert len(str(error)) < 1500 and str(error).isprintable(), at
    assert refused > 0.85 * tried, (refused, tried)


def test_numbers_out_of_range_are_refused_by_the_name_of_the_field() -> None:
    packed = {**MANIFEST["graphs"][1]["kv"], "dtype": "int4", "scales": "channel"}
    cases: tuple[tuple[Path_, Any, str], ...] = (
        (("band",), -0.1, "band: -0.1 is not from 0"),
        (("canary", "tolerance"), 1e6, "canary.tolerance"),
        (("canary", "image_height"), 10**9, "canary.image_height"),
        (("canary", "golden", "image"), None, "canary.golden.image"),
        (("canary", "golden", "rows"), 3, "canary.golden.rows"),
        (("embeddings", "dtype"), "object", "embeddings.dtype"),
        (("embeddings", "rows"), 10**9, "embeddings"),
        (("files", 0, "bytes"), -1, r"files\[0\].bytes"),
        (("files", 0, "sha256"), "x", r"files\[0\].sha256"),
        (("files", 0, "name"), "../x", "does not stay inside the bundle"),
        (("files", 1, "name"), MANIFEST["files"][0]["name"].upper(), "there twice"),
        (("graphs", 0, "file"), "tokenizer.json", r"graphs\[0\].file: .* does not end in .onnx"),
        (("graphs", 0, "weight_files", 0), "absent.bin", "'absent.bin' is not listed"),
        (("graphs", 0, "stage"), "a b", r"graphs\[0\].stage"),
        (("graphs", 1, "kv", "kv_heads"), 10**6, r"graphs\[1\].kv"),
        (("graphs", 1, "kv", "length_buckets"), [2**62], r"graphs\[1\].kv.length_buckets"),
        (("graphs", 1, "kv", "dtype"), "int4", "for the cpu target, with scales by channel"),
        (("graphs", 1, "kv"), packed, "keys and values are not of 16 uint8, as int4 is"),
        (("graphs", 1, "kv"), {**packed, "head_dim": 31}, r"kv.head_dim: 31 channels of four bits"),
        (("graphs", 1, "part"), 5, r"graphs\[1\].part"),
        (("label_rows", 0), 10**6, "label_rows"),
        (("labels", "yes"), [10**6], "labels.yes"),
        (("labels",), {"no": [0]}, "labels: 'yes' is missing"),
        (("name",), "nano\x1b[2J", "name: contains characters that cannot be printed"),
        (("parts", 0, "last_layer"), 0, "parts: they end with layer 0"),
        (("preprocessing", "longest_edge"), 2**40, "preprocessing.longest_edge"),
        (("preprocessing", "resample"), "__class__", "preprocessing.resample"),
        (("preprocessing", "std"), [0.0, 0.5, 0.5], "preprocessing.std"),
        (("preprocessing", "view"), 1, "preprocessing.view"),
        (("prompt", "head"), [MANIFEST["tokens"]["image"]], "prompt.head: holds the image token"),
        (("prompt", "question_template"), "Is it?", "prompt.question_template"),
        (("prompt", "tile_open"), [], "prompt.tile_open"),
        (("prompt", "visual_tokens"), 10**6, "prompt.visual_tokens"),
        (("spec", "text", "layers"), 10**9, "spec.text.layers"),
        (("spec", "text", "vocab"), 1, "embeddings"),
        (("spec", "vision", "heads"), 0, "spec.vision.heads"),
        (("tokens", "image"), -1, "tokens"),
    )
    for at, item, message in cases:
        with pytest.raises(BundleError, match=message):
            check(put(MANIFEST, at, item))


def test_a_signed_manifest_is_refused_or_gives_the_same_numbers(
    strange: Strange, truth: list[tuple[str, str, float | None]]
) -> None:
    ends: Counter[str] = Counter()

    @fixed(250)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        at, value = data.draw(mutated(MANIFEST))
        strange.write(value)
        try:
            found = numbers(strange.folder)
        except (BundleError, InputError):
            ends["refused"] += 1
        except ProviderError as error:
            assert re.search("canary|input|gave", str(error)), error
            ends["wrong"] += 1
        else:
            same(found, truth, ".".join(map(str, kind_of(at))))
            ends["the same"] += 1

    run()
    assert min(ends["refused"], ends["the same"]) > 10 and ends["wrong"], ends


def same(found: Any, truth: Any, place: str) -> None:
    if place.startswith(ITS_OWN_WORD):
        return
    assert [each[:2] for each in found] == [each[:2] for each in truth], place
    for (_, _, now), (_, _, before) in zip(found, truth, strict=True):
        assert now == pytest.approx(before, abs=NEAR), place


def test_a_policy_of_a_known_name_and_hash_cannot_hold_other_rules(strange: Strange) -> None:
    changes: tuple[tuple[Any, str], ...] = (
        (lambda p: p["rules"].pop(), "has the hash of another"),
        (lambda p: p["rules"][0].update(text="Nothing."), "has the hash of another"),
        (lambda p: p["rules"][0]["conditions"].append([p["rules"][1]["conditions"][0][0]]), "hash"),
        (
            lambda p: p["rules"][0]["conditions"][0][0].update(
                branch_ids=p["rules"][1]["conditions"][0][0]["branch_ids"]
            ),
            "the tokens of condition 'a knife' of rule 'weapons' ask something else",
        ),
        (lambda p: p["rules"][0]["conditions"][0][0].update(known=False), "is not known as"),
    )
    for change, message in changes:
        value = copy.deepcopy(MANIFEST)
        change(value["policies"][0])
        strange.write(value)
        with pytest.raises(BundleError, match=message):
            Judge.load(strange.folder, threads=1)


def test_a_policy_file_is_not_judged_by_other_rules_that_claim_its_hash(strange: Strange) -> None:
    value = copy.deepcopy(MANIFEST)
    value["policies"][0].update(name="mine", sha256=OWN.hash)
    strange.write(value)
    judge = Judge.load(strange.folder, threads=1)
    with pytest.raises(EdgeJudgeError, match="has the hash of another"):
        judge.screen(Image.new("RGB", (8, 8)), OWN)


def test_a_manifest_that_never_ends_or_says_nothing_is_refused(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    file = tmp_path / "bundle.json"
    os.mkfifo(file)
    with pytest.raises(BundleError, match="it is a pipe or a device"):
        Bundle.open(tmp_path)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="it is a pipe or a device"):
        Bundle.open(tmp_path)
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path)
    file.unlink()
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(BundleError, match="more than"):
        Bundle.open(tmp_path)
    for name in ("a\0b", "\ud800", "x" * 5000):
        with pytest.raises(BundleError, match="is not a bundle"):
            Bundle.open(name)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "circle", "outside"])
def test_a_file_of_the_bundle_is_a_file_in_the_bundle(
    kind: str, strange: Strange, tmp_path: Path
) -> None:
    strange.write(MANIFEST)
    path = strange.folder / "tokenizer.json"
    data = path.read_bytes()
    path.unlink()
    try:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        elif kind == "circle":
            path.symlink_to(path)
        else:
            (tmp_path / "same").write_bytes(data)
            path.symlink_to(tmp_path / "same")
        with pytest.raises(BundleError, match="tokenizer.json: (leads out|is |cannot|.* bytes,)"):
            Bundle.open(strange.folder).file("tokenizer.json")
    finally:
        path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["bundle.json", "cpu.vision.onnx", "weights.q8.bin", "tokenizer.json"]
)
def test_a_pinned_fingerprint_refuses_every_other_byte(name: str, strange: Strange) -> None:
    """Also where the manifest was signed again, so that everything agrees with itself."""
    strange.write(MANIFEST)
    pinned = Bundle.open(strange.folder).fingerprint
    assert pinned == json.loads((NANO / "bundle.json").read_bytes())["sha256"]
    try:
        if name == "bundle.json":
            strange.write(put(MANIFEST, ("fidelity", "calibration_pictures"), 17))
        else:
            data = bytearray((strange.folder / name).read_bytes())
            data[len(data) // 2] ^= 1
            strange.replace(name, bytes(data))
        Bundle.open(strange.folder)
        with pytest.raises(BundleError, match="another bundle than the one you pinned"):
            Judge.load(strange.folder, pinned, threads=1)
        if name != "bundle.json":  # the manifest as it was, the file not
            strange.write(MANIFEST)
            with pytest.raises(BundleError, match=f"{name}: its sha256"):
                Judge.load(strange.folder, pinned, threads=1, verify=True)
    finally:
        strange.restore()
