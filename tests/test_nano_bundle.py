"""The bundle that ships: it is the export of the checkpoint beside it, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgejudge.bundle import Bundle, Manifest, read_manifest
from edgejudge.export import export
from edgejudge.goldens import graph_error
from edgejudge.policy import COMPILED, load_policy
from edgejudge.runtime import Engine

NANO = Path(__file__).parent.parent / "models" / "nano"
MOST_WHEEL_BYTES = 40 * 10**6


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    out = tmp_path_factory.mktemp("nano") / "bundle"
    policies = [load_policy(name).record() for name in COMPILED]
    shipped = read_manifest(NANO / "bundle")
    return read_manifest(export(NANO / "checkpoint", out, shipped.recipe, policies=policies))


def test_graphs_and_weights_are_rebuilt_byte_for_byte(rebuilt: Manifest) -> None:
    assert rebuilt.files == read_manifest(NANO / "bundle").files


def test_the_manifest_is_rebuilt_but_for_tools_and_measurement(rebuilt: Manifest) -> None:
    shipped = read_manifest(NANO / "bundle")
    same = replace(rebuilt, tools=shipped.tools, fidelity=shipped.fidelity).signed()
    assert same == shipped


def test_the_shipped_bundle_is_whole_sealed_and_right() -> None:
    bundle = Bundle.open(NANO / "bundle", verify=True)
    report = bundle.manifest.fidelity
    assert report is not None and report.decisions is not None
    found = report.decisions
    assert (report.calibration_pictures, found.pictures) == (16, 168)
    # Every concept of every picture, and what is asked of some of them beside that.
    assert found.decisions > 168 * len(bundle.manifest.concepts)
    assert report.packing_error <= 1e-5
    assert found.flips_upper <= 0.005 and found.probability_error_99 <= 0.05
    assert sum(f.bytes for f in bundle.manifest.files) < MOST_WHEEL_BYTES
    assert graph_error(bundle, Engine.open(bundle)) <= bundle.manifest.canary.tolerance
