"""Compiled contexts are kept, used while nothing differs, and refused where anything does."""

import json
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import on_devices as od
from edgejudge.bundle import sha256_of_file
from edgejudge.errors import ProviderError
from edgejudge.runtime import compiled
from edgejudge.runtime.assignment import NodesElsewhere, elsewhere
from edgejudge.runtime.compiled import compiled_path, prepared
from edgejudge.runtime.placement import Device
from edgejudge.runtime.provider import open_inner

Made = tuple[Any, Any]  # a bundle and its graph
NPU = Device("npu", "QNNExecutionProvider", "2.7.0", (("a", "b"),), True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEJUDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def bundle_of(folder: Path, *files: str) -> tuple[Any, Any]:
    """As much of a bundle as is asked for, and its graph, whose file is the first."""
    records = [SimpleNamespace(name=name, sha256=sha256_of_file(folder / name)) for name in files]
    bundle = SimpleNamespace(
        fingerprint="f" * 64,
        manifest=SimpleNamespace(files=records),
        graph_file=lambda graph: folder / graph.file,
    )
    return bundle, SimpleNamespace(file=files[0])


@pytest.fixture
def made(tmp_path: Path) -> Made:
    folder = tmp_path / "bundle"
    folder.mkdir()
    od.relu(folder / "npu.vision.onnx")
    return bundle_of(folder, "npu.vision.onnx")


class Compiler:
    """Writes a context as ONNX Runtime does; opening a file gives what it was compiled from."""

    def __init__(self) -> None:
        self.compiled = 0
        self.refuses_contexts = False

    def __call__(self, path: Path, config: Mapping[str, str]) -> str:
        if path.name.endswith("_ctx.onnx"):
            if self.refuses_contexts:
                raise ProviderError("another driver")
            try:
                weights = path.with_name(path.stem + "_qnn.bin").read_text()
                return f"{path.read_text()} {weights}"
            except OSError as error:  # another process has found it damaged just now
                raise ProviderError(str(error)) from None
        self.compiled += 1
        if config:
            assert config["ep.context_enable"] == "1" and config["ep.context_embed_mode"] == "0"
            context = Path(config["ep.context_file_path"])
            assert not context.exists() and context.parent.is_dir()
            context.write_text("context")
            context.with_name(context.stem + "_qnn.bin").write_text("weights")
        return "fresh"


def left_over(bundle: Any, graph: Any, device: Device = NPU) -> list[str]:
    """Everything in the bundle's folder of the cache but this one context."""
    kept = compiled_path(bundle, graph, device)
    return sorted(file.name for file in kept.parent.iterdir() if file != kept)


def test_compiled_once_and_found_again(made: Made, cache: Path) -> None:
    bundle, graph = made
    compiler = Compiler()
    assert prepared(bundle, graph, NPU, compiler) == ("fresh", "compiled")
    assert prepared(bundle, graph, NPU, compiler) == ("context weights", "cached")
    assert compiler.compiled == 1 and left_over(bundle, graph) == []
    folder = compiled_path(bundle, graph, NPU)
    assert folder.parent == cache / "compiled" / bundle.fingerprint
    assert {file.name for file in folder.iterdir()} == {
        "npu.vision_ctx.onnx",
        "npu.vision_ctx_qnn.bin",
        "stamp.json",
    }
    stamp = json.loads((folder / "stamp.json").read_bytes())
    assert stamp["options"] == {"a": "b", "htp_arch": "73"}
    assert stamp["files"]["npu.vision_ctx_qnn.bin"]["bytes"] == len("weights")


@pytest.mark.parametrize(
    "changes",
    [
        {"provider": "OpenVINOExecutionProvider"},
        {"version": "2.8.0"},
        {"options": ()},
        {"simulator": False},
    ],
)
def test_another_device_has_its_own(made: Made, changes: dict[str, Any]) -> None:
    bundle, graph = made
    prepared(bundle, graph, NPU, Compiler())
    other = replace(NPU, **changes)
    assert prepared(bundle, graph, other, Compiler())[1] == "compiled"
    assert prepared(bundle, graph, NPU, Compiler())[1] == "cached"


def test_another_onnx_runtime_has_its_own(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, graph = made
    prepared(bundle, graph, NPU, Compiler())
    monkeypatch.setattr(compiled.ort, "__version__", "99.0")
    assert prepared(bundle, graph, NPU, Compiler())[1] == "compiled"


@pytest.mark.parametrize(
    "key",
    [
        "schema_version",
        "fingerprint",
        "graph",
        "graph_sha256",
        "provider",
        "version",
        "options",
        "onnxruntime",
        "processor",
        "files",
    ],
)
@pytest.mark.parametrize("change", ["other", "gone"])
def test_a_stamp_that_differs(made: Made, key: str, change: str) -> None:
    bundle, graph = made
    compiler = Compiler()
    prepared(bundle, graph, NPU, compiler)
    file = compiled_path(bundle, graph, NPU) / "stamp.json"
    stamp = json.loads(file.read_bytes())
    del stamp[key]
    file.write_text(json.dumps(stamp if change == "gone" else {**stamp, key: "other"}))
    assert prepared(bundle, graph, NPU, compiler) == ("fresh", "stale")
    assert prepared(bundle, graph, NPU, compiler)[1] == "cached"
    assert compiler.compiled == 2 and left_over(bundle, graph) == []


def test_every_key_of_the_stamp_is_tested(made: Made) -> None:
    (marked,) = (
        mark.args[1]
        for mark in test_a_stamp_that_differs.pytestmark  # type: ignore[attr-defined]
        if mark.args[0] == "key"
    )
    assert set(marked) == {*compiled._stamp(*made, NPU), "files"}


@pytest.mark.parametrize("name", ["npu.vision_ctx.onnx", "npu.vision_ctx_qnn.bin", "stamp.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "gone", "more", "a folder"])
def test_damaged_files(made: Made, name: str, damage: str) -> None:
    bundle, graph = made
    compiler = Compiler()
    prepared(bundle, graph, NPU, compiler)
    file = compiled_path(bundle, graph, NPU) / name
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "changed":
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "more":
        file.with_name("more").touch()
    else:
        file.unlink()
        if damage == "a folder":
            file.mkdir()
    assert prepared(bundle, graph, NPU, compiler) == ("fresh", "stale")
    assert prepared(bundle, graph, NPU, compiler)[1] == "cached"
    assert left_over(bundle, graph) == []


def test_a_file_where_the_folder_should_be(made: Made) -> None:
    bundle, graph = made
    folder = compiled_path(bundle, graph, NPU)
    folder.parent.mkdir(parents=True)
    for place in (folder.touch, lambda: folder.symlink_to("nowhere")):
        place()
        assert prepared(bundle, graph, NPU, Compiler())[1] == "stale"
        assert prepared(bundle, graph, NPU, Compiler())[1] == "cached"
        shutil.rmtree(folder)


def test_a_whole_context_that_the_device_refuses(made: Made) -> None:
    bundle, graph = made
    compiler = Compiler()
    prepared(bundle, graph, NPU, compiler)
    compiler.refuses_contexts = True
    assert prepared(bundle, graph, NPU, compiler) == ("fresh", "stale")


def test_a_cache_that_cannot_be_written_to(made: Made, cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file in the folder's place")
    compiler = Compiler()
    for _ in range(2):
        assert prepared(*made, NPU, compiler) == ("fresh", "compiled")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere"
)
def test_a_folder_without_write_permission(made: Made, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o500)
    assert prepared(*made, NPU, Compiler()) == ("fresh", "compiled")
    cache.chmod(0o700)


def test_a_context_that_cannot_be_written(made: Made) -> None:
    """A full disk: ONNX Runtime fails the session, and without a context it opens."""

    def load(path: Path, config: Mapping[str, str]) -> str:
        if config:
            Path(config["ep.context_file_path"]).write_text("half a cont")
            raise ProviderError("Failed to open context cache file")
        return "fresh"

    assert prepared(*made, NPU, load) == ("fresh", "compiled")
    assert not compiled_path(*made, NPU).exists() and left_over(*made) == []


def test_a_graph_that_fails_says_so_itself(made: Made) -> None:
    def load(path: Path, config: Mapping[str, str]) -> str:
        raise ProviderError("with a context" if config else "without one")

    with pytest.raises(ProviderError, match="^without one$"):
        prepared(*made, NPU, load)
    assert left_over(*made) == []


def test_nodes_elsewhere_are_final(made: Made) -> None:
    asked: list[Path] = []

    def load(path: Path, config: Mapping[str, str]) -> str:
        asked.append(path)
        raise NodesElsewhere("2 nodes")

    with pytest.raises(NodesElsewhere):
        prepared(*made, NPU, load)
    assert len(asked) == 1 and left_over(*made) == [], "a graph is not compiled again for nothing"


def test_an_interruption_leaves_nothing(made: Made) -> None:
    def load(path: Path, config: Mapping[str, str]) -> str:
        Path(config["ep.context_file_path"]).write_text("half a cont")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(*made, NPU, load)
    assert left_over(*made) == [] and not compiled_path(*made, NPU).exists()


def test_a_provider_that_writes_nothing(made: Made) -> None:
    assert prepared(*made, NPU, lambda path, config: "fresh") == ("fresh", "compiled")
    assert not compiled_path(*made, NPU).exists() and left_over(*made) == []


def test_two_at_once(made: Made) -> None:
    """Both compile; one of them is kept, whole."""
    compiler = Compiler()
    both = threading.Barrier(2)

    def load(path: Path, config: Mapping[str, str]) -> str:
        loaded = compiler(path, config)
        both.wait(10)
        return loaded

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: prepared(*made, NPU, load), range(2)))
    assert found == [("fresh", "compiled")] * 2
    assert left_over(*made) == []
    assert prepared(*made, NPU, compiler) == ("context weights", "cached")


def test_many_at_once_over_damaged_files(made: Made) -> None:
    compiler = Compiler()
    prepared(*made, NPU, compiler)
    for _ in range(10):
        (compiled_path(*made, NPU) / "npu.vision_ctx_qnn.bin").write_text("damaged")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: prepared(*made, NPU, compiler), range(8)))
        assert {text for text, _ in found} <= {"fresh", "context weights"}
        assert left_over(*made) == []
        assert prepared(*made, NPU, compiler)[0] in ("fresh", "context weights")
        assert prepared(*made, NPU, compiler) == ("context weights", "cached")


