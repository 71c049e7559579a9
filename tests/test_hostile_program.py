"""Core ML programs of strangers: nothing but a MIL program, that reads its own weights and ends."""

from pathlib import Path

import pytest

pytest.importorskip("coremltools", reason="the extra coreml is not installed")

from coremltools.proto import Model_pb2

from edgejudge.bundle import Bundle
from edgejudge.coreml_report import report
from edgejudge.errors import BundleError
from edgejudge.export import export
from edgejudge.mil_file import check_program
from families import FAMILIES
from hostile import Strange
from mil_by_hand import by_hand

H = "float16"
X = {"x": (H, (1, 64))}


def doing(kind: str) -> bytes:
    return by_hand([(kind, {"x": "x"}, {"y": (H, (1, 64))})], X)


def test_a_program_that_ends_is_taken() -> None:
    check_program(doing("relu"), "x")


@pytest.mark.parametrize(
    ("kind", "why"),
    [("while_loop", "a loop may never end"), ("custom_layer", "it calls code outside the model")],
)
def test_what_is_no_operation_of_ours_is_refused(kind: str, why: str) -> None:
    with pytest.raises(BundleError, match=f"has the operation {kind}: {why}; do not use"):
        check_program(doing(kind), "x")


@pytest.mark.parametrize("name", ["neuralNetwork", "pipeline", "customModel", "linkedModel"])
def test_a_model_of_another_kind_beside_the_program_is_refused(name: str) -> None:
    """Of two kinds in one file another reader would take the last."""
    other = Model_pb2.Model()
    getattr(other, name).SetInParent()
    for data in (doing("relu") + other.SerializeToString(), other.SerializeToString()):
        with pytest.raises(BundleError, match="is no Core ML program"):
            check_program(data, "x")
    with pytest.raises(BundleError, match="is a model of another kind"):
        check_program(doing("relu") + other.SerializeToString(), "x")


def test_a_strangers_bundle_is_refused_before_a_program_is_opened(tmp_path: Path) -> None:
    """With every hash as it should be."""
    checkpoint = FAMILIES["smolvlm"].make_checkpoint(tmp_path / "checkpoint")
    export(checkpoint, tmp_path / "out", "w8", targets=("cpu", "coreml"))
    strange = Strange(tmp_path / "strange", tmp_path / "out")
    bundle = Bundle.open(strange.folder, unsealed=True)
    (graph,) = (g for g in bundle.manifest.graphs if (g.target, g.stage) == ("coreml", "lm_head"))
    bundle.graph_file(graph)
    strange.replace(graph.file, doing("while_loop"))
    with pytest.raises(BundleError, match="a loop may never end"):
        Bundle.open(strange.folder, unsealed=True).graph_file(graph)
    strange.replace(graph.file, doing("relu"))
    with pytest.raises(BundleError, match="has no function tokens1, and the manifest has it"):
        report(Bundle.open(strange.folder, unsealed=True))
