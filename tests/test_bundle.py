"""A bundle's manifest and files: strict reading, tampering by hand, links and stamps."""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest

import tiny
from edgejudge import export as exporting
from edgejudge.bundle import (
    MANIFEST_NAME,
    Bundle,
    DecisionsRecord,
    FidelityRecord,
    FlipCount,
    LabelMassRecord,
    Manifest,
    PolicyRecord,
    RuleRecord,
    SideRecord,
    WritingRecord,
    cache_folder,
    canonical_json,
    from_json,
    read_manifest,
)
from edgejudge.errors import BundleError
from edgejudge.runtime import Engine

REPORT = FidelityRecord(
    "none",
    0,
    1e-6,
    0.0,
    1e-6,
    WritingRecord(1, 0, 1.0, 0.0, 1, 1),
    SideRecord(1, 2, 1, 0.1, 0.2),
    DecisionsRecord(
        pictures=1,
        decisions=1,
        flips=0,
        flips_upper=1.0,
        near_decisions=0,
        near_flips=0,
        near_flips_upper=1.0,
        unsafe_to_safe=0,
        safe_to_unsafe=0,
        probability_error_99=0.0,
        probability_error_max=0.0,
        probability_error_mean=0.0,
        rules=(FlipCount("p.r", 1, 0, 0),),
        flipped_pictures=(),
        underpowered=True,
        accepted_flips=None,
        label_mass=LabelMassRecord(1, 0.5, 0.5),
    ),
)
POLICY = PolicyRecord(
    "p", "1", "a" * 64, "b" * 64, (RuleRecord("r", "No knives", "weapons", None, (("a knife",),)),)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    checkpoint = tiny.make_checkpoint(root / "checkpoint", card=tiny.make_card(), text_layers=1)
    exporting.export(checkpoint, root / "bundle", policies=[POLICY])
    exporting.seal(root / "bundle", REPORT)
    return root / "bundle"


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def edit(folder: Path, change: Any) -> None:
    """Changes the manifest, in canonical form, but not the hash it carries."""
    value = json.loads((folder / MANIFEST_NAME).read_bytes())
    change(value)
    (folder / MANIFEST_NAME).write_bytes(canonical_json(value))


def resign(folder: Path, **changes: Any) -> None:
    manifest = replace(read_manifest(folder), **changes).signed()
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical())


def test_a_bundle_opens_and_verifies(folder: Path) -> None:
    bundle = Bundle.open(folder, verify=True)
    assert bundle.sealed and bundle.path == folder.resolve()
    assert bundle.fingerprint == bundle.manifest.sha256 == read_manifest(folder).sha256
    assert Bundle.open(folder, fingerprint=bundle.fingerprint).manifest == bundle.manifest
    assert {f.name for f in bundle.manifest.files} == {
        p.name for p in folder.iterdir() if p.name != MANIFEST_NAME
    }
    for graph in bundle.manifest.graphs:
        assert bundle.graph(graph.target, graph.stage, graph.part) == graph
        assert bundle.graph_file(graph).is_file()


def records(kind: Any) -> list[type]:
    """Every record type that the manifest holds."""
    if is_dataclass(kind) and isinstance(kind, type):
        return [kind, *(r for f in fields(kind) for r in records(f.type))]
    return [r for argument in get_args(kind) for r in records(argument)]


