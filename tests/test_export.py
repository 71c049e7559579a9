"""Export: the same bytes twice, graphs that equal the reference, refusals that name their cause."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import tiny
from edgejudge import export as exporting
from edgejudge.bundle import SCHEMA_VERSION, Bundle, PolicyRecord, RuleRecord, read_manifest
from edgejudge.errors import ExportError
from edgejudge.export import Cut
from edgejudge.export.checkpoint import open_checkpoint
from edgejudge.export.onnx_graph import IR_VERSION, OPSETS
from edgejudge.goldens import graph_error
from edgejudge.models.image import canary_image
from edgejudge.runtime import Engine

torch.set_num_threads(1)
CALIBRATION = [("000.png", ["a knife", "beer"]), ("001.png", ["a dog"])]
POLICY = PolicyRecord(
    name="kitchen",
    version="1",
    sha256="a" * 64,
    source_sha256="b" * 64,
    rules=(
        RuleRecord("blades", "No blades", "weapons", None, (("a knife", "a sword"), ("a dog",))),
        RuleRecord("drinks", "No beer", "alcohol", 0.3, (("beer",),)),
        RuleRecord("other", "No dogs", "animals", None, (("a puppy",),)),
    ),
)


def write_calibration(folder: Path, times: int = 1) -> None:
    from PIL import Image

    folder.mkdir()
    questions = []
    entries = [(f"{n}-{name}" if n else name, t) for n in range(times) for name, t in CALIBRATION]
    for index, (name, texts) in enumerate(entries):
        Image.fromarray(canary_image(30 + index, 50)).save(folder / name)
        conditions = [{"text": text, "label": 0} for text in texts]
        questions.append({"image": name, "conditions": conditions})
    (folder / "questions.json").write_text(json.dumps(questions))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    write_calibration(root / "calibration")
    thresholds = {"blades": 0.4, "drinks": 0.9}
    card = tiny.make_card(
        calibration_set="calibration", policies=[{"policy": "kitchen", "thresholds": thresholds}]
    )
    return tiny.make_checkpoint(root / "checkpoint", card=card, text_layers=2)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def graph_error_of(folder: Path) -> float:
    bundle = Bundle.open(folder, unsealed=True)
    return graph_error(bundle, Engine.open(bundle, threads=1))


@pytest.mark.parametrize("recipe", ["exact", "w8", "small"])
def test_a_rebuild_gives_the_same_bytes(checkpoint: Path, tmp_path: Path, recipe: str) -> None:
    first = exporting.export(checkpoint, tmp_path / "a", recipe, policies=[POLICY])
    second = exporting.export(str(checkpoint), tmp_path / "b", recipe, policies=[POLICY])
    assert digests(first) == digests(second)
    assert graph_error_of(first) < 1e-4
    manifest = read_manifest(first)
    assert manifest.recipe == recipe and manifest.fidelity is None
    assert {g.weight_files for g in manifest.graphs if g.stage == "verdict_head"} == {
        ("weights.f32.bin",)
    }
    errors = [q.relative_rms_error for q in manifest.quantization]
    assert max(errors) < {"exact": 1e-9, "w8": 0.01, "small": 0.15}[recipe]


@pytest.mark.parametrize(
    "variant",
    [
        {"tied": True, "kv_heads": 4, "tiling": False},
        {"kv_heads": 1, "dtype": "bfloat16", "nested_processor": True},
        {"image_size": 39, "patch_size": 2, "scale_factor": 19, "max_shard_size": "100KB"},
        {"scale_factor": 2, "dtype": "float16"},
        {"vision_hidden": 144, "vision_layers": 1},  # head size 72, as in the 2.2B member
    ],
    ids=lambda v: ", ".join(map(str, v.values())),
)
def test_graphs_equal_the_reference(tmp_path: Path, variant: dict[str, Any]) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", text_layers=2, **variant)
    bundle = exporting.export(folder, tmp_path / "bundle", "exact", Cut(2))
    assert [(p.first_layer, p.last_layer) for p in read_manifest(bundle).parts] == [(0, 0), (1, 1)]
    assert graph_error_of(bundle) < 1e-4
    # No card: the family's own question, a generalist, one golden picture that is drawn.
    manifest = read_manifest(bundle)
    assert manifest.concepts == () and "Answer Yes or No" in manifest.prompt.question_template
    assert [g.image for g in manifest.golden] == [None, "golden-0.png"]


def test_bundle_contents_are_what_the_manifest_says(checkpoint: Path, tmp_path: Path) -> None:
    folder = exporting.export(checkpoint, tmp_path / "b", policies=[POLICY])
    bundle = Bundle.open(folder, unsealed=True, verify=True)
    manifest = bundle.manifest
    assert [g.image for g in manifest.golden] == [None, "golden-0.png", "golden-1.png"]
    (policy,) = manifest.policies
    # Stated in the policy, else fitted by the judge card, else one half.
    assert [rule.threshold for rule in policy.rules] == [0.4, 0.3, 0.5]
    conditions = [c for rule in policy.rules for either in rule.conditions for c in either]
    assert [(c.text, c.known) for c in conditions] == [
        ("a knife", True),
        ("a sword", False),
        ("a dog", True),
        ("beer", True),
        ("a puppy", True),
    ]
    assert all(0 < c.language_prior < 1 and c.branch_ids for c in conditions)
    for graph in manifest.graphs:
        model = onnx.load(str(folder / graph.file), load_external_data=False)
        assert model.ir_version == IR_VERSION
        assert {o.domain: o.version for o in model.opset_import} == OPSETS
        assert [i.name for i in model.graph.input] == [t.name for t in graph.inputs]
        assert [o.name for o in model.graph.output] == [t.name for t in graph.outputs]
        sizes = {f.name: f.bytes for f in manifest.files}
        for tensor in model.graph.initializer:
            place = {e.key: e.value for e in tensor.external_data}
            if not place:
                continue
            assert place["location"] in graph.weight_files
            offset, length = int(place["offset"]), int(place["length"])
            assert offset + length <= sizes[place["location"]]
            assert offset % (4096 if length >= 4096 else 64) == 0


def test_parts_share_one_weight_file(checkpoint: Path, tmp_path: Path) -> None:
    whole = exporting.export(checkpoint, tmp_path / "whole")
    parts = exporting.export(checkpoint, tmp_path / "parts", cut=Cut(2))
    assert {k: v for k, v in digests(whole).items() if k.endswith(".bin")} == {
        k: v for k, v in digests(parts).items() if k.endswith(".bin")
    }
    assert read_manifest(whole).canary == read_manifest(parts).canary


def test_the_target_is_never_overwritten_by_accident(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    exporting.export(checkpoint, target)  # an empty folder is fine
    with pytest.raises(ExportError, match="is not empty"):
        exporting.export(checkpoint, target)
    exporting.export(checkpoint, target, force=True)
    (target / "diary.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"'diary.txt' is not part of one"):
        exporting.export(checkpoint, target, force=True)
    assert (target / "diary.txt").read_text() == "mine"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "bundle.json").write_text("{}")
    with pytest.raises(ExportError, match="not part of one"):
        exporting.export(checkpoint, foreign, force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="is a file"):
        exporting.export(checkpoint, tmp_path / "file", force=True)


def test_force_replaces_a_bundle_of_another_version(checkpoint: Path, tmp_path: Path) -> None:
    target = exporting.export(checkpoint, tmp_path / "out")
    change_json(target / "bundle.json", lambda v: v.update(schema_version=0))
    exporting.export(checkpoint, target, force=True)
    assert read_manifest(target).schema_version == SCHEMA_VERSION


def test_a_failed_export_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.Reference, "encode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exporting.export(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def change_json(path: Path, change: Any) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda v: v.update(model_type="llava"), "'model_type' is 'llava'"),
        ("config.json", lambda v: v["text_config"].update(hidden_act="relu"), "'hidden_act'"),
        ("config.json", lambda v: v["text_config"].update(mlp_bias=True), "'mlp_bias' is True"),
        (
            "config.json",
            lambda v: v["text_config"].update(rope_parameters={"rope_type": "yarn"}),
            "'rope_type' is 'yarn'",
        ),
        (
            "config.json",
            lambda v: v["text_config"].update(rope_scaling={"type": "linear"}),
            "'rope_scaling'",
        ),
        ("config.json", lambda v: v["vision_config"].update(num_channels=1), "'num_channels'"),
        ("config.json", lambda v: v.update(scale_factor=4), "'scale_factor' 4 does not divide"),
        ("config.json", lambda v: v["text_config"].update(num_hidden_layers=3), "lacks weight"),
        ("config.json", lambda v: v["text_config"].update(num_hidden_layers=1), "unexpected"),
        ("config.json", lambda v: v["text_config"].update(vocab_size=449), "has shape"),
        ("config.json", lambda v: v["text_config"].update(vocab_size="9"), "must be int"),
        (
            "preprocessor_config.json",
            lambda v: v["max_image_size"].update(longest_edge=32),
            "views of 32 pixels",
        ),
        ("judge.json", lambda v: v.update(surprise=1), "unknown key 'surprise'"),
        ("judge.json", lambda v: v.pop("band"), "missing key 'band'"),
        ("judge.json", lambda v: v.update(schema_version=2), "schema_version is 2"),
        ("judge.json", lambda v: v.update(question_template="Is it?"), "must contain {condition}"),
        ("judge.json", lambda v: v.update(labels={"yes": ["Yes"]}), "'labels' must be"),
        ("judge.json", lambda v: v.update(band=0.7), "'band' is 0.7"),
        ("judge.json", lambda v: v.update(calibration_set="nowhere"), "'nowhere' is neither"),
        ("judge.json", lambda v: v["policies"][0]["thresholds"].update(x=0.5), "rule 'x'"),
        ("judge.json", lambda v: v["policies"][0]["thresholds"].update(x=5), "expected 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, file: str, change: Any, message: str
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write_calibration(tmp_path / "calibration")
    change_json(folder / file, change)
    with pytest.raises(ExportError, match=message):
        exporting.export(folder, tmp_path / "out", policies=[POLICY])
    assert not (tmp_path / "out").exists()


def test_the_older_rope_key_means_the_same(checkpoint: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", open_checkpoint(checkpoint)
    old.mkdir()
    for path in checkpoint.iterdir():
        (old / path.name).write_bytes(path.read_bytes())

    def to_old(value: Any) -> None:
        text = value["text_config"]
        text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
        text["rope_scaling"] = None

    change_json(old / "config.json", to_old)
    assert open_checkpoint(old).spec == new.spec


def test_damaged_safetensors_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    data = weights.read_bytes()
    for damaged in (data[:-4], data[:4], b"\xff" * 64, b""):
        weights.write_bytes(damaged)
        with pytest.raises(ExportError, match="not readable safetensors"):
            open_checkpoint(tmp_path)
    weights.unlink()
    with pytest.raises(ExportError, match="holds neither model.safetensors"):
        open_checkpoint(tmp_path)


def test_pickles_adapters_and_missing_shards_are_refused_with_the_reason(tmp_path: Path) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", max_shard_size="100KB")
    shard = min(folder.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(ExportError, match=f"shard {shard.name} is missing"):
        open_checkpoint(folder)
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ExportError, match="merge it into its base model"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(ExportError, match=r"pytorch_model.bin is a pickle, which may run any code"):
        open_checkpoint(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is removed there")
def test_what_killed_exports_left_is_removed(checkpoint: Path, tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    pid = int(dead.stdout)
    for name in (f".out.unsealed-{pid}", f"..out.unsealed-{pid}.partial-{pid}"):
        (tmp_path / name).mkdir()
    kept = [f".out.partial-{os.getppid()}", f".other.partial-{pid}", f"out.partial-{pid}"]
    for name in kept:
        (tmp_path / name).mkdir()
    exporting.export(checkpoint, tmp_path / "out")
    assert sorted(e.name for e in tmp_path.iterdir()) == sorted([*kept, "out"])


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", text_layers=1)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with pytest.raises(ExportError, match="not finite"):
        exporting.export(folder, tmp_path / "out", "exact")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("recipe", ["balanced", "small", "w8", "exact"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_value_in_a_quantized_weight_is_enough(
    tmp_path: Path, recipe: str, value: float
) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", text_layers=1, tiling=False)
    opened = open_checkpoint(folder)
    name = "model.text_model.layers.0.mlp.up_proj.weight"
    arrays = {n: opened.weights(n) for n, _ in opened.family.weight_names(opened.spec)}
    arrays[name][3, 5] = value
    broken = replace(opened, weights=tiny.Held(arrays))
    with pytest.raises(ExportError, match=f"{name}.* not finite"):
        exporting.export(broken, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


def test_unknown_recipes_checkpoints_and_hub_ids_are_refused(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ExportError, match="known: exact, balanced, small, w8"):
        exporting.export(checkpoint, tmp_path / "out", "w3")
    with pytest.raises(ExportError, match="no such folder; give a checkpoint"):
        exporting.export(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ExportError, match="did not give it .no network.; bring .*config.json"):
        exporting.export("someone/something", tmp_path / "out")
    with pytest.raises(ExportError, match="at least 1"):
        exporting.export(checkpoint, tmp_path / "out", cut=Cut(0))


def test_a_hub_id_is_downloaded(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def download(*args: Any, **options: Any) -> str:
        asked.append((args, options))
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint("someone/something").folder == checkpoint
    assert open_checkpoint("someone/something", revision="v1.2").folder == checkpoint
    assert [(a, o["revision"]) for a, o in asked] == [
        (("someone/something",), None),
        (("someone/something",), "v1.2"),
    ]
    # Pickles are not even downloaded.
    assert not any("bin" in p or "pt" in p for p in asked[0][1]["allow_patterns"])
    with pytest.raises(ExportError, match="is a folder, which has no revision 'v1.2'"):
        open_checkpoint(checkpoint, revision="v1.2")
