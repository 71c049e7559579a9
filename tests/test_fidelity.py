"""The gate: what is sealed was measured, what fails the measure leaves no bundle behind."""

import json
import math
import re
import shutil
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
from edgejudge import fidelity
from edgejudge.bundle import Bundle, FileRecord, read_manifest, sha256_of_file
from edgejudge.cli import main
from edgejudge.errors import BundleError, ExportError, FidelityError
from edgejudge.fidelity import export_bundle
from edgejudge.gate import Tally
from edgejudge.goldens import graph_error
from edgejudge.onnx_files import external_locations
from edgejudge.runtime import Engine
from test_export import CALIBRATION, POLICY, digests, write_calibration

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fidelity")
    write_calibration(root / "calibration")
    card = tiny.make_card(calibration_set="calibration")
    return tiny.make_checkpoint(root / "checkpoint", card=card, text_layers=1)


def test_a_sealed_bundle_carries_its_report(checkpoint: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    manifest = export_bundle(
        checkpoint, tmp_path / "out", progress=lambda what, _: steps.append(what)
    )
    bundle = Bundle.open(tmp_path / "out", fingerprint=manifest.sha256, verify=True)
    assert bundle.sealed and bundle.manifest == manifest
    report = manifest.fidelity
    assert report is not None and report.decisions is not None
    found = report.decisions
    assert (report.picture_set, found.pictures) == ("calibration", len(CALIBRATION))
    assert report.calibration_pictures == 0, "two pictures are too few to spare one"
    assert found.decisions == sum(len(texts) for _, texts in CALIBRATION)
    assert 0 < found.probability_error_mean <= found.probability_error_max < 0.2
    assert 0 < report.hidden_error < 0.2 and report.graph_error <= 1e-4
    assert report.packing_error <= 1e-5
    assert 0 < found.label_mass.minimum <= found.label_mass.mean < 1
    assert found.underpowered and found.flips_upper > 0.005 and found.accepted_flips is None
    assert steps[-1] == "computing decisions by the bundle"
    export_bundle(checkpoint, tmp_path / "again")
    assert digests(tmp_path / "out") == digests(tmp_path / "again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "out"]


def test_without_a_calibration_set_pictures_are_drawn(tmp_path: Path) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", text_layers=1, tiling=False)
    report = export_bundle(folder, tmp_path / "out", "exact", policies=[POLICY]).fidelity
    assert report is not None and report.picture_set == "synthetic"
    found = report.decisions
    assert found is not None
    assert (found.pictures, found.decisions, found.flips) == (8, 8 * 5, 0)
    assert found.probability_error_max <= 1e-3
    # Every condition is asked by one rule of the policy, on every picture.
    assert {count.name: count.decisions for count in found.rules} == {
        f"kitchen.{rule.id}": 8 * sum(map(len, rule.conditions)) for rule in POLICY.rules
    }


def test_too_many_flips_leave_no_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four bits of a random checkpoint, where thresholds lie between reference and bundle."""
    everywhere = {text: 0.5 for _, texts in CALIBRATION for text in texts}
    seen: list[Any] = []
    add = Tally.add

    def between(self: Tally, *args: Any) -> None:
        picture, rules, found, wanted, _ = args
        seen.append((found, wanted))
        add(self, picture, rules, found, wanted, (found + wanted) / 2)

    monkeypatch.setattr(fidelity, "_rules", lambda _: ({"a knife": ("p.r",)}, everywhere))
    monkeypatch.setattr(Tally, "add", between)
    with pytest.raises(FidelityError, match="3 of 3 decisions flip") as refused:
        export_bundle(checkpoint, tmp_path / "out", "small")
    assert list(tmp_path.iterdir()) == []
    # The groups are named with their bits, the one that moves most first.
    assert re.search(r"move most by \w+ in [48] bits \(\d\.\d+\)", str(refused.value))
    assert "--recipe w8" in str(refused.value) and "--accept-flips" in str(refused.value)
    report = export_bundle(checkpoint, tmp_path / "out", "small", accept_flips=1.0).fidelity
    assert report is not None and report.decisions is not None
    found = report.decisions
    assert (found.flips, found.accepted_flips) == (3, 1.0)
    assert found.unsafe_to_safe + found.safe_to_unsafe == 3
    assert [count.name for count in found.rules] == ["p.r"]
    assert sum(c.unsafe_to_safe + c.safe_to_unsafe for c in found.flipped_pictures) == 3
    assert (seen[0][0] != seen[0][1]).all()


def test_a_wrong_graph_is_never_sealed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgejudge.export.onnx_ops import OnnxOps

    rms_norm = OnnxOps.rms_norm
    monkeypatch.setattr(
        OnnxOps, "rms_norm", lambda self, x, weight, eps: rms_norm(self, x, weight, eps * 1000)
    )
    with pytest.raises(ExportError, match="off the reference over the same weights"):
        export_bundle(checkpoint, tmp_path / "out", "exact", accept_flips=1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_gives_no_numbers_is_infinitely_wrong(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = exporting.export(checkpoint, tmp_path / "out", "exact")
    bundle = Bundle.open(folder, unsealed=True)
    engine = Engine.open(bundle, threads=1)
    assert graph_error(bundle, engine) < 1e-4

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        def score_blind(self, prompts: Any) -> Any:
            return np.full_like(engine.score_blind(prompts), np.nan)

    assert graph_error(bundle, Broken()) == math.inf  # type: ignore[arg-type]


def test_the_command_exports_and_reports(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(checkpoint), "--out", str(out), "--recipe", "exact"]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    manifest = read_manifest(out)
    assert (
        result["fingerprint"] == manifest.sha256 and result["fidelity"]["decisions"]["flips"] == 0
    )
    assert result["bytes"] == sum(f.bytes for f in manifest.files)
    assert "computing decisions by the bundle" in captured.err
    # Every built-in policy is compiled in, unless others are asked for.
    assert [policy.name for policy in manifest.policies] == ["stickers"]
    assert main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert f"fingerprint {manifest.sha256}" in capsys.readouterr().out


def test_a_sealed_bundle_screens_a_picture(checkpoint: Path, tmp_path: Path) -> None:
    from edgejudge import Judge

    export_bundle(checkpoint, tmp_path / "out", "exact", policies=[POLICY])
    verdict = Judge.load(tmp_path / "out", threads=1).screen(np.zeros((40, 30, 3), np.uint8))
    assert verdict.error is None and verdict.verdict in ("safe", "unsafe", "uncertain")


def test_export_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from edgejudge.cli import main\n"
        f"sys.exit(main(['export', {str(tmp_path)!r}, '--out', {str(tmp_path / 'out')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs the package torch; install it with `pip install 'edgejudge[export]'`" in (
        done.stderr
    )


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hosts", "embeddings.bin"])
@pytest.mark.parametrize("nested", [False, True])
def test_references_that_leave_the_weight_files_are_refused(
    checkpoint: Path, tmp_path: Path, location: str, nested: bool
) -> None:
    """Also where the manifest was forged to match, and from inside a subgraph."""
    folder = exporting.export(checkpoint, tmp_path / "out", "exact")
    path = folder / "cpu.vision.onnx"
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = location
    if nested:
        branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
        node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch)
        model.graph.node.append(node)
        model.graph.initializer.remove(tensor)
    path.write_bytes(model.SerializeToString())
    manifest = read_manifest(folder)
    forged = FileRecord(path.name, path.stat().st_size, sha256_of_file(path))
    files = tuple(forged if f.name == path.name else f for f in manifest.files)
    (folder / "bundle.json").write_bytes(replace(manifest, files=files).signed().canonical())
    message = f"cpu.vision.onnx: points into {location!r}"
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder, unsealed=True, verify=True)
    bundle = Bundle.open(folder, unsealed=True)
    with pytest.raises(BundleError, match=message):
        bundle.graph_file(bundle.graph("cpu", "vision"))


def test_references_are_read_as_the_onnx_library_reads_them(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = exporting.export(checkpoint, tmp_path / "out")
    for graph in read_manifest(folder).graphs:
        data = (folder / graph.file).read_bytes()
        assert external_locations(data, graph.file) == set(graph.weight_files)
        with pytest.raises(BundleError, match="not a readable ONNX graph"):
            external_locations(data[:-3], graph.file)


def test_the_gate_asks_what_the_judge_claims_to_know(checkpoint: Path, tmp_path: Path) -> None:
    root = checkpoint.parent
    card = json.loads((checkpoint / "judge.json").read_text())
    narrow = tmp_path / "narrow"
    shutil.copytree(checkpoint, narrow)
    shutil.copytree(root / "calibration", tmp_path / "calibration")
    card["concepts"] = [c for c in card["concepts"] if c["name"] == "dog"]
    card["calibration_set"] = "../calibration"
    (narrow / "judge.json").write_text(json.dumps(card))
    report = export_bundle(narrow, tmp_path / "out", "exact").fidelity
    assert report is not None and report.decisions is not None
    assert (report.decisions.pictures, report.decisions.decisions) == (1, 1), "beer is not asked"
    card["concepts"] = [{"name": "harp", "aliases": [], "category": "music"}]
    (narrow / "judge.json").write_text(json.dumps(card))
    with pytest.raises(ExportError, match="asks about nothing that the judge card lists"):
        export_bundle(narrow, tmp_path / "none", "exact")
    assert not (tmp_path / "none").exists()
