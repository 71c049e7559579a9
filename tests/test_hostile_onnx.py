"""Graphs of strangers: what they ask of an engine is refused, and what breaks it is contained."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgejudge.bundle import Bundle
from edgejudge.errors import BundleError
from edgejudge.onnx_files import check_model, external_locations
from edgejudge.wire import fields
from hostile import NANO, Strange, fixed

FILES = ("weights.bin",)


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 127
        out.append(low | (128 if value else 0))
        if not value:
            return bytes(out)


def field(number: int, *parts: bytes, tag: int = 0) -> bytes:
    """A field with bytes in it; `tag` are further bits of its tag."""
    data = b"".join(parts)
    return varint(number << 3 | 2 | tag) + varint(len(data)) + data


def location(path: str) -> bytes:
    """A tensor whose data lies elsewhere."""
    return field(13, field(1, b"location"), field(2, path.encode()))


def node(operator: str, domain: str = "", *more: bytes) -> bytes:
    return field(1, field(4, operator.encode()), field(7, domain.encode()), *more)


def graph(*parts: bytes) -> bytes:
    return field(7, *parts)


def check(model: bytes) -> None:
    check_model(memoryview(model), "g.onnx", FILES)


OUT = location("../../etc/passwd")
# Wherever onnx.proto lets a tensor stand.
WAYS: dict[str, Callable[[bytes], bytes]] = {
    "initializer": lambda t: graph(field(5, t)),
    "sparse initializer": lambda t: graph(field(15, field(1, t))),
    "sparse indices": lambda t: graph(field(15, field(2, t))),
    "attribute": lambda t: graph(node("Constant", "", field(5, field(5, t)))),
    "list attribute": lambda t: graph(node("Constant", "", field(5, field(10, t)))),
    "sparse attribute": lambda t: graph(node("Constant", "", field(5, field(22, field(1, t))))),
    "sparse list": lambda t: graph(node("Constant", "", field(5, field(23, field(2, t))))),
    "subgraph": lambda t: graph(node("If", "", field(5, field(6, field(5, t))))),
    "subgraph list": lambda t: graph(node("If", "", field(5, field(11, field(5, t))))),
    "deep subgraph": lambda t: graph(
        node("If", "", field(5, field(6, node("If", "", field(5, field(6, field(5, t)))))))
    ),
    "training": lambda t: field(20, field(2, field(5, t))),
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../../x", "other.bin", "", "*/_ORT_MEM_ADDR_/*", "weights.bin\0"],
)
def test_data_outside_is_refused_wherever_it_is_pointed_to(way: str, path: str) -> None:
    model = WAYS[way](location(path))
    assert external_locations(model, "g") == {path}
    with pytest.raises(BundleError, match="which is none of its weight files"):
        check(model)
    check(WAYS[way](location("weights.bin")))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph(node("Custom", "ai.onnx.contrib")), "come from a library"),
        (graph(node("Add", "com.evil")), "'com.evil', which come from a library"),
        (graph(node("EPContext", "com.microsoft")), "EPContext: what a provider compiled"),
        (graph(node("PythonOp", "com.microsoft")), "calls code outside"),
        (graph(node("Loop", "", field(5, field(6)))), "Loop: a loop may never end"),
        (graph(node("If", "", field(5, field(6, node("Scan"))))), "Scan: a loop may never end"),
        (field(25, field(1, b"f")), "defines functions"),
        (field(14, field(1, b"ort_config"), field(2, b"{}")), "settings of a session"),
    ],
)
def test_what_is_no_operator_of_the_engine_is_refused(model: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check(model)


def test_the_check_reads_as_the_engine_does() -> None:
    """Of a tag beyond 32 bits, ONNX Runtime reads the low ones and skips the rest: a reader that
    took the number as it stands would see no graph at all.
    """
    for bad in (
        field(7, field(5, OUT), tag=1 << 33),
        graph(field(5, OUT, tag=1 << 40)),
        graph(field(5, field(13, field(1, b"location", tag=1 << 35), field(2, b"/x")))),
    ):
        with pytest.raises(BundleError, match="not a readable ONNX graph"):
            check(bad)
    # A number where a text belongs is skipped by the engine, and must not hide the text.
    hidden = field(13, field(1, b"location"), varint(1 << 3) + varint(5), field(2, b"/etc/x"))
    with pytest.raises(BundleError, match="'/etc/x'"):
        check(graph(field(5, hidden)))
    # Of a text that is given twice the last one counts.
    twice = field(13, field(1, b"offset"), field(1, b"location"), field(2, b"weights.bin"))
    again = field(13, field(1, b"location"), field(2, b"weights.bin"), field(2, b"/x"))
    check(graph(field(5, twice)))
    with pytest.raises(BundleError, match="'/x'"):
        check(graph(field(5, again)))


def test_nesting_ends() -> None:
    inner = field(5, OUT)
    for _ in range(200):
        inner = node("If", "", field(5, field(6, inner)))
    with pytest.raises(BundleError, match="nested too deeply"):
        check(graph(inner))


@fixed(300)
@given(st.binary(max_size=200))
def test_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        check(data)
    except BundleError as error:
        assert "g.onnx" in str(error)


@fixed(300)
@given(st.binary(max_size=64))
def test_nothing_before_a_graph_hides_what_is_in_it(data: bytes) -> None:
    inner = field(5, OUT)
    changed = data + field(7, inner)
    try:
        found = external_locations(changed, "g")
    except BundleError:
        return
    if any(
        n == 7 and not isinstance(v, int) and bytes(v) == inner
        for n, v in fields(memoryview(changed))
    ):
        assert found == {"../../etc/passwd"}


# ONNX Runtime itself, in a process of its own: it may fall over what is in a graph.
CHILD = """
import json, sys
from pathlib import Path
from edgejudge.errors import EdgeJudgeError
from edgejudge.judge import Judge
from PIL import Image
for folder in json.loads(sys.argv[1]):
    try:
        judge = Judge.load(folder, threads=1)
        found = judge.screen(Image.new("RGB", (32, 32), (9, 99, 199)), "stickers")
        word = found.verdict or "failed"
    except EdgeJudgeError as error:
        word = "refused"
        assert str(error)
    print(f"{Path(folder).name} {word}", flush=True)