def objects(value: Any, where: str = "") -> list[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        return [(where, value)] + [o for k, v in value.items() for o in objects(v, f"{where}.{k}")]
    if isinstance(value, list):
        return [o for i, v in enumerate(value[:1]) for o in objects(v, f"{where}[{i}]")]
    return []


FREE = (".spec", ".preprocessing", ".labels", ".tools")  # read elsewhere, or keyed by data


def test_every_object_rejects_unknown_and_missing_keys_by_name(folder: Path) -> None:
    value = json.loads((folder / MANIFEST_NAME).read_bytes())
    seen = 0
    for where, item in objects(value):
        if where.startswith(FREE):
            continue
        seen += 1
        item["surprise"] = 1
        with pytest.raises(BundleError, match="unknown key 'surprise'"):
            from_json(Manifest, value, MANIFEST_NAME)
        del item["surprise"]
        for key in list(item):
            kept = item.pop(key)
            with pytest.raises(BundleError, match=f"missing key '{key}'"):
                from_json(Manifest, value, MANIFEST_NAME)
            item[key] = kept
    assert seen >= len(set(records(Manifest))) - 1  # a policy as plain rules is not stored


def test_spec_and_preprocessing_are_as_strict(folder: Path) -> None:
    from edgejudge.models.spec import ModelSpec
    from edgejudge.models.tiles import TileSpec

    manifest = read_manifest(folder)
    for kind, value in ((ModelSpec, manifest.spec), (TileSpec, manifest.preprocessing)):
        kind.from_json(value)
        for bad, message in (
            ({**value, "surprise": 1}, "unknown key 'surprise'"),
            (dict(list(value.items())[1:]), "missing key"),
        ):
            with pytest.raises(BundleError, match=message):
                kind.from_json(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema_version=1), "schema version 1"),
        (lambda v: v.update(schema_version=True), "schema_version: expected int, got bool"),
        (lambda v: v.update(name=3), "name: expected str, got int"),
        (lambda v: v.update(band="0.1"), "band: expected float, got str"),
        (lambda v: v.update(graphs={}), "graphs: expected list, got dict"),
        (lambda v: v["files"][0].update(bytes=1.5), r"files\[0\].bytes: expected int, got float"),
        (lambda v: v.update(label_rows=[None]), r"label_rows\[0\]: expected int"),
        (lambda v: v.update(name="other"), "it is damaged"),
    ],
)
def test_a_wrong_value_is_named(folder: Path, change: Any, message: str) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected dict, got list"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_manifest_that_is_no_json_object_is_refused(
    folder: Path, text: str, message: str
) -> None:
    (folder / MANIFEST_NAME).write_text(text)
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder)


def test_other_bytes_for_the_same_content_are_refused(folder: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text()
    twice = text.replace('"band"', '"band": 0.05,\n"band"', 1)
    for other in (text + "\n", "\ufeff" + text, twice, text.replace(",\n", ", ", 1)):
        (folder / MANIFEST_NAME).write_text(other)
        with pytest.raises(BundleError, match="not in canonical form"):
            Bundle.open(folder)


def test_numbers_that_are_none_are_refused(folder: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text()
    (folder / MANIFEST_NAME).write_text(text.replace('"band": 0.05', '"band": NaN'))
    with pytest.raises(BundleError, match="band: nan is not a number"):
        Bundle.open(folder)


def test_another_fingerprint_is_refused_though_the_bundle_is_whole(folder: Path) -> None:
    pinned = Bundle.open(folder).fingerprint
    resign(folder, band=0.2)
    Bundle.open(folder, verify=True)
    with pytest.raises(BundleError, match="another bundle than the one you pinned"):
        Bundle.open(folder, fingerprint=pinned)


def test_an_unsealed_bundle_opens_only_on_request(folder: Path) -> None:
    resign(folder, fidelity=None)
    with pytest.raises(BundleError, match="not sealed"):
        Bundle.open(folder)
    assert not Bundle.open(folder, unsealed=True).sealed


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["weights.q8.bin", "cpu.vision.onnx", "embeddings.bin"])
def test_damage_is_refused_by_file_name(folder: Path, name: str) -> None:
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name}: its sha256"):
        Bundle.open(folder).file(name)
    with pytest.raises(BundleError, match=f"{name}: its sha256"):
        Bundle.open(folder, verify=True)
    path.write_bytes(data[:-1])
    with pytest.raises(BundleError, match=f"{name}: {len(data) - 1} bytes, expected {len(data)}"):
        Bundle.open(folder).file(name)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name}: cannot be read"):
        Bundle.open(folder).file(name)


