"""Exports under the limits of a small machine, in processes of their own."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import tiny

HERE = Path(__file__).parent
# One decoder layer and two vision layers of the 3B preset, with its whole vocabulary: in float32
# the head alone takes 1.2 GB, and so does the embedding table.
SCRIPT = """
import json, resource, sys
from edgejudge.cli import main
from edgejudge.export import preset
from test_preset import thinned

preset.preset_named = thinned
code = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"code": code, "peak_kib": peak}))
"""
VERDICT_THEN_TEXT = """
import json, re, sys

import numpy as np

from edgejudge import Judge


def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])


judge = Judge.load(sys.argv[1], threads=1, allow_random=True)
picture = np.zeros((40, 60, 3), np.uint8)
failure = judge.screen(picture).error
before = peak_kib()
judge.write(picture, "Why?", max_tokens=1)
print(json.dumps({"failure": str(failure), "before": before, "after": peak_kib()}))
"""
DATA_LIMIT = 1170 << 20  # less than that table


def run(arguments: list[str], limit: int, value: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        cwd=HERE,
        # What a thread's stack and allocator reserve must not depend on the number of cores.
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA as Linux keeps it")
def test_a_vocabulary_larger_than_the_memory_is_streamed(tmp_path: Path) -> None:
    command = ["export", "--preset", "qwen2.5-vl-3b", "--random-weights", "--max-pixels", "20000"]
    done = run([*command, "--out", str(tmp_path / "out")], resource.RLIMIT_DATA, DATA_LIMIT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "bundle.json").read_bytes())
    assert manifest["embeddings"]["rows"] * manifest["embeddings"]["width"] * 4 > DATA_LIMIT
    # A verdict needs the label rows alone; the head that makes text costs memory with the first
    # text, and not before.
    judged = subprocess.run(
        [sys.executable, "-c", VERDICT_THEN_TEXT, str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    found = json.loads(judged.stdout)
    head = next(q["bytes"] for q in manifest["quantization"] if q["group"] == "head")
    assert found["failure"] == "None" and head > 100 << 20
    assert 1024 * (found["after"] - found["before"]) > 0.9 * head
    # The limit bites: who takes one matrix whole does not get far.
    greedy = "import numpy; numpy.ones((151936, 2048), numpy.float32)"
    failed = subprocess.run(
        [sys.executable, "-c", greedy],
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT, DATA_LIMIT)),
    )
    assert failed.returncode != 0 and b"Unable to allocate" in failed.stderr


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", tiling=False)
    out = tmp_path / "bundles" / "out"
    command = ["export", str(folder), "--out", str(out), "--recipe", "exact"]
    done = run(command, resource.RLIMIT_FSIZE, 100_000)
    assert json.loads(done.stdout.splitlines()[-1])["code"] == 2
    assert "the bundle could not be written (File too large)" in done.stderr
    assert not out.exists() and list(out.parent.iterdir()) == []


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    folder = tiny.make_checkpoint(tmp_path / "checkpoint", tiling=False)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    done = run(["export", str(folder), "--out", str(out)], resource.RLIMIT_CORE, 0)
    assert json.loads(done.stdout.splitlines()[-1])["code"] == 2
    assert "could not be written (Not a directory)" in done.stderr
    assert (tmp_path / "file").read_text() == ""