@pytest.mark.parametrize("declined", [False, True])
def test_qnn(declined: bool, tmp_path: Path) -> None:
    """Bit by bit what a fresh session gives, without a look at the bundle's weights."""
    npu = od.device("QNNExecutionProvider")
    folder = tmp_path / "bundle"
    folder.mkdir()
    file = od.quantized(folder / "npu.vision.onnx", declined)
    weights = [path.name for path in folder.glob("*.bin")]
    assert bool(weights) == declined
    bundle, graph = bundle_of(folder, file.name, *weights)
    opened: list[Path] = []

    def load(path: Path, config: Mapping[str, str]) -> Any:
        opened.append(path)
        return open_inner(path, npu, 1, config=config)

    x = {"x": np.random.default_rng(0).uniform(-3, 3, (8, 64)).astype(np.float32)}
    reference = open_inner(file, npu, 1).run(None, x)[0]
    first, origin = prepared(bundle, graph, npu, load)
    assert origin == "compiled" and np.array_equal(first.run(None, x)[0], reference)
    for name in weights:
        (folder / name).rename(tmp_path / name)
    second, origin = prepared(bundle, graph, npu, load)
    assert origin == "cached" and opened[-1].name == "npu.vision_ctx.onnx"
    assert np.array_equal(second.run(None, x)[0], reference)
    strays = {stray.op: stray.reason for stray in elsewhere(second, npu.provider, opened[-1])}
    assert strays["QuantizeLinear"] == "what comes in and goes out is quantized on the CPU"
    assert ("Det" in strays) == declined
    for name in weights:
        (tmp_path / name).rename(folder / name)
    (context,) = compiled_path(bundle, graph, npu).glob("*.bin")
    context.write_bytes(context.read_bytes()[:1000])
    third, origin = prepared(bundle, graph, npu, load)
    assert origin == "stale" and np.array_equal(third.run(None, x)[0], reference)


def test_qnn_that_cannot_write_its_context(tmp_path: Path) -> None:
    """The folder is gone when it writes: the real error is one that costs the context only."""
    npu = od.device("QNNExecutionProvider")
    file = od.quantized(tmp_path / "npu.vision.onnx")
    bundle, graph = bundle_of(tmp_path, file.name)

    def load(path: Path, config: Mapping[str, str]) -> Any:
        if config:
            blocked = Path(config["ep.context_file_path"]).parent
            shutil.rmtree(blocked)
            blocked.write_text("no folder")
        return open_inner(path, npu, 1, config=config)

    inner, origin = prepared(bundle, graph, npu, load)
    assert origin == "compiled" and inner.get_providers()[0] == npu.provider
    assert not compiled_path(bundle, graph, npu).exists()