def test_a_graph_is_refused_for_its_damaged_weights(folder: Path) -> None:
    bundle = Bundle.open(folder)
    (folder / "weights.q8.bin").write_bytes(bytes((folder / "weights.q8.bin").stat().st_size))
    with pytest.raises(BundleError, match="weights.q8.bin: its sha256"):
        bundle.graph_file(bundle.graph("cpu", "vision"))


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hosts", "a/b", "..", ".hidden", "", "C:\\x", "a\nb", "bundle.json/"]
)
def test_names_stay_inside_the_folder(folder: Path, name: str) -> None:
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match="does not stay inside|not listed"):
        bundle.file(name)
    files = bundle.manifest.files
    resign(folder, files=(replace(files[0], name=name), *files[1:]))
    with pytest.raises(BundleError, match="does not stay inside"):
        Bundle.open(folder)


def test_a_graph_cannot_name_files_outside_the_list(folder: Path) -> None:
    graphs = read_manifest(folder).graphs
    resign(folder, graphs=(replace(graphs[0], weight_files=("other.bin",)), *graphs[1:]))
    with pytest.raises(BundleError, match="'other.bin' is not listed"):
        Bundle.open(folder)


def test_an_unknown_graph_is_named(folder: Path) -> None:
    with pytest.raises(BundleError, match="no graph for npu decoder part 3"):
        Bundle.open(folder).graph("npu", "decoder", 3)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_must_not_leave_the_bundle(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "embeddings.bin", tmp_path / "outside.bin")
    (folder / "embeddings.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(BundleError, match="embeddings.bin: leads out of the bundle"):
        Bundle.open(folder).file("embeddings.bin")
    (folder / "embeddings.bin").unlink()
    os.link(tmp_path / "outside.bin", folder / "embeddings.bin")
    assert Bundle.open(folder).file("embeddings.bin").is_file()


def test_a_stamp_saves_hashing_until_the_file_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgejudge import bundle as module

    hashed: list[str] = []
    real = module.sha256_of_file

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(module, "sha256_of_file", counting)
    for _ in range(2):
        Bundle.open(folder).file("embeddings.bin")
    assert hashed == ["embeddings.bin"]
    (folder / "embeddings.bin").write_bytes((folder / "embeddings.bin").read_bytes())
    Bundle.open(folder).file("embeddings.bin")
    assert hashed == ["embeddings.bin"] * 2
    Bundle.open(folder, verify=True)
    assert hashed.count("embeddings.bin") == 3


def test_stamps_lie_outside_and_may_be_lost_or_broken(folder: Path) -> None:
    before = {p.name for p in folder.iterdir()}
    Bundle.open(folder).file("embeddings.bin")
    assert {p.name for p in folder.iterdir()} == before
    (stamp,) = (cache_folder() / "stamps").iterdir()
    for text in ("{", "[]", '{"x": 1}'):
        stamp.write_text(text)
        Bundle.open(folder).file("embeddings.bin")
    shutil.rmtree(cache_folder())
    cache_folder().write_text("a file where the folder should be")
    Bundle.open(folder).file("embeddings.bin")


def hub_copy(bundle: Path, repository: Path) -> Path:
    """The bundle as huggingface_hub lays a download out: blobs, and a revision of links to them."""
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in bundle.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.name.encode()).hexdigest()
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_bundle_in_the_hub_cache_is_judged_with(folder: Path, tmp_path: Path) -> None:
    snapshot = hub_copy(folder, tmp_path / "models--someone--judge")
    first = Bundle.open(snapshot, verify=True)
    engine, truth = Engine.open(first, threads=1), Engine.open(Bundle.open(folder), threads=1)
    prompts = [[60, 61, 62]]
    assert (engine.score_blind(prompts) == truth.score_blind(prompts)).all()
    assert Bundle.open(snapshot).path == first.path, "one set of files a revision"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_out_of_the_hub_cache_is_refused(folder: Path, tmp_path: Path) -> None:
    snapshot = hub_copy(folder, tmp_path / "models--someone--judge")
    outside = tmp_path / "outside.bin"
    shutil.copyfile(folder / "embeddings.bin", outside)
    (snapshot / "embeddings.bin").unlink()
    (snapshot / "embeddings.bin").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(snapshot, verify=True)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_hub_cache_without_room_for_real_files_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(BundleError, match="copy the bundle with `cp -rL`"):
        Bundle.open(hub_copy(folder, tmp_path / "models--someone--judge"))
