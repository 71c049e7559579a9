"""Functions that read bytes of strangers, each as a fuzzer wants it: bytes in, nothing out.

An error of ours is an answer; whatever else is raised is a find. Imported by fuzz.py under
instrumentation, and by tests/test_hostile_fuzz.py without it.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from edgejudge.answering.rubric_files import read_checklist, read_rubric
from edgejudge.bundle import manifest_of
from edgejudge.calibrating.label_file import read_labels
from edgejudge.calibration import Calibration
from edgejudge.errors import BundleError, EdgeJudgeError
from edgejudge.images import Limits, decode
from edgejudge.mil_file import check_program, read_program
from edgejudge.models.fitting import check_fit
from edgejudge.models.tokenizer_file import read_tokenizer
from edgejudge.neural_engine import leaving
from edgejudge.onnx_files import check_model
from edgejudge.policy import Policy
from edgejudge.regions import read_regions
from edgejudge.strict_json import canonical_json

__all__ = ["ROOT", "TARGETS", "seeds"]

ROOT = Path(__file__).parents[2]
_NANO = ROOT / "models" / "nano" / "bundle"
_LIMITS = Limits(max_bytes=1 << 20, max_pixels=1 << 20, max_side=4096)
_FILE = Path(tempfile.mkdtemp(prefix="edgejudge-fuzz-")) / "file"
_QUESTIONS = ("a knife", "fire")
Target = Callable[[bytes], None]


def _signed(data: bytes, key: str) -> bytes:
    """The document with its own hash, or every change would end at the checksum."""
    try:
        value: Any = json.loads(data)
        if isinstance(value, dict):
            empty = canonical_json({**value, key: ""})
            return canonical_json({**value, key: hashlib.sha256(empty).hexdigest()})
    except (ValueError, RecursionError):
        pass
    return data


def _manifest(data: bytes) -> None:
    check_fit(manifest_of(_signed(data, "sha256"), Path("bundle.json")), "bundle")


def _calibration(data: bytes) -> None:
    made = Calibration.of(_signed(data, "id"), Path("calibration.json"))
    for rule in made.record.rules:
        found = made.rule(rule.id)
        assert found is not None
        shares = [found.apply(p, "a knife") for p in (0.0, 1e-9, 0.5, 1.0)]
        assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] <= 1


def _policy_yaml(data: bytes) -> None:
    policy = Policy.from_yaml(data)
    assert Policy.from_yaml(data).hash == policy.hash


def _policy_json(data: bytes) -> None:
    try:
        text = json.dumps(json.loads(data))
    except (ValueError, RecursionError):
        return
    _policy_yaml(text.encode())


def _onnx(data: bytes) -> None:
    check_model(memoryview(data), "graph.onnx", ("weights.f32.bin", "weights.q8.bin"))


def _program(data: bytes) -> None:
    check_program(data, "program.mlmodel")
    for function in read_program(data, "program.mlmodel").functions:
        for operation in function.operations:
            for rule in leaving(operation):
                assert rule.reason


def _image(data: bytes) -> None:
    rgb = decode(data, _LIMITS).rgb
    assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size


def _on_file(read: Callable[[Path], object]) -> Target:
    def run(data: bytes) -> None:
        _FILE.write_bytes(data)
        read(_FILE)

    return run


TARGETS: Mapping[str, Target] = {
    "manifest": _manifest,
    "policy_yaml": _policy_yaml,
    "policy_json": _policy_json,
    "onnx": _onnx,
    "program": _program,
    "image": _image,
    "calibration": _calibration,
    "tokenizer": _on_file(lambda file: read_tokenizer(file, 1 << 16, BundleError)),
    "regions": _on_file(read_regions),
    "labels": _on_file(lambda file: read_labels(file, ("weapons",), _QUESTIONS)),
    "rubric": _on_file(read_rubric),
    "checklist": _on_file(read_checklist),
}


def run(name: str, data: bytes) -> None:
    """Raises for a find alone."""
    try:
        TARGETS[name](data)
    except EdgeJudgeError as error:
        assert str(error), "an error without a word"


def seeds(name: str) -> list[bytes]:
    """Sound files to begin with, and what was found before."""
    kept = Path(__file__).parent / "corpus" / name
    files = sorted(kept.glob("*"), key=lambda file: (file.name.startswith("find-"), file.name))
    return [*_sound(name), *(file.read_bytes() for file in files)]


def _sound(name: str) -> list[bytes]:
    policies = sorted((ROOT / "edgejudge" / "policies").glob("*.yaml"))
    if name == "manifest":
        return [(_NANO / "bundle.json").read_bytes()]
    if name == "policy_yaml":
        return [file.read_bytes() for file in policies]
    if name == "policy_json":
        return [json.dumps(yaml.safe_load(file.read_bytes())).encode() for file in policies]
    if name == "onnx":
        return [file.read_bytes() for file in sorted(_NANO.glob("*head.onnx"))]
    if name == "tokenizer":
        value = json.loads((_NANO / "tokenizer.json").read_bytes())
        value["model"].update(vocab={"a": 0, "b": 1, "ab": 2}, merges=[["a", "b"]])
        return [json.dumps(value).encode()]
    return []