"""


def asked(folders: list[Path], cache: Path) -> tuple[dict[str, str], int]:
    """What became of each bundle, and how the process ended."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([str(folder) for folder in folders])],
        env={**os.environ, "EDGEJUDGE_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return {name: word for name, word in lines}, done.returncode


def test_graphs_with_changed_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    """Signed again, so that only the graph can be at fault. The canary finds what computes
    otherwise; nothing of ours is raised but an error of ours, and the engine stays up.
    """
    rng = random.Random(7)
    folders = []
    for index in range(12):
        strange = Strange(tmp_path / f"b{index}")
        name = ("cpu.verdict_head.onnx", "cpu.vision.onnx", "cpu.decoder.0.onnx")[index % 3]
        data = bytearray((NANO / name).read_bytes())
        if index % 4 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        strange.replace(name, bytes(data))
        folders.append(strange.folder)
    sound = Strange(tmp_path / "sound").folder
    found, code = asked([*folders, sound], tmp_path / "cache")
    assert code == 0 and len(found) == len(folders) + 1, (code, found)
    assert found.pop("sound") not in ("refused", "failed")
    assert list(found.values()).count("refused") >= len(folders) // 2, found


def test_a_graph_that_was_swapped_for_another_is_refused_by_its_tensors(tmp_path: Path) -> None:
    strange = Strange(tmp_path / "b")
    strange.replace("cpu.verdict_head.onnx", (NANO / "cpu.lm_head.onnx").read_bytes())
    os.environ["EDGEJUDGE_CACHE"], before = str(tmp_path), os.environ.get("EDGEJUDGE_CACHE")
    try:
        bundle = Bundle.open(strange.folder)
        with pytest.raises(BundleError, match="points into|is not as the manifest records"):
            from edgejudge.runtime.session import CPU, open_session

            open_session(bundle, bundle.graph("cpu", "verdict_head"), CPU, 1)
    finally:
        del os.environ["EDGEJUDGE_CACHE"]
        if before is not None:
            os.environ["EDGEJUDGE_CACHE"] = before
